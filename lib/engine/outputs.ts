/** What the engine gives: to its own parts in a step, and to the user in the end. */
import type { LogprobsLists } from '../worker/outputs';

/**
 * Why a request ended: its limit of tokens, a stop token or string, or whoever asked gave it up. Of
 * the last there is no output, but the event `finished`.
 */
export type FinishReason = 'length' | 'stop' | 'abort';

/** What a step brought one request. */
export interface EngineCoreOutput {
  requestId: string;
  /** Its new tokens are those at `start` up to `end` in the step's `sampledTokenIds`. */
  start: number;
  end: number;
  /** Rows for the prompt positions computed in this step; null when there are none. */
  promptLogprobs: LogprobsLists | null;
  /** Null while it goes on. */
  finishReason: FinishReason | null;
}

/** What a step brought; valid until the next step's are made, which reuse it. */
export interface EngineCoreOutputs {
  /** The first `length` of these count. */
  outputs: readonly EngineCoreOutput[];
  length: number;
  /** All requests' tokens. */
  sampledTokenIds: Int32Array;
  /** A row for each of `sampledTokenIds`; null when no request asked. */
  logprobs: LogprobsLists | null;
}

/** One token's place in the model's distribution, raw: before temperature and penalties. */
export interface Logprob {
  logprob: number;
  /** 1 is the likeliest. */
  rank: number;
  /** Null without a tokenizer. */
  decodedToken: string | null;
}

/** A position's tokens by id: the one that stands there first, then the likeliest in falling order. */
export type PositionLogprobs = Map<number, Logprob>;

/** One of the `n` outputs of a prompt. */
export interface CompletionOutput {
  /** From 0. */
  index: number;
  /** Empty without a tokenizer or with `detokenize: false`. A stop token is not in it. */
  text: string;
  /** A stop token is in it. */
  tokenIds: number[];
  finishReason: FinishReason;
  /** One for each of `tokenIds`; null when not asked for. */
  logprobs: PositionLogprobs[] | null;
}

export interface RequestOutput {
  requestId: string;
  /** As text, when it was given as text. */
  prompt: string | null;
  promptTokenIds: number[];
  /** One for each prompt token, null for the first; null when not asked for. */
  promptLogprobs: (PositionLogprobs | null)[] | null;
  /** By index. */
  outputs: CompletionOutput[];
}

/** What one of the `n` outputs grew by since the reader last looked. */
export interface OutputDelta {
  index: number;
  text: string;
  tokenIds: number[];
  /** Null while it goes on. */
  finishReason: FinishReason | null;
}

/** Deltas as they come; `return`, which leaving a loop calls, ends the request at once. */
export interface OutputStream extends AsyncIterableIterator<OutputDelta, void> {
  return(): Promise<IteratorResult<OutputDelta, void>>;
}
