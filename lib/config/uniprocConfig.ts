/** The validated, frozen configuration that executors and workers take. */
import type { WorkerArgs } from '../contract/workerArgs';
import type { ModelSpec } from '../model/spec';
import type { DType } from './dtype';
import type { RequestLimits } from './limits';

/**
 * The forward pass that config.json describes. The user chooses its dtype; the checkpoint's files
 * determine the weight formats.
 */
export type TransformerSpec = Omit<ModelSpec, 'dtype' | 'weightFormats'>;

/** The checkpoint's quantization method (lib/model/quantization.ts). */
export interface Quantization {
  method: 'fp8';
  /** Rows and columns of a block that shares a scale. */
  blockSize: [number, number];
}

/** A checkpoint's validated config.json. */
export interface TransformerConfig {
  /** The architecture in config.json, such as 'LlamaForCausalLM'. */
  architecture: string;
  spec: TransformerSpec;
  quantization: Quantization | null;
  /** The checkpoint's dtype; null if config.json has none. */
  dtype: DType | null;
  /** Maximum positions: config.json's, extended by linear or yarn scaling. */
  maxPositionEmbeddings: number;
  bosTokenId: number | null;
  /**
   * Token ids that end a sequence: EngineArgs.eosTokenIds, or those of generation_config.json,
   * config.json and the tokenizer's eos_token. May be empty.
   */
  eosTokenIds: number[];
}

/** Defaults set in generation_config.json. */
export interface GenerationDefaults {
  temperature?: number;
  topP?: number;
  topK?: number;
  minP?: number;
  repetitionPenalty?: number;
  maxTokens?: number;
}

export interface ModelConfig {
  /** Absolute path of the checkpoint's folder. */
  path: string;
  transformer: TransformerConfig;
  generation: GenerationDefaults;
  /** Type of weights and KV cache. */
  dtype: DType;
  /** Maximum tokens of prompt and output together. */
  maxModelLen: number;
  /** Sampling seed of requests without one. */
  seed: number;
  /** No tokenizer: prompts and outputs are token ids. */
  skipTokenizerInit: boolean;
  /** No CUDA graphs. */
  enforceEager: boolean;
  /** Maximum logprobs per position. */
  maxLogprobs: number;
}

export interface LoadConfig {
  /** 'auto': the checkpoint's files; 'dummy': random weights. */
  loadFormat: 'auto' | 'dummy';
}

export interface CacheConfig {
  /** Tokens in a block. */
  blockSize: number;
  /** Fraction of the device's memory for this engine, 0 to 1; null: the worker's default. */
  memoryUtilization: number | null;
  /** Bytes for the KV cache; overrides memoryUtilization. */
  kvCacheMemoryBytes: number | null;
  /** Share blocks between requests with a common prefix. */
  enablePrefixCaching: boolean;
}

export interface SchedulerConfig {
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
  /** Maximum tokens of one request in a step; 0: no limit. */
  longPrefillTokenThreshold: number;
  /** Order of requests: by arrival, or by priority and then arrival. */
  policy: 'fcfs' | 'priority';
  /** Maximum waiting requests, without those that run or can start immediately; null: no limit. */
  maxQueuedRequests: number | null;
  asyncScheduling: boolean;
}

/** A class, or a module path and export name. */
export type ClassReference<T> = T | { module: string; export: string };

/** An executor: by name, or a class whose instances are `E`. */
export type ExecutorReference<E = object> =
  'uni' | 'external_launcher' | ClassReference<new (config: UniprocConfig) => E>;

/** A worker's class; its instances are `W`. */
export type WorkerReference<W = object> = ClassReference<new (args: WorkerArgs) => W>;

/** A class whose methods are added to a worker; its constructor is not called. */
export type ExtensionReference = ClassReference<abstract new (...args: never[]) => object>;

export interface ParallelConfig {
  tensorParallelSize: number;
  /** 'uni', 'external_launcher', a subclass of Executor, or { module, export }. */
  distributedExecutorBackend: ExecutorReference;
  /** Maximum milliseconds to wait for other ranks. */
  distributedTimeoutMs: number;
  /** Use NCCL for every all-reduce. */
  disableCustomAllReduce: boolean;
  /** The worker's class; null: Worker. */
  workerCls: WorkerReference | null;
  /** A class with methods to add to the worker's; null: none. */
  workerExtensionCls: ExtensionReference | null;
}

export interface DeviceConfig {
  kind: 'cpu' | 'cuda';
  /** The device's name: 'cpu', 'cuda', 'cuda:3'. */
  name: string;
  /** The index in the name, or null. */
  index: number | null;
}

export interface UniprocConfig {
  readonly model: Readonly<ModelConfig>;
  readonly load: Readonly<LoadConfig>;
  readonly cache: Readonly<CacheConfig>;
  readonly scheduler: Readonly<SchedulerConfig>;
  /** Limits of one call. */
  readonly limits: Readonly<RequestLimits>;
  readonly parallel: Readonly<ParallelConfig>;
  readonly device: Readonly<DeviceConfig>;
}

/** Progress of loading weights. */
export interface LoadProgress {
  bytes: number;
  totalBytes: number;
  tensors: number;
  totalTensors: number;
  /** Mean rate since the load began. */
  bytesPerSecond: number;
}
