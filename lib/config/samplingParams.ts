/** How a request's tokens are chosen and reported (vLLM's SamplingParams). */
import { z } from 'zod';
import { InvalidRequestError } from '../errors';
import { HARD_LIMITS } from './limits';
import { parseFields, show } from './schema';
import { readingOf, snapshotFields } from './snapshot';
import type { GenerationDefaults } from './uniprocConfig';

/** Options of SamplingParams. An absent or undefined option has its default. */
export interface SamplingParamsOptions {
  /** Outputs for the prompt; from 1, default 1. */
  n?: number;
  /** Divides the logits; 0 is greedy; from 0, default 1. Below 1e-5 counts as 0. */
  temperature?: number;
  /** Sample from the likeliest tokens whose probabilities add up to this; above 0 to 1, default 1. */
  topP?: number;
  /** Sample from this many likeliest tokens; from 1, 0 or -1 for all; default 0. */
  topK?: number;
  /** Drop tokens less likely than this share of the likeliest one; 0 to 1, default 0. */
  minP?: number;
  /** Subtracted from the logit of each token generated so far; -2 to 2, default 0. */
  presencePenalty?: number;
  /** Subtracted once for each occurrence in the output; -2 to 2, default 0. */
  frequencyPenalty?: number;
  /** Divides positive logits of tokens seen in prompt or output, multiplies negative; above 0, default 1. */
  repetitionPenalty?: number;
  /** Added to tokens' logits: token id to -100 to 100; default none. */
  logitBias?: Readonly<Record<number | string, number>> | ReadonlyMap<number, number> | null;
  /** Only these tokens may be sampled; default all. */
  allowedTokenIds?: readonly number[] | null;
  /** Words that are never generated, as text or token ids; default none. */
  badWords?: readonly (string | readonly number[])[] | null;
  /** Seed that makes sampling repeatable; an integer; default (and -1): the engine draws one. */
  seed?: number | null;
  /** Text that ends the output; default none. */
  stop?: string | readonly string[] | null;
  /** Token ids that end the output besides the model's end of sequence; default none. */
  stopTokenIds?: readonly number[] | null;
  /** Keep the stop string, or the stop token, in the output's text; default false. */
  includeStopStrInOutput?: boolean;
  /** Continue after the model's end of sequence; default false. */
  ignoreEos?: boolean;
  /** Minimum tokens before an end of sequence, stop token or stop string ends it; default 0. */
  minTokens?: number;
  /** Maximum tokens to generate; from 1, default 16; null: up to the model's length. */
  maxTokens?: number | null;
  /** Report the logprobs of this many likeliest tokens and of the sampled one; default null: none. */
  logprobs?: number | null;
  /** The same for prompt tokens; default null: none. */
  promptLogprobs?: number | null;
  /** Detokenize the output; default true. */
  detokenize?: boolean;
  /** Omit special tokens from the text; default true. */
  skipSpecialTokens?: boolean;
}

/** Lower temperatures are greedy: dividing logits by them would leave float32's range. */
const GREEDY_BELOW = 1e-5;

const { int32, listLength, logitBias: MAX_BIAS, repetitionPenalty: PENALTY } = HARD_LIMITS;

/** Copied and checked by hand: zod would block the event loop at tens of thousands of entries. */
const list = () => z.unknown().optional();

const schema = z.strictObject({
  n: z.int().min(1).max(HARD_LIMITS.n).optional().describe(`an integer from 1 to ${HARD_LIMITS.n}`),
  temperature: z.number().min(0).optional().describe('a number of at least 0'),
  topP: z.number().gt(0).max(1).optional().describe('a number above 0 and up to 1'),
  topK: z
    .int()
    .min(-1)
    .max(int32)
    .optional()
    .describe(`an integer of at least 1, or 0 or -1 for all tokens; at most ${int32}`),
  minP: z.number().min(0).max(1).optional().describe('a number from 0 to 1'),
  presencePenalty: z.number().min(-2).max(2).optional().describe('a number from -2 to 2'),
  frequencyPenalty: z.number().min(-2).max(2).optional().describe('a number from -2 to 2'),
  repetitionPenalty: z
    .number()
    .min(PENALTY.min)
    .max(PENALTY.max)
    .optional()
    .describe(`a number above 0, from ${PENALTY.min} to ${PENALTY.max}`),
  logitBias: list(),
  allowedTokenIds: list(),
  badWords: list(),
  seed: z.int().nullish().describe('an integer of at most 53 bits'),
  stop: list(),
  stopTokenIds: list(),
  includeStopStrInOutput: z.boolean().optional().describe('true or false'),
  ignoreEos: z.boolean().optional().describe('true or false'),
  minTokens: z
    .int()
    .min(0)
    .max(int32)
    .optional()
    .describe(`an integer of at least 0 and at most ${int32}`),
  maxTokens: z
    .int()
    .min(1)
    .nullish()
    .describe("an integer of at least 1, or null for the model's length"),
  logprobs: z.int().min(0).nullish().describe('an integer of at least 0, or null for none'),
  promptLogprobs: z.int().min(0).nullish().describe('an integer of at least 0, or null for none'),
  detokenize: z.boolean().optional().describe('true or false'),
  skipSpecialTokens: z.boolean().optional().describe('true or false'),
} satisfies Record<keyof SamplingParamsOptions, z.ZodType>);

const NAMES = Object.keys(schema.shape);

/** Parameters that the device uses in float32. */
const FLOATS = [
  'temperature',
  'topP',
  'minP',
  'presencePenalty',
  'frequencyPenalty',
  'repetitionPenalty',
] as const;

/** Refuses a number that float32 rounds to a forbidden one: 1e39 to Infinity, 1e-46 to 0. */
function checkFloat32(given: Partial<Record<(typeof FLOATS)[number], number>>): void {
  for (const name of FLOATS) {
    const value = given[name];
    if (value === undefined) continue;
    const narrowed = Math.fround(value);
    // Rounding is monotonic, and float32 represents all other bounds exactly.
    if (Number.isFinite(narrowed) && (narrowed !== 0 || value === 0)) continue;
    const field = schema.shape[name];
    if (!field.safeParse(narrowed).success) {
      throw fail(
        `${name} is ${value}, which is ${narrowed} in float32; it must be ${field.description}`,
      );
    }
  }
}

/** Allowed values of list parameters, for errors. */
const LISTS = {
  logitBias: `an object or Map of token ids to numbers from -${MAX_BIAS} to ${MAX_BIAS}`,
  allowedTokenIds: 'a list of at least one token id',
  badWords: 'a list of non-empty strings or lists of token ids',
  stop: 'a non-empty string or a list of them',
  stopTokenIds: 'a list of token ids',
};
type ListName = keyof typeof LISTS;

function refuse(name: ListName, value: unknown, place: string = name): never {
  const subject = place === name ? 'it' : name;
  throw fail(`${place} is ${show(value)}; ${subject} must be ${LISTS[name]}`);
}

function isTokenId(value: unknown): value is number {
  return typeof value === 'number' && (value | 0) === value && value >= 0;
}

/** Reads `length` once, since a getter or a proxy may change it. */
function lengthOf(name: ListName, values: readonly unknown[]): number {
  const { length } = values;
  if (length <= listLength) return length;
  throw fail(`${name} has ${length} entries; the limit is ${listLength}`);
}

/** A frozen copy of a list, each entry read once and passed through `entry`. */
function copyList<T>(
  name: ListName,
  values: unknown,
  entry: (value: unknown, index: number) => T,
): readonly T[] {
  if (!Array.isArray(values)) refuse(name, values);
  const length = lengthOf(name, values);
  const copy: T[] = [];
  for (let i = 0; i < length; i++) copy.push(entry(values[i], i));
  return Object.freeze(copy);
}

function copyTokenIds(name: ListName, values: unknown): readonly number[] {
  return copyList(name, values, (value, i) =>
    isTokenId(value) ? value : refuse(name, value, `${name}[${i}]`),
  );
}

function copyBadWords(values: unknown): readonly (string | readonly number[])[] {
  const name = 'badWords';
  return copyList(name, values, (word, i) => {
    if (typeof word === 'string' && word !== '') return word;
    if (!Array.isArray(word)) return refuse(name, word, `${name}[${i}]`);
    const copy = copyList(name, word, (value, j) =>
      isTokenId(value) ? value : refuse(name, value, `${name}[${i}][${j}]`),
    );
    return copy.length > 0 ? copy : refuse(name, word, `${name}[${i}]`);
  });
}

function copyStop(values: unknown): readonly string[] {
  if (typeof values === 'string') return values === '' ? refuse('stop', values) : [values];
  return copyList('stop', values, (value, i) =>
    typeof value === 'string' && value !== '' ? value : refuse('stop', value, `stop[${i}]`),
  );
}

/** Object keys are text: accept canonical decimal only, so that no two keys mean one token. */
function toTokenId(key: unknown): unknown {
  if (typeof key !== 'string') return key;
  const id = Number(key);
  return String(id) === key ? id : key;
}

function copyLogitBias(bias: unknown): ReadonlyMap<number, number> {
  const name = 'logitBias';
  if (typeof bias !== 'object' || bias === null || Array.isArray(bias)) refuse(name, bias);
  const copy = new Map<number, number>();
  let count = 0;
  for (const [key, value] of bias instanceof Map ? bias : Object.entries(bias)) {
    if (++count > listLength) {
      throw fail(`${name} has more than ${listLength} entries, the limit`);
    }
    const tokenId = toTokenId(key);
    if (!isTokenId(tokenId) || typeof value !== 'number' || !(Math.abs(value) <= MAX_BIAS)) {
      refuse(name, bias);
    }
    copy.set(tokenId, value);
  }
  return copy;
}

/** Copies and checks all options, reading each once. */
function copyOptions(options: SamplingParamsOptions) {
  const scalars = parseFields(schema, snapshotFields(options, NAMES), fail);
  checkFloat32(scalars);
  const allowedTokenIds =
    scalars.allowedTokenIds == null
      ? null
      : copyTokenIds('allowedTokenIds', scalars.allowedTokenIds);
  if (allowedTokenIds?.length === 0) refuse('allowedTokenIds', allowedTokenIds);
  return {
    scalars,
    allowedTokenIds,
    bias: copyLogitBias(scalars.logitBias ?? {}),
    stop: copyStop(scalars.stop ?? []),
    badWords: copyBadWords(scalars.badWords ?? []),
    stopTokenIds: copyTokenIds('stopTokenIds', scalars.stopTokenIds ?? []),
  };
}

function fail(message: string): InvalidRequestError {
  return new InvalidRequestError(`sampling parameters: ${message}`);
}

/**
 * Validated and deeply immutable. Limits that depend on the model (vocabulary, length, logprobs) or the
 * engine (`limits`) are checked when a request is admitted.
 */
export class SamplingParams {
  readonly n: number;
  readonly temperature: number;
  readonly topP: number;
  /** 0: all. */
  readonly topK: number;
  readonly minP: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly repetitionPenalty: number;
  /** Token id to bias; empty for none. Each read makes a copy. */
  declare readonly logitBias: ReadonlyMap<number, number>;
  /** null: all. */
  readonly allowedTokenIds: readonly number[] | null;
  readonly badWords: readonly (string | readonly number[])[];
  /** null: the engine draws one. */
  readonly seed: number | null;
  readonly stop: readonly string[];
  readonly stopTokenIds: readonly number[];
  readonly includeStopStrInOutput: boolean;
  readonly ignoreEos: boolean;
  readonly minTokens: number;
  /** null: up to the model's length. */
  readonly maxTokens: number | null;
  /** Likeliest tokens to report beside the sampled one; null: no logprobs at all. */
  readonly logprobs: number | null;
  readonly promptLogprobs: number | null;
  readonly detokenize: boolean;
  readonly skipSpecialTokens: boolean;

  /** The options that the user set, without defaults. */
  readonly #options: SamplingParamsOptions;

  /** Throws InvalidRequestError naming the parameter, its value and the allowed values. */
  constructor(options: SamplingParamsOptions = {}) {
    const { scalars, bias, stop, allowedTokenIds, badWords, stopTokenIds } = readingOf(
      'sampling parameters',
      () => copyOptions(options),
    );
    this.n = scalars.n ?? 1;
    const temperature = scalars.temperature ?? 1;
    this.temperature = temperature < GREEDY_BELOW ? 0 : temperature;
    this.topP = scalars.topP ?? 1;
    this.topK = Math.max(scalars.topK ?? 0, 0);
    this.minP = scalars.minP ?? 0;
    this.presencePenalty = scalars.presencePenalty ?? 0;
    this.frequencyPenalty = scalars.frequencyPenalty ?? 0;
    this.repetitionPenalty = scalars.repetitionPenalty ?? 1;
    // Map has no frozen form.
    Object.defineProperty(this, 'logitBias', { get: () => new Map(bias), enumerable: true });
    this.allowedTokenIds = allowedTokenIds;
    this.badWords = badWords;
    this.seed = scalars.seed === -1 ? null : (scalars.seed ?? null);
    this.stop = Object.freeze(stop);
    this.stopTokenIds = stopTokenIds;
    this.includeStopStrInOutput = scalars.includeStopStrInOutput ?? false;
    this.ignoreEos = scalars.ignoreEos ?? false;
    this.minTokens = scalars.minTokens ?? 0;
    this.maxTokens = scalars.maxTokens === undefined ? 16 : scalars.maxTokens;
    this.logprobs = scalars.logprobs ?? null;
    this.promptLogprobs = scalars.promptLogprobs ?? null;
    this.detokenize = scalars.detokenize ?? true;
    this.skipSpecialTokens = scalars.skipSpecialTokens ?? true;

    if (this.maxTokens !== null && this.minTokens > this.maxTokens) {
      throw fail(`minTokens is ${this.minTokens}; it must be at most maxTokens, ${this.maxTokens}`);
    }
    if (this.temperature === 0 && this.n > 1) {
      throw fail(`n is ${this.n}; with temperature 0 all outputs are equal, so n must be 1`);
    }
    if (this.stop.length > 0 && !this.detokenize) {
      throw fail('stop is set and detokenize is false; stop strings require detokenize');
    }
    this.#options = {
      ...(scalars as SamplingParamsOptions),
      ...(scalars.logitBias != null && { logitBias: bias }),
      ...(scalars.allowedTokenIds != null && { allowedTokenIds: this.allowedTokenIds }),
      ...(scalars.badWords != null && { badWords: this.badWords }),
      ...(scalars.stop != null && { stop: this.stop }),
      ...(scalars.stopTokenIds != null && { stopTokenIds: this.stopTokenIds }),
    };
    Object.freeze(this);
  }

  /** Whether the constructor made it; a proxy or an object with only the prototype may be mutable. */
  static isMade(value: unknown): value is SamplingParams {
    return typeof value === 'object' && value !== null && #options in value;
  }

  /**
   * `params` with `defaults` (from a model's generation_config.json) in place of this class's defaults,
   * for the options that the user did not set.
   */
  static fromDefaults(
    defaults: GenerationDefaults,
    params: SamplingParams | SamplingParamsOptions = {},
  ): SamplingParams {
    const options = SamplingParams.isMade(params) ? params.#options : params;
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    return new SamplingParams({ ...defaults, ...Object.fromEntries(given) });
  }
}
