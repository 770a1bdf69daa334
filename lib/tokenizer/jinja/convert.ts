/** Converts JavaScript values to template values, following JSON. Each property is read once. */
import { types } from 'node:util';
import { Dict, type Value } from './values';

/** Maximum nesting of template variables; Python's json.dumps fails at about 1000. */
export const MAX_DATA_DEPTH = 400;

/** A value that cannot be passed to a template. `reason` is a predicate of `path`. */
export class ConversionError extends Error {
  constructor(
    readonly path: string,
    readonly reason: string,
  ) {
    super(`${path} ${reason}`);
  }
}

function fromNumber(value: number): Value {
  // JSON writes an integer below 1e21 without point and exponent, and Python reads it as an int.
  const isInt = Number.isInteger(value) && Math.abs(value) < 1e21 && !Object.is(value, -0);
  return isInt ? BigInt(value) : value;
}

/**
 * Converts `value` as JSON.stringify and Python's json.loads would. A bigint becomes an int, and a
 * Number object a float even if it is integral (JSON's 1.0). Throws ConversionError.
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
  if (types.isNumberObject(value)) return Number.prototype.valueOf.call(value);
  if (types.isStringObject(value)) return String.prototype.valueOf.call(value);
  if (types.isBooleanObject(value)) return Boolean.prototype.valueOf.call(value);
  if (Array.isArray(value)) {
    return value.map((item: unknown, i) => fromJs(item, `${path}[${i}]`, depth + 1));
  }
  if (types.isTypedArray(value)) return fromJs([...(value as Int32Array)], path, depth);
  if (types.isDate(value)) return value.toJSON();
  if (types.isSet(value) || types.isNativeError(value)) {
    throw new ConversionError(path, `is a ${types.isSet(value) ? 'Set' : 'Error'}`);
  }
  const dict = new Dict();
  const entries: Iterable<[unknown, unknown]> = types.isMap(value) ? value : Object.entries(value);
  for (const [key, item] of entries) {
    if (item === undefined) continue;
    const name = typeof key === 'string' ? key : fromJs(key, `a key of ${path}`, depth + 1);
    dict.set(name, fromJs(item, `${path}.${String(key)}`, depth + 1));
  }
  return dict;
}
