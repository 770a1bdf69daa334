/** Outputs of the engine: internal per-step records, and deltas of streams. */
import type { ReadableStream } from 'node:stream/web';
import type { UniprocError } from '../errors';
import type { LogprobsLists } from '../contract/modelRunnerOutput';
import type {
  FinishReason,
  MessageDelta,
  PositionLogprobs,
  RequestMetrics,
  Usage,
} from '../requestOutput';

export * from '../requestOutput';

/** Why a request ended: a FinishReason, or, without an output, a timeout or an error. */
export type EndReason = FinishReason | 'timeout' | 'error';

/** One request's output of a step. */
export interface EngineCoreOutput {
  requestId: string;
  /** New tokens: `start` to `end` (exclusive) of the step's `sampledTokenIds`. */
  start: number;
  end: number;
  /** Rows of the prompt positions computed in this step; null if none. */
  promptLogprobs: LogprobsLists | null;
  /** Null while unfinished. */
  finishReason: FinishReason | null;
  /** Error that ended only this request; usually null. */
  error: UniprocError | null;
}

/** Outputs of a step; valid until the next step, which reuses the records. */
export interface EngineCoreOutputs {
  /** Only the first `length` are valid. */
  outputs: readonly EngineCoreOutput[];
  length: number;
  /** Tokens of all requests. */
  sampledTokenIds: Int32Array;
  /** One row per entry of `sampledTokenIds`; null if no request asked. */
  logprobs: LogprobsLists | null;
  /** Of an embedding model: one per entry of `sampledTokenIds`. */
  pooled?: readonly Float32Array[];
}

/** What one of the `n` outputs gained since the last read. */
export interface OutputDelta {
  /** The prompt's. In the event `finished` output i has `${requestId}-${i}` if `n` is above 1. */
  requestId: string;
  /** Tokens of the prompt. */
  numPromptTokens: number;
  index: number;
  text: string;
  tokenIds: number[];
  /** Null while unfinished. */
  finishReason: FinishReason | null;
  /** As in CompletionOutput; null while unfinished. */
  stopReason: string | number | null;
  /** One for each of `tokenIds`; absent if not requested. */
  logprobs?: PositionLogprobs[];
  /** What the answer gained, of a chat. */
  message?: MessageDelta;
  /** Sum of the output's logprobs so far; absent if not requested. */
  cumulativeLogprob?: number;
  /**
   * On output 0's first delta: one per prompt token, null for the first. Absent elsewhere and when
   * not requested.
   */
  promptLogprobs?: (PositionLogprobs | null)[];
  /** On the last delta of the stream. */
  usage?: Usage;
  /** On the last delta of the stream. */
  metrics?: RequestMetrics;
}

/** Deltas as they are generated; leaving the loop calls `return`, which aborts the request. */
export interface OutputStream extends AsyncIterableIterator<OutputDelta, void> {
  /** Null until the first delta is read. */
  readonly requestId: string | null;
  /** Tokens of the prompt; null until the first delta is read. */
  readonly numPromptTokens: number | null;
  /** Null until the last delta is read. */
  readonly usage: Usage | null;
  return(): Promise<IteratorResult<OutputDelta, void>>;
  /**
   * The rest of the stream as a web ReadableStream of deltas, which reads a delta when its reader wants
   * one. Cancelling it aborts the request; an error of the stream errors it.
   */
  toReadableStream(): ReadableStream<OutputDelta>;
}
