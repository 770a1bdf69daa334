/**
 * Type checks of callers' values that work for values of any realm: of a vm context, or of a test runner
 * with globals of its own (jest). `instanceof` is true only for values of this realm.
 */
import { types } from 'node:util';

/** Whether the value is an Error, also of another realm. */
export function isError(value: unknown): value is Error {
  return types.isNativeError(value) || value instanceof Error;
}

/** A thrown value's message, or the value as text; never throws. */
export function messageOf(thrown: unknown): string {
  try {
    return isError(thrown) ? thrown.message : String(thrown);
  } catch {
    return 'a value that cannot be converted to text was thrown';
  }
}

/** Whether the value is an object made by `{}` or `Object.create(null)`, in any realm. */
export function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null) return false;
  const prototype = Object.getPrototypeOf(value) as object | null;
  return prototype === null || Object.getPrototypeOf(prototype) === null;
}

/**
 * Whether the value can hold named options: a plain object, an instance of a class of the caller's, or
 * a module. A Map, a Promise or an AbortSignal has its content elsewhere, so it would read as empty.
 */
export function isOptionsObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  return ['[object Object]', '[object Module]'].includes(Object.prototype.toString.call(value));
}
