/** Where a stream's deltas wait for its reader (vLLM's RequestOutputCollector). */
import { codeOf, log } from '../log';
import type { OutputDelta, OutputStream, RequestOutput } from './outputs';

/** Who waits for a prompt's outputs. Exactly one of `finished` and `failed` is called, once. */
export interface OutputReceiver {
  /** What an output grew by; absent where only the whole is wanted. */
  delta?(delta: OutputDelta): void;
  finished(output: RequestOutput): void;
  /** Reads reject with `error`, at once or after what came before. */
  failed(error: unknown, atOnce?: boolean): void;
}

type Result = IteratorResult<OutputDelta, void>;

interface Read {
  resolve: (result: Result) => void;
  reject: (error: unknown) => void;
}

/**
 * Deltas in order; those a slow reader has not taken are merged, so they never queue up. Begins at
 * the first read. An iterator and no generator: leaving it must not wait for a read that is under
 * way.
 */
export class RequestOutputCollector implements OutputReceiver, OutputStream {
  /** By output index. */
  private readonly waiting = new Map<number, OutputDelta>();
  private readonly reads: Read[] = [];
  private complete = false;
  private failure: { error: unknown } | null = null;
  private abort: (() => void) | null = null;

  /** `start` has the outputs made for the receiver, and returns what gives them up. */
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

  /** The reader leaves: what is still to be made is given up at once. */
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

/** Has `earlier` end where `delta` does. */
function merge(earlier: OutputDelta, delta: OutputDelta): void {
  earlier.text += delta.text;
  for (const tokenId of delta.tokenIds) earlier.tokenIds.push(tokenId);
  for (const position of delta.logprobs ?? []) earlier.logprobs?.push(position);
  earlier.finishReason = delta.finishReason;
}
