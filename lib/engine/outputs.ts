/** Outputs of the engine: internal per-step records, and what users receive. */
import type { UniprocError } from '../errors';
import type { LogprobsLists } from '../contract/modelRunnerOutput';

/**
 * Why a request ended: token limit, stop token or string, or abort. An aborted request has no
 * output, only the event `finished`.
 */
export type FinishReason = 'length' | 'stop' | 'abort';

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
}

/** One token's entry in the model's raw distribution, before temperature and penalties. */
export interface Logprob {
  logprob: number;
  /** 1 is the likeliest. */
  rank: number;
  /**
   * Text the token adds to the preceding tokens: empty while a character is incomplete, the whole
   * character once complete. Null without a tokenizer.
   */
  decodedToken: string | null;
  /** The token's bytes if it begins or ends inside a character; else absent. */
  bytes?: number[];
}

/** Stands for -Infinity in JSON (as in vLLM's server). */
const JSON_MINUS_INFINITY = -9999;

/**
 * A position's logprobs by token id: the position's own token first, then the likeliest in
 * descending order.
 */
export class PositionLogprobs extends Map<number, Logprob> {
  /** In the Map's order. A logprob of -Infinity is -9999. */
  toJSON(): ({ tokenId: number } & Logprob)[] {
    return Array.from(this, ([tokenId, entry]) => ({
      tokenId,
      ...entry,
      logprob: entry.logprob === -Infinity ? JSON_MINUS_INFINITY : entry.logprob,
    }));
  }
}

/** One of the `n` outputs of a prompt. */
export interface CompletionOutput {
  /** From 0. */
  index: number;
  /**
   * Empty without a tokenizer or with `detokenize: false`. Includes a stop token only with
   * `includeStopStrInOutput`.
   */
  text: string;
  /** Includes a stop token. */
  tokenIds: number[];
  finishReason: FinishReason;
  /** One for each of `tokenIds`; null if not requested. */
  logprobs: PositionLogprobs[] | null;
}

export interface RequestOutput {
  requestId: string;
  /** As text, when it was given as text. */
  prompt: string | null;
  promptTokenIds: number[];
  /** One for each prompt token, null for the first; null if not requested. */
  promptLogprobs: (PositionLogprobs | null)[] | null;
  /** By index. */
  outputs: CompletionOutput[];
}

/** What one of the `n` outputs gained since the last read. */
export interface OutputDelta {
  index: number;
  text: string;
  tokenIds: number[];
  /** Null while unfinished. */
  finishReason: FinishReason | null;
  /** One for each of `tokenIds`; absent if not requested. */
  logprobs?: PositionLogprobs[];
  /**
   * On output 0's first delta: one per prompt token, null for the first. Absent elsewhere and when
   * not requested.
   */
  promptLogprobs?: (PositionLogprobs | null)[];
}

/** Deltas as they are generated; leaving the loop calls `return`, which aborts the request. */
export interface OutputStream extends AsyncIterableIterator<OutputDelta, void> {
  return(): Promise<IteratorResult<OutputDelta, void>>;
}
