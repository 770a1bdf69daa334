/** JavaScript's values as a template's: what JSON would carry of them, read once. */
import { Dict, type Value } from './values';

/** Nesting of the data that a template is given; Python's json.dumps ends at about 1000. */
export const MAX_DATA_DEPTH = 400;

/** A value that no template can be given. `path` says where it is, `reason` what it is. */
export class ConversionError extends Error {
  constructor(
    readonly path: string,
    readonly reason: string,
  ) {
    super(`${path} ${reason}`);
  }
}

function fromNumber(value: number): Value {
  // As JSON writes it, an integer below 1e21 has no point and no exponent, and is an int to Python.
  const isInt = Number.isInteger(value) && Math.abs(value) < 1e21 && !Object.is(value, -0);
  return isInt ? BigInt(value) : value;
}

/**
 * `value` as JSON.stringify and Python's json.loads would hand it on. A bigint is an int too, and a
 * Number object is a float even where it is integral: JSON's 1.0. Throws ConversionError.
 */
export function fromJs(value: unknown, path: string, depth = 0): Value {
  if (depth > MAX_DATA_DEPTH)
    throw new ConversionError(path, `is nested deeper than ${MAX_DATA_DEPTH}`);
  if (value === null || value === undefined) return null;
  if (typeof value === 'string' || typeof value === 'boolean' || typeof value === 'bigint') {
    return value;
  }
  if (typeof value === 'number') return fromNumber(value);
  if (typeof value !== 'object') throw new ConversionError(path, `is a ${typeof value}`);
  if (value instanceof Number) return value.valueOf();
  if (Array.isArray(value)) {
    return value.map((item: unknown, i) => fromJs(item, `${path}[${i}]`, depth + 1));
  }
  if (value instanceof Date) return value.toJSON();
  const dict = new Dict();
  const entries: Iterable<[unknown, unknown]> =
    value instanceof Map ? (value as Map<unknown, unknown>) : Object.entries(value);
  for (const [key, item] of entries) {
    if (item === undefined) continue;
    const name = typeof key === 'string' ? key : fromJs(key, `a key of ${path}`, depth + 1);
    dict.set(name, fromJs(item, `${path}.${String(key)}`, depth + 1));
  }
  return dict;
}
