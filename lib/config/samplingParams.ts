/** How a request's tokens are chosen and reported (vLLM's SamplingParams). */
import { z } from 'zod';
import { InvalidRequestError } from '../errors';
import { parseFields } from './schema';
import type { GenerationDefaults } from './uniprocConfig';

/** What a request may ask for. An option that is absent or undefined has its default. */
export interface SamplingParamsOptions {
  /** Outputs for the prompt; from 1, default 1. */
  n?: number;
  /** Divides the logits; 0 takes the likeliest token; from 0, default 1. Below 1e-5 counts as 0. */
  temperature?: number;
  /** Sample from the likeliest tokens whose probabilities add up to this; above 0 to 1, default 1. */
  topP?: number;
  /** Sample from this many likeliest tokens; from 1, 0 or -1 for all; default 0. */
  topK?: number;
  /** Drop tokens less likely than this share of the likeliest one; 0 to 1, default 0. */
  minP?: number;
  /** Taken from the logit of each token generated so far; -2 to 2, default 0. */
  presencePenalty?: number;
  /** The same for each time it was generated; -2 to 2, default 0. */
  frequencyPenalty?: number;
  /** Divides positive logits of tokens seen in prompt or output, multiplies negative; above 0, default 1. */
  repetitionPenalty?: number;
  /** Added to tokens' logits: token id to -100 to 100; default none. */
  logitBias?: Readonly<Record<number | string, number>> | ReadonlyMap<number, number> | null;
  /** Only these tokens may be sampled; default all. */
  allowedTokenIds?: readonly number[] | null;
  /** Words never generated whole, as text or as token ids; default none. */
  badWords?: readonly (string | readonly number[])[] | null;
  /** Makes the request's sampling repeatable; an integer; default (and -1): the engine draws one. */
  seed?: number | null;
  /** Text that ends the output; default none. */
  stop?: string | readonly string[] | null;
  /** Tokens that end the output; default none but the model's end of sequence. */
  stopTokenIds?: readonly number[] | null;
  /** Keep the stop string, or the stop token, in the output's text; default false. */
  includeStopStrInOutput?: boolean;
  /** Go on after the model's end of sequence; default false. */
  ignoreEos?: boolean;
  /** No end of sequence, stop token or stop string ends it before; from 0, default 0. */
  minTokens?: number;
  /** Most tokens to generate; from 1, default 16; null: up to the model's length. */
  maxTokens?: number | null;
  /** Report the logprobs of this many likeliest tokens and of the sampled one; default null: none. */
  logprobs?: number | null;
  /** The same for the tokens of the prompt; default null: none. */
  promptLogprobs?: number | null;
  /** Turn tokens into text; default true. */
  detokenize?: boolean;
  /** Leave special tokens out of the text; default true. */
  skipSpecialTokens?: boolean;
}

/** Temperatures below are greedy: dividing logits by them would leave float32's range. */
const GREEDY_BELOW = 1e-5;

const tokenId = z.int().min(0).max(0x7fffffff);
const tokenIds = z.array(tokenId);

function isLogitBias(bias: unknown): boolean {
  if (typeof bias !== 'object' || bias === null || Array.isArray(bias)) return false;
  const entries = bias instanceof Map ? [...bias] : Object.entries(bias);
  return entries.every(
    ([id, value]) =>
      id !== '' &&
      tokenId.safeParse(Number(id)).success &&
      typeof value === 'number' &&
      Math.abs(value) <= 100,
  );
}

const schema = z.strictObject({
  n: z.int().min(1).max(16384).optional().describe('an integer from 1 to 16384'),
  temperature: z.number().min(0).optional().describe('a number of at least 0'),
  topP: z.number().gt(0).max(1).optional().describe('a number above 0 and up to 1'),
  topK: z
    .int()
    .min(-1)
    .max(0x7fffffff)
    .optional()
    .describe('an integer of at least 1, or 0 or -1 for all tokens'),
  minP: z.number().min(0).max(1).optional().describe('a number from 0 to 1'),
  presencePenalty: z.number().min(-2).max(2).optional().describe('a number from -2 to 2'),
  frequencyPenalty: z.number().min(-2).max(2).optional().describe('a number from -2 to 2'),
  repetitionPenalty: z.number().gt(0).optional().describe('a number above 0'),
  logitBias: z
    .custom<NonNullable<SamplingParamsOptions['logitBias']>>(isLogitBias)
    .nullish()
    .describe('an object or Map of token ids to numbers from -100 to 100'),
  allowedTokenIds: tokenIds.min(1).nullish().describe('a list of at least one token id'),
  badWords: z
    .array(z.union([z.string().min(1), tokenIds.min(1)]))
    .nullish()
    .describe('a list of non-empty strings or lists of token ids'),
  seed: z.int().nullish().describe('an integer of at most 53 bits'),
  stop: z
    .union([z.string().min(1), z.array(z.string().min(1))])
    .nullish()
    .describe('a non-empty string or a list of them'),
  stopTokenIds: tokenIds.nullish().describe('a list of token ids'),
  includeStopStrInOutput: z.boolean().optional().describe('true or false'),
  ignoreEos: z.boolean().optional().describe('true or false'),
  minTokens: z.int().min(0).optional().describe('an integer of at least 0'),
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

function fail(message: string): InvalidRequestError {
  return new InvalidRequestError(`sampling parameters: ${message}`);
}

/**
 * Validated and immutable. Limits that depend on the model (its vocabulary, its length, how many
 * logprobs it reports) are checked where the request meets it.
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
  /** Token id to what is added to its logit; empty for none. */
  readonly logitBias: ReadonlyMap<number, number>;
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

  /** What the user set, to tell it from a default. */
  readonly #options: SamplingParamsOptions;

  /** Throws InvalidRequestError, naming the parameter, its value and what is allowed. */
  constructor(options: SamplingParamsOptions = {}) {
    const given = parseFields(schema, options, fail);
    this.#options = given;

    this.n = given.n ?? 1;
    const temperature = given.temperature ?? 1;
    this.temperature = temperature < GREEDY_BELOW ? 0 : temperature;
    this.topP = given.topP ?? 1;
    this.topK = Math.max(given.topK ?? 0, 0);
    this.minP = given.minP ?? 0;
    this.presencePenalty = given.presencePenalty ?? 0;
    this.frequencyPenalty = given.frequencyPenalty ?? 0;
    this.repetitionPenalty = given.repetitionPenalty ?? 1;
    const bias = given.logitBias ?? {};
    this.logitBias = new Map(
      [...(bias instanceof Map ? bias : Object.entries(bias))].map(([id, b]) => [Number(id), b]),
    );
    this.allowedTokenIds = given.allowedTokenIds ?? null;
    this.badWords = given.badWords ?? [];
    this.seed = given.seed === -1 ? null : (given.seed ?? null);
    this.stop = typeof given.stop === 'string' ? [given.stop] : (given.stop ?? []);
    this.stopTokenIds = given.stopTokenIds ?? [];
    this.includeStopStrInOutput = given.includeStopStrInOutput ?? false;
    this.ignoreEos = given.ignoreEos ?? false;
    this.minTokens = given.minTokens ?? 0;
    this.maxTokens = given.maxTokens === undefined ? 16 : given.maxTokens;
    this.logprobs = given.logprobs ?? null;
    this.promptLogprobs = given.promptLogprobs ?? null;
    this.detokenize = given.detokenize ?? true;
    this.skipSpecialTokens = given.skipSpecialTokens ?? true;

    if (this.maxTokens !== null && this.minTokens > this.maxTokens) {
      throw fail(`minTokens is ${this.minTokens}, more than maxTokens, ${this.maxTokens}`);
    }
    if (this.temperature === 0 && this.n > 1) {
      throw fail(`n is ${this.n}, but with temperature 0 all outputs are the same; n must be 1`);
    }
    if (this.stop.length > 0 && !this.detokenize) {
      throw fail('stop strings need the output as text; detokenize must be true');
    }
    for (const list of [this.allowedTokenIds, this.badWords, this.stop, this.stopTokenIds]) {
      Object.freeze(list);
    }
    Object.freeze(this);
  }

  /**
   * `params` with `defaults` (a model's, from its generation_config.json) in place of this class's
   * own defaults: what the user set stays.
   */
  static fromDefaults(
    defaults: GenerationDefaults,
    params: SamplingParams | SamplingParamsOptions = {},
  ): SamplingParams {
    const options = params instanceof SamplingParams ? params.#options : params;
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    return new SamplingParams({ ...defaults, ...Object.fromEntries(given) });
  }
}
