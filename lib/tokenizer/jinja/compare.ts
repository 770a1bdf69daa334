/** Python's `==`, `<` and `in`. */
import { spend } from './budget';
import { raise } from './errors';
import {
  Dict,
  DictView,
  isList,
  isNumber,
  iterate,
  iteratorOf,
  Range,
  textOf,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from './values';

const numeric = (value: boolean | bigint | number): bigint | number =>
  typeof value === 'boolean' ? BigInt(value) : value;

/** Exact, also for an int and a float. */
function sameNumber(a: bigint | number, b: bigint | number): boolean {
  return typeof a === typeof b ? a === b : a >= b && a <= b;
}

const sameItems = (a: readonly Value[], b: readonly Value[]): boolean =>
  a.length === b.length &&
  a.every((item, i) => {
    spend(1);
    return item === b[i] || isEqual(item, b[i]);
  });

/** `a == b`: except for numbers, values of different types are not equal. */
export function isEqual(a: Value, b: Value): boolean {
  if (isNumber(a) && isNumber(b)) return sameNumber(numeric(a), numeric(b));
  const text = textOf(a);
  if (text !== undefined) return text === textOf(b);
  if (isList(a)) return isList(b) && sameItems(a, b);
  if (a instanceof Tuple) return b instanceof Tuple && sameItems(a.items, b.items);
  if (a instanceof Undefined) return b instanceof Undefined;
  if (a instanceof Dict) {
    if (!(b instanceof Dict) || a.size !== b.size) return false;
    for (const [key, value] of a.items()) {
      spend(1);
      const other = b.get(key);
      if (other === undefined || !(value === other || isEqual(value, other))) return false;
    }
    return true;
  }
  if (a instanceof Range && b instanceof Range) {
    return (
      a.length === b.length &&
      (a.length === 0 || (a.start === b.start && (a.length === 1 || a.step === b.step)))
    );
  }
  return a === b;
}

/** Compares by code points, as Python does. */
function compareText(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) {
    if (a[i] !== b[i]) return (a.codePointAt(i) ?? 0) - (b.codePointAt(i) ?? 0);
  }
  return a.length - b.length;
}

type Order = '<' | '<=' | '>' | '>=';

const holds = (order: Order, sign: number): boolean => {
  if (order === '<') return sign < 0;
  if (order === '<=') return sign <= 0;
  return order === '>' ? sign > 0 : sign >= 0;
};

/** `a < b`, `<=`, `>` or `>=`. Raises TypeError for values without an order. */
export function isOrdered(order: Order, a: Value, b: Value): boolean {
  spend(1);
  if (isNumber(a) && isNumber(b)) {
    const [x, y] = [numeric(a), numeric(b)];
    if (order === '<') return x < y;
    if (order === '<=') return x <= y;
    return order === '>' ? x > y : x >= y;
  }
  if (a instanceof Undefined) a.fail();
  if (b instanceof Undefined) b.fail();
  const [left, right] = [textOf(a), textOf(b)];
  if (left !== undefined && right !== undefined) return holds(order, compareText(left, right));
  const pair = sequences(a, b);
  if (!pair) {
    raise(
      'TypeError',
      `'${order}' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`,
    );
  }
  const [xs, ys] = pair;
  const length = Math.min(xs.length, ys.length);
  for (let i = 0; i < length; i++) {
    if (!isEqual(xs[i], ys[i])) return isOrdered(order, xs[i], ys[i]);
  }
  return holds(order, xs.length - ys.length);
}

function sequences(a: Value, b: Value): [readonly Value[], readonly Value[]] | null {
  if (isList(a) && isList(b)) return [a, b];
  return a instanceof Tuple && b instanceof Tuple ? [a.items, b.items] : null;
}

/** `item in container`. */
export function contains(container: Value, item: Value): boolean {
  const text = textOf(container);
  if (text !== undefined) {
    const part = textOf(item);
    if (part === undefined) {
      raise('TypeError', `'in <string>' requires string as left operand, not ${typeName(item)}`);
    }
    return text.includes(part);
  }
  if (container instanceof Dict) return container.has(item);
  if (container instanceof DictView && container.of === 'keys') return container.dict.has(item);
  if (iteratorOf(container) === undefined) {
    raise('TypeError', `argument of type '${typeName(container)}' is not iterable`);
  }
  for (const candidate of iterate(container)) {
    if (candidate === item || isEqual(candidate, item)) return true;
  }
  return false;
}

/** `sorted(items, key=key, reverse=reverse)`: stable, compares only with `<`. */
export function sorted(
  items: readonly Value[],
  key: (item: Value) => Value,
  reverse: boolean,
): Value[] {
  const keyed = items.map((item) => ({ item, key: key(item) }));
  keyed.sort((a, b) => {
    const [x, y] = reverse ? [b.key, a.key] : [a.key, b.key];
    if (isOrdered('<', x, y)) return -1;
    return isOrdered('<', y, x) ? 1 : 0;
  });
  return keyed.map(({ item }) => item);
}
