/**
 * The values of a running template: Python's, as far as JavaScript has no equal of its own. None is
 * null, an int is a bigint, a float is a number, a list is an array. No value is an object of the
 * caller's, so a template reaches neither a prototype nor a getter.
 */
import { spend } from './budget';
import { raise } from './errors';

export type Value = null | boolean | bigint | number | string | readonly Value[] | PyObject;

/** Keyword arguments. */
export type Kwargs = ReadonlyMap<string, Value>;
export const NO_KWARGS: Kwargs = new Map();

/** A value of a Python type that JavaScript does not have. */
export abstract class PyObject {
  /** `type(value).__name__`. */
  abstract readonly typeName: string;
  /** The module of a type that is not built in. */
  readonly module: string | null = null;
}

export class Tuple extends PyObject {
  readonly typeName: string = 'tuple';
  constructor(readonly items: readonly Value[]) {
    super();
  }
}

/** What `groupby` yields: a tuple with names. */
export class GroupTuple extends Tuple {
  override readonly typeName = '_GroupTuple';
  override readonly module = 'jinja2.filters';
}

/** A string marked as safe HTML. What is added to it is escaped, as markupsafe does. */
export class Markup extends PyObject {
  readonly typeName = 'Markup';
  override readonly module = 'markupsafe';
  constructor(readonly text: string) {
    super();
  }
}

/** A value that is not there: it prints as nothing, and fails when anything is done with it. */
export class Undefined extends PyObject {
  readonly typeName = 'Undefined';
  override readonly module = 'jinja2.runtime';
  constructor(
    readonly message: string,
    readonly kind: 'UndefinedError' | 'SecurityError' = 'UndefinedError',
  ) {
    super();
  }

  fail(): never {
    raise(this.kind, this.message);
  }
}

/** An iterator: it yields once. `typeName` says what it is in Python. */
export class PyIterator extends PyObject {
  constructor(
    readonly iterator: Iterator<Value>,
    readonly typeName = 'generator',
  ) {
    super();
  }
}

type Key = string | bigint | number | null | symbol | object;
const UNDEFINED_KEY = Symbol('Undefined');

/** `value` so that Python's equal keys are one key of a Map: 1, 1.0 and True are the same. */
export function hashKey(value: Value): Key {
  if (typeof value === 'string') return value.startsWith('\0') ? `\0${value}` : value;
  if (typeof value === 'boolean') return BigInt(value);
  if (typeof value === 'number') return Number.isInteger(value) ? BigInt(value) : value;
  if (typeof value === 'bigint' || value === null) return value;
  if (value instanceof Markup) return hashKey(value.text);
  if (value instanceof Undefined) return UNDEFINED_KEY;
  if (value instanceof Tuple) {
    spend(value.items.length);
    const parts = value.items.map((item) => {
      const key = hashKey(item);
      const text = typeof key === 'object' || typeof key === 'symbol' ? identity(key) : String(key);
      return `${typeof key}${text.length}:${text}`;
    });
    return `\0(${parts.join()}`;
  }
  if (isList(value) || value instanceof Dict) {
    raise('TypeError', `unhashable type: '${typeName(value)}'`);
  }
  return value;
}

const identities = new WeakMap<object, string>();
let numIdentities = 0;
function identity(key: object | symbol | null): string {
  if (key === null || typeof key === 'symbol') return String(key);
  let found = identities.get(key);
  if (found === undefined) identities.set(key, (found = String(numIdentities++)));
  return found;
}

export class Dict extends PyObject {
  readonly typeName = 'dict';
  readonly #entries = new Map<Key, readonly [Value, Value]>();

  constructor(items: Iterable<readonly [Value, Value]> = []) {
    super();
    for (const [key, value] of items) this.set(key, value);
  }

  get size(): number {
    return this.#entries.size;
  }

  get(key: Value): Value | undefined {
    return this.#entries.get(hashKey(key))?.[1];
  }

  has(key: Value): boolean {
    return this.#entries.has(hashKey(key));
  }

  /** Only while it is made: a template cannot change a dict. A key that is there stays as it was spelled. */
  set(key: Value, value: Value): void {
    const hash = hashKey(key);
    this.#entries.set(hash, [this.#entries.get(hash)?.[0] ?? key, value]);
  }

  *keys(): Generator<Value> {
    for (const [key] of this.#entries.values()) yield key;
  }

  *values(): Generator<Value> {
    for (const [, value] of this.#entries.values()) yield value;
  }

  items(): Iterable<readonly [Value, Value]> {
    return this.#entries.values();
  }
}

/** `d.keys()`, `d.values()` or `d.items()`. */
export class DictView extends PyObject {
  readonly typeName: string;
  constructor(
    readonly dict: Dict,
    readonly of: 'keys' | 'values' | 'items',
  ) {
    super();
    this.typeName = `dict_${of}`;
  }
}

export class Range extends PyObject {
  readonly typeName = 'range';
  readonly length: number;
  constructor(
    readonly start: bigint,
    readonly stop: bigint,
    readonly step: bigint,
  ) {
    super();
    const span = step > 0n ? stop - start : start - stop;
    const stride = step > 0n ? step : -step;
    this.length = span > 0n ? Number((span + stride - 1n) / stride) : 0;
  }

  at(i: number): bigint {
    return this.start + BigInt(i) * this.step;
  }
}

export class Namespace extends PyObject {
  readonly typeName = 'Namespace';
  override readonly module = 'jinja2.utils';
  readonly attributes = new Map<string, Value>();
}

/** A function, a macro, or another value that can be called. */
export class Callable extends PyObject {
  constructor(
    readonly name: string,
    readonly invoke: (args: readonly Value[], kwargs: Kwargs) => Value,
    readonly typeName = 'function',
    /** What `callable.name` reads. */
    readonly attributes: ReadonlyMap<string, () => Value> = new Map(),
    override readonly module: string | null = null,
    /** `len(callable)`: of a `loop`. */
    readonly length: (() => number) | null = null,
  ) {
    super();
  }
}

// Arrays that are readonly are not narrowed by Array.isArray.
export function isList(value: Value): value is readonly Value[] {
  return Array.isArray(value);
}

/** The text of a string, safe or not; undefined for what is no string. */
export function textOf(value: Value | undefined): string | undefined {
  if (typeof value === 'string') return value;
  return value instanceof Markup ? value.text : undefined;
}

export function isNumber(value: Value): value is boolean | bigint | number {
  return typeof value === 'bigint' || typeof value === 'number' || typeof value === 'boolean';
}

/** An int as it is, True and False as 1 and 0; undefined for another value. */
export function intOf(value: Value | undefined): bigint | undefined {
  if (typeof value === 'bigint') return value;
  return typeof value === 'boolean' ? BigInt(value) : undefined;
}

/** `type(value).__name__`. */
export function typeName(value: Value): string {
  if (value === null) return 'NoneType';
  if (typeof value === 'string') return 'str';
  if (typeof value === 'boolean') return 'bool';
  if (typeof value === 'bigint') return 'int';
  if (typeof value === 'number') return 'float';
  return isList(value) ? 'list' : value.typeName;
}

/** How jinja2's messages name the type of a value. */
export function objectTypeRepr(value: Value): string {
  if (value === null) return 'None';
  const module = value instanceof PyObject ? value.module : null;
  return `${module === null ? '' : `${module}.`}${typeName(value)} object`;
}

/** `bool(value)`. */
export function isTrue(value: Value): boolean {
  if (typeof value === 'object' && value !== null) {
    if (value instanceof Undefined) return false;
    return lengthOf(value) !== 0;
  }
  return Boolean(value);
}

/** Characters of `text` as Python counts them: code points. */
export function numCodePoints(text: string): number {
  const pairs = text.match(/[\ud800-\udbff][\udc00-\udfff]/g)?.length ?? 0;
  return text.length - pairs;
}

/** `len(value)`; undefined for a value that has none. */
export function lengthOf(value: Value): number | undefined {
  const text = textOf(value);
  if (text !== undefined) return numCodePoints(text);
  if (isList(value)) return value.length;
  if (value instanceof Tuple) return value.items.length;
  if (value instanceof Dict) return value.size;
  if (value instanceof DictView) return value.dict.size;
  if (value instanceof Range) return value.length;
  if (value instanceof Undefined) return 0;
  if (value instanceof Callable) return value.length?.();
  return undefined;
}

function* generate<T>(length: number, item: (i: number) => T): Generator<T> {
  for (let i = 0; i < length; i++) yield item(i);
}

function* itemsOf(dict: Dict): Generator<Value> {
  for (const [key, value] of dict.items()) yield new Tuple([key, value]);
}

/** `iter(value)`; undefined for a value that cannot be iterated. */
export function iteratorOf(value: Value): Iterable<Value> | undefined {
  const text = textOf(value);
  if (text !== undefined) return text;
  if (isList(value)) return value;
  if (value instanceof Tuple) return value.items;
  if (value instanceof Dict) return value.keys();
  if (value instanceof DictView) {
    return value.of === 'items' ? itemsOf(value.dict) : value.dict[value.of]();
  }
  if (value instanceof Range) return generate(value.length, (i) => value.at(i));
  if (value instanceof Undefined) return [];
  if (value instanceof PyIterator) return { [Symbol.iterator]: () => value.iterator };
  return undefined;
}

/** The items of `value`, each as it comes. Raises TypeError for a value without. */
export function iterate(value: Value): Iterable<Value> {
  const items = iteratorOf(value);
  if (items === undefined) raise('TypeError', `'${typeName(value)}' object is not iterable`);
  if (!(value instanceof PyIterator)) spend((lengthOf(value) ?? 0) >> 2);
  return items;
}

/** `list(value)`. */
export function toList(value: Value): readonly Value[] {
  return isList(value) ? value : Array.from(iterate(value));
}
