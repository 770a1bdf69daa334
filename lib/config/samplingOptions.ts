/** Options of SamplingParams: their types, their values and a checked copy of them. */
import { types } from 'node:util';
import { z } from 'zod';
import { InvalidRequestError } from '../errors';
import { isPlainObject } from '../realm';
import { HARD_LIMITS } from './limits';
import type { ChatOptions } from './requestOptions';
import { parseFields, show } from './schema';
import { snapshotFields } from './snapshot';
import { copyStructuredOutputs, type StructuredOutputsOptions } from './structuredOutputs';
import { adviceFor, suggestName } from './suggest';

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
  /**
   * Maximum tokens to generate; from 1; null: up to the model's length. Default 16; for a chat, until the
   * model ends its turn or its length is reached.
   */
  maxTokens?: number | null;
  /** Report the logprobs of this many likeliest tokens and of the sampled one; default null: none. */
  logprobs?: number | null;
  /** The same for prompt tokens; default null: none. */
  promptLogprobs?: number | null;
  /** The form of the text: JSON of a schema, a regular expression, a grammar; default none. */
  structuredOutputs?: StructuredOutputsOptions | null;
  /** Detokenize the output; default true. */
  detokenize?: boolean;
  /** Omit special tokens from the text; default true. */
  skipSpecialTokens?: boolean;
}

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
  structuredOutputs: z.unknown().optional(),
  detokenize: z.boolean().optional().describe('true or false'),
  skipSpecialTokens: z.boolean().optional().describe('true or false'),
} satisfies Record<keyof SamplingParamsOptions, z.ZodType>);

export const SAMPLING_NAMES: readonly string[] = Object.keys(schema.shape);

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
  const isMap = types.isMap(bias);
  // Another object, such as a Set, has no entries that Object.entries would find.
  if (!isMap && !isPlainObject(bias)) refuse(name, bias);
  const copy = new Map<number, number>();
  let count = 0;
  for (const [key, value] of isMap ? bias : Object.entries(bias)) {
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

/** Options of calls, which are not sampling parameters. */
const CALL_OPTIONS: Readonly<Record<keyof ChatOptions, true>> = {
  signal: true,
  timeoutMs: true,
  priority: true,
  cacheSalt: true,
  progress: true,
  addSpecialTokens: true,
  splitSpecialTokens: true,
  truncatePromptTokens: true,
  tools: true,
  documents: true,
  chatTemplate: true,
  chatTemplateKwargs: true,
  addGenerationPrompt: true,
  continueFinalMessage: true,
  toolChoice: true,
  parallelToolCalls: true,
  reasoning: true,
  toolCallParser: true,
  reasoningParser: true,
};

/** The rest of a message about an unknown parameter. */
function advise(name: string): string {
  const option = suggestName(name, Object.keys(CALL_OPTIONS));
  return option === null || suggestName(name, SAMPLING_NAMES) !== null
    ? adviceFor(name, SAMPLING_NAMES)
    : `${option} is an option of the call, in the argument after the sampling parameters`;
}

/** Copies the fields of sampling parameters, reading each once; checks nothing. */
export const snapshotParams = (options: unknown): unknown =>
  snapshotFields(options, SAMPLING_NAMES);

/** Copies and checks all options, reading each once. */
export function copyOptions(options: unknown) {
  const scalars = parseFields(schema, snapshotParams(options), fail, advise);
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
    structuredOutputs:
      scalars.structuredOutputs == null ? null : copyStructuredOutputs(scalars.structuredOutputs),
  };
}

export function fail(message: string): InvalidRequestError {
  return new InvalidRequestError(`sampling parameters: ${message}`);
}
