/** Awaits asynchronous outputs in submission order. */
import { ShutdownError } from '../errors';
import { native, type NativeEvent, type NativeOutputThread } from '../native';
import type { AsyncModelRunnerOutput } from '../contract/modelRunnerOutput';

/** The native thread that awaits outputs when several batches may be in flight. */
export function startOutputThread(): NativeOutputThread {
  return new (native().OutputThread)('WorkerAsyncOutput');
}

/** Duck-typed: a worker's class may come from another copy of the library. */
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
  /** Undefined while pending. */
  outcome: Error | null | undefined;
}

/**
 * In-order delivery without a thread: events call back from their own thread, and an early event is
 * queued behind those submitted before it.
 */
export class InOrderOutputs implements NativeOutputThread {
  readonly #queue: Waiting[] = [];
  #closed = false;

  submit(event: NativeEvent, callback: (error: Error | null) => void): void {
    if (this.#closed) throw new ShutdownError('an output was submitted after shutdown');
    const waiting: Waiting = { event, callback, outcome: undefined };
    event.onReady((error) => this.#finish(waiting, error));
    this.#queue.push(waiting);
  }

  /** Drains through a native thread, which can tell which events will never complete. */
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
