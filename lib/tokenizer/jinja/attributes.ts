/**
 * `value.name` and `value[key]` as in jinja2's immutable sandbox: mutating methods and Python's special
 * attributes are Undefined and raise SecurityError on use.
 */
import { bind, signature, toInt } from './arguments';
import { isEqual } from './compare';
import { raise } from './errors';
import { repr, stringRepr } from './repr';
import { stringMethod } from './stringMethods';
import { characters, joinCharacters } from './text';
import {
  Callable,
  Dict,
  DictView,
  GroupTuple,
  intOf,
  isList,
  isNumber,
  iterate,
  Markup,
  Namespace,
  objectTypeRepr,
  Range,
  textOf,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from './values';

const MUTATING: Partial<Record<string, readonly string[]>> = {
  dict: ['clear', 'pop', 'popitem', 'setdefault', 'update'],
  list: ['append', 'clear', 'extend', 'insert', 'pop', 'remove', 'reverse', 'sort'],
};

/** Attributes of every Python object. */
const DUNDERS = new Set(
  (
    'class delattr dir doc eq format ge getattribute getstate gt hash init init_subclass le lt ne new ' +
    'reduce reduce_ex repr setattr sizeof str subclasshook'
  )
    .split(' ')
    .map((name) => `__${name}__`),
);
/** Attributes of sequences, mappings, functions or instances of Python classes. */
const MORE_DUNDERS = new Set(
  (
    'add call class_getitem code contains defaults delitem dict getitem getnewargs globals iadd imul ior ' +
    'iter kwdefaults len missing mod module mul name or qualname reversed rmod rmul ror self setitem ' +
    'text_signature weakref wrapped'
  )
    .split(' ')
    .map((name) => `__${name}__`),
);

function unsafe(value: Value, name: string): Undefined {
  return new Undefined(
    `access to attribute ${stringRepr(name)} of '${typeName(value)}' object is unsafe.`,
    'SecurityError',
  );
}

function noAttribute(value: Value, name: Value): Undefined {
  if (typeof name !== 'string') {
    return new Undefined(`${objectTypeRepr(value)} has no element ${repr(name)}`);
  }
  const type = stringRepr(objectTypeRepr(value));
  return new Undefined(`${type} has no attribute ${stringRepr(name)}`);
}

type Method = (...args: (Value | undefined)[]) => Value;

function method(declaration: string, body: Method): Callable {
  const own = signature(declaration);
  return new Callable(
    own.name,
    (args, kwargs) => body(...bind(own, args, kwargs)),
    'builtin_function_or_method',
  );
}

function dictMethod(dict: Dict, name: string): Value | undefined {
  switch (name) {
    case 'keys':
    case 'values':
    case 'items':
      return method(`${name}(/)`, () => new DictView(dict, name));
    case 'get':
      return method('get(key, default=, /)', (key = null, fallback = null) => {
        const value = dict.get(key);
        return value === undefined ? fallback : value;
      });
    case 'copy':
      return method('copy(/)', () => new Dict(dict.items()));
    case 'fromkeys':
      return method(
        'fromkeys(iterable, value=, /)',
        (keys = null, value = null) =>
          new Dict(Array.from(iterate(keys), (key) => [key, value] as const)),
      );
  }
  return undefined;
}

function sequenceMethod(value: Value, items: readonly Value[], name: string): Value | undefined {
  if (name === 'count') {
    return method('count(value, /)', (wanted = null) =>
      BigInt(items.filter((item) => item === wanted || isEqual(item, wanted)).length),
    );
  }
  if (name === 'index') {
    return method('index(value, start=, stop=, /)', (wanted = null, start, stop) => {
      const place = (at: number) => (at < 0 ? Math.max(at + items.length, 0) : at);
      const end = Math.min(place(toInt(stop, items.length)), items.length);
      for (let i = place(toInt(start, 0)); i < end; i++) {
        if (items[i] === wanted || isEqual(items[i], wanted)) return BigInt(i);
      }
      const what = isList(value)
        ? `${repr(wanted)} is not in list`
        : 'tuple.index(x): x not in tuple';
      raise('ValueError', what);
    });
  }
  if (name === 'copy' && isList(value)) return method('copy(/)', () => [...items]);
  return undefined;
}

function numberAttribute(value: boolean | bigint | number, name: string): Value | undefined {
  const int = intOf(value);
  if (name === 'real') return int ?? value;
  if (name === 'imag') return int === undefined ? 0 : 0n;
  if (name === 'conjugate') return method('conjugate(/)', () => int ?? value);
  if (int === undefined) {
    if (name !== 'is_integer') return undefined;
    return method('is_integer(/)', () => Number.isInteger(value));
  }
  if (name === 'numerator') return int;
  if (name === 'denominator') return 1n;
  if (name !== 'bit_length') return undefined;
  return method('bit_length(/)', () =>
    int === 0n ? 0n : BigInt((int < 0n ? -int : int).toString(2).length),
  );
}

/** Python's getattr; undefined if the value has no such attribute. */
function ownAttribute(value: Value, name: string): Value | undefined {
  if (value instanceof Undefined && !name.startsWith('__')) value.fail();
  const hasMore = value !== null && !isNumber(value) && !(value instanceof Undefined);
  if (DUNDERS.has(name) || (hasMore && MORE_DUNDERS.has(name))) return unsafe(value, name);
  if (MUTATING[typeName(value)]?.includes(name)) return unsafe(value, name);
  if (typeof value === 'string' || value instanceof Markup) return stringMethod(value, name);
  if (value instanceof Dict) return dictMethod(value, name);
  if (isList(value)) return sequenceMethod(value, value, name);
  if (value instanceof Tuple) {
    if (value instanceof GroupTuple && name === 'grouper') return value.items[0];
    if (value instanceof GroupTuple && name === 'list') return value.items[1];
    return sequenceMethod(value, value.items, name);
  }
  if (value instanceof Namespace) return value.attributes.get(name);
  if (value instanceof Callable) return value.attributes.get(name)?.();
  if (value instanceof Range && ['start', 'stop', 'step'].includes(name)) {
    return value[name as 'start' | 'stop' | 'step'];
  }
  return value !== null && isNumber(value) ? numberAttribute(value, name) : undefined;
}

/** `value[key]`; undefined if Python raises a TypeError or LookupError. */
function ownItem(value: Value, key: Value): Value | undefined {
  if (value instanceof Undefined) value.fail();
  if (value instanceof Dict) {
    if (isList(key) || key instanceof Dict) return undefined;
    return value.get(key);
  }
  const at = intOf(key);
  if (at === undefined) return undefined;
  const place = (length: number) => Number(at < 0n ? at + BigInt(length) : at);
  const text = textOf(value);
  if (text !== undefined) {
    const all = characters(text);
    const char = all[place(all.length)] as string | undefined;
    return char !== undefined && value instanceof Markup ? new Markup(char) : char;
  }
  if (isList(value)) return value[place(value.length)];
  if (value instanceof Tuple) return value.items[place(value.items.length)];
  if (value instanceof Range) {
    const i = place(value.length);
    return i >= 0 && i < value.length ? value.at(i) : undefined;
  }
  return undefined;
}

/** `value.name`: an attribute, else an item. */
export function getAttribute(value: Value, name: string): Value {
  const attribute = ownAttribute(value, name);
  if (attribute !== undefined) return attribute;
  const item = ownItem(value, name);
  return item === undefined ? noAttribute(value, name) : item;
}

/** `value[key]`: an item, else an attribute. */
export function getItem(value: Value, key: Value): Value {
  const item = ownItem(value, key);
  if (item !== undefined) return item;
  const name = textOf(key);
  const attribute = name === undefined ? undefined : ownAttribute(value, name);
  return attribute === undefined ? noAttribute(value, name ?? key) : attribute;
}

/** `value|attr(name)`: an attribute, never an item. */
export function attributeOnly(value: Value, name: string): Value {
  if (value instanceof Undefined) value.fail();
  const attribute = ownAttribute(value, name);
  return attribute === undefined ? noAttribute(value, name) : attribute;
}

/** `value[start:stop:step]`. */
export function slice(value: Value, start: Value, stop: Value, step: Value): Value {
  if (value instanceof Undefined) value.fail();
  const text = textOf(value);
  const items = text !== undefined ? characters(text) : sequenceOf(value);
  if (items === undefined) {
    if (value instanceof Dict) raise('TypeError', "unhashable type: 'slice'");
    raise('TypeError', `'${typeName(value)}' object is not subscriptable`);
  }
  const bound = (limit: Value): number | null => {
    if (limit === null) return null;
    const int = intOf(limit);
    if (int === undefined) {
      raise('TypeError', 'slice indices must be integers or None or have an __index__ method');
    }
    return Number(int);
  };
  const by = bound(step) ?? 1;
  if (by === 0) raise('ValueError', 'slice step cannot be zero');
  const { length } = items;
  const place = (limit: number | null, fallback: number) => {
    if (limit === null) return fallback;
    const at = limit < 0 ? limit + length : limit;
    return by > 0 ? Math.min(Math.max(at, 0), length) : Math.min(Math.max(at, -1), length - 1);
  };
  const from = place(bound(start), by > 0 ? 0 : length - 1);
  const to = place(bound(stop), by > 0 ? length : -1);
  let part: string | readonly Value[];
  if (by === 1) {
    part = items.slice(from, Math.max(from, to));
  } else {
    const picked: Value[] = [];
    for (let i = from; by > 0 ? i < to : i > to; i += by) picked.push(items[i]);
    part = picked;
  }
  if (text !== undefined) {
    const joined = joinCharacters(part as string | string[]);
    return value instanceof Markup ? new Markup(joined) : joined;
  }
  return value instanceof Tuple ? new Tuple(part as readonly Value[]) : part;
}

function sequenceOf(value: Value): readonly Value[] | undefined {
  if (isList(value)) return value;
  if (value instanceof Tuple) return value.items;
  // In Python a slice of a range is a range; this list has the same items.
  return value instanceof Range ? Array.from(iterate(value)) : undefined;
}
