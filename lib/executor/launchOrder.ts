/** Starts calls that launch work on the device one at a time, in call order. */
import type { RpcMethod } from '../worker/workerWrapper';

/** Worker methods that launch a step, or that change the memory which steps use. */
const LAUNCHES = new Set<RpcMethod>([
  'executeModel',
  'sampleTokens',
  'executeDummyBatch',
  'initializeFromConfig',
  'sleep',
  'wakeUp',
  'reinitializeDistributed',
]);

interface Call {
  method: RpcMethod;
  start: () => void;
}

/**
 * An override may await something before it calls `super.executeModel` and the step reaches the
 * device; the next launch waits for it. Python's executor gets the same order by blocking.
 */
export class LaunchOrder {
  #isLaunching = false;
  readonly #waiting: Call[] = [];

  constructor(
    /** Whether a promise of this method may still be awaiting something before its `super`. */
    private readonly mayAwaitSuper: (method: RpcMethod) => boolean,
  ) {}

  /** Whether a call made now must wait, because a launch before it has not settled. */
  mustWait(method: RpcMethod): boolean {
    // A waiting launch holds later calls of any method: calls start in the order made.
    return this.#waiting.length > 0 || this.#holds(method);
  }

  #holds(method: RpcMethod): boolean {
    return this.#isLaunching && LAUNCHES.has(method);
  }

  /** Calls `start` after the launches and calls before it. Only if the call must wait. */
  wait(method: RpcMethod, start: () => void): void {
    this.#waiting.push({ method, start });
  }

  /** A started call returned a promise; `settled` resolves after it. */
  started(method: RpcMethod, settled: Promise<void>): void {
    if (!LAUNCHES.has(method) || !this.mayAwaitSuper(method)) return;
    this.#isLaunching = true;
    void settled.then(() => {
      this.#isLaunching = false;
      while (this.#waiting.length > 0 && !this.#holds(this.#waiting[0].method)) {
        this.#waiting.shift()?.start();
      }
    });
  }
}
