/** Python's arithmetic. */
import { spend } from './budget';
import { raise } from './errors';
import { percent } from './formatString';
import { escapeHtml } from './html';
import { checkItems, checkLength, repeat } from './text';
import {
  intOf,
  isList,
  isNumber,
  Markup,
  textOf,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from './values';

export type BinaryOperator = '+' | '-' | '*' | '/' | '//' | '%' | '**';

/** Bits of the largest int that a template may create. */
const MAX_INT_BITS = 2 ** 18;

function unsupported(operator: BinaryOperator, a: Value, b: Value): never {
  const name = operator === '**' ? '** or pow()' : operator;
  raise(
    'TypeError',
    `unsupported operand type(s) for ${name}: '${typeName(a)}' and '${typeName(b)}'`,
  );
}

const floorDivide = (a: bigint, b: bigint): bigint => {
  const quotient = a / b;
  return a % b !== 0n && a < 0n !== b < 0n ? quotient - 1n : quotient;
};

/** fmod with the sign of the divisor. */
function floatModulo(a: number, b: number): number {
  const rest = a % b;
  if (rest === 0) return b < 0 ? -0 : 0;
  return rest < 0 !== b < 0 ? rest + b : rest;
}

function checkBits(bits: number): void {
  if (bits > MAX_INT_BITS) {
    raise('OverflowError', `an int of ${bits} bits exceeds the limit of ${MAX_INT_BITS} bits`);
  }
}

const numBits = (value: bigint): number => value.toString(16).length * 4;

/** The largest n with 2 ** n <= |value|, for |value| of at least 1. */
function log2(value: bigint): number {
  const digits = (value < 0n ? -value : value).toString(16);
  return 4 * (digits.length - 1) + Math.floor(Math.log2(parseInt(digits[0], 16)));
}

function ints(operator: BinaryOperator, a: bigint, b: bigint): Value {
  switch (operator) {
    case '+':
      return a + b;
    case '-':
      return a - b;
    case '*':
      checkBits(Math.max(numBits(a) + numBits(b) - 8, 0));
      return a * b;
    case '/':
      if (b === 0n) raise('ZeroDivisionError', 'division by zero');
      return Number(a) / Number(b);
    case '//':
      if (b === 0n) raise('ZeroDivisionError', 'integer division or modulo by zero');
      return floorDivide(a, b);
    case '%':
      if (b === 0n) raise('ZeroDivisionError', 'integer modulo by zero');
      return a - floorDivide(a, b) * b;
    case '**':
      if (b < 0n) {
        if (a === 0n) raise('ZeroDivisionError', '0.0 cannot be raised to a negative power');
        return Number(a) ** Number(b);
      }
      if (a > 1n || a < -1n) checkBits(log2(a) * Number(b));
      return a ** b;
  }
}

function floats(operator: BinaryOperator, a: number, b: number): Value {
  switch (operator) {
    case '+':
      return a + b;
    case '-':
      return a - b;
    case '*':
      return a * b;
    case '/':
      if (b === 0) raise('ZeroDivisionError', 'float division by zero');
      return a / b;
    case '//':
      if (b === 0) raise('ZeroDivisionError', 'float floor division by zero');
      return Math.floor((a - floatModulo(a, b)) / b + 0.5);
    case '%':
      if (b === 0) raise('ZeroDivisionError', 'float modulo');
      return floatModulo(a, b);
    case '**': {
      if (a === 0 && b < 0) {
        raise('ZeroDivisionError', '0.0 cannot be raised to a negative power');
      }
      if (a < 0 && !Number.isInteger(b)) raise('ValueError', 'the power is a complex number');
      const power = a ** b;
      if (!Number.isFinite(power) && Number.isFinite(a) && Number.isFinite(b)) {
        raise('OverflowError', "(34, 'Numerical result out of range')");
      }
      return power;
    }
  }
}

const concatenated = (a: string, b: string): string => {
  checkLength(a.length + b.length);
  return a + b;
};

function concatenatedItems(a: readonly Value[], b: readonly Value[]): Value[] {
  checkItems(a.length + b.length);
  spend((a.length + b.length) >> 4);
  return [...a, ...b];
}

function add(a: Value, b: Value): Value {
  const [left, right] = [textOf(a), textOf(b)];
  if (left !== undefined && right !== undefined) {
    if (typeof a === 'string' && typeof b === 'string') return concatenated(a, b);
    return new Markup(concatenated(escapeHtml(a).text, escapeHtml(b).text));
  }
  if (left !== undefined) {
    raise('TypeError', `can only concatenate str (not "${typeName(b)}") to str`);
  }
  if (isList(a)) {
    if (isList(b)) return concatenatedItems(a, b);
    raise('TypeError', `can only concatenate list (not "${typeName(b)}") to list`);
  }
  if (a instanceof Tuple) {
    if (b instanceof Tuple) return new Tuple(concatenatedItems(a.items, b.items));
    raise('TypeError', `can only concatenate tuple (not "${typeName(b)}") to tuple`);
  }
  return unsupported('+', a, b);
}

/** A sequence and its repetition count; null for other operands. */
function repetition(a: Value, b: Value): [Value, bigint] | null {
  for (const [sequence, times] of [
    [a, b],
    [b, a],
  ]) {
    const count = intOf(times);
    const isSequence =
      textOf(sequence) !== undefined || isList(sequence) || sequence instanceof Tuple;
    if (count !== undefined && isSequence) return [sequence, count];
  }
  return null;
}

function multiply(a: Value, b: Value): Value {
  const found = repetition(a, b);
  if (!found) {
    const sequence = [a, b].find((value) => textOf(value) !== undefined || isList(value));
    if (sequence === undefined) return unsupported('*', a, b);
    const other = sequence === a ? b : a;
    raise('TypeError', `can't multiply sequence by non-int of type '${typeName(other)}'`);
  }
  const [sequence, times] = found;
  const text = textOf(sequence);
  if (text !== undefined) {
    const repeated = repeat(text, times);
    return sequence instanceof Markup ? new Markup(repeated) : repeated;
  }
  const items = sequence instanceof Tuple ? sequence.items : (sequence as readonly Value[]);
  const count = times < 0n ? 0 : Number(times);
  checkItems(items.length * count);
  const repeated = Array.from({ length: count }, () => items).flat();
  return sequence instanceof Tuple ? new Tuple(repeated) : repeated;
}

/** `a operator b`. Raises TypeError for operands that Python rejects. */
export function calculate(operator: BinaryOperator, a: Value, b: Value): Value {
  // A string on the left is formatted before an Undefined on the right raises.
  if (operator === '%' && typeof a === 'string') return percent(a, b);
  if (operator === '%' && a instanceof Markup) {
    return new Markup(
      percent(a.text, b, (text, value) => (value instanceof Markup ? text : escapeHtml(text).text)),
    );
  }
  if (a instanceof Undefined) a.fail();
  if (b instanceof Undefined) b.fail();
  if (isNumber(a) && isNumber(b)) {
    const [x, y] = [intOf(a), intOf(b)];
    if (x !== undefined && y !== undefined) return ints(operator, x, y);
    return floats(operator, Number(a), Number(b));
  }
  if (operator === '+') return add(a, b);
  return operator === '*' ? multiply(a, b) : unsupported(operator, a, b);
}

/** `-value` or `+value`. */
export function negate(operator: '-' | '+', value: Value): Value {
  if (value instanceof Undefined) value.fail();
  const int = intOf(value);
  if (int !== undefined) return operator === '-' ? -int : int;
  if (typeof value === 'number') return operator === '-' ? -value : value;
  raise('TypeError', `bad operand type for unary ${operator}: '${typeName(value)}'`);
}
