/** Filters on sequences. */
import { attributeOnly, getAttribute, getItem } from './attributes';
import { toBool, toInt } from './arguments';
import { isEqual, isOrdered, sorted } from './compare';
import { raise } from './errors';
import { calculate } from './operators';
import { str } from './repr';
import { checkItems, checkLength } from './text';
import {
  Dict,
  GroupTuple,
  hashKey,
  isTrue,
  iterate,
  iteratorOf,
  type Kwargs,
  lengthOf,
  Markup,
  PyIterator,
  textOf,
  toList,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from './values';

type Getter = (item: Value) => Value;

/** Looks up `attribute` ('a.b.0' or an int) of an item; without it, returns the item. */
function attributeGetter(attribute: Value | undefined, fallback: Value = null): Getter {
  const path = typeof attribute === 'string' ? attribute.split('.') : [attribute ?? null];
  const parts = path
    .filter((part) => part !== null)
    .map((part) => (typeof part === 'string' && /^\p{Nd}+$/u.test(part) ? BigInt(part) : part));
  return (item) =>
    parts.reduce<Value>((value, part) => {
      const found = getItem(value, part);
      return fallback !== null && found instanceof Undefined ? fallback : found;
    }, item);
}

const ignoreCase = (value: Value): Value => {
  const text = textOf(value);
  return text === undefined ? value : text.toLowerCase();
};

const keyGetter = (
  attribute: Value | undefined,
  caseSensitive: boolean,
  fallback?: Value,
): Getter => {
  const get = attributeGetter(attribute, fallback);
  return caseSensitive ? get : (item) => ignoreCase(get(item));
};

export function first(value: Value): Value {
  for (const item of iterate(value)) return item;
  return new Undefined('No first item, sequence was empty.');
}

function reversible(value: Value): readonly Value[] {
  const text = textOf(value);
  if (text !== undefined) return Array.from(text);
  if (value instanceof PyIterator)
    raise('TypeError', `'${value.typeName}' object is not reversible`);
  return toList(value);
}

export function last(value: Value): Value {
  return reversible(value).at(-1) ?? orEmpty(value);
}

// The last item may be None.
const orEmpty = (value: Value): Value =>
  lengthOf(value) === 0 ? new Undefined('No last item, sequence was empty.') : null;

export function reverse(value: Value): Value {
  const text = textOf(value);
  if (text !== undefined) {
    const reversed = Array.from(text).reverse().join('');
    return value instanceof Markup ? new Markup(reversed) : reversed;
  }
  if (iteratorOf(value) === undefined) raise('FilterArgumentError', 'argument must be iterable');
  const items = [...toList(value)].reverse();
  // Python returns an iterator for reversible values, and a list for others.
  if (value instanceof PyIterator || value instanceof Undefined) return items;
  return new PyIterator(items[Symbol.iterator](), `${typeName(value)}_reverseiterator`);
}

export function random(value: Value): Value {
  const items = reversible(value);
  if (items.length === 0) return new Undefined('No random item, sequence was empty.');
  return items[Math.floor(Math.random() * items.length)];
}

export function join(value: Value, separator: Value = '', attribute?: Value): Value {
  const get = attributeGetter(attribute);
  const between = str(separator);
  const texts: string[] = [];
  let length = 0;
  for (const item of iterate(value)) {
    const own = str(get(item));
    checkLength((length += own.length + between.length));
    texts.push(own);
  }
  return texts.join(between);
}

export function sort(
  value: Value,
  reversed?: Value,
  caseSensitive?: Value,
  attribute?: Value,
): Value {
  const names: (Value | undefined)[] =
    typeof attribute === 'string' ? attribute.split(',') : [attribute];
  const getters = names.map((name) => keyGetter(name, toBool(caseSensitive)));
  const key: Getter = (item) => getters.map((get) => get(item));
  return sorted(toList(value), key, toBool(reversed));
}

export function dictSort(
  value: Value,
  caseSensitive?: Value,
  by: Value = 'key',
  reversed?: Value,
): Value {
  if (by !== 'key' && by !== 'value') {
    raise('FilterArgumentError', 'You can only sort by either "key" or "value"');
  }
  if (value instanceof Undefined) value.fail();
  if (!(value instanceof Dict)) {
    raise('AttributeError', `'${typeName(value)}' object has no attribute 'items'`);
  }
  const items = Array.from(value.items(), (item) => new Tuple(item));
  const key: Getter = (item) => {
    const part = (item as Tuple).items[by === 'key' ? 0 : 1];
    return toBool(caseSensitive) ? part : ignoreCase(part);
  };
  return sorted(items, key, toBool(reversed));
}

export function unique(value: Value, caseSensitive?: Value, attribute?: Value): Value {
  const get = keyGetter(attribute, toBool(caseSensitive));
  function* items(): Generator<Value> {
    const seen = new Set<unknown>();
    for (const item of iterate(value)) {
      const key = hashKey(get(item));
      if (!seen.has(key)) yield item;
      seen.add(key);
    }
  }
  return new PyIterator(items());
}

export function extreme(
  order: '<' | '>',
  value: Value,
  caseSensitive?: Value,
  attribute?: Value,
): Value {
  const get = keyGetter(attribute, toBool(caseSensitive));
  let best: { item: Value; key: Value } | null = null;
  for (const item of iterate(value)) {
    const key = get(item);
    if (best === null || isOrdered(order, key, best.key)) best = { item, key };
  }
  return best === null ? new Undefined('No aggregated item, sequence was empty.') : best.item;
}

export function sum(value: Value, attribute?: Value, start: Value = 0n): Value {
  if (textOf(start) !== undefined) {
    raise('TypeError', "sum() can't sum strings [use ''.join(seq) instead]");
  }
  const get = attributeGetter(attribute);
  let total = start;
  for (const item of iterate(value)) total = calculate('+', total, get(item));
  return total;
}

export function groupBy(
  value: Value,
  attribute: Value,
  fallback: Value = null,
  caseSensitive?: Value,
): Value {
  const get = attributeGetter(attribute, fallback);
  const key = keyGetter(attribute, toBool(caseSensitive), fallback);
  const groups: { key: Value; items: Value[] }[] = [];
  for (const item of sorted(toList(value), key, false)) {
    const own = key(item);
    const group = groups.at(-1);
    if (group && isEqual(group.key, own)) group.items.push(item);
    else groups.push({ key: own, items: [item] });
  }
  return groups.map(({ items }) => new GroupTuple([get(items[0]), items]));
}

export function batch(value: Value, size: Value, fill: Value = null): Value {
  function* batches(): Generator<Value> {
    const length = toInt(size, 0);
    let items: Value[] = [];
    for (const item of iterate(value)) {
      if (items.length === length) {
        yield items;
        items = [];
      }
      items.push(item);
    }
    if (items.length === 0) return;
    checkItems(length);
    while (fill !== null && items.length < length) items.push(fill);
    yield items;
  }
  return new PyIterator(batches());
}

export function sliceInto(value: Value, slices: Value, fill: Value = null): Value {
  function* parts(): Generator<Value> {
    const items = toList(value);
    const count = toInt(slices, 0);
    if (count === 0) raise('ZeroDivisionError', 'integer division or modulo by zero');
    checkItems(count);
    const size = Math.floor(items.length / count);
    const numLonger = items.length % count;
    for (let i = 0, at = 0; i < count; i++) {
      const end = at + size + (i < numLonger ? 1 : 0);
      const part = items.slice(at, end);
      yield fill !== null && i >= numLonger ? [...part, fill] : part;
      at = end;
    }
  }
  return new PyIterator(parts());
}

export function items(value: Value): Value {
  function* pairs(): Generator<Value> {
    if (value instanceof Undefined) return;
    if (!(value instanceof Dict)) raise('TypeError', 'Can only get item pairs from a mapping.');
    for (const [key, item] of value.items()) yield new Tuple([key, item]);
  }
  return new PyIterator(pairs());
}

export function attr(value: Value, name: Value): Value {
  const attribute = textOf(name);
  if (attribute === undefined) raise('TypeError', 'attribute name must be string');
  const found = attributeOnly(value, attribute);
  return found instanceof Undefined ? found : getAttribute(value, attribute);
}

export function length(value: Value): Value {
  const found = lengthOf(value);
  if (found === undefined) raise('TypeError', `object of type '${typeName(value)}' has no len()`);
  return BigInt(found);
}

/** Applies a filter or test by name to one item. */
export type Apply = (name: Value, args: readonly Value[], kwargs: Kwargs) => Value;

export function map(
  value: Value,
  args: readonly Value[],
  kwargs: Kwargs,
  applyFilter: Apply,
): Value {
  function* mapped(): Generator<Value> {
    if (!isTrue(value)) return;
    let get: Getter;
    const [name, ...rest] = args;
    if (args.length === 0 && kwargs.has('attribute')) {
      const unknown = [...kwargs.keys()].find((key) => key !== 'attribute' && key !== 'default');
      if (unknown !== undefined) {
        raise('FilterArgumentError', `Unexpected keyword argument '${unknown}'`);
      }
      get = attributeGetter(kwargs.get('attribute'), kwargs.get('default'));
    } else if (args.length === 0) {
      raise('FilterArgumentError', 'map requires a filter argument');
    } else {
      get = (item) => applyFilter(name, [item, ...rest], kwargs);
    }
    for (const item of iterate(value)) yield get(item);
  }
  return new PyIterator(mapped());
}

export function select(
  value: Value,
  args: readonly Value[],
  kwargs: Kwargs,
  applyTest: Apply,
  { wanted, byAttribute }: { wanted: boolean; byAttribute: boolean },
): Value {
  function* selected(): Generator<Value> {
    if (!isTrue(value)) return;
    if (byAttribute && args.length === 0) {
      raise('FilterArgumentError', 'Missing parameter for attribute name');
    }
    const get: Getter = byAttribute ? attributeGetter(args[0]) : (item) => item;
    const test = byAttribute ? args.slice(1) : args;
    const [name, ...rest] = test;
    for (const item of iterate(value)) {
      const subject = get(item);
      const result = test.length === 0 ? subject : applyTest(name, [subject, ...rest], kwargs);
      if (isTrue(result) === wanted) yield item;
    }
  }
  return new PyIterator(selected());
}
