/** The result of a call that was started and may still be running (Python's concurrent.futures.Future). */
import { CancelledError, FutureTimeoutError, InvalidStateError } from '../errors';
import { startTimer } from '../timer';

/**
 * A value that is there later, completed from outside. Unlike a promise it can be asked whether it is
 * done, a failure that no caller looks at is no unhandled rejection, and it starts no microtask until
 * it is awaited.
 *
 * A method that returns a Future must not be `async`: awaiting would flatten it.
 */
export class Future<T> implements PromiseLike<T> {
  #state: 'pending' | 'finished' | 'failed' | 'cancelled' = 'pending';
  #value: T | undefined = undefined;
  #error: unknown = undefined;
  #callbacks: ((future: Future<T>) => void)[] | null = null;

  /** A future that is done. */
  static resolved<T>(value: T): Future<T> {
    const future = new Future<T>();
    future.setResult(value);
    return future;
  }

  /** A future that has failed. */
  static failed<T = never>(error: unknown): Future<T> {
    const future = new Future<T>();
    future.setException(error);
    return future;
  }

  /** True once it has a result, an error, or was cancelled. */
  done(): boolean {
    return this.#state !== 'pending';
  }

  cancelled(): boolean {
    return this.#state === 'cancelled';
  }

  /**
   * Gives the result up: callers that wait get a CancelledError and a late result is dropped. The work
   * itself goes on. False when it was done before.
   */
  cancel(): boolean {
    if (this.#state === 'cancelled') return true;
    if (this.#state !== 'pending') return false;
    this.#error = new CancelledError();
    this.#complete('cancelled');
    return true;
  }

  /** Throws InvalidStateError when it is done; does nothing when it was cancelled. */
  setResult(value: T): void {
    if (!this.#completes()) return;
    this.#value = value;
    this.#complete('finished');
  }

  /** Throws InvalidStateError when it is done; does nothing when it was cancelled. */
  setException(error: unknown): void {
    if (!this.#completes()) return;
    this.#error = error;
    this.#complete('failed');
  }

  /**
   * The result. Rejects with the future's error, with CancelledError, or with FutureTimeoutError
   * when it is not done within `timeout` milliseconds (the future itself goes on).
   */
  result(timeout?: number): Promise<T> {
    return this.#wait(timeout, (resolve, reject) => {
      if (this.#state === 'finished') resolve(this.#value as T);
      else reject(this.#error);
    });
  }

  /** The error it failed with, null when it succeeded. Rejects as `result` does when cancelled or late. */
  exception(timeout?: number): Promise<unknown> {
    return this.#wait<unknown>(timeout, (resolve, reject) => {
      if (this.#state === 'cancelled') reject(this.#error);
      else resolve(this.#state === 'failed' ? this.#error : null);
    });
  }

  /** What it completed with, without waiting; null until it is done. */
  peek(): PromiseSettledResult<T> | null {
    if (this.#state === 'pending') return null;
    return this.#state === 'finished'
      ? { status: 'fulfilled', value: this.#value as T }
      : { status: 'rejected', reason: this.#error };
  }

  /**
   * Calls `callback` once, when the future is done: from within the call that completes it, or at
   * once. What it throws becomes a warning; the other callbacks still run.
   */
  addDoneCallback(callback: (future: Future<T>) => void): void {
    if (this.#state === 'pending') (this.#callbacks ??= []).push(callback);
    else this.#callBack(callback);
  }

  /** Makes it awaitable. */
  then<A = T, B = never>(
    onFulfilled?: ((value: T) => A | PromiseLike<A>) | null,
    onRejected?: ((error: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.result().then(onFulfilled, onRejected);
  }

  /** Whether a result is still wanted. */
  #completes(): boolean {
    if (this.#state === 'pending') return true;
    if (this.#state === 'cancelled') return false;
    throw new InvalidStateError(`the future is already ${this.#state}`);
  }

  #complete(state: 'finished' | 'failed' | 'cancelled'): void {
    this.#state = state;
    const callbacks = this.#callbacks;
    this.#callbacks = null;
    if (callbacks !== null) for (const callback of callbacks) this.#callBack(callback);
  }

  #callBack(callback: (future: Future<T>) => void): void {
    try {
      callback(this);
    } catch (error) {
      process.emitWarning(`a future's done callback threw: ${String(error)}`, 'UniprocWarning');
    }
  }

  #wait<V>(
    timeout: number | undefined,
    settle: (resolve: (value: V) => void, reject: (error: unknown) => void) => void,
  ): Promise<V> {
    return new Promise<V>((resolve, reject) => {
      const whenDone = () => {
        stopTimer();
        settle(resolve, reject);
      };
      const stopTimer = startTimer(timeout, () => {
        this.#callbacks = this.#callbacks?.filter((other) => other !== whenDone) ?? null;
        reject(new FutureTimeoutError(timeout as number));
      });
      this.addDoneCallback(whenDone);
    });
  }
}
