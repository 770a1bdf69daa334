/**
 * Template values with Python's semantics. None is null, an int is a bigint, a float is a number, a
 * list is an array; classes represent other types. No value is an object of the caller, so a template
 * cannot access prototypes or getters.
 */
import { spend } from './budget';
import { raise } from './errors';

export type Value = null | boolean | bigint | number | string | readonly Value[] | PyObject;

/** Keyword arguments. */
export type Kwargs = ReadonlyMap<string, Value>;
export const NO_KWARGS: Kwargs = new Map();

/** A value of a Python type without an equivalent in JavaScript. */
export abstract class PyObject {
  /** `type(value).__name__`. */
  abstract readonly typeName: string;
  /** The type's module; null for built-in types. */
  readonly module: string | null = null;
}

export class Tuple extends PyObject {
  readonly typeName: string = 'tuple';
  constructor(readonly items: readonly Value[]) {
    super();
  }
}

/** A named tuple that `groupby` yields. */
export class GroupTuple extends Tuple {
  override readonly typeName = '_GroupTuple';
  override readonly module = 'jinja2.filters';
}

/** markupsafe's Markup: a string marked as safe HTML, which escapes what is added to it. */
export class Markup extends PyObject {
  readonly typeName = 'Markup';
  override readonly module = 'markupsafe';
  constructor(readonly text: string) {
    super();
  }
}

/** jinja2's Undefined: prints as an empty string and raises on any other use. */
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

/** A single-use iterator. `typeName` is its type's name in Python. */
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

/** A Map key that is equal for equal Python keys, such as 1, 1.0 and True. */
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

  /** Only for construction: templates cannot change a dict. An existing key keeps its spelling. */
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

/** A function, macro or other callable value. */
export class Callable extends PyObject {
  constructor(
    readonly name: string,
    readonly invoke: (args: readonly Value[], kwargs: Kwargs) => Value,
    readonly typeName = 'function',
    /** Attributes, read as `callable.name`. */
    readonly attributes: ReadonlyMap<string, () => Value> = new Map(),
    override readonly module: string | null = null,
    /** `len(callable)`, for a `loop`. */
    readonly length: (() => number) | null = null,
  ) {
    super();
  }
}

// Array.isArray does not narrow readonly arrays.
export function isList(value: Value): value is readonly Value[] {
  return Array.isArray(value);
}

/** The text of a string or Markup; undefined for other values. */
export function textOf(value: Value | undefined): string | undefined {
  if (typeof value === 'string') return value;
  return value instanceof Markup ? value.text : undefined;
}

export function isNumber(value: Value): value is boolean | bigint | number {
  return typeof value === 'bigint' || typeof value === 'number' || typeof value === 'boolean';
}

/** The value of an int, True as 1, False as 0; undefined for other values. */
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

/** The name of a value's type in jinja2's messages. */
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

/** `len(value)`; undefined if it has no length. */
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

/** `iter(value)`; undefined if it is not iterable. */
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

/** Iterates over `value`. Raises TypeError if it is not iterable. */
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
