/** Validation of options and files with zod, and formatting of its errors. */
import { inspect } from 'node:util';
import { z } from 'zod';
import { isError, isOptionsObject } from '../realm';
import { adviceFor } from './suggest';

/** Formats a value for an error message: one line, at most 200 characters. */
export function show(value: unknown): string {
  const text = inspected(value);
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}

function inspected(value: unknown): string {
  try {
    if (isError(value)) return `${value.name}: ${value.message}`;
    return inspect(value, {
      breakLength: Infinity,
      depth: 2,
      maxArrayLength: 16,
      maxStringLength: 100,
    });
  } catch {
    // The caller's getter or inspect.custom threw.
    return 'a value that cannot be shown';
  }
}

/**
 * Parses `input` by `schema`, in which each field's description names its allowed values. `fail` makes
 * the error from a message with the field, its value and the allowed values; `advise` returns what to
 * write in place of an unknown field.
 */
export function parseFields<Shape extends z.ZodRawShape>(
  schema: z.ZodObject<Shape>,
  input: unknown,
  fail: (message: string) => Error,
  advise: (name: string) => string = (name) => adviceFor(name, Object.keys(schema.shape)),
): z.output<z.ZodObject<Shape>> {
  if (!isOptionsObject(input)) throw fail(`expected an object, not ${show(input)}`);
  const result = schema.safeParse(input);
  if (result.success) return result.data;

  const issue = result.error.issues[0];
  if (issue.code === 'unrecognized_keys') {
    const [name] = issue.keys;
    throw fail(`unknown option ${name}; ${advise(name)}`);
  }

  let value: unknown = input;
  let place = '';
  for (const key of issue.path) {
    value = (value as Record<PropertyKey, unknown>)[key];
    place += typeof key === 'number' ? `[${key}]` : `${place && '.'}${String(key)}`;
  }
  const name = String(issue.path[0]);
  const field = schema.shape[name] as z.ZodType;
  const subject = place === name ? 'it' : name;
  throw fail(`${place} is ${show(value)}; ${subject} must be ${field.description}`);
}

/** Upper bound on a model's positions. */
export const MAX_POSITIONS = 2 ** 31 - 1;

export const integer = (min: number, max: number) =>
  z.int().min(min).max(max).describe(`an integer from ${min} to ${max}`);
export const integerOrNull = (min: number, max: number) =>
  z.int().min(min).max(max).nullish().describe(`an integer from ${min} to ${max}, or null`);

/** Whether the value is finite and above 0 in float32, in which the device computes. */
export const isPositiveFloat32 = (value: number) =>
  Math.fround(value) > 0 && Math.fround(value) < Infinity;
const positiveFloat32 = () => z.number().refine(isPositiveFloat32);
export const positive = () => positiveFloat32().describe('a number above 0, within float32');
export const positiveOrNull = () =>
  positiveFloat32().nullish().describe('a number above 0, within float32, or null');
