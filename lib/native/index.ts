/**
 * Loads the addon and declares its types. No other module of the library accesses the addon, and
 * this one contains no logic.
 */
import { existsSync } from 'node:fs';
import path from 'node:path';
import type { DType } from '../config/dtype';
import { AddonUnavailableError, nativeError } from '../errors';

export type { DType };

export interface DeviceProperties {
  /** 'cpu', or for example 'NVIDIA H200'. */
  name: string;
  /** Bytes. */
  totalMemory: number;
  /** The kernels' instruction set: 'avx512', 'avx2' or 'plain'; on CUDA for example 'sm_90'. */
  capability: string;
  /** Compute threads, including the device's own. */
  numThreads: number;
}

export interface MemoryInfo {
  /** Bytes of the device, or of the host or its cgroup. */
  total: number;
  /** Bytes available now. */
  free: number;
  /** Bytes that this device has allocated for its models now, and at most so far. */
  allocated: number;
  peakAllocated: number;
}

/** Time spent on completed steps since the device was opened, by the device's own clock. */
export interface StepTimes {
  numSteps: number;
  /** Between a step's first operation on the device and its last. */
  busyMs: number;
  /** Between the end of a step and the beginning of the next, for any reason. */
  idleMs: number;
}

/** A tensor in a file, at byte `offset`. */
export interface StoredTensor {
  path: string;
  offset: number;
  dtype: DType;
}

/**
 * A device and the one native thread that owns it; everything that can block runs there, in order.
 */
export interface NativeDevice {
  /** Starts the thread and opens the device. */
  open(): Promise<DeviceProperties>;
  memory(): Promise<MemoryInfo>;
  /** Sets the peak to the bytes allocated now. */
  resetPeakMemory(): Promise<void>;
  stepTimes(): Promise<StepTimes>;
  /**
   * Starts or stops recording by a profiler attached to the process, after all work enqueued
   * before. Rejects with NOT_SUPPORTED on the CPU.
   */
  profile(isStart: boolean): Promise<void>;
  /**
   * Whether two tensors of `count` elements are equal after conversion to `dtype`. Runs on the
   * device's thread and stops reading at the first difference. Rejects with CHECKPOINT_INVALID.
   */
  areEqual(a: StoredTensor, b: StoredTensor, count: number, dtype: DType): Promise<boolean>;
  /**
   * Resolves once all work enqueued before has run; rejects with the device's lasting error, if
   * any.
   */
  synchronize(): Promise<void>;
  /** Runs the enqueued work and joins the thread. Idempotent; later calls reject with SHUT_DOWN. */
  shutdown(): Promise<void>;
}

/** One-shot completion: of a device's work, or of a host event by `signal()`. */
export interface NativeEvent {
  readonly done: boolean;
  /** Host events only; throws INVALID_STATE on a second call. */
  signal(): void;
  /**
   * Calls `callback` once after the event is done, on the JavaScript thread and never within this
   * call. The thread that completes the event triggers it; no output thread is needed.
   */
  onReady(callback: (error: Error | null) => void): void;
}

/** One native thread that waits for events in order of submission. */
export interface NativeOutputThread {
  /**
   * Runs `callback` on the JavaScript thread, in order of submission; after `shutdown` with
   * SHUT_DOWN. Like `onReady`, keeps the process alive (for a host event only after it is
   * signalled).
   */
  submit(event: NativeEvent, callback: (error: Error | null) => void): void;
  /** Waits for device events, fails host events with SHUT_DOWN, joins. Idempotent. */
  shutdown(): Promise<void>;
}

export type RopeScaling =
  | { type: 'default' }
  | { type: 'linear'; factor: number }
  | {
      type: 'llama3';
      factor: number;
      lowFreqFactor: number;
      highFreqFactor: number;
      originalMaxPositionEmbeddings: number;
    }
  | {
      type: 'yarn';
      factor: number;
      betaFast: number;
      betaSlow: number;
      originalMaxPositionEmbeddings: number;
      /** Scale of cos and sin. */
      attentionFactor: number;
      truncate: boolean;
    };

/** Mixture of experts: the router selects some of a layer's MLPs for each token. */
export interface ExpertsSpec {
  numExperts: number;
  numExpertsPerToken: number;
  /** Per expert. */
  intermediateSize: number;
  /** The weights of a token's experts are scaled to a sum of 1. */
  normTopkProb: boolean;
  /** [numLayers]: the layer has experts instead of the gated MLP. */
  layers: boolean[];
}

/** The storage type of a tensor's elements. */
export type StorageType = DType | 'float8_e4m3';

/**
 * How a matrix is stored: element type, and one scale per block of [scaleRows, scaleCols]; 0, 0: no
 * scales.
 */
export interface WeightFormat {
  type: StorageType;
  scaleRows: number;
  scaleCols: number;
}

/** The whole model's forward pass, independent of the number of ranks. */
export interface ModelSpec {
  /** Type of the KV cache, and of weights without an entry in weightFormats. */
  dtype: DType;
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  numLayers: number;
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  rmsNormEps: number;
  ropeTheta: number;
  ropeScaling: RopeScaling;
  /** [numLayers]: tokens that each layer attends to; 0: all. */
  slidingWindows: number[];
  /** Bias of q, k and v; of o; of gate, up and down. */
  qkvBias: boolean;
  outputBias: boolean;
  mlpBias: boolean;
  /** RMSNorm of each head of q and k before rope (Qwen3). */
  qkNorm: boolean;
  /** The output head shares the embedding's weight. */
  tieWordEmbeddings: boolean;
  /** null: every layer has the gated MLP. */
  experts: ExpertsSpec | null;
  /** By module ('layers.3.attention.q'); modules without an entry are stored in `dtype`. */
  weightFormats: Record<string, WeightFormat>;
}

/** A dimension of a checkpoint's tensor, and this rank's range of it: [first, first + count). */
export interface ParameterDimension {
  size: number;
  /** The product of the spec's sizes that it equals: 'numHeads * headDim'. */
  of: string;
  first: number;
  count: number;
}

/**
 * One tensor that the model's blocks declare (native/model/blocks). If a rank holds nothing of it
 * (such as a bias that only one rank adds), a dimension has count 0.
 */
export interface Parameter {
  /** null outside the layers. */
  layer: number | null;
  /** null outside the experts. */
  expert: number | null;
  /** embedding, norm, head, attention.norm, attention.q, mlp.gate, ... */
  module: string;
  part: 'weight' | 'bias' | 'scales';
  /** A linear layer's matrix, which may have any format. */
  isLinear: boolean;
  /** Format of the module's matrix. */
  format: WeightFormat;
  /** [rows] or [rows, cols]. */
  shape: ParameterDimension[];
}

/** Limits that size the model's buffers. */
export interface ModelLimits {
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
  maxModelLen: number;
  blockSize: number;
  /** Number of step buffers, which is the number of batches in flight. */
  numSteps: number;
  /** Maximum number of alternatives per position. */
  maxLogprobs: number;
  /** Device memory for lists of requests that exceed a slot's own memory. */
  listMemoryBytes: number;
  /** Disables CUDA graphs. */
  enforceEager: boolean;
}

/** Location of a parameter in a checkpoint: a whole, contiguous tensor. */
export interface ParameterSource {
  /** Index into the result of declareParameters for this rank. */
  parameter: number;
  /** Index into the list of files, and the byte where the tensor begins. */
  file: number;
  offset: number;
  dtype: StorageType;
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
  /** [maxBlockUpdates, 3]: (slot, index in its block table, block), applied before the step. */
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
export interface NativeModel {
  /** The step buffers, [numSteps]; allocated once, detached by `shutdown`. */
  readonly steps: StepBuffers[];
  /**
   * Allocates the weights and reads them from the files. Every parameter of this rank needs exactly
   * one source. `onProgress(bytes, tensors)` receives totals. Rejects with OUT_OF_MEMORY, or
   * CHECKPOINT_INVALID if a file is too short or becomes shorter; then no weights stay allocated.
   */
  load(
    files: string[],
    sources: ParameterSource[],
    onProgress: (bytes: number, tensors: number) => void,
  ): Promise<void>;
  /**
   * Fills the weights with random values (std 0.02, norms 1) from a seed, for benchmarks; ranks get
   * different values.
   */
  loadDummy(seed: number): Promise<void>;
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
   * Runs the largest batch once, with sampling, so that peakAllocated is a step's maximum. Resolves
   * to the bytes that CUDA graphs will take in addition.
   */
  profile(): Promise<number>;
  allocateKvCache(numBlocks: number): Promise<void>;
  releaseKvCache(): Promise<void>;
  /** Runs a few common shapes once, without effect on requests or sampling. */
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
  /** Runs the forward pass of the step's rows. Logits stay on the device until `sample`. */
  forward(
    step: number,
    numRows: number,
    numBlockUpdates: number,
    numSampled: number,
    numPromptLogprobRows: number,
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

export interface CommunicatorOptions {
  rank: number;
  worldSize: number;
  /** Milliseconds: the limit for connecting, and for the peers to join a collective. */
  timeout: number;
  /** Reduce small sums on GPUs by reading peer memory directly, where supported. */
  customAllReduce: boolean;
}

export type CommType = 'int64' | 'float32' | 'float16' | 'bfloat16';

export type ReduceOp = 'sum' | 'min' | 'max';

/**
 * Collectives of a group of ranks, run on the device's thread in order, which must be the same on
 * every rank. All ranks get the same bytes. Rejects with PEER_LOST (a rank ended or missed the
 * deadline) or COMMUNICATOR_FAILED (this rank cannot take part); every later call rejects with the
 * same error.
 */
export interface NativeCommunicator {
  /** This rank's address for the other ranks; opaque. */
  address(): Promise<Uint8Array>;
  /** Joins the group; `addresses` are of all ranks, by rank. Resolves once all have joined. */
  connect(addresses: Uint8Array[]): Promise<void>;
  /**
   * Copies host bytes to the device and the result back: for control data, not for steps. float16
   * and bfloat16 are summed in float32 and rounded once, except by NCCL with more than two ranks,
   * which rounds each partial sum.
   */
  allReduce(data: Uint8Array, type: CommType, op: ReduceOp): Promise<Uint8Array>;
  /**
   * Resolves to the concatenated bytes of all ranks, by rank; all must pass the same number of
   * bytes.
   */
  allGather(data: Uint8Array, type: CommType): Promise<Uint8Array>;
  /** Resolves to the root's bytes; all ranks must pass the same number of bytes. */
  broadcast(data: Uint8Array, type: CommType, root: number): Promise<Uint8Array>;
  barrier(): Promise<void>;
  /**
   * Takes effect at once, without the device's thread: current waits for peers and all later calls
   * fail with PEER_LOST and this reason. The first reason is kept.
   */
  abort(reason: string): void;
  /**
   * Leaves the group after all enqueued work. Shut down the models that use it first. Idempotent;
   * later calls reject with SHUT_DOWN.
   */
  shutdown(): Promise<void>;
}

export interface Addon {
  /**
   * The parameters that the model's blocks declare for one rank. Throws CONFIG_INVALID if the spec
   * is inconsistent or cannot be divided among the ranks.
   */
  declareParameters(spec: ModelSpec, rank: number, worldSize: number): Parameter[];
  /** `kind`: 'cpu' or 'cuda'. `numThreads`: CPU only; 0 selects it automatically. */
  Device: new (kind: string, index: number, numThreads: number) => NativeDevice;
  Event: new () => NativeEvent;
  OutputThread: new (name: string) => NativeOutputThread;
  Communicator: new (device: NativeDevice, options: CommunicatorOptions) => NativeCommunicator;
  /** `communicator` connects the ranks that hold the model's shards; null: a single rank. */
  Model: new (
    device: NativeDevice,
    spec: ModelSpec,
    limits: ModelLimits,
    communicator: NativeCommunicator | null,
  ) => NativeModel;
  readonly requestLimits: NativeRequestLimits;
  /** Sets the function that creates the addon's errors. */
  setErrorFactory(
    make: (code: string, message: string, file?: string, rank?: number) => Error,
  ): void;
}

function loadAddon(): Addon {
  const root = path.resolve(__dirname, '..', '..');
  const file = path.join(root, 'build', 'Release', 'uniproc.node');
  if (!existsSync(file)) {
    throw new AddonUnavailableError(`${file} does not exist; run npm run build in ${root}`);
  }
  try {
    // eslint-disable-next-line @typescript-eslint/no-require-imports -- an addon has no other loader
    const addon = require(file) as Addon;
    addon.setErrorFactory(nativeError);
    return addon;
  } catch (cause) {
    throw new AddonUnavailableError(`cannot load ${file}: ${(cause as Error).message}`, {
      cause,
    });
  }
}

let addon: Addon | undefined;

/** Returns the addon, which the first call loads. Throws AddonUnavailableError. */
export function native(): Addon {
  addon ??= loadAddon();
  return addon;
}

/** The default device: a CUDA device if one can be opened, else the CPU. */
export async function defaultDevice(): Promise<'cuda' | 'cpu'> {
  const device = new (native().Device)('cuda', 0, 0);
  try {
    await device.open();
    return 'cuda';
  } catch (error) {
    // A GPU with full memory is still the intended device, so report its error.
    return (error as { code?: string }).code === 'OUT_OF_MEMORY' ? 'cuda' : 'cpu';
  } finally {
    await device.shutdown();
  }
}
