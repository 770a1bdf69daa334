/** The native model runner's types (native/runner/model_runner.h). */
import type { LoadableModel } from '../model/load';
import type { NativeEvent } from './index';

/** Limits that size the model's buffers. */
export interface ModelLimits {
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
  maxModelLen: number;
  blockSize: number;
  /**
   * [numLayers]: the group of layers that each belongs to, which has a block table of its own; 0 up
   * to one less than their number. Omitted: all are in one. The i-th layers of all groups share the
   * memory of their blocks.
   */
  kvCacheGroups?: number[];
  /** Number of step buffers, which is the number of batches in flight. */
  numSteps: number;
  /** Maximum number of alternatives per position. */
  maxLogprobs: number;
  /** Device memory for lists of requests that exceed a slot's own memory. */
  listMemoryBytes: number;
  /** Disables CUDA graphs. */
  enforceEager: boolean;
}

/**
 * One batch's memory, shared with the device's thread: write it before launching a step, read it
 * after the step's event. A row is one request in this step; a slot is a request's place on the
 * device for its lifetime. Detached at shutdown.
 */
export interface StepBuffers {
  /** [maxNumSeqs]: the slot of each row. */
  slots: Int32Array;
  /** [maxNumSeqs]: each row's tokens that are already in the KV cache. */
  numComputedTokens: Int32Array;
  /** [maxNumSeqs]: each row's tokens to compute in this step. */
  numScheduledTokens: Int32Array;
  /**
   * [maxBlockUpdates, 3]: (group * maxNumSeqs + slot, index in its block table of the group, block),
   * applied before the step.
   */
  blockUpdates: Int32Array;
  /** [maxNumSeqs]: the rows to sample from, ascending. */
  sampledRows: Int32Array;
  /** [maxNumSeqs]: the rows that need prompt logprobs, ascending. */
  promptLogprobRows: Int32Array;

  /** Output, [numSampled]. */
  sampledTokenIds: Int32Array;
  /** Output, [numSampled]: number of NaN among the row's unmodified logits. */
  numNans: Int32Array;
  /** Output, [numSampled, 1 + maxLogprobs]: the sampled token, then the top tokens. */
  logprobTokenIds: Int32Array;
  logprobs: Float32Array;
  /** Output, [numSampled]: the sampled token's rank, starting at 1. */
  logprobRanks: Int32Array;
  /**
   * Output, [numPromptPositions, 1 + maxLogprobs]. The positions are, for each row of
   * promptLogprobRows, the p computed in this step with p + 1 inside the prompt; each has token p +
   * 1, then the top tokens.
   */
  promptLogprobTokenIds: Int32Array;
  promptLogprobs: Float32Array;
  promptLogprobRanks: Int32Array;
  /** Output, [numPromptPositions]: number of NaN among the position's logits. */
  promptNumNans: Int32Array;
  /**
   * [maxNumSeqs] of a model that pools, else empty: the first elements of each sampled row's embedding
   * that are scaled to a Euclidean norm of 1 together; 0: the embedding is not scaled.
   */
  pooledSizes: Int32Array;
  /** Output, [numSampled, hiddenSize] of a model that pools. */
  pooled: Float32Array;
}

/**
 * One request's sampling parameters, with the semantics of SamplingParams. native/runner/request.h
 * lists their bounds.
 */
export interface NativeSampling {
  temperature: number;
  topP: number;
  /** 0: all. */
  topK: number;
  minP: number;
  presencePenalty: number;
  frequencyPenalty: number;
  repetitionPenalty: number;
  /** Philox key, 64 bits. */
  seed: bigint;
  minTokens: number;
  /** Number of alternatives; -1: no logprobs. */
  numLogprobs: number;
  numPromptLogprobs: number;
  /** Unique ids. */
  logitBiasTokenIds: Int32Array;
  logitBiases: Float32Array;
  /** Empty: all tokens are allowed. */
  allowedTokenIds: Int32Array;
  /** Concatenated token sequences, and the end of each. */
  badWordsTokenIds: Int32Array;
  badWordsEnds: Int32Array;
  /** Not sampled before minTokens. */
  stopTokenIds: Int32Array;
}

/** A request's state as it enters a slot. */
export interface NativeRequest {
  /** The prompt, and tokens generated before a preemption. */
  tokenIds: Int32Array;
  numPromptTokens: number;
  /** [numBlocks, numGroups]; -1 where no query reads the group's block (its table gets block 0). */
  blockIds: Int32Array;
  sampling: NativeSampling;
  /**
   * Byte offset of its lists in the list memory, which must not overlap other requests' lists.
   * Omitted: the lists are in the slot's own memory of `slotListBytes`.
   */
  listOffset?: number;
}

/** Bounds of a request that hold for every model (native/runner/request.h). */
export interface NativeRequestLimits {
  /** Maximum entries of each list. */
  readonly maxListLength: number;
  /** Maximum bytes of all lists in a slot's own memory. */
  readonly slotListBytes: number;
  /** A listOffset must be a multiple of this. */
  readonly listAlignment: number;
  /** Maximum of `listMemoryBytes`. */
  readonly maxListMemory: number;
  /** Maximum of token ids, topK, minTokens and the numbers of logprobs. */
  readonly maxInt32: number;
}

/**
 * The transformer on one device. Calls without a result are enqueued and run on the device's thread
 * in order; the step's event reports their errors.
 */
export interface NativeModelRunner extends LoadableModel {
  /** The step buffers, [numSteps]; allocated once, detached by `shutdown`. */
  readonly steps: StepBuffers[];
  /** Frees the weights' memory; `load` restores them. */
  releaseWeights(): Promise<void>;
  /**
   * Moves the weights to pageable host memory and frees their device memory. Rejects with
   * OUT_OF_MEMORY if the host lacks memory; then they stay on the device.
   */
  offloadWeights(): Promise<void>;
  /** Moves the weights back to the device. After OUT_OF_MEMORY they stay in host memory. */
  restoreWeights(): Promise<void>;
  /**
   * Raises peakAllocated to the largest step's, and takes what that step will write to from the free
   * memory: on CUDA by running the step, on a CPU without computing it. Resolves to the bytes that
   * CUDA graphs will take in addition.
   */
  profile(): Promise<number>;
  allocateKvCache(numBlocks: number): Promise<void>;
  releaseKvCache(): Promise<void>;
  /**
   * Runs a step of one token, on CUDA also a few common shapes, without effect on requests or
   * sampling.
   */
  warmUp(): Promise<void>;
  /**
   * Throws REQUEST_INVALID, which names the parameter, for an unacceptable request. Scans its lists
   * once (native/runner/request.h lists the bounds).
   */
  checkRequest(request: NativeRequest): void;
  /**
   * Puts a request into a free slot. Throws REQUEST_INVALID for a wrong type; the step's event
   * reports other errors, and the slot stays free.
   */
  addRequest(slot: number, request: NativeRequest): void;
  removeRequest(slot: number): void;
  /**
   * Runs the forward pass of the step's rows. Logits stay on the device until `sample`. Without
   * `awaitsBitmask`, `sample` must get none, and the device may sample at once.
   */
  forward(
    step: number,
    numRows: number,
    numBlockUpdates: number,
    numSampled: number,
    numPromptLogprobRows: number,
    awaitsBitmask?: boolean,
  ): void;
  /**
   * Samples the step's rows and appends the tokens to their slots. The event completes when the
   * outputs are in the step's buffers. `bitmask`: [numSampled, ceil(vocabSize / 32)], a set bit
   * allows a token.
   */
  sample(step: number, bitmask: Int32Array | null): NativeEvent;
  /** Frees everything and detaches the buffers. Idempotent. */
  shutdown(): Promise<void>;
}
