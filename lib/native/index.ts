/**
 * Loads the addon, declares its types and chooses the default device. No other module of the library
 * loads the addon.
 */
import path from 'node:path';
import type { DType } from '../config/dtype';
import type { ModelSpec, Parameter, StoredTensor } from '../model/spec';
import { nativeError } from '../nativeError';
import type { BuildInfo, Cuda } from './cuda';
import type { NativeGrammarThread } from './grammarThread';
import { addonFiles, addonUnavailable } from './platformPackage';
import type { ModelLimits, NativeModelRunner, NativeRequestLimits } from './modelRunner';

export type { DType };
export type * from '../model/spec';
export type * from './cuda';
export type * from './modelRunner';

export interface DeviceProperties {
  /** 'cpu', or for example 'NVIDIA H200'. */
  name: string;
  /** Bytes. */
  totalMemory: number;
  /** The kernels' instruction set: 'avx512bf16', 'avx512', 'avx2' or 'plain'; on CUDA for example 'sm_90'. */
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

/**
 * A device and the one native thread that owns it; everything that can block runs there, in order.
 */
export interface NativeDeviceThread {
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
   * Chooses an algorithm for each matrix product that has run so far, by timing those that return the
   * same bits. `known`, an earlier result or empty, has choices that are not timed again; one of
   * another GPU or cuBLASLt, or a damaged one, counts as empty. Resolves to `known` with the new
   * choices; on the CPU to ''.
   */
  chooseProductAlgorithms(known: string): Promise<string>;
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
  DeviceThread: new (kind: string, index: number, numThreads: number) => NativeDeviceThread;
  Event: new () => NativeEvent;
  OutputThread: new (name: string) => NativeOutputThread;
  GrammarThread: new (name: string) => NativeGrammarThread;
  Communicator: new (
    device: NativeDeviceThread,
    options: CommunicatorOptions,
  ) => NativeCommunicator;
  /** `communicator` connects the ranks that hold the model's shards; null: a single rank. */
  ModelRunner: new (
    device: NativeDeviceThread,
    spec: ModelSpec,
    limits: ModelLimits,
    communicator: NativeCommunicator | null,
  ) => NativeModelRunner;
  readonly requestLimits: NativeRequestLimits;
  readonly buildInfo: BuildInfo;
  /** Whether there is a GPU for this process, or an NVIDIA driver that fails; off this thread. */
  hasGpu(): Promise<boolean>;
  /** Whether no thread of this process has called it before. */
  isFirstGpuWarning(): boolean;
  /** Initialises the driver and loads the backend's libraries, off this thread. */
  readCuda(): Promise<Cuda>;
  /**
   * Sets the file of the CUDA backend, for the process; default: uniproc_cuda.so next to the addon.
   */
  setCudaBackend(file: string): void;
  /** Sets the function that creates the addon's errors. */
  setErrorFactory(
    make: (code: string, message: string, file?: string, rank?: number) => Error,
  ): void;
}

function loadAddon(): Addon {
  const { addon: file, cudaBackend } = addonFiles(path.resolve(__dirname, '..', '..'));
  try {
    // Another copy of this package may have loaded the file in this thread. Loaded once more, the addon
    // makes this copy's errors.
    Reflect.deleteProperty(require.cache, require.resolve(file));
    // eslint-disable-next-line @typescript-eslint/no-require-imports -- an addon has no other loader
    const addon = require(file) as Addon;
    addon.setErrorFactory(nativeError);
    if (cudaBackend) addon.setCudaBackend(cudaBackend);
    return addon;
  } catch (cause) {
    throw addonUnavailable(`cannot load ${file}: ${(cause as Error).message}`, cause);
  }
}

let addon: Addon | undefined;

/** Returns the addon, which the first call loads. Throws AddonUnavailableError. */
export function native(): Addon {
  addon ??= loadAddon();
  return addon;
}

let warned: Promise<void> | undefined;

/**
 * The default device: the first CUDA device, or the CPU where it cannot be used. If there is a GPU,
 * that is a warning, once per process.
 */
export async function defaultDevice(): Promise<'cuda' | 'cpu'> {
  const error = await openGpu(0);
  if (error === null || isMemoryFull(error)) return 'cuda';
  await (warned ??= warnOfGpu(error));
  return 'cpu';
}

async function warnOfGpu({ message }: Error): Promise<void> {
  if (!(await native().hasGpu()) || !native().isFirstGpuWarning()) return;
  process.emitWarning(`a GPU cannot be used, so the model runs on the CPU: ${message}`, {
    type: 'CudaWarning',
    code: 'UNIPROC_CUDA_UNAVAILABLE',
    detail: "npx uniproc doctor shows what is there; device: 'cpu' silences this warning",
  });
}

/** A GPU with full memory is still the intended device, so opening it later reports the error. */
export const isMemoryFull = (error: Error): boolean =>
  (error as { code?: string }).code === 'OUT_OF_MEMORY';

/** Opens and closes a CUDA device. Resolves to the error if it cannot be used. */
export async function openGpu(index: number): Promise<Error | null> {
  const device = new (native().DeviceThread)('cuda', index, 0);
  try {
    await device.open();
    return null;
  } catch (error) {
    return error as Error;
  } finally {
    await device.shutdown();
  }
}
