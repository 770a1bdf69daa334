/**
 * The only door to the addon: loads it and types its surface. Nothing here decides anything, and
 * nothing else in the library touches the addon.
 */
import { existsSync } from 'node:fs';
import path from 'node:path';
import type { DType } from '../config/dtype';
import { AddonUnavailableError, nativeError } from '../errors';

export type { DType };

export interface DeviceProperties {
  /** 'cpu' or, say, 'NVIDIA H200'. */
  name: string;
  /** Bytes. */
  totalMemory: number;
  /** The instruction set the kernels were chosen for: 'avx512', 'avx2', 'plain'; on CUDA 'sm_90'. */
  capability: string;
  /** Threads that compute, the device's own one counted in. */
  numThreads: number;
}

export interface MemoryInfo {
  /** Bytes of the device, or of the host or its cgroup. */
  total: number;
  /** Bytes that can be had now. */
  free: number;
  /** Bytes that this device has handed out to its models now, and at most so far. */
  allocated: number;
  peakAllocated: number;
}

/** Where a device's time went since it was opened, by its own clock; of the steps that are done. */
export interface StepTimes {
  numSteps: number;
  /** From a step's first operation on the device to its last. */
  busyMs: number;
  /** From the end of a step to the beginning of the next, whatever the reason. */
  idleMs: number;
}

/** A tensor in a file, from byte `offset` on. */
export interface StoredTensor {
  path: string;
  offset: number;
  dtype: DType;
}

/** A device and the one native thread that owns it; whatever can block runs there, in order. */
export interface NativeDevice {
  /** Starts the thread and opens the device. */
  open(): Promise<DeviceProperties>;
  memory(): Promise<MemoryInfo>;
  /** Forgets the peak: it becomes what is allocated now. */
  resetPeakMemory(): Promise<void>;
  stepTimes(): Promise<StepTimes>;
  /**
   * Starts or stops what a profiler attached to the process records, once all before has run.
   * Rejects with NOT_SUPPORTED on the CPU.
   */
  profile(isStart: boolean): Promise<void>;
  /**
   * Whether two tensors of `count` elements are equal once both are converted to `dtype`; read up to
   * the first difference, on the device's thread. Rejects with CHECKPOINT_INVALID.
   */
  areEqual(a: StoredTensor, b: StoredTensor, count: number, dtype: DType): Promise<boolean>;
  /** Resolves once all that was enqueued before it has run; rejects with the sticky error, if any. */
  synchronize(): Promise<void>;
  /** Runs what was enqueued, joins the thread. Idempotent; later calls reject with SHUT_DOWN. */
  shutdown(): Promise<void>;
}

/** Completes once: by the device when the work before it is done, or by `signal()` (a host event). */
export interface NativeEvent {
  readonly done: boolean;
  /** Host events only; a second time is INVALID_STATE. */
  signal(): void;
  /**
   * Calls back once, on the JavaScript thread and never from inside this call, after the event is
   * done: from whichever thread completes it, without an output thread.
   */
  onReady(callback: (error: Error | null) => void): void;
}

/** One native thread that waits for events in the order they were submitted. */
export interface NativeOutputThread {
  /**
   * `callback` runs on the JavaScript thread, in the order of submission; after `shutdown` with
   * SHUT_DOWN. Like `onReady`, keeps the process running, for a host event once it is signalled.
   */
  submit(event: NativeEvent, callback: (error: Error | null) => void): void;
  /** Waits for events a device will complete, fails the others with SHUT_DOWN, joins. Idempotent. */
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

/** Mixture of experts: for each token the router picks some of a layer's MLPs. */
export interface ExpertsSpec {
  numExperts: number;
  numExpertsPerToken: number;
  /** Of one expert. */
  intermediateSize: number;
  /** The weights of a token's experts are scaled to a sum of 1. */
  normTopkProb: boolean;
  /** [numLayers]: the layer has experts in place of the gated MLP. */
  layers: boolean[];
}

/** What elements are stored in. */
export type StorageType = DType | 'float8_e4m3';

/** How a matrix is stored: its elements, and a scale for each block of [scaleRows, scaleCols]. */
export interface WeightFormat {
  type: StorageType;
  scaleRows: number;
  scaleCols: number;
}

/** The whole model's forward pass, however many ranks divide it. */
export interface ModelSpec {
  /** Of the KV cache, and of weights that have no other format. */
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
  /** [numLayers]: tokens each layer attends to, 0 for all. */
  slidingWindows: number[];
  /** Bias on q, k and v; on o; on gate, up and down. */
  qkvBias: boolean;
  outputBias: boolean;
  mlpBias: boolean;
  /** RMSNorm of each head of q and k before rope (Qwen3). */
  qkNorm: boolean;
  /** The output head is the embedding. */
  tieWordEmbeddings: boolean;
  /** null: every layer has the gated MLP. */
  experts: ExpertsSpec | null;
  /** By module ('layers.3.attention.q'); the others are stored in `dtype`. */
  weightFormats: Record<string, WeightFormat>;
}

/** A dimension of a checkpoint's tensor, and what of it this rank has. */
export interface ParameterDimension {
  size: number;
  /** The sizes of the spec that it is made of: 'numHeads * headDim'. */
  of: string;
  first: number;
  count: number;
}

/**
 * A tensor, or one of each expert, that the model's blocks declare (native/model/blocks). A rank that has nothing of it, as
 * of the biases that are added once, has a dimension of count 0.
 */
export interface Parameter {
  /** null outside the layers. */
  layer: number | null;
  /** Each has a tensor of this shape, and this rank some of them; null: there is a single tensor. */
  experts: { size: number; first: number; count: number } | null;
  /** embedding, norm, head, attention.norm, attention.q, mlp.gate, ... */
  module: string;
  part: 'weight' | 'bias' | 'scales';
  /** The matrix of a linear layer, which may have any format. */
  isLinear: boolean;
  /** Of the module's matrix. */
  format: WeightFormat;
  /** Which weight in memory the matrix is in: the parameters of one weight have one format. */
  weight: number;
  /** [rows] or [rows, cols]. */
  shape: ParameterDimension[];
}

/** What the model's buffers are made for. */
export interface ModelLimits {
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
  maxModelLen: number;
  blockSize: number;
  /** Sets of step buffers: batches in flight. */
  numSteps: number;
  /** Most alternatives reported for a position. */
  maxLogprobs: number;
  /** Device memory for lists of requests that a slot's own memory does not hold. */
  listMemoryBytes: number;
  /** No CUDA graphs. */
  enforceEager: boolean;
}

/** Where a checkpoint has a parameter: a whole tensor, its elements side by side. */
export interface ParameterSource {
  /** Index into what declareParameters gave for this rank. */
  parameter: number;
  /** Of those that have a tensor each; missing where there is a single one. */
  expert?: number;
  /** Index into the list of files, and the byte where the tensor begins there. */
  file: number;
  offset: number;
  dtype: StorageType;
}

/**
 * One batch's staging memory, shared with the device's thread: written before a step is launched,
 * read after its event. A row is one request in this step; a slot is the place a request keeps on
 * the device for its life. Detached at shutdown.
 */
export interface StepBuffers {
  /** [maxNumSeqs]: the slot of each row. */
  slots: Int32Array;
  /** [maxNumSeqs]: tokens of the row's request already in the KV cache. */
  numComputedTokens: Int32Array;
  /** [maxNumSeqs]: tokens of the row's request to compute in this step. */
  numScheduledTokens: Int32Array;
  /** [maxBlockUpdates, 3]: (slot, index in its block table, block), applied before the step. */
  blockUpdates: Int32Array;
  /** [maxNumSeqs]: rows, ascending, whose last token is sampled from. */
  sampledRows: Int32Array;
  /** [maxNumSeqs]: rows, ascending, whose prompt's logprobs are wanted. */
  promptLogprobRows: Int32Array;

  /** Out, [numSampled]. */
  sampledTokenIds: Int32Array;
  /** Out, [numSampled]: NaN among the row's logits, as the model gave them. */
  numNans: Int32Array;
  /** Out, [numSampled, 1 + maxLogprobs]: the sampled token, then the top ones. */
  logprobTokenIds: Int32Array;
  logprobs: Float32Array;
  /** Out, [numSampled]: the sampled token's rank, from 1. */
  logprobRanks: Int32Array;
  /**
   * Out, [numPromptPositions, 1 + maxLogprobs]: for each row of promptLogprobRows in turn, for each of
   * its positions p computed in this step with p + 1 inside the prompt: token p + 1, then the top ones.
   */
  promptLogprobTokenIds: Int32Array;
  promptLogprobs: Float32Array;
  promptLogprobRanks: Int32Array;
  /** Out, [numPromptPositions]: NaN among the position's logits. */
  promptNumNans: Int32Array;
}

/**
 * One request's sampling; numbers as SamplingParams has them. native/model/request.h lists what each
 * may be.
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
  /** Alternatives to report, -1 for none. */
  numLogprobs: number;
  numPromptLogprobs: number;
  /** Each once. */
  logitBiasTokenIds: Int32Array;
  logitBiases: Float32Array;
  /** Empty: all are allowed. */
  allowedTokenIds: Int32Array;
  /** Sequences laid end to end, and where each ends. */
  badWordsTokenIds: Int32Array;
  badWordsEnds: Int32Array;
  /** Not sampled before minTokens. */
  stopTokenIds: Int32Array;
}

/** A request's state as it enters a slot. */
export interface NativeRequest {
  /** All tokens known: the prompt, and what was generated before a preemption. */
  tokenIds: Int32Array;
  numPromptTokens: number;
  blockIds: Int32Array;
  sampling: NativeSampling;
  /**
   * Byte of the list memory from which on its lists are the request's alone; left out, they are in
   * the slot's own memory, which holds `slotListBytes`.
   */
  listOffset?: number;
}

/** What the native side accepts of a request whatever the model (native/model/request.h). */
export interface NativeRequestLimits {
  /** Entries of each list. */
  readonly maxListLength: number;
  /** Bytes of all lists together in a slot's own memory. */
  readonly slotListBytes: number;
  /** A listOffset is a multiple of it. */
  readonly listAlignment: number;
  /** The most that `listMemoryBytes` may be. */
  readonly maxListMemory: number;
  /** Token ids, topK, minTokens and numbers of logprobs. */
  readonly maxInt32: number;
}

/**
 * The transformer on one device. Calls that return nothing enqueue: they are carried out by the
 * device's thread in the order made, and an error of theirs comes with the step's event.
 */
export interface NativeModel {
  /** The staging sets, [numSteps]; made once, detached by `shutdown`. */
  readonly steps: StepBuffers[];
  /**
   * Allocates the weights and fills them from the files. `onProgress(bytes, tensors)` counts tensors
   * done; every parameter that this rank has must be named once. Rejects with OUT_OF_MEMORY, and with
   * CHECKPOINT_INVALID when a file does not hold them or becomes shorter meanwhile; no weights are
   * allocated then.
   */
  load(
    files: string[],
    sources: ParameterSource[],
    onProgress: (bytes: number, tensors: number) => void,
  ): Promise<void>;
  /**
   * Fills the weights with random values (std 0.02, norms 1) from a seed, for measuring; each rank's
   * are others.
   */
  loadDummy(seed: number): Promise<void>;
  /** Gives the weights' memory back; `load` brings them again. */
  releaseWeights(): Promise<void>;
  /**
   * Moves the weights to host memory (not pinned) and gives their memory on the device back. Rejects
   * with OUT_OF_MEMORY when the host has none for them; then they stay where they are.
   */
  offloadWeights(): Promise<void>;
  /** Moves them to the device again. After OUT_OF_MEMORY they are still in host memory. */
  restoreWeights(): Promise<void>;
  /**
   * One forward at the largest batch with sampling, so that peakAllocated is the most a step needs.
   * Resolves to the bytes that CUDA graphs will take beside what is allocated.
   */
  profile(): Promise<number>;
  allocateKvCache(numBlocks: number): Promise<void>;
  releaseKvCache(): Promise<void>;
  /** Runs a few shapes once, leaving every request and the sampling untouched. */
  warmUp(): Promise<void>;
  /**
   * Throws REQUEST_INVALID, naming the parameter, for a request that no slot would take. Changes
   * nothing. Goes over the request's lists once (native/model/request.h says what they may be).
   */
  checkRequest(request: NativeRequest): void;
  /**
   * Puts a request into a free slot. Throws REQUEST_INVALID for what is of a wrong type; another
   * fault comes with the step's event and leaves the slot free.
   */
  addRequest(slot: number, request: NativeRequest): void;
  removeRequest(slot: number): void;
  /** Forward of the step's rows. Logits stay on the device until `sample`. */
  forward(
    step: number,
    numRows: number,
    numBlockUpdates: number,
    numSampled: number,
    numPromptLogprobRows: number,
  ): void;
  /**
   * Samples the step's rows and appends to each slot's tokens; the event completes when the outputs
   * are in the step's buffers. `bitmask`: [numSampled, ceil(vocabSize / 32)], a set bit allows.
   */
  sample(step: number, bitmask: Int32Array | null): NativeEvent;
  /** Frees everything, detaches the buffers. Idempotent. */
  shutdown(): Promise<void>;
}

export interface CommunicatorOptions {
  rank: number;
  worldSize: number;
  /** Milliseconds: to connect in, and for the others to come to a collective. */
  timeout: number;
  /** Small sums on GPUs by reading the peers' memory directly, where that can be had. */
  customAllReduce: boolean;
}

export type CommType = 'int64' | 'float32' | 'float16' | 'bfloat16';

export type ReduceOp = 'sum' | 'min' | 'max';

/**
 * Collectives of a group of ranks, carried out by the device's thread in the order made, which must
 * be the same on every rank. All ranks get the same bytes. Rejects with PEER_LOST (a rank is gone,
 * or did not come in time) or COMMUNICATOR_FAILED (this rank cannot take part); from then on every
 * call rejects with it.
 */
export interface NativeCommunicator {
  /** What the other ranks need to know of this one; opaque. */
  address(): Promise<Uint8Array>;
  /** Joins the group: the addresses of all ranks, by rank. Resolves once all have joined. */
  connect(addresses: Uint8Array[]): Promise<void>;
  /**
   * Each takes host bytes and resolves to host bytes, copied to the device and back: for figures,
   * not for steps. Sums of float16 and bfloat16 are made in float32 and rounded once, but for those
   * of NCCL between more than two ranks, which rounds each partial sum.
   */
  allReduce(data: Uint8Array, type: CommType, op: ReduceOp): Promise<Uint8Array>;
  /** Resolves to the bytes of all ranks, by rank; every rank gives as many. */
  allGather(data: Uint8Array, type: CommType): Promise<Uint8Array>;
  /** Resolves to the root's bytes; every rank gives as many. */
  broadcast(data: Uint8Array, type: CommType, root: number): Promise<Uint8Array>;
  barrier(): Promise<void>;
  /**
   * At once, from outside the device's thread: whoever waits for a peer fails with PEER_LOST and
   * this reason, and so does every later call. The first reason stands.
   */
  abort(reason: string): void;
  /**
   * Ends this rank's part, once what was enqueued before is done; not before the models that use it
   * are shut down. Idempotent; later calls reject with SHUT_DOWN.
   */
  shutdown(): Promise<void>;
}

export interface Addon {
  /**
   * The parameters that the blocks of this model declare, for one of the ranks that divide it. Throws
   * CONFIG_INVALID when the spec contradicts itself or cannot be divided so.
   */
  declareParameters(spec: ModelSpec, rank: number, worldSize: number): Parameter[];
  /** `kind`: 'cpu' or 'cuda'. `numThreads` is the CPU's; 0 chooses. */
  Device: new (kind: string, index: number, numThreads: number) => NativeDevice;
  Event: new () => NativeEvent;
  OutputThread: new (name: string) => NativeOutputThread;
  Communicator: new (device: NativeDevice, options: CommunicatorOptions) => NativeCommunicator;
  /** `communicator` is that of the ranks that hold the model's shares; null: there is one. */
  Model: new (
    device: NativeDevice,
    spec: ModelSpec,
    limits: ModelLimits,
    communicator: NativeCommunicator | null,
  ) => NativeModel;
  readonly requestLimits: NativeRequestLimits;
  /** How the addon makes its errors. */
  setErrorFactory(
    make: (code: string, message: string, file?: string, rank?: number) => Error,
  ): void;
}

function loadAddon(): Addon {
  const root = path.resolve(__dirname, '..', '..');
  const file = path.join(root, 'build', 'Release', 'uniproc.node');
  if (!existsSync(file)) {
    throw new AddonUnavailableError(`${file} is not there; run npm run build in ${root}`);
  }
  try {
    // eslint-disable-next-line @typescript-eslint/no-require-imports -- an addon has no other loader
    const addon = require(file) as Addon;
    addon.setErrorFactory(nativeError);
    return addon;
  } catch (cause) {
    throw new AddonUnavailableError(`${file} cannot be loaded: ${(cause as Error).message}`, {
      cause,
    });
  }
}

let addon: Addon | undefined;

/** The addon, loaded at first use. Throws AddonUnavailableError. */
export function native(): Addon {
  addon ??= loadAddon();
  return addon;
}

/** The device of those who name none: a CUDA device where one can be opened, else the CPU. */
export async function defaultDevice(): Promise<'cuda' | 'cpu'> {
  const device = new (native().Device)('cuda', 0, 0);
  try {
    await device.open();
    return 'cuda';
  } catch (error) {
    // A GPU that others have filled is still the one that was meant.
    return (error as { code?: string }).code === 'OUT_OF_MEMORY' ? 'cuda' : 'cpu';
  } finally {
    await device.shutdown();
  }
}
