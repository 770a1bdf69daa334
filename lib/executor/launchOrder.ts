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
  /** Calls the worker; if that returned a promise, returns one that settles after it. */
  start: () => Promise<void> | null;
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

  /** Starts the call now, or after the launches and calls before it. */
  run(call: Call): void {
    // A waiting launch holds later calls of any method: calls start in the order made.
    if (this.#waiting.length > 0 || this.#mustWait(call)) this.#waiting.push(call);
    else this.#start(call);
  }

  #mustWait({ method }: Call): boolean {
    return this.#isLaunching && LAUNCHES.has(method);
  }

  #start({ method, start }: Call): void {
    const started = start();
    if (started === null || !LAUNCHES.has(method) || !this.mayAwaitSuper(method)) return;
    this.#isLaunching = true;
    void started.then(() => {
      this.#isLaunching = false;
      while (this.#waiting.length > 0 && !this.#mustWait(this.#waiting[0])) {
        this.#start(this.#waiting.shift() as Call);
      }
    });
  }
}
