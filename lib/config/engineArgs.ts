/** The engine's options, and the validated configuration made from them. */
import path from 'node:path';
import { z } from 'zod';
import { ConfigError } from '../errors';
import { MAX_TIMER } from '../timer';
import { DEFAULT_LIMITS, limitsSchema, MAX_INT32, type RequestLimits } from './limits';
import { cacheDtypeOf } from './cacheDtype';
import { checkModelFolder } from './modelFolder';
import { withQuantization } from './quantizeAtLoad';
import { chooseParallel } from './parallelConfig';
import { parseFields } from './schema';
import { type DeprecatedEngineArgs, withNewNames } from './oldNames';
import { readModelFiles } from './modelFiles';
import type {
  DeviceConfig,
  ModelConfig,
  ExecutorReference,
  ExtensionReference,
  SchedulerConfig,
  UniprocConfig,
  WorkerReference,
} from './uniprocConfig';

/**
 * The engine's options; all are optional. `npm run docs` generates docs/options.md from these comments,
 * the schema below and `RequestLimits`. `W`: the worker's class; `E`: the executor's, if given as one.
 */
export interface EngineArgs<
  W extends object = object,
  E extends object = object,
> extends DeprecatedEngineArgs {
  /**
   * Folder of a Hugging Face checkpoint, a GGUF file or a folder with one; for `LLM.create` also a
   * name on the hub, organisation/name, or organisation/name:Q4_K_M for a GGUF file of it.
   * @defaultValue the small model that comes with the package
   */
  model?: string;
  /**
   * Where the model runs.
   * @defaultValue the first CUDA device where there is one, else `'cpu'`
   */
  device?: string;
  /**
   * Type that the model computes in, and of weights that are not quantised. `'auto'` is the
   * one that config.json names.
   * @defaultValue `'auto'`
   */
  dtype?: 'auto' | 'float32' | 'float16' | 'bfloat16';
  /**
   * Maximum tokens of a prompt and its output.
   * @defaultValue what the model has positions for; on a CPU at most `8192`
   */
  maxModelLen?: number;
  /**
   * Tokens in a block of the KV cache.
   * @defaultValue `16`
   */
  blockSize?: number;
  /**
   * Type of the KV cache's keys and values: `'fp8'` (e4m3) takes half the memory; `'auto'` is what the
   * checkpoint's quantisation says, else `dtype`.
   * @defaultValue `'auto'`
   */
  kvCacheDtype?: 'auto' | 'fp8';
  /**
   * Fraction of the device's memory that the engine may use.
   * @defaultValue on CUDA `0.9`; on a CPU none: the KV cache takes a quarter of the free memory
   */
  memoryUtilization?: number;
  /**
   * Bytes of the KV cache, in place of a fraction of memory.
   * @defaultValue none: what `memoryUtilization` leaves
   */
  kvCacheMemoryBytes?: number;
  /**
   * Maximum requests in a step.
   * @defaultValue on CUDA `256`; on a CPU `64`
   */
  maxNumSeqs?: number;
  /**
   * Maximum tokens in a step; at least `maxNumSeqs`.
   * @defaultValue on CUDA `8192`; on a CPU `2048`
   */
  maxNumBatchedTokens?: number;
  /**
   * Maximum tokens of one prompt in a step; 0: no limit.
   * @defaultValue `0`
   */
  longPrefillTokenThreshold?: number;
  /**
   * Order of requests: `'fcfs'` by arrival, `'priority'` by priority, then arrival.
   * @defaultValue `'fcfs'`
   */
  schedulingPolicy?: 'fcfs' | 'priority';
  /**
   * Share KV cache blocks between requests with a common prefix.
   * @defaultValue `true`
   */
  enablePrefixCaching?: boolean;
  /**
   * Maximum waiting requests, without those that run or can start immediately; a call beyond it rejects
   * with QueueFullError.
   * @defaultValue none: no limit
   */
  maxQueuedRequests?: number;
  /**
   * Limits of one call.
   * @defaultValue each limit has its own
   */
  limits?: Partial<RequestLimits>;
  /**
   * Schedule the next step while this one runs.
   * @defaultValue `true`
   */
  asyncScheduling?: boolean;
  /**
   * Disable CUDA graphs.
   * @defaultValue `false`
   */
  enforceEager?: boolean;
  /**
   * `'auto'` reads the checkpoint's weights, `'dummy'` generates random ones.
   * @defaultValue `'auto'`
   */
  loadFormat?: 'auto' | 'dummy';
  /**
   * Quantizes the matrices of a model in float32, float16 or bfloat16 while it is loaded, rounded to
   * nearest: `'fp8'` with a scale for each row, `'int4'` with one for each 128 columns. Embeddings,
   * head and routers stay as they are. A model that is quantized already needs no option.
   * @defaultValue none: the weights are as the checkpoint has them
   */
  quantization?: 'fp8' | 'int4';
  /**
   * Sampling seed of requests without one; required with several ranks.
   * @defaultValue `0`
   */
  seed?: number;
  /**
   * Ranks that share the model.
   * @defaultValue `1`
   */
  tensorParallelSize?: number;
  /**
   * Maximum milliseconds to wait for other ranks: at rendezvous, in a collective, in a step.
   * @defaultValue `300000`
   */
  distributedTimeoutMs?: number;
  /**
   * Use NCCL for every all-reduce, never peer memory.
   * @defaultValue `false`
   */
  disableCustomAllReduce?: boolean;
  /**
   * The executor: `'uni'` runs one rank, `'external_launcher'` one of several that a launcher started.
   * @defaultValue `'uni'`
   */
  distributedExecutorBackend?: ExecutorReference<E>;
  /**
   * The worker's class.
   * @defaultValue none: `Worker`
   */
  workerCls?: WorkerReference<W>;
  /**
   * A class with methods to add to the worker's.
   * @defaultValue none
   */
  workerExtensionCls?: ExtensionReference;
  /**
   * Token ids that end a sequence, in place of those that generation_config.json, config.json and the
   * tokenizer's `eos_token` name; `[]` for none.
   * @defaultValue all that the checkpoint's files name
   */
  eosTokenIds?: readonly number[];
  /**
   * Folder of a Hugging Face tokenizer, or a GGUF file, whose tokenizer and chat templates take the
   * place of the model's.
   * @defaultValue the model's own
   */
  tokenizer?: string;
  /**
   * Load no tokenizer: prompts and outputs are token ids.
   * @defaultValue `false`
   */
  skipTokenizerInit?: boolean;
  /**
   * Load the language model of a multimodal checkpoint alone; a warning names what is left out.
   * @defaultValue `false`: a multimodal checkpoint is refused
   */
  languageModelOnly?: boolean;
}

const optionalInteger = (min: number, max = Number.MAX_SAFE_INTEGER) => {
  const range = max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`;
  return z.int().min(min).max(max).optional().describe(`an integer ${range}`);
};
const optionalFlag = () => z.boolean().optional().describe('true or false');

/** A class, or the module that exports it. */
const optionalClass = <T extends WorkerReference | ExtensionReference>() =>
  z
    .union([
      z.custom<Extract<T, (...args: never[]) => unknown>>((value) => typeof value === 'function'),
      z.strictObject({ module: z.string().min(1), export: z.string().min(1) }),
    ])
    .optional()
    .describe('a class or { module, export }');

/** The values of each option, with their description in words. */
export const engineArgsSchema = z.strictObject({
  model: z
    .string()
    .min(1)
    .optional()
    .describe('the path of a folder or of a GGUF file, or organisation/name'),
  tokenizer: z.string().min(1).optional().describe('the path of a folder or of a GGUF file'),
  device: z
    .string()
    .regex(/^(cpu|cuda(:\d{1,4})?)$/)
    .optional()
    .describe("'cpu', 'cuda' or 'cuda:N'"),
  dtype: z
    .enum(['auto', 'float32', 'float16', 'bfloat16'])
    .optional()
    .describe("'auto', 'float32', 'float16' or 'bfloat16'"),
  maxModelLen: optionalInteger(2, MAX_INT32),
  blockSize: optionalInteger(1, 256),
  kvCacheDtype: z.enum(['auto', 'fp8']).optional().describe("'auto' or 'fp8', which is fp8_e4m3"),
  memoryUtilization: z.number().gt(0).max(1).optional().describe('a number above 0 and up to 1'),
  kvCacheMemoryBytes: optionalInteger(1),
  maxNumSeqs: optionalInteger(1, 2 ** 16 - 1), // a dimension of CUDA grids
  maxNumBatchedTokens: optionalInteger(1, 2 ** 24),
  longPrefillTokenThreshold: optionalInteger(0),
  schedulingPolicy: z.enum(['fcfs', 'priority']).optional().describe("'fcfs' or 'priority'"),
  enablePrefixCaching: optionalFlag(),
  maxQueuedRequests: optionalInteger(1),
  // Parsed separately, so that errors name the limit.
  limits: z.custom<Partial<RequestLimits>>().optional().describe('an object of the limits below'),
  asyncScheduling: optionalFlag(),
  enforceEager: optionalFlag(),
  loadFormat: z.enum(['auto', 'dummy']).optional().describe("'auto' or 'dummy'"),
  quantization: z.enum(['fp8', 'int4']).optional().describe("'fp8' or 'int4'"),
  seed: z.int().optional().describe('an integer of at most 53 bits'),
  tensorParallelSize: optionalInteger(1, 2 ** 16),
  distributedTimeoutMs: optionalInteger(1, MAX_TIMER),
  disableCustomAllReduce: optionalFlag(),
  // Executor.getClass validates it.
  distributedExecutorBackend: z
    .custom<ExecutorReference>()
    .optional()
    .describe("'uni', 'external_launcher', a subclass of Executor or { module, export } of one"),
  workerCls: optionalClass<WorkerReference>(),
  workerExtensionCls: optionalClass<ExtensionReference>(),
  eosTokenIds: z.array(z.int().min(0)).optional().describe('a list of token ids'),
  skipTokenizerInit: optionalFlag(),
  languageModelOnly: optionalFlag(),
} satisfies Record<Exclude<keyof EngineArgs, keyof DeprecatedEngineArgs>, z.ZodType>);

/** The package's model; the same path from lib/config and dist/config. */
const DEFAULT_MODEL = path.resolve(__dirname, '..', '..', 'models', 'stories');

/** Default maxModelLen on a CPU: a KV cache for a large model's full length would not fit. */
const MAX_DEFAULT_CPU_MODEL_LEN = 8192;

/** Defaults by device. */
const SCHEDULER_DEFAULTS = {
  cpu: { maxNumSeqs: 64, maxNumBatchedTokens: 2048 },
  cuda: { maxNumSeqs: 256, maxNumBatchedTokens: 8192 },
};

/** Maximum logprobs per position, as in vLLM. */
const MAX_LOGPROBS = 20;

function fail(message: string): ConfigError {
  return new ConfigError(`engine arguments: ${message}`);
}

/** Parses the device's name; default: the CPU (LLM.create looks for a GPU). */
function chooseDevice(name = 'cpu'): DeviceConfig {
  const [kind, index] = name.split(':');
  return {
    kind: kind as DeviceConfig['kind'],
    name,
    index: name.includes(':') ? Number(index) : null,
  };
}

async function readModel(args: EngineArgs, device: DeviceConfig): Promise<ModelConfig> {
  const folder = await checkModelFolder(args.model ?? DEFAULT_MODEL);
  const { transformer, generation, eosTokenIds } = await readModelFiles(folder, args, device.kind);
  const outside = eosTokenIds.find((id) => id >= transformer.spec.vocabSize);
  if (outside !== undefined) {
    throw fail(
      `eosTokenIds has ${outside}; the model in ${folder} has token ids 0 to ${transformer.spec.vocabSize - 1}`,
    );
  }

  const longest = transformer.maxPositionEmbeddings;
  const maxModelLen =
    args.maxModelLen ??
    (device.kind === 'cpu' ? Math.min(longest, MAX_DEFAULT_CPU_MODEL_LEN) : longest);
  if (maxModelLen > longest) {
    throw fail(
      `maxModelLen is ${maxModelLen}; it must be at most ${longest}, the positions of the model in ${folder}`,
    );
  }
  const dtype = args.dtype ?? 'auto';
  return {
    path: folder,
    transformer: { ...transformer, eosTokenIds: [...new Set(eosTokenIds)] },
    generation: generation.defaults,
    dtype: dtype === 'auto' ? (transformer.dtype ?? 'float32') : dtype,
    maxModelLen,
    seed: args.seed ?? 0,
    tokenizer: args.tokenizer === undefined ? folder : path.resolve(args.tokenizer),
    skipTokenizerInit: args.skipTokenizerInit ?? false,
    enforceEager: args.enforceEager ?? false,
    maxLogprobs: MAX_LOGPROBS,
  };
}

function chooseScheduler(args: EngineArgs, device: DeviceConfig): SchedulerConfig {
  const defaults = SCHEDULER_DEFAULTS[device.kind];
  // Fit a default to the other option if the user set that one.
  const maxNumSeqs =
    args.maxNumSeqs ?? Math.min(defaults.maxNumSeqs, args.maxNumBatchedTokens ?? Infinity);
  const maxNumBatchedTokens =
    args.maxNumBatchedTokens ?? Math.max(defaults.maxNumBatchedTokens, maxNumSeqs);
  if (maxNumBatchedTokens < maxNumSeqs) {
    throw fail(
      `maxNumBatchedTokens is ${maxNumBatchedTokens}; it must be at least maxNumSeqs, ${maxNumSeqs}: ` +
        'each request in a step needs a token',
    );
  }
  return {
    maxNumSeqs,
    maxNumBatchedTokens,
    longPrefillTokenThreshold: args.longPrefillTokenThreshold ?? 0,
    policy: args.schedulingPolicy ?? 'fcfs',
    maxQueuedRequests: args.maxQueuedRequests ?? null,
    asyncScheduling: args.asyncScheduling ?? true,
  };
}

function chooseLimits(limits: unknown): RequestLimits {
  if (limits === undefined) return DEFAULT_LIMITS;
  const given = parseFields(limitsSchema, limits, (message) => fail(`limits: ${message}`));
  return { ...DEFAULT_LIMITS, ...(JSON.parse(JSON.stringify(given)) as Partial<RequestLimits>) };
}

/** Freezes `value` recursively; does not descend into frozen objects or classes. */
function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.values(value).forEach(deepFreeze);
    Object.freeze(value);
  }
  return value;
}

/**
 * Makes the configuration, deeply frozen, from `args` and the model's files. Throws ConfigError (an
 * unknown or invalid option, or one that contradicts another or the model), CheckpointError and
 * UnsupportedModelError (the model's files).
 */
export async function createUniprocConfig(args: EngineArgs = {}): Promise<UniprocConfig> {
  const options: EngineArgs = parseFields(engineArgsSchema, withNewNames(args, fail), fail);
  const device = chooseDevice(options.device);
  const scheduler = chooseScheduler(options, device);
  const model = withQuantization(await readModel(options, device), options.quantization);
  return deepFreeze({
    model,
    load: { loadFormat: options.loadFormat ?? 'auto' },
    cache: {
      dtype: cacheDtypeOf(model, options.kvCacheDtype),
      blockSize: options.blockSize ?? 16,
      memoryUtilization: options.memoryUtilization ?? null,
      kvCacheMemoryBytes: options.kvCacheMemoryBytes ?? null,
      enablePrefixCaching: options.enablePrefixCaching ?? true,
    },
    scheduler,
    limits: chooseLimits(options.limits),
    parallel: chooseParallel(options, model.transformer.spec, fail),
    device,
  });
}
