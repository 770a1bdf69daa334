/** Result of a call that may still be running (Python's concurrent.futures.Future). */
import { CancelledError, FutureTimeoutError, InvalidStateError } from '../errors';
import { startTimer } from '../timer';

/**
 * A value completed later from outside. Unlike a promise, its state can be read synchronously, an
 * unobserved failure is no unhandled rejection, and it queues no microtask until awaited.
 *
 * A method that returns a Future must not be `async`: awaiting would unwrap it.
 */
export class Future<T> implements PromiseLike<T> {
  #state: 'pending' | 'finished' | 'failed' | 'cancelled' = 'pending';
  #value: T | undefined = undefined;
  #error: unknown = undefined;
  #callbacks: ((future: Future<T>) => void)[] | null = null;

  /** A completed future. */
  static resolved<T>(value: T): Future<T> {
    const future = new Future<T>();
    future.setResult(value);
    return future;
  }

  /** A failed future. */
  static failed<T = never>(error: unknown): Future<T> {
    const future = new Future<T>();
    future.setException(error);
    return future;
  }

  /** True once it has completed, failed or been cancelled. */
  done(): boolean {
    return this.#state !== 'pending';
  }

  cancelled(): boolean {
    return this.#state === 'cancelled';
  }

  /**
   * Cancels: waiting callers get CancelledError and a late result is dropped. The work itself
   * continues. False if already done.
   */
  cancel(): boolean {
    if (this.#state === 'cancelled') return true;
    if (this.#state !== 'pending') return false;
    this.#error = new CancelledError();
    this.#complete('cancelled');
    return true;
  }

  /** Throws InvalidStateError if already done; ignored if cancelled. */
  setResult(value: T): void {
    if (!this.#completes()) return;
    this.#value = value;
    this.#complete('finished');
  }

  /** Throws InvalidStateError if already done; ignored if cancelled. */
  setException(error: unknown): void {
    if (!this.#completes()) return;
    this.#error = error;
    this.#complete('failed');
  }

  /**
   * Resolves with the result. Rejects with the future's error, CancelledError, or
   * FutureTimeoutError after `timeoutMs` (the future itself stays pending).
   */
  result(timeoutMs?: number): Promise<T> {
    return this.#wait(timeoutMs, (resolve, reject) => {
      if (this.#state === 'finished') resolve(this.#value as T);
      else reject(this.#error);
    });
  }

  /**
   * Resolves with the error, or null on success. Rejects as `result` does when cancelled or timed
   * out.
   */
  exception(timeoutMs?: number): Promise<unknown> {
    return this.#wait<unknown>(timeoutMs, (resolve, reject) => {
      if (this.#state === 'cancelled') reject(this.#error);
      else resolve(this.#state === 'failed' ? this.#error : null);
    });
  }

  /** The settled outcome, without waiting; null while pending. */
  peek(): PromiseSettledResult<T> | null {
    if (this.#state === 'pending') return null;
    return this.#state === 'finished'
      ? { status: 'fulfilled', value: this.#value as T }
      : { status: 'rejected', reason: this.#error };
  }

  /**
   * Calls `callback` once the future is done: synchronously from the completing call, or
   * immediately if done. Errors it throws become warnings.
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

  /** Whether to accept a result. */
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
    timeoutMs: number | undefined,
    settle: (resolve: (value: V) => void, reject: (error: unknown) => void) => void,
  ): Promise<V> {
    return new Promise<V>((resolve, reject) => {
      const whenDone = () => {
        stopTimer();
        settle(resolve, reject);
      };
      const stopTimer = startTimer(timeoutMs, () => {
        this.#callbacks = this.#callbacks?.filter((other) => other !== whenDone) ?? null;
        reject(new FutureTimeoutError(timeoutMs as number));
      });
      this.addDoneCallback(whenDone);
    });
  }
}
