/**
 * Copies of what callers pass in. A caller may change its objects after the call, and a getter or a
 * proxy may answer differently each time: everything is read once, and only the copy is checked.
 */
import { types } from 'node:util';
import { InvalidRequestError } from '../errors';
import { show } from './schema';

/**
 * The fields of an options object: those that `names` lists, own or inherited, and all others that
 * it has itself, so that an unknown one can be refused. What is no object comes back as it is, for
 * the schema to refuse.
 */
export function snapshotFields(options: unknown, names: readonly string[]): unknown {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) return options;
  const given = options as Record<string, unknown>;
  // Without a prototype, lest a field called __proto__ becomes one.
  const copy = Object.create(null) as Record<string, unknown>;
  for (const name of Object.keys(given)) copy[name] = given[name];
  for (const name of names) if (!(name in copy) && name in given) copy[name] = given[name];
  return copy;
}

/**
 * What `read` returns. An error that is not ours was thrown by a getter or a proxy of the caller's:
 * it becomes the cause of an InvalidRequestError about `subject`.
 */
export function readingOf<T>(subject: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw error instanceof InvalidRequestError ? error : readingError(subject, error);
  }
}

/** Of a getter or a proxy of the caller's that threw `error`. */
export function readingError(subject: string, error: unknown): InvalidRequestError {
  return new InvalidRequestError(`${subject}: reading it threw ${show(error)}`, { cause: error });
}

/** Why data cannot be copied. */
export class SnapshotError extends Error {}

/**
 * Copies data as JSON knows it (and undefined, bigints, Number objects, Dates and Maps), counting values: lists, objects, their
 * fields and entries. Strings are shared, since they cannot change.
 */
export class DataSnapshot {
  /** Values copied so far. */
  numValues = 0;

  constructor(
    readonly maxValues: number,
    readonly maxDepth: number,
  ) {}

  /** Throws SnapshotError for what is no data, or is too much or too deep. */
  copy(value: unknown, depth = 0): unknown {
    if (++this.numValues > this.maxValues) throw new SnapshotError('has too many values');
    if (typeof value === 'function' || typeof value === 'symbol') {
      throw new SnapshotError(`has a ${typeof value}`);
    }
    if (typeof value !== 'object' || value === null) return value;
    if (depth >= this.maxDepth) throw new SnapshotError(`is deeper than ${this.maxDepth} levels`);
    if (Array.isArray(value)) return this.copyList(value, depth);
    if (Object.getPrototypeOf(value) === Object.prototype) return this.copyObject(value, depth);
    // To a chat template a Number object is a float, a Map a dict, and a Date its JSON.
    if (types.isNumberObject(value)) return Object(Number(value)) as object;
    if (types.isDate(value)) return isoTime(value);
    return types.isMap(value) ? this.copyMap(value, depth) : this.copyObject(value, depth);
  }

  private copyMap(map: ReadonlyMap<unknown, unknown>, depth: number): Map<unknown, unknown> {
    const copy = new Map<unknown, unknown>();
    for (const [key, value] of map)
      copy.set(this.copy(key, depth + 1), this.copy(value, depth + 1));
    return copy;
  }

  private copyList(list: readonly unknown[], depth: number): unknown[] {
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

/** As JSON has it, whatever methods of its own the date has. */
function isoTime(date: Date): string | null {
  const time = Date.prototype.getTime.call(date);
  return Number.isNaN(time) ? null : new Date(time).toISOString();
}
