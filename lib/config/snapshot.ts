/**
 * Copies of callers' objects. A caller may change them after the call, and a getter or a proxy may
 * return a different value each time: each value is read once, and only the copy is checked.
 */
import { types } from 'node:util';
import { InvalidRequestError } from '../errors';
import { isOptionsObject, isPlainObject } from '../realm';
import { show } from './schema';

/**
 * Copies an options object: the fields in `names`, own or inherited, and all other own fields, so that
 * the schema can refuse unknown ones. Returns a value that cannot hold options unchanged.
 */
export function snapshotFields(options: unknown, names: readonly string[]): unknown {
  if (!isOptionsObject(options)) return options;
  const given = options;
  // No prototype, so that a field named __proto__ stays a field.
  const copy = Object.create(null) as Record<string, unknown>;
  for (const name of Object.keys(given)) copy[name] = given[name];
  for (const name of names) if (!(name in copy) && name in given) copy[name] = given[name];
  return copy;
}

/**
 * Returns the result of `read`. An error thrown by the caller's getter or proxy becomes the cause of
 * an InvalidRequestError about `subject`.
 */
export function readingOf<T>(subject: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw error instanceof InvalidRequestError ? error : readingError(subject, error);
  }
}

/** The error for a caller's getter or proxy that threw `error`. */
export function readingError(subject: string, error: unknown): InvalidRequestError {
  return new InvalidRequestError(`${subject}: reading it threw ${show(error)}`, { cause: error });
}

/** Why data cannot be copied. */
export class SnapshotError extends Error {}

/**
 * Copies JSON data, undefined, bigints, Number objects, Dates, Maps and typed arrays (as lists), of any
 * realm, counting values: lists, objects, their fields and entries. Strings are immutable and shared.
 */
export class DataSnapshot {
  /** Values copied so far. */
  numValues = 0;

  constructor(
    readonly maxValues: number,
    readonly maxDepth: number,
  ) {}

  /**
   * Throws SnapshotError for a function or symbol, an object whose content is not in its fields (a Set,
   * an Error), too many values or too deep nesting.
   */
  copy(value: unknown, depth = 0): unknown {
    if (++this.numValues > this.maxValues) throw new SnapshotError('has too many values');
    if (typeof value === 'function' || typeof value === 'symbol') {
      throw new SnapshotError(`has a ${typeof value}`);
    }
    if (typeof value !== 'object' || value === null) return value;
    if (depth >= this.maxDepth) throw new SnapshotError(`is deeper than ${this.maxDepth} levels`);
    if (Array.isArray(value)) return this.copyList(value, depth);
    if (isPlainObject(value)) return this.copyObject(value, depth);
    // To a chat template a Number object is a float, a Map a dict, and a Date its JSON.
    if (types.isNumberObject(value)) return Object(Number(value)) as object;
    if (types.isStringObject(value)) return String.prototype.valueOf.call(value);
    if (types.isBooleanObject(value)) return Boolean.prototype.valueOf.call(value);
    if (types.isDate(value)) return isoTime(value);
    if (types.isTypedArray(value)) return this.copyList(value, depth);
    if (types.isMap(value)) return this.copyMap(value, depth);
    if (types.isSet(value) || types.isNativeError(value) || Object.keys(value).length === 0) {
      throw new SnapshotError(`has ${nameOf(value)}, whose content is not in its fields`);
    }
    return this.copyObject(value, depth);
  }

  private copyMap(map: ReadonlyMap<unknown, unknown>, depth: number): Map<unknown, unknown> {
    const copy = new Map<unknown, unknown>();
    for (const [key, value] of map)
      copy.set(this.copy(key, depth + 1), this.copy(value, depth + 1));
    return copy;
  }

  private copyList(list: ArrayLike<unknown>, depth: number): unknown[] {
    const { length } = list;
    const copy: unknown[] = [];
    for (let i = 0; i < length; i++) copy.push(this.copy(list[i], depth + 1));
    return copy;
  }

  private copyObject(object: object, depth: number): object {
    const copy: Record<string, unknown> = {};
    for (const name of Object.keys(object)) {
      const value = this.copy((object as Record<string, unknown>)[name], depth + 1);
      if (name !== '__proto__') copy[name] = value;
      else Object.defineProperty(copy, name, { value, enumerable: true });
    }
    return copy;
  }
}

/** 'a Set', 'an Error': the object's tag, which classes of the platform have in every realm. */
function nameOf(value: object): string {
  const tag = Object.prototype.toString.call(value).slice('[object '.length, -1);
  return `${/^[AEIO]/.test(tag) ? 'an' : 'a'} ${tag}`;
}

/** As JSON has it, whatever methods of its own the date has. */
function isoTime(date: Date): string | null {
  const time = Date.prototype.getTime.call(date);
  return Number.isNaN(time) ? null : new Date(time).toISOString();
}
