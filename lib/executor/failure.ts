/** An executor's permanent failure and the callbacks that report it. */
import { ExecutorFailedError } from '../errors';

type FailureCallback = (error: ExecutorFailedError) => void;

export class Failure {
  #error: ExecutorFailedError | null = null;
  #callbacks: FailureCallback[] = [];

  /** Null while the executor works. */
  get error(): ExecutorFailedError | null {
    return this.#error;
  }

  /** Calls back once on failure; immediately if it has failed. */
  register(callback: FailureCallback): void {
    if (this.#error === null) this.#callbacks.push(callback);
    else report(callback, this.#error);
  }

  /**
   * Keeps the first failure. `end` ends what is pending before the callbacks run; it gets an
   * ExecutorFailedError as it is, any other `cause` wrapped in one.
   */
  set(cause: unknown, end: (error: ExecutorFailedError) => void): void {
    if (this.#error !== null) return;
    this.#error =
      cause instanceof ExecutorFailedError
        ? cause
        : new ExecutorFailedError(`the executor failed: ${String(cause)}`, { cause });
    end(this.#error);
    for (const callback of this.#callbacks.splice(0)) report(callback, this.#error);
  }
}

function report(callback: FailureCallback, failure: ExecutorFailedError): void {
  try {
    callback(failure);
  } catch (error) {
    process.emitWarning(`a failure callback threw: ${String(error)}`, 'UniprocWarning');
  }
}
