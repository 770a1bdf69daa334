/** The scheduler's output to the worker for one step (vLLM V1's SchedulerOutput). */
import type { SamplingParams } from '../config/samplingParams';

/** How a request's embedding is made of the hidden state of its last token. */
export interface PoolingParams {
  /** The first elements, which are kept. */
  size: number;
  /** They are scaled to a Euclidean norm of 1. */
  normalize: boolean;
}

/** A request scheduled for the first time, with all its data. */
export interface NewRequestData {
  reqId: string;
  /** [numPromptTokens] */
  promptTokenIds: Int32Array;
  /** Prompt and generated tokens, if some were generated before this worker started. */
  prefillTokenIds?: Int32Array;
  samplingParams: SamplingParams;
  /** Stop tokens, banned before minTokens: stopTokenIds and, unless ignoreEos, the model's EOS. */
  stopTokenIds: readonly number[];
  /** Bad words as token sequences. */
  badWordsTokenIds: readonly (readonly number[])[];
  /** Philox key for sampling: the request's seed, or one derived by the engine. */
  seed: bigint;
  /**
   * KV cache blocks [numBlocks, numGroups], in token order: a block of each of
   * KVCacheConfig.kvCacheGroups, or NO_BLOCK (-1) before the group's window.
   */
  blockIds: number[];
  /** Tokens found in the prefix cache. */
  numComputedTokens: number;
  /**
   * Byte offset of its sampling lists in the device's list memory; absent if they fit the slot
   * (HARD_LIMITS.slotListBytes).
   */
  listOffset?: number;
  /** Of an embedding model: how its embedding is made. */
  pooling?: PoolingParams;
}

/** Requests already on the worker, as parallel arrays; only changes since their last step. */
export interface CachedRequestData {
  reqIds: string[];
  /** Requests resumed after preemption: their blocks are replaced, not appended to. */
  resumedReqIds: ReadonlySet<string>;
  /** Appended blocks, as NewRequestData.blockIds; null for none. */
  newBlockIds: (number[] | null)[];
  numComputedTokens: number[];
  /** For resumed requests: prompt and generated tokens. */
  allTokenIds: ReadonlyMap<string, Int32Array>;
  /** For resumed requests with one: the new NewRequestData.listOffset. */
  listOffsets?: ReadonlyMap<string, number>;
}

export interface SchedulerOutput {
  scheduledNewReqs: NewRequestData[];
  scheduledCachedReqs: CachedRequestData;
  /** Tokens to compute per request, in row order. */
  numScheduledTokens: ReadonlyMap<string, number>;
  totalNumScheduledTokens: number;
  /** Finished requests for the worker to free; they are not in this step. */
  finishedReqIds: readonly string[];
  /** Preempted requests: their blocks and slots are freed, and they may resume later. */
  preemptedReqIds: readonly string[];
  /** Sampling must wait for `sampleTokens` with a grammar's mask. */
  hasStructuredOutputRequests: boolean;
}

/** An empty step. */
export function emptySchedulerOutput(): SchedulerOutput {
  return {
    scheduledNewReqs: [],
    scheduledCachedReqs: {
      reqIds: [],
      resumedReqIds: new Set(),
      newBlockIds: [],
      numComputedTokens: [],
      allTokenIds: new Map(),
    },
    numScheduledTokens: new Map(),
    totalNumScheduledTokens: 0,
    finishedReqIds: [],
    preemptedReqIds: [],
    hasStructuredOutputRequests: false,
  };
}
