/** Binds the arguments of a call to parameters. */
import { raise } from './errors';
import { str } from './repr';
import { intOf, isTrue, type Kwargs, textOf, typeName, Undefined, type Value } from './values';

export interface Signature {
  readonly name: string;
  readonly params: readonly string[];
  /** Number of parameters without a default. */
  readonly required: number;
  /** Whether keyword arguments are allowed. */
  readonly byName: boolean;
}

/** Parses "name(a, b, c=)": `=` marks a default; a final `/` makes parameters positional-only. */
export function signature(text: string): Signature {
  const [, name, list] = /^(\w+)\((.*)\)$/.exec(text) ?? ['', text, ''];
  const all = list.split(/,\s*/).filter((param) => param !== '');
  const params = all.filter((param) => param !== '/');
  return {
    name,
    params: params.map((param) => param.replace('=', '')),
    required: params.filter((param) => !param.endsWith('=')).length,
    byName: all.length === params.length,
  };
}

/** An argument for each parameter; undefined selects its default. Raises TypeError. */
export function bind(
  { name, params, required, byName }: Signature,
  args: readonly Value[],
  kwargs: Kwargs,
): (Value | undefined)[] {
  if (args.length > params.length) {
    raise(
      'TypeError',
      `${name}() takes ${params.length} positional arguments but ${args.length} were given`,
    );
  }
  const bound: (Value | undefined)[] = params.map((_, i) => args[i]);
  for (const [key, value] of kwargs) {
    const at = byName ? params.indexOf(key) : -1;
    if (at < 0) raise('TypeError', `${name}() got an unexpected keyword argument '${key}'`);
    if (at < args.length) raise('TypeError', `${name}() got multiple values for argument '${key}'`);
    bound[at] = value;
  }
  const missing = bound.findIndex((value, i) => i < required && value === undefined);
  if (missing >= 0) {
    raise('TypeError', `${name}() missing required argument: '${params[missing]}'`);
  }
  return bound;
}

/** Requires an int. */
export function toInt(value: Value | undefined, fallback: number): number {
  if (value === undefined) return fallback;
  const int = intOf(value);
  if (int === undefined) {
    if (value instanceof Undefined) value.fail();
    raise('TypeError', `'${typeName(value)}' object cannot be interpreted as an integer`);
  }
  if (int > 2n ** 63n - 1n || int < -(2n ** 63n)) {
    raise('OverflowError', 'Python int too large to convert to C ssize_t');
  }
  return Number(int);
}

export function toBool(value: Value | undefined, fallback = false): boolean {
  return value === undefined ? fallback : isTrue(value);
}

/** Requires a string. */
export function toText(value: Value | undefined, what: string): string {
  const text = textOf(value);
  if (text === undefined) {
    raise('TypeError', `${what} must be str, not ${typeName(value ?? null)}`);
  }
  return text;
}

/** markupsafe's soft_str: a string unchanged, other values as `str(value)`. */
export const softText = (value: Value): string => textOf(value) ?? str(value);
