/** Buffers a stream's deltas for its reader (vLLM's RequestOutputCollector). */
import { codeOf, log } from '../log';
import type { OutputDelta, OutputStream, RequestOutput } from './outputs';

/** Receives a prompt's outputs. Exactly one of `finished` and `failed` is called, once. */
export interface OutputReceiver {
  /** Receives a delta; absent if only the complete output is wanted. */
  delta?(delta: OutputDelta): void;
  finished(output: RequestOutput): void;
  /** Makes reads reject with `error`, at once or after the buffered deltas. */
  failed(error: unknown, atOnce?: boolean): void;
}

type Result = IteratorResult<OutputDelta, void>;

interface Read {
  resolve: (result: Result) => void;
  reject: (error: unknown) => void;
}

/**
 * Delivers deltas in order, merging unread ones, so the buffer holds one per output. Starts at the
 * first read. It is an iterator, not a generator, so that `return` need not wait for a pending
 * read.
 */
export class RequestOutputCollector implements OutputReceiver, OutputStream {
  /** By output index. */
  private readonly waiting = new Map<number, OutputDelta>();
  private readonly reads: Read[] = [];
  private complete = false;
  private failure: { error: unknown } | null = null;
  private abort: (() => void) | null = null;

  /** `start` makes the call for this receiver and returns its abort function. */
  constructor(private start: ((receiver: OutputReceiver) => () => void) | null) {}

  delta(delta: OutputDelta): void {
    if (this.complete) return;
    const earlier = this.waiting.get(delta.index);
    if (earlier === undefined) {
      this.waiting.set(delta.index, delta);
    } else {
      merge(earlier, delta);
    }
    this.serve();
  }

  finished(): void {
    this.complete = true;
    this.serve();
  }

  failed(error: unknown, atOnce = false): void {
    if (this.complete) return;
    if (atOnce) this.waiting.clear();
    this.failure = { error };
    this.serve();
  }

  next(): Promise<Result> {
    this.begin();
    return new Promise((resolve, reject) => {
      this.reads.push({ resolve, reject });
      this.serve();
    });
  }

  /** Ends the stream and aborts an unfinished call. */
  return(): Promise<Result> {
    this.start = null;
    if (!this.complete) this.abort?.();
    this.complete = true;
    this.failure = null;
    this.waiting.clear();
    this.serve();
    return Promise.resolve({ done: true, value: undefined });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  private begin(): void {
    const { start } = this;
    this.start = null;
    if (start === null) return;
    try {
      this.abort = start(this);
    } catch (error) {
      log('a stream is refused: %s', codeOf(error));
      this.failed(error);
    }
  }

  private serve(): void {
    while (this.reads.length > 0) {
      const next = this.waiting.values().next();
      if (next.done === true && this.failure === null && !this.complete) return;
      const { resolve, reject } = this.reads.shift() as Read;
      if (next.done !== true) {
        this.waiting.delete(next.value.index);
        resolve({ done: false, value: next.value });
      } else if (this.failure !== null) {
        reject(this.failure.error);
        this.failure = null;
        this.complete = true;
      } else {
        resolve({ done: true, value: undefined });
      }
    }
  }
}

/** Appends `delta` to `earlier`. */
function merge(earlier: OutputDelta, delta: OutputDelta): void {
  earlier.text += delta.text;
  for (const tokenId of delta.tokenIds) earlier.tokenIds.push(tokenId);
  for (const position of delta.logprobs ?? []) earlier.logprobs?.push(position);
  earlier.finishReason = delta.finishReason;
}
