/** `structuredOutputs` of the sampling parameters: what the text must be. */
import { types } from 'node:util';
import { z } from 'zod';
import { parseFields, show } from './schema';
import { DataSnapshot, SnapshotError, snapshotFields } from './snapshot';
import { checkStructuralTag, type StructuralFormat, type StructuralTag } from './structuralTag';
import { adviceFor } from './suggest';
import { InvalidRequestError } from '../errors';

/** Exactly one of json, regex, choice, grammar, jsonObject and structuralTag. */
export interface StructuredOutputsOptions {
  /** JSON of this JSON Schema (draft 2020-12): an object, its text, or a zod schema. */
  json?: string | boolean | object | null;
  /** Text that matches this regular expression as a whole. */
  regex?: string | null;
  /** One of these texts. */
  choice?: readonly string[] | null;
  /** Text of this grammar, in EBNF as llama.cpp (GBNF) and xgrammar write it; it begins with `root`. */
  grammar?: string | null;
  /** Any JSON object. */
  jsonObject?: boolean | null;
  /**
   * Free text in which tags follow triggers, or another structure of tags (vLLM's and xgrammar's form), or
   * its JSON text.
   */
  structuralTag?: string | StructuralTag | null;
  /**
   * White space between JSON's tokens, as a regular expression; default: a space, or a line break with
   * its indentation, or none.
   */
  whitespacePattern?: string | null;
  /** Refuse properties that an object's schema does not name and does not allow; default false. */
  disableAdditionalProperties?: boolean;
}

/** A checked copy; a schema is its JSON. */
export interface StructuredOutputs {
  readonly json?: string;
  readonly regex?: string;
  readonly choice?: readonly string[];
  readonly grammar?: string;
  readonly jsonObject?: true;
  /** JSON of a StructuralTag. */
  readonly structuralTag?: string;
  readonly whitespacePattern?: string;
  readonly disableAdditionalProperties?: true;
}

/** The copies made here, which need no check. */
const checked = new WeakSet<object>();

function made(outputs: StructuredOutputs): StructuredOutputs {
  checked.add(outputs);
  return Object.freeze(outputs);
}

const KINDS = ['json', 'regex', 'choice', 'grammar', 'jsonObject', 'structuralTag'] as const;

/** Longest text of a schema, regular expression, grammar, or of all choices. */
const MAX_LENGTH = 2 ** 20;
const MAX_SCHEMA_VALUES = 2 ** 17;
const MAX_SCHEMA_DEPTH = 128;
const MAX_CHOICES = 65_536;
const LONE_SURROGATE = /\p{Surrogate}/u;

const string = () => z.string().nullish().describe('a string');
const schema = z.strictObject({
  json: z.unknown().optional(),
  regex: string(),
  choice: z.unknown().optional(),
  grammar: string(),
  jsonObject: z.boolean().nullish().describe('true or false'),
  structuralTag: z.unknown().optional(),
  whitespacePattern: string(),
  disableAdditionalProperties: z.boolean().nullish().describe('true or false'),
} satisfies Record<keyof StructuredOutputsOptions, z.ZodType>);

function fail(message: string): InvalidRequestError {
  return new InvalidRequestError(`sampling parameters: structuredOutputs: ${message}`);
}

function checkLength(name: string, text: string): string {
  if (text.length <= MAX_LENGTH) return text;
  throw fail(`${name} has ${text.length} characters; the limit is ${MAX_LENGTH}`);
}

/** Throws for half of a surrogate pair, which no text of tokens has. */
function checkText(name: string, text: string): string {
  checkLength(name, text);
  if (!LONE_SURROGATE.test(text)) return text;
  throw fail(`${name} has half of a surrogate pair, which is no character`);
}

/** Whether the value is a schema of zod 4, of any copy of it. */
const isZod = (value: object): value is z.ZodType => '_zod' in value;

/** For JSON.stringify, which would write null or {} for values that JSON lacks. */
function jsonValue(_: string, value: unknown): unknown {
  if (typeof value === 'number' && !Number.isFinite(value))
    throw fail(`json has the number ${value}`);
  if (types.isMap(value)) throw fail('json has a Map; use an object');
  return value;
}

/** A JSON schema's text. */
function copyJson(value: unknown): string {
  if (typeof value === 'string') {
    checkLength('json', value);
    let parsed: unknown;
    try {
      parsed = JSON.parse(value);
    } catch (error) {
      throw fail(`json is not JSON: ${(error as Error).message}`);
    }
    return copyJson(typeof parsed === 'string' ? null : parsed);
  }
  const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
  if (!isObject && typeof value !== 'boolean') {
    throw fail(`json is ${show(value)}; it must be a JSON schema, its text, or a zod schema`);
  }
  try {
    const plain = isObject && isZod(value) ? z.toJSONSchema(value) : value;
    return checkLength('json', JSON.stringify(copyData('json', plain), jsonValue));
  } catch (error) {
    if (error instanceof InvalidRequestError) throw error;
    throw fail(`json cannot be read: ${(error as Error).message}`);
  }
}

function copyData(name: string, value: unknown): unknown {
  try {
    return new DataSnapshot(MAX_SCHEMA_VALUES, MAX_SCHEMA_DEPTH).copy(value);
  } catch (error) {
    if (error instanceof SnapshotError) throw fail(`${name} ${error.message}`);
    throw fail(`${name} cannot be read: ${(error as Error).message}`);
  }
}

/** A structural tag's text. */
function copyTag(value: unknown): string {
  let given = value;
  if (typeof value === 'string') {
    try {
      given = JSON.parse(checkLength('structuralTag', value));
    } catch (error) {
      if (error instanceof InvalidRequestError) throw error;
      throw fail(`structuralTag is not JSON: ${(error as Error).message}`);
    }
  }
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    throw fail(`structuralTag is ${show(value)}; it must be an object or its JSON text`);
  }
  const tag = copyData('structuralTag', given);
  checkStructuralTag(tag, (message) => fail(`structuralTag: ${message}`));
  return checkLength('structuralTag', JSON.stringify(tag, jsonValue));
}

function copyChoice(value: unknown): readonly string[] {
  if (!Array.isArray(value) || value.length === 0 || types.isProxy(value)) {
    throw fail(`choice is ${show(value)}; it must be a list of at least one string`);
  }
  const { length } = value;
  if (length > MAX_CHOICES) {
    throw fail(`choice has ${length} entries; the limit is ${MAX_CHOICES}`);
  }
  const copy: string[] = [];
  let total = 0;
  for (let i = 0; i < length; i++) {
    const one: unknown = value[i];
    if (typeof one !== 'string' || one === '') {
      throw fail(`choice[${i}] is ${show(one)}; it must be a string that is not empty`);
    }
    total += one.length;
    if (total > MAX_LENGTH) throw fail(`choice has more than ${MAX_LENGTH} characters`);
    copy.push(checkText(`choice[${i}]`, one));
  }
  return Object.freeze(copy);
}

/**
 * `structuralTag` with a format that the engine made of JSON and checked texts. Throws
 * InvalidRequestError if it is too long.
 */
export function structuredBy(
  format: StructuralFormat,
  { whitespacePattern, disableAdditionalProperties }: StructuredOutputs,
): StructuredOutputs {
  return made({
    structuralTag: checkLength('the grammar of the reply', JSON.stringify({ format })),
    ...(whitespacePattern !== undefined && { whitespacePattern }),
    ...(disableAdditionalProperties && { disableAdditionalProperties }),
  });
}

/**
 * A checked and frozen copy. Throws InvalidRequestError. The schema, expression or grammar itself is
 * checked when it is compiled.
 */
export function copyStructuredOutputs(value: unknown): StructuredOutputs {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw fail(`it is ${show(value)}; it must be an object`);
  }
  if (checked.has(value)) return value;
  const names = Object.keys(schema.shape);
  const given = parseFields(schema, snapshotFields(value, names), fail, (name) =>
    adviceFor(name, names),
  );
  const kinds = KINDS.filter((name) => given[name] != null && given[name] !== false);
  // `json: false` is a schema that nothing satisfies.
  if (given.json === false && !kinds.includes('json')) kinds.push('json');
  if (kinds.length !== 1) {
    const found = kinds.length === 0 ? 'none' : kinds.join(', ');
    throw fail(`it has ${found}; it must have exactly one of ${KINDS.join(', ')}`);
  }
  const [kind] = kinds;
  const isJson = kind === 'json' || kind === 'jsonObject' || kind === 'structuralTag';
  for (const name of ['whitespacePattern', 'disableAdditionalProperties'] as const) {
    if (given[name] != null && given[name] !== false && !isJson) {
      throw fail(`${name} is for json, jsonObject and structuralTag, not for ${kind}`);
    }
  }
  return made({
    ...(kind === 'json' && { json: copyJson(given.json) }),
    ...(kind === 'regex' && { regex: checkText('regex', given.regex as string) }),
    ...(kind === 'choice' && { choice: copyChoice(given.choice) }),
    ...(kind === 'grammar' && { grammar: checkText('grammar', given.grammar as string) }),
    ...(kind === 'jsonObject' && { jsonObject: true as const }),
    ...(kind === 'structuralTag' && { structuralTag: copyTag(given.structuralTag) }),
    ...(given.whitespacePattern != null && {
      whitespacePattern: checkText('whitespacePattern', given.whitespacePattern),
    }),
    ...(given.disableAdditionalProperties === true && {
      disableAdditionalProperties: true as const,
    }),
  });
}
