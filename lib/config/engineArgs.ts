/** The engine's options, and the validated configuration made from them. */
import path from 'node:path';
import { z } from 'zod';
import { ConfigError } from '../errors';
import { MAX_TIMER } from '../timer';
import { divisionFault } from '../model/division';
import { type GenerationConfig, readGenerationConfig } from './generationConfig';
import { DEFAULT_LIMITS, limitsSchema, MAX_INT32, type RequestLimits } from './limits';
import { checkModelFolder } from './modelFolder';
import { parseFields } from './schema';
import { readTokenizerEosId } from './tokenizerEos';
import { readTransformerConfig } from '../model/transformerConfig';
import type {
  DeviceConfig,
  ModelConfig,
  ParallelConfig,
  SchedulerConfig,
  TransformerConfig,
  UniprocConfig,
} from './uniprocConfig';

/**
 * The engine's options; all are optional. `npm run docs` generates docs/options.md from these comments,
 * the schema below and `RequestLimits`.
 */
export interface EngineArgs {
  /**
   * Folder of a Hugging Face checkpoint.
   * @defaultValue the small model that comes with the package
   */
  model?: string;
  /**
   * Where the model runs.
   * @defaultValue the first CUDA device where there is one, else `'cpu'`
   */
  device?: string;
  /**
   * Type that the model computes and caches in, and of weights that are not quantised. `'auto'` is the
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
  distributedTimeout?: number;
  /**
   * Use NCCL for every all-reduce, never peer memory.
   * @defaultValue `false`
   */
  disableCustomAllReduce?: boolean;
  /**
   * The executor: `'uni'` runs one rank, `'external_launcher'` one of several that a launcher started.
   * @defaultValue `'uni'`
   */
  distributedExecutorBackend?: unknown;
  /**
   * The worker's class.
   * @defaultValue none: `Worker`
   */
  workerCls?: unknown;
  /**
   * A class with methods to add to the worker's.
   * @defaultValue none
   */
  workerExtensionCls?: unknown;
  /**
   * Token ids that end a sequence, in place of those that generation_config.json, config.json and the
   * tokenizer's `eos_token` name; `[]` for none.
   * @defaultValue all that the checkpoint's files name
   */
  eosTokenIds?: readonly number[];
  /**
   * Load no tokenizer: prompts and outputs are token ids.
   * @defaultValue `false`
   */
  skipTokenizerInit?: boolean;
}

const optionalInteger = (min: number, max = Number.MAX_SAFE_INTEGER) => {
  const range = max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`;
  return z.int().min(min).max(max).optional().describe(`an integer ${range}`);
};
const optionalFlag = () => z.boolean().optional().describe('true or false');

/** A class, or the module that exports it. */
const optionalClass = () =>
  z
    .union([
      z.custom((value) => typeof value === 'function'),
      z.strictObject({ module: z.string().min(1), export: z.string().min(1) }),
    ])
    .optional()
    .describe('a class or { module, export }');

/** The values of each option, with their description in words. */
export const engineArgsSchema = z.strictObject({
  model: z.string().min(1).optional().describe('the path of a folder'),
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
  seed: z.int().optional().describe('an integer of at most 53 bits'),
  tensorParallelSize: optionalInteger(1, 2 ** 16),
  distributedTimeout: optionalInteger(1, MAX_TIMER),
  disableCustomAllReduce: optionalFlag(),
  // Executor.getClass validates it.
  distributedExecutorBackend: z
    .unknown()
    .optional()
    .describe("'uni', 'external_launcher', a subclass of Executor or { module, export } of one"),
  workerCls: optionalClass(),
  workerExtensionCls: optionalClass(),
  eosTokenIds: z.array(z.int().min(0)).optional().describe('a list of token ids'),
  skipTokenizerInit: optionalFlag(),
} satisfies Record<keyof EngineArgs, z.ZodType>);

/** The package's model; the same path from lib/config and dist/config. */
const DEFAULT_MODEL = path.resolve(__dirname, '..', '..', 'models', 'stories');

/** Default maxModelLen on a CPU: a KV cache for a large model's full length would not fit. */
const MAX_DEFAULT_CPU_MODEL_LEN = 8192;

/** Defaults by device. */
const SCHEDULER_DEFAULTS = {
  cpu: { maxNumSeqs: 64, maxNumBatchedTokens: 2048 },
  cuda: { maxNumSeqs: 256, maxNumBatchedTokens: 8192 },
};

/** The default timeout of PyTorch's process groups. */
const DISTRIBUTED_TIMEOUT = 300_000;

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

/**
 * All ids that the files name. The family's default, which may be a word in another vocabulary, is
 * used only if they name none. A tokenizer's id beyond the vocabulary is ignored.
 */
async function readEosTokenIds(
  folder: string,
  generation: GenerationConfig,
  transformer: TransformerConfig,
  namesEos: boolean,
): Promise<number[]> {
  const tokenizerEosId = await readTokenizerEosId(folder);
  const named = [
    ...(generation.eosTokenIds ?? []),
    ...(namesEos ? transformer.eosTokenIds : []),
    ...(tokenizerEosId === null || tokenizerEosId >= transformer.spec.vocabSize
      ? []
      : [tokenizerEosId]),
  ];
  return named.length > 0 || namesEos ? named : transformer.eosTokenIds;
}

async function readModel(args: EngineArgs, device: DeviceConfig): Promise<ModelConfig> {
  const folder = await checkModelFolder(args.model ?? DEFAULT_MODEL);
  const { namesEos, ...transformer } = await readTransformerConfig(folder);
  const generation = await readGenerationConfig(folder, transformer.spec.vocabSize);
  const eosTokenIds =
    args.eosTokenIds ?? (await readEosTokenIds(folder, generation, transformer, namesEos));
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

function chooseParallel(args: EngineArgs, model: ModelConfig): ParallelConfig {
  const size = args.tensorParallelSize ?? 1;
  const backend = args.distributedExecutorBackend ?? 'uni';
  const fault = divisionFault(model.transformer.spec, size);
  if (fault !== null) throw fail(fault);
  if (size > 1 && backend === 'uni') {
    throw fail(
      `tensorParallelSize is ${size}, but distributedExecutorBackend 'uni' runs one rank; ` +
        "use 'external_launcher'",
    );
  }
  if (size > 1 && args.seed === undefined) {
    throw fail(
      `tensorParallelSize is ${size}, but seed is not set; give all ranks the same seed, so that ` +
        'they sample the same tokens',
    );
  }
  return Object.freeze({
    tensorParallelSize: size,
    distributedExecutorBackend: backend,
    distributedTimeout: args.distributedTimeout ?? DISTRIBUTED_TIMEOUT,
    disableCustomAllReduce: args.disableCustomAllReduce ?? false,
    workerCls: args.workerCls ?? null,
    workerExtensionCls: args.workerExtensionCls ?? null,
  });
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
  const options: EngineArgs = parseFields(engineArgsSchema, args, fail);
  const device = chooseDevice(options.device);
  const scheduler = chooseScheduler(options, device);
  const model = await readModel(options, device);
  return deepFreeze({
    model,
    load: { loadFormat: options.loadFormat ?? 'auto' },
    cache: {
      blockSize: options.blockSize ?? 16,
      memoryUtilization: options.memoryUtilization ?? null,
      kvCacheMemoryBytes: options.kvCacheMemoryBytes ?? null,
      enablePrefixCaching: options.enablePrefixCaching ?? true,
    },
    scheduler,
    limits: chooseLimits(options.limits),
    parallel: chooseParallel(options, model),
    device,
  });
}
