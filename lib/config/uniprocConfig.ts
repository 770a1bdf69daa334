/** The validated, frozen configuration that executors and workers take. */
import type { WorkerArgs } from '../contract/workerArgs';
import type { QuantizedType } from '../contract/workerSummary';
import type { ModelSpec } from '../model/spec';
import type { CacheDType, DType } from './dtype';
import type { RequestLimits } from './limits';

/**
 * The forward pass that config.json describes. The user chooses its dtype; the checkpoint's files
 * determine the weight formats.
 */
export type TransformerSpec = Omit<ModelSpec, 'dtype' | 'weightFormats' | 'fp8Cache'>;

/** How a checkpoint holds quantized matrices (lib/model/quantization.ts). */
export interface QuantizationScheme {
  /** The modules that have it: regular expressions of their names, anchored; null: all others. */
  targets: string[] | null;
  type: QuantizedType;
  /** Rows and columns with one scale; null: one for each row, or one for the matrix. */
  block: [number, number] | null;
  /**
   * Names and layouts of its tensors: of compressed-tensors' pack-quantized, AutoGPTQ, AutoAWQ,
   * gpt-oss; 'float': it is quantized when it is loaded.
   */
  tensors: 'plain' | 'packed' | 'gptq' | 'gptqV2' | 'awq' | 'mxfp4' | 'float';
  hasZeros: boolean;
  /** Columns are assigned to groups by a tensor (act-order). */
  isOrdered: boolean;
  /** Activations are float8 too (W8A8): products may round them, with scales found at run time. */
  roundsInput: boolean;
}

/** A checkpoint's quantization. */
export interface Quantization {
  /** quant_method of config.json. */
  method: string;
  /** The first that matches a module is the module's. */
  schemes: QuantizationScheme[];
  /** Modules that are not quantized: regular expressions of their names, anchored. */
  ignore: string[];
  /** Type of the KV cache; missing: the model's. */
  cacheDtype?: 'float8_e4m3';
}

/** How an embedding model makes a prompt's embedding of its last token's hidden state. */
export interface PoolingConfig {
  /** The embedding has a Euclidean norm of 1. */
  normalize: boolean;
}

/** A checkpoint's validated config.json. */
export interface TransformerConfig {
  /** The architecture in config.json, such as 'LlamaForCausalLM'. */
  architecture: string;
  /**
   * The architecture that this language model is a part of, such as
   * 'Mistral3ForConditionalGeneration'; null: it is the whole model.
   */
  multimodal: string | null;
  /** The architecture in a GGUF file, such as 'llama'; null: a Hugging Face checkpoint. */
  gguf: string | null;
  spec: TransformerSpec;
  /** Of an embedding model; null: the model generates. */
  pooling: PoolingConfig | null;
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
  /** Absolute path of the checkpoint's folder, or of a GGUF file. */
  path: string;
  transformer: TransformerConfig;
  generation: GenerationDefaults;
  /** Type of activations, and of weights that are not quantized. */
  dtype: DType;
  /** Maximum tokens of prompt and output together. */
  maxModelLen: number;
  /** Sampling seed of requests without one. */
  seed: number;
  /** Absolute path of the tokenizer's folder, or of a GGUF file. */
  tokenizer: string;
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
  /** Type of keys and values: fp8, or the model's. */
  dtype: CacheDType;
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
