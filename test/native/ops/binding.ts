/**
 * Types of the testing addon's operations: the calls of native/ops/ops.h, with handles for device
 * memory. For tests and benchmarks; see native/addon_testing/ops_binding.h.
 */
import type {
  CommunicatorOptions,
  DType,
  MemoryInfo,
  NativeRequest,
  StorageType,
} from '../../../lib/native';
import type { CacheDType } from '../../../lib/config/dtype';
import testingAddon from '../../support/testingAddon';
import { float8Bits, float8ToNumber, widen } from './reference';

declare const tensorBrand: unique symbol;
declare const requestsBrand: unique symbol;
declare const communicatorBrand: unique symbol;
declare const graphsBrand: unique symbol;

/** Elements of one type in device memory. */
export interface Tensor {
  readonly [tensorBrand]: true;
}

/** A request table. */
export interface Requests {
  readonly [requestsBrand]: true;
}

/** Collectives of a rank group. */
export interface Communicator {
  readonly [communicatorBrand]: true;
}

/** Operations recorded by key. */
export interface Graphs {
  readonly [graphsBrand]: true;
}

/** A matrix [rows, cols]; a vector is [rows, 1]. */
export interface Weight {
  data: Tensor;
  rows: number;
  cols: number;
  /** Added to each element of a norm's weight. */
  offset?: number;
}

/** A linear layer's matrix, in a format that may have scales. */
export interface LinearWeight extends Weight {
  /** [ceil(rows / scaleRows), ceil(cols / scaleCols)], float32. */
  scales?: Tensor;
  scaleRows?: number;
  scaleCols?: number;
  /** uint4: [rows, ceil(cols / scaleCols)], float8_e4m3 or int8 as bytes; default: 8. */
  zeros?: Tensor;
  /** [cols], int32: W[r, order[c]] is stored at column c, which is none of W's if -1. */
  order?: Tensor;
  /** Columns of x, if the order has some of -1. */
  inputCols?: number;
  /** Type of the activations; only of a quantized matrix. */
  dtype?: DType;
  /** What `arrange` returned. */
  isArranged?: boolean;
  /** float8_e4m3: products may round x to float8. */
  roundsInput?: boolean;
}

/** Routing of a batch's tokens to experts. */
export interface Routing {
  numTokens: number;
  numExperts: number;
  topK: number;
  firstLocal: number;
  numLocal: number;
  expertIds: Tensor;
  weights: Tensor;
}

export interface SigmoidRouting {
  /** [numExperts], float32. */
  bias: Tensor | null;
  numGroups: number;
  numChosenGroups: number;
  normalize: boolean;
  scale: number;
}

export interface Batch {
  numRows: number;
  numTokens: number;
  slots: Tensor;
  numComputedTokens: Tensor;
  queryStarts: Tensor;
  tokenIds: Tensor;
  positions: Tensor;
  /** [numGroups, cacheSlotStride] */
  cacheSlots: Tensor;
  /** Largest number of tokens in a row. */
  maxQueryLen: number;
  /** Rows of one token. */
  numDecodeRows: number;
  /** Every row has one token and reads no key that another row of the batch writes. */
  isDecode: boolean;
  /** At most 8 rows, and 4096 keys if each row had as many as the longest. */
  hasFewKeys: boolean;
  /** Default 0, for one group. */
  cacheSlotStride?: number;
}

export interface AttentionShape {
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  slidingWindow: number;
  isChunked?: boolean;
  /** Default: 1 / sqrt(headDim). */
  scale?: number;
  softcap?: number;
  /** [numHeads] */
  sinks?: Weight;
  /** Default: true; false: rows of qkv have queries alone. */
  hasKeys?: boolean;
}

export interface KvCache {
  keys: Tensor;
  values: Tensor;
  blockSize: number;
  /** Type of the activations; for keys and values in float8_e4m3. */
  dtype?: DType;
  /** Default: 1. */
  keyScale?: number;
  valueScale?: number;
}

export interface Logprobs {
  tokenIds: Tensor;
  logprobs: Tensor;
  ranks: Tensor;
  maxLogprobs: number;
}

export interface RequestLimits {
  vocabSize: number;
  maxNumSeqs: number;
  maxModelLen: number;
  blockSize: number;
  maxLogprobs: number;
  /** Default 1. */
  numKvCacheGroups?: number;
}

export type Isa = 'plain' | 'avx2' | 'avx512' | 'avx512bf16';

export type OpsOptions =
  | {
      kind: 'cpu';
      /** 0: automatic. */
      numThreads: number;
      /** Default: the fastest supported. */
      isa?: Isa;
    }
  | { kind: 'cuda'; index: number };

/** All parameters except the last. */
type Rest<T extends unknown[]> = T extends [...infer Others, unknown] ? Others : never;

type HostArray = Float32Array | Int32Array | Uint16Array | Uint8Array;

interface NativeOps {
  properties(): { name: string; capability: string; numThreads: number };
  memory(): MemoryInfo;
  resetPeakMemory(): void;
  synchronize(): void;
  /** Zeroed. Throws OutOfMemoryError. */
  allocate(count: number, dtype: StorageType | 'int32', what: string): Tensor;
  /** Frees the memory without waiting for garbage collection. */
  release(tensor: Tensor): void;
  /** Array and tensor have the same number of bytes. */
  copyToDevice(tensor: Tensor, array: HostArray): void;
  copyToHost(array: HostArray, tensor: Tensor): void;
  makeRequests(limits: RequestLimits): Requests;
  addRequest(requests: Requests, slot: number, request: NativeRequest, numBlocks: number): void;
  readRequest(requests: Requests, slot: number): { tokenIds: Int32Array; blockTable: Int32Array };
  /**
   * Copies the whole array, or rows of `cols` elements that are `rowStride` apart, starting at its
   * first element.
   */
  upload(
    out: Tensor,
    host: HostArray,
    hostType: StorageType,
    cols?: number,
    rowStride?: number,
  ): void;
  /** Array and tensor have the same number of bytes. */
  download(array: HostArray, tensor: Tensor): void;
  fillRandom(out: Tensor, mean: number, std: number, seed: bigint): void;
  /** See NativeDeviceThread. */
  chooseProductAlgorithms(known: string): string;
  prepareInputs(
    requests: Requests,
    blockUpdates: Tensor | null,
    numBlockUpdates: number,
    blockSize: number,
    batch: Batch,
  ): void;
  embed(
    tokenIds: Tensor,
    numTokens: number,
    table: LinearWeight,
    firstToken: number,
    out: Tensor,
  ): void;
  rmsNorm(
    x: Tensor | null,
    residual: Tensor,
    numTokens: number,
    weight: Weight,
    eps: number,
    out: Tensor,
  ): void;
  /** Rearranges the weight in place into the backend's own layout, or returns false. */
  arrange(weight: LinearWeight, sliceRows: number): boolean;
  linear(
    x: Tensor,
    numTokens: number,
    weight: LinearWeight,
    bias: Weight | null,
    out: Tensor,
  ): void;
  normLinear(
    x: Tensor | null,
    residual: Tensor,
    norm: Weight,
    eps: number,
    normed: Tensor,
    numTokens: number,
    weight: LinearWeight,
    out: Tensor,
  ): void;
  linearSiluAndMul(
    x: Tensor,
    numTokens: number,
    weight: LinearWeight,
    gateUp: Tensor,
    out: Tensor,
  ): void;
  routeTokens(
    logits: Tensor,
    normalize: boolean,
    routing: Routing,
    expertScales: Tensor | null,
  ): void;
  expertLinear(
    x: Tensor,
    rowsPerToken: number,
    routing: Routing,
    weight: LinearWeight,
    out: Tensor,
    bias?: Weight,
  ): void;
  routeTokensBySigmoid(logits: Tensor, rule: SigmoidRouting, routing: Routing): void;
  applyWeights(x: Tensor, routing: Routing, width: number): void;
  sumExperts(x: Tensor, routing: Routing, width: number, out: Tensor): void;
  /** `activation`: 0 for SiLU, 1 for GELU, 2 for its tanh approximation, 3 for gpt-oss's. */
  multiplyExperts(
    x: Tensor,
    routing: Routing,
    gateUp: LinearWeight,
    down: LinearWeight,
    activation: number,
    wide: Tensor,
    product: Tensor,
    out: Tensor,
  ): void;
  ropeAndCache(
    qkv: Tensor,
    batch: Batch,
    shape: AttentionShape,
    qNorm: Weight | null,
    kNorm: Weight | null,
    eps: number,
    rope: Tensor | null,
    cache: KvCache,
  ): void;
  attention(
    qkv: Tensor,
    batch: Batch,
    shape: AttentionShape,
    cache: KvCache,
    requests: Requests,
    out: Tensor,
  ): void;
  ropeAndAttention(
    qkv: Tensor,
    batch: Batch,
    shape: AttentionShape,
    qNorm: Weight | null,
    kNorm: Weight | null,
    eps: number,
    rope: Tensor | null,
    cache: KvCache,
    requests: Requests,
    out: Tensor,
  ): void;
  siluAndMul(gateUp: Tensor, numTokens: number, size: number, out: Tensor): void;
  geluAndMul(gateUp: Tensor, numTokens: number, size: number, isTanh: boolean, out: Tensor): void;
  clampedSwiglu(gateUp: Tensor, numTokens: number, size: number, out: Tensor): void;
  /** Rows of `gate`, and of `up` from its element `upStart` on; `activation` as in multiplyExperts. */
  activateAndMulRows(
    gate: Tensor,
    gateStride: number,
    up: Tensor,
    upStart: number,
    upStride: number,
    numTokens: number,
    size: number,
    activation: number,
    out: Tensor,
  ): void;
  scaleQueries(
    qkv: Tensor,
    batch: Batch,
    shape: AttentionShape,
    beta: number,
    period: number,
    shift: number,
  ): void;
  scale(x: Tensor, count: number, factor: number): void;
  scaleBy(x: Tensor, count: number, factor: Weight): void;
  normValues(qkv: Tensor, numTokens: number, shape: AttentionShape, eps: number): void;
  softcap(x: Tensor, count: number, cap: number): void;
  add(residual: Tensor, x: Tensor, count: number): void;
  addGated(x: Tensor, gate: Tensor, numTokens: number, width: number, out: Tensor): void;
  /** sums [numTokens, 2], float32. */
  sumSquares(qkv: Tensor, numTokens: number, shape: AttentionShape, sums: Tensor): void;
  normProjections(
    qkv: Tensor,
    numTokens: number,
    shape: AttentionShape,
    sums: Tensor,
    qNorm: Weight,
    kNorm: Weight,
    qWidth: number,
    kWidth: number,
    eps: number,
  ): void;
  gatherRows(x: Tensor, index: Tensor, count: number, width: number, out: Tensor): void;
  joinColumns(parts: Tensor, count: number, partWidth: number, width: number, out: Tensor): void;
  sample(
    logits: Tensor,
    count: number,
    vocabSize: number,
    slots: Tensor,
    requests: Requests,
    bitmask: Tensor | null,
    sampled: Tensor,
    logprobs: Logprobs | null,
    numNans: Tensor,
    /** Whether a row may have min-p, top-k or top-p. */
    truncation: boolean,
  ): void;
  gatherLogprobs(
    logits: Tensor,
    count: number,
    vocabSize: number,
    tokenIds: Tensor,
    numTop: number,
    out: Logprobs,
    numNans: Tensor,
  ): void;
  /** These block the JavaScript thread until the other ranks join: only for one rank per process. */
  makeCommunicator(options: CommunicatorOptions): Communicator;
  address(communicator: Communicator): Uint8Array;
  connect(communicator: Communicator, addresses: Uint8Array[]): void;
  /** Whether small all-reduces use peer memory. */
  hasPeerMemory(communicator: Communicator): boolean;
  /** All-reduce sum, in place. */
  allReduce(communicator: Communicator, data: Tensor): void;
  /** rmsNorm of the sum of x over the ranks. */
  sumRmsNorm(
    communicator: Communicator,
    x: Tensor,
    residual: Tensor,
    numTokens: number,
    weight: Weight,
    eps: number,
    out: Tensor,
  ): void;
  /** All-gather: in [count], out [worldSize, count]. */
  allGather(communicator: Communicator, input: Tensor, out: Tensor): void;
  barrier(communicator: Communicator): void;
  dropCommunicator(communicator: Communicator): void;
  makeGraphs(): Graphs;
  /** Runs `record`; from the third call on, replays the operations captured in the second. */
  launchGraph(graphs: Graphs, key: number, record: () => void): void;
  dropGraphs(graphs: Graphs): void;
}

interface OpsAddon {
  Ops: new (options: OpsOptions) => NativeOps;
  /** Philox4x32-10 with a counter [4] and a key [2]. */
  philox: (counter: Uint32Array, key: Uint32Array) => Uint32Array;
  /** Memory in bytes according to /proc and cgroup files under the folder `root`. */
  hostMemory: (root: string) => { total: number; free: number };
}

const addon = testingAddon as unknown as OpsAddon;

export const { philox, hostMemory } = addon;

/** A device's operations with helpers to upload and read back arrays. */
export class Ops extends addon.Ops {
  /** Uploads float32 values to a new tensor, rounded to the given type. */
  floats(values: ArrayLike<number>, dtype: DType = 'float32'): Tensor {
    const tensor = this.allocate(values.length, dtype, 'a test');
    this.upload(tensor, Float32Array.from(values), 'float32');
    return tensor;
  }

  ints(values: ArrayLike<number>): Tensor {
    const tensor = this.allocate(values.length, 'int32', 'a test');
    this.copyToDevice(tensor, Int32Array.from(values));
    return tensor;
  }

  zeros(count: number, dtype: DType | 'int32' = 'float32'): Tensor {
    return this.allocate(count, dtype, 'a test');
  }

  readFloats(tensor: Tensor, count: number): Float32Array {
    const array = new Float32Array(count);
    this.copyToHost(array, tensor);
    return array;
  }

  readInts(tensor: Tensor, count: number): Int32Array {
    const array = new Int32Array(count);
    this.copyToHost(array, tensor);
    return array;
  }

  override sample(
    ...[
      logits,
      count,
      vocabSize,
      slots,
      requests,
      bitmask,
      sampled,
      logprobs,
      numNans,
      truncation,
    ]: [...Rest<Rest<Parameters<NativeOps['sample']>>>, numNans?: Tensor, truncation?: boolean]
  ): void {
    super.sample(
      logits,
      count,
      vocabSize,
      slots,
      requests,
      bitmask,
      sampled,
      logprobs,
      numNans ?? this.zeros(count, 'int32'),
      truncation ?? true,
    );
  }

  override gatherLogprobs(
    ...[logits, count, vocabSize, tokenIds, numTop, out, numNans]: [
      ...Rest<Parameters<NativeOps['gatherLogprobs']>>,
      numNans?: Tensor,
    ]
  ): void {
    const nans = numNans ?? this.zeros(count, 'int32');
    super.gatherLogprobs(logits, count, vocabSize, tokenIds, numTop, out, nans);
  }

  /** Of tokens whose experts are all on this rank, not chosen yet. */
  routing(numTokens: number, numExperts: number, topK: number): Routing {
    return {
      numTokens,
      numExperts,
      topK,
      firstLocal: 0,
      numLocal: numExperts,
      expertIds: this.zeros(numTokens * topK, 'int32'),
      weights: this.zeros(numTokens * topK),
    };
  }

  /** Uploads keys or values as the KV cache stores them; of float8 they must be numbers of the type. */
  cached(values: ArrayLike<number>, dtype: CacheDType): Tensor {
    if (dtype !== 'float8_e4m3') return this.floats(values, dtype);
    const tensor = this.allocate(values.length, dtype, 'a test');
    this.copyToDevice(tensor, Uint8Array.from(values, float8Bits));
    return tensor;
  }

  readCached(tensor: Tensor, count: number, dtype: CacheDType): Float32Array {
    if (dtype === 'float32') return this.readFloats(tensor, count);
    if (dtype !== 'float8_e4m3')
      return Float32Array.from(this.readBits(tensor, count), widen[dtype]);
    const array = new Uint8Array(count);
    this.copyToHost(array, tensor);
    return Float32Array.from(array, float8ToNumber);
  }

  /** The bits of float16 or bfloat16 elements. */
  readBits(tensor: Tensor, count: number): Uint16Array {
    const array = new Uint16Array(count);
    this.copyToHost(array, tensor);
    return array;
  }
}

/** The instruction sets that this machine supports. */
export const isas: Isa[] = (['plain', 'avx2', 'avx512', 'avx512bf16'] as const).filter((isa) => {
  try {
    new Ops({ kind: 'cpu', numThreads: 1, isa });
    return true;
  } catch {
    return false;
  }
});

export function cpuOps(isa?: Isa, numThreads = 2): Ops {
  return new Ops({ kind: 'cpu', numThreads, isa });
}

export function cudaOps(index = 0): Ops {
  return new Ops({ kind: 'cuda', index });
}

/** Opens an instruction set of this machine, or its first GPU. */
export type Backend = Isa | 'cuda';

/** Backends under test for float32 operations; the GPU with UNIPROC_TEST_DEVICE=cuda. */
export const backends: Backend[] = process.env.UNIPROC_TEST_DEVICE === 'cuda' ? ['cuda'] : isas;

export function openOps(backend: Backend, numThreads = 2): Ops {
  return backend === 'cuda' ? cudaOps() : cpuOps(backend, numThreads);
}

export const dtypes: DType[] = ['float32', 'float16', 'bfloat16'];

/** Types of the KV cache. */
export const cacheDtypes: CacheDType[] = [...dtypes, 'float8_e4m3'];
