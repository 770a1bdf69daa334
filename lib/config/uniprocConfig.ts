/** The validated, frozen configuration that executors and workers take. */
import type { DType, ModelSpec } from '../native';
import type { RequestLimits } from './limits';

/**
 * The forward pass as config.json has it. The type that it computes in is the user's choice; the
 * formats of its weights are those of the checkpoint's files.
 */
export type TransformerSpec = Omit<ModelSpec, 'dtype' | 'weightFormats'>;

/** How a checkpoint's matrices are quantised, where its files have them so (lib/model/quantization.ts). */
export interface Quantization {
  method: 'fp8';
  /** Rows and columns of a matrix that share a scale. */
  blockSize: [number, number];
}

/** A checkpoint's config.json, read and checked: the forward pass and what the engine needs to know. */
export interface TransformerConfig {
  /** 'LlamaForCausalLM', ... as config.json names it. */
  architecture: string;
  spec: TransformerSpec;
  quantization: Quantization | null;
  /** Type the checkpoint was saved in, null when config.json does not say. */
  dtype: DType | null;
  /** Positions the model can tell apart: config.json's, and those that linear or yarn scaling adds. */
  maxPositionEmbeddings: number;
  bosTokenId: number | null;
  /**
   * What ends a sequence: EngineArgs.eosTokenIds, or all that generation_config.json, config.json and
   * the tokenizer's eos_token name. May be empty.
   */
  eosTokenIds: number[];
}

/** Defaults of generation_config.json, only those it has. */
export interface GenerationDefaults {
  temperature?: number;
  topP?: number;
  topK?: number;
  minP?: number;
  repetitionPenalty?: number;
  maxTokens?: number;
}

export interface ModelConfig {
  /** The checkpoint's folder, absolute. */
  path: string;
  transformer: TransformerConfig;
  generation: GenerationDefaults;
  /** Of weights and KV cache. */
  dtype: DType;
  /** Tokens of prompt and output together. */
  maxModelLen: number;
  /** Seed of requests that bring none. */
  seed: number;
  /** No tokenizer: prompts and outputs are token ids. */
  skipTokenizerInit: boolean;
  /** No CUDA graphs. */
  enforceEager: boolean;
  /** Most alternatives a request may ask logprobs of. */
  maxLogprobs: number;
}

export interface LoadConfig {
  /** 'auto': the checkpoint's files; 'dummy': random weights. */
  loadFormat: 'auto' | 'dummy';
}

export interface CacheConfig {
  /** Tokens in a block. */
  blockSize: number;
  /** Share of the device's memory this engine may use, 0 to 1; null: the worker's default. */
  memoryUtilization: number | null;
  /** Bytes for the KV cache; overrides memoryUtilization. */
  kvCacheMemoryBytes: number | null;
  /** Requests share the blocks of tokens that they begin with alike. */
  enablePrefixCaching: boolean;
}

export interface SchedulerConfig {
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
  /** Most tokens that one request computes in a step; 0: no such limit. */
  longPrefillTokenThreshold: number;
  /** Who runs first: by arrival alone, or by priority and then arrival. */
  policy: 'fcfs' | 'priority';
  /** Most requests that wait beside those that run or begin at once; null: no limit. */
  maxQueuedRequests: number | null;
  asyncScheduling: boolean;
}

/** A class, or where to find one: a module path and the name it exports. */
export type ClassReference<T> = T | { module: string; export: string };

export interface ParallelConfig {
  tensorParallelSize: number;
  /** 'uni', 'external_launcher', a subclass of Executor, or where to find one. */
  distributedExecutorBackend: unknown;
  /** Most milliseconds to wait for other ranks. */
  distributedTimeout: number;
  /** Sum by NCCL alone. */
  disableCustomAllReduce: boolean;
  /** The worker's class; null: Worker. */
  workerCls: unknown;
  /** A class whose methods are added to the worker's; null: none. */
  workerExtensionCls: unknown;
}

export interface DeviceConfig {
  kind: 'cpu' | 'cuda';
  /** The device as the user named it: 'cpu', 'cuda', 'cuda:3'. */
  name: string;
  /** The index the name gave, null when it gave none. */
  index: number | null;
}

export interface UniprocConfig {
  readonly model: Readonly<ModelConfig>;
  readonly load: Readonly<LoadConfig>;
  readonly cache: Readonly<CacheConfig>;
  readonly scheduler: Readonly<SchedulerConfig>;
  /** Bounds on what one call may ask for. */
  readonly limits: Readonly<RequestLimits>;
  readonly parallel: Readonly<ParallelConfig>;
  readonly device: Readonly<DeviceConfig>;
}

/** How far the load of the weights is. */
export interface LoadProgress {
  bytes: number;
  totalBytes: number;
  tensors: number;
  totalTensors: number;
  /** The mean since the load began; of the last report that of the whole load. */
  bytesPerSecond: number;
}
