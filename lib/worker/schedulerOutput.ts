/** What crosses from the scheduler to the worker in a step (vLLM V1's SchedulerOutput). */
import type { SamplingParams } from '../config/samplingParams';

/** A request scheduled for the first time: all the worker needs to know of it. */
export interface NewRequestData {
  reqId: string;
  /** [numPromptTokens] */
  promptTokenIds: Int32Array;
  /** Prompt and generated tokens, where some were generated before this worker was there. */
  prefillTokenIds?: Int32Array;
  samplingParams: SamplingParams;
  /** Tokens not to be sampled before minTokens: stopTokenIds and, unless ignoreEos, the model's eos. */
  stopTokenIds: readonly number[];
  /** badWords as token sequences. */
  badWordsTokenIds: readonly (readonly number[])[];
  /** Philox key of its draws: the seed it asked for or one derived by the engine. */
  seed: bigint;
  /** Blocks of its KV cache, in the order of its tokens. */
  blockIds: number[];
  /** Tokens already in the cache: a prefix found there. */
  numComputedTokens: number;
  /**
   * Byte of the device's list memory from which on the lists of its sampling parameters are its own;
   * left out where they fit the slot's (HARD_LIMITS.slotListBytes).
   */
  listOffset?: number;
}

/** Requests the worker knows, by parallel arrays: only what changed since their last step. */
export interface CachedRequestData {
  reqIds: string[];
  /** Those among them that come back from preemption: their blocks are replaced, not appended to. */
  resumedReqIds: ReadonlySet<string>;
  /** Appended blocks, null for none. */
  newBlockIds: (number[] | null)[];
  numComputedTokens: number[];
  /** Tokens generated so far, those still in flight counted in. */
  numOutputTokens: number[];
  /** For resumed requests: prompt and generated tokens. */
  allTokenIds: ReadonlyMap<string, Int32Array>;
  /** For resumed requests that have one: their new NewRequestData.listOffset. */
  listOffsets?: ReadonlyMap<string, number>;
}

export interface SchedulerOutput {
  scheduledNewReqs: NewRequestData[];
  scheduledCachedReqs: CachedRequestData;
  /** Tokens to compute for each request, in the order of the batch's rows. */
  numScheduledTokens: ReadonlyMap<string, number>;
  totalNumScheduledTokens: number;
  /** Requests whose state on the worker is to be freed; they are not in this step. */
  finishedReqIds: readonly string[];
  /** Requests that gave their blocks and their place on the worker back, to be resumed later. */
  preemptedReqIds: readonly string[];
  /** Sampling must wait for `sampleTokens` with a grammar's mask. */
  hasStructuredOutputRequests: boolean;
}

/** A grammar's verdict on a step's sampled rows, computed while the forward runs. */
export interface GrammarOutput {
  /** Requests that have a mask, in the order of its rows. */
  structuredOutputRequestIds: string[];
  /** [structuredOutputRequestIds.length, ceil(vocabSize / 32)]: a set bit allows a token. */
  grammarBitmask: Int32Array;
}

/** A step that schedules nothing. */
export function emptySchedulerOutput(): SchedulerOutput {
  return {
    scheduledNewReqs: [],
    scheduledCachedReqs: {
      reqIds: [],
      resumedReqIds: new Set(),
      newBlockIds: [],
      numComputedTokens: [],
      numOutputTokens: [],
      allTokenIds: new Map(),
    },
    numScheduledTokens: new Map(),
    totalNumScheduledTokens: 0,
    finishedReqIds: [],
    preemptedReqIds: [],
    hasStructuredOutputRequests: false,
  };
}
