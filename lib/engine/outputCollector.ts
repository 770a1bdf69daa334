/** Buffers a stream's deltas for its reader (vLLM's RequestOutputCollector). */
import { ReadableStream } from 'node:stream/web';
import { codeOf, log } from '../log';
import { mergeMessages } from '../reply/replySink';
import type { OutputDelta, OutputStream, RequestOutput, Usage } from './outputs';

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
  /** Of the last delta; an unread delta of another output may still be read after it. */
  private ending: Required<Pick<OutputDelta, 'usage' | 'metrics'>> | null = null;
  requestId: string | null = null;
  numPromptTokens: number | null = null;
  usage: Usage | null = null;

  /** `start` makes the call for this receiver and returns its abort function. */
  constructor(private start: ((receiver: OutputReceiver) => () => void) | null) {}

  delta(delta: OutputDelta): void {
    if (this.complete) return;
    const { usage, metrics } = delta;
    if (usage !== undefined && metrics !== undefined) {
      this.ending = { usage, metrics };
      delete delta.usage;
      delete delta.metrics;
    }
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

  toReadableStream(): ReadableStream<OutputDelta> {
    return new ReadableStream<OutputDelta>(
      {
        pull: async (controller) => {
          const { done, value } = await this.next();
          if (done === true) controller.close();
          else controller.enqueue(value);
        },
        cancel: async () => {
          await this.return();
        },
      },
      // Reads nothing ahead: the call starts with the first read, and unread deltas are merged.
      { highWaterMark: 0 },
    );
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

  /** Removes a delta from the buffer; the last of the stream has its usage. */
  private take(delta: OutputDelta): OutputDelta {
    this.waiting.delete(delta.index);
    this.requestId = delta.requestId;
    this.numPromptTokens = delta.numPromptTokens;
    if (this.ending !== null && this.waiting.size === 0) {
      Object.assign(delta, this.ending);
      this.usage = this.ending.usage;
      this.ending = null;
    }
    return delta;
  }

  private serve(): void {
    while (this.reads.length > 0) {
      const next = this.waiting.values().next();
      if (next.done === true && this.failure === null && !this.complete) return;
      const { resolve, reject } = this.reads.shift() as Read;
      if (next.done !== true) {
        resolve({ done: false, value: this.take(next.value) });
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
  if (earlier.message === undefined) earlier.message = delta.message;
  else if (delta.message !== undefined) mergeMessages(earlier.message, delta.message);
  earlier.finishReason = delta.finishReason;
  earlier.stopReason = delta.stopReason;
  if (delta.cumulativeLogprob !== undefined) earlier.cumulativeLogprob = delta.cumulativeLogprob;
}
