/** What the engine gives: to its own parts in a step, and to the user in the end. */
import type { UniprocError } from '../errors';
import type { LogprobsLists } from '../contract/modelRunnerOutput';

/**
 * Why a request ended: its limit of tokens, a stop token or string, or whoever asked gave it up. Of
 * the last there is no output, but the event `finished`.
 */
export type FinishReason = 'length' | 'stop' | 'abort';

/**
 * Why a request ended: as its output says, or, without an output, because its time was up, a fault
 * of its own ended it or the engine failed.
 */
export type EndReason = FinishReason | 'timeout' | 'error';

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
  /** What ended this request alone, without an output; null as a rule. */
  error: UniprocError | null;
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
  /**
   * The text that the token adds after the tokens before it: nothing while it leaves a character
   * unfinished, the whole character when it finishes one. Null without a tokenizer.
   */
  decodedToken: string | null;
  /** The token's bytes, where it begins or ends inside a character; else absent. */
  bytes?: number[];
}

/** What -Infinity is in JSON, which has no infinities (as in vLLM's server). */
const JSON_MINUS_INFINITY = -9999;

/** A position's tokens by id: the one that stands there first, then the likeliest in falling order. */
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
   * Empty without a tokenizer or with `detokenize: false`. A stop token is in it with
   * `includeStopStrInOutput` alone.
   */
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
  /** One for each of `tokenIds`; absent when not asked for. */
  logprobs?: PositionLogprobs[];
  /**
   * Output 0's first delta has them: one for each prompt token, null for the first. Absent elsewhere
   * and when not asked for.
   */
  promptLogprobs?: (PositionLogprobs | null)[];
}

/** Deltas as they come; `return`, which leaving a loop calls, ends the request at once. */
export interface OutputStream extends AsyncIterableIterator<OutputDelta, void> {
  return(): Promise<IteratorResult<OutputDelta, void>>;
}
