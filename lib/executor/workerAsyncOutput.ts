/** Who waits for the outputs that are still being computed. */
import { ShutdownError } from '../errors';
import { native, type NativeEvent, type NativeOutputThread } from '../native';
import type { AsyncModelRunnerOutput } from '../contract/modelRunnerOutput';

/** The native thread that waits when several batches may be in flight. */
export function startOutputThread(): NativeOutputThread {
  return new (native().OutputThread)('WorkerAsyncOutput');
}

/** By its shape, so that a worker's class need not come from this copy of the library. */
export function isAsyncOutput(result: unknown): result is AsyncModelRunnerOutput {
  return (
    typeof result === 'object' &&
    result !== null &&
    'ready' in result &&
    typeof (result as AsyncModelRunnerOutput).getOutput === 'function'
  );
}

interface Waiting {
  event: NativeEvent;
  callback: (error: Error | null) => void;
  /** Undefined until the event is done. */
  outcome: Error | null | undefined;
}

/**
 * The same without a thread: the thread that completes an event calls back, and an event done early waits
 * here for those submitted before it.
 */
export class InOrderOutputs implements NativeOutputThread {
  readonly #queue: Waiting[] = [];
  #closed = false;

  submit(event: NativeEvent, callback: (error: Error | null) => void): void {
    if (this.#closed) throw new ShutdownError('an output submitted after shutdown');
    const waiting: Waiting = { event, callback, outcome: undefined };
    event.onReady((error) => this.#finish(waiting, error));
    this.#queue.push(waiting);
  }

  /** Waits as the native thread does, and by one: it can tell which events will never complete. */
  async shutdown(): Promise<void> {
    this.#closed = true;
    if (this.#queue.length === 0) return;
    const thread = startOutputThread();
    for (const waiting of this.#queue) {
      thread.submit(waiting.event, (error) => this.#finish(waiting, error));
    }
    await thread.shutdown();
  }

  #finish(waiting: Waiting, error: Error | null): void {
    if (waiting.outcome === undefined) waiting.outcome = error;
    while (this.#queue.length > 0 && this.#queue[0].outcome !== undefined) {
      const { callback, outcome } = this.#queue.shift() as Waiting;
      callback(outcome as Error | null);
    }
  }
}
