/** Where a stream's deltas wait for its reader (vLLM's RequestOutputCollector). */
import type { OutputDelta, RequestOutput } from './outputs';

/** Who waits for a prompt's outputs. Exactly one of `finished` and `failed` is called, once. */
export interface OutputReceiver {
  /** What an output grew by; absent where only the whole is wanted. */
  delta?(delta: OutputDelta): void;
  finished(output: RequestOutput): void;
  failed(error: Error): void;
}

/** Deltas in order; those a slow reader has not taken are merged, so they never queue up. */
export class RequestOutputCollector implements OutputReceiver, AsyncIterable<OutputDelta> {
  /** By output index. */
  private readonly waiting = new Map<number, OutputDelta>();
  private complete = false;
  private error: Error | null = null;
  private wake: (() => void) | null = null;

  /** Nothing more will come. */
  get done(): boolean {
    return this.complete || this.error !== null;
  }

  delta(delta: OutputDelta): void {
    const earlier = this.waiting.get(delta.index);
    if (earlier === undefined) {
      this.waiting.set(delta.index, delta);
    } else {
      earlier.text += delta.text;
      earlier.tokenIds.push(...delta.tokenIds);
      earlier.finishReason = delta.finishReason;
    }
    this.wake?.();
  }

  finished(): void {
    this.complete = true;
    this.wake?.();
  }

  failed(error: Error): void {
    this.error = error;
    this.wake?.();
  }

  /** What came is given out before an error is thrown. */
  async *[Symbol.asyncIterator](): AsyncGenerator<OutputDelta, void, void> {
    for (;;) {
      for (const [index, delta] of this.waiting) {
        this.waiting.delete(index);
        yield delta;
      }
      if (this.error !== null) throw this.error;
      if (this.complete) return;
      await new Promise<void>((resolve) => (this.wake = resolve));
    }
  }
}
