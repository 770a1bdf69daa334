/** Decimal numbers between bounds as regular expressions. */
import { choice, EMPTY, type Expression, NEVER, repeat, sequence, set, text } from './expression';

/** A bound of a number, and whether the number may equal it. */
export interface Bound {
  readonly value: number;
  readonly isExclusive: boolean;
}

const digits = (from: number, to: number): Expression =>
  from > to ? NEVER : set([[0x30 + from, 0x30 + to]]);
const DIGIT = digits(0, 9);
const anyDigits = repeat(DIGIT, 0, null);
/** Digits that are not all 0. */
const nonzeroDigits = sequence(anyDigits, digits(1, 9), anyDigits);

/** A magnitude without exponent: its digits before and behind the point. */
function split(value: number): { whole: string; fraction: string } {
  const magnitude = Math.abs(value);
  const [mantissa, exponent = '0'] = String(magnitude).split('e');
  const [whole, fraction = ''] = mantissa.split('.');
  const shift = Number(exponent);
  const all = whole + fraction;
  const point = whole.length + shift;
  const padded = point <= 0 ? '0'.repeat(1 - point) + all : all.padEnd(point, '0');
  const at = Math.max(point, 1);
  return {
    whole: padded.slice(0, at).replace(/^0+(?=\d)/, ''),
    fraction: padded.slice(at).replace(/0+$/, ''),
  };
}

/** Whole numbers with as many digits as `bound` that are greater (or less). */
function sameLength(bound: string, isGreater: boolean): Expression {
  const options: Expression[] = [];
  for (let i = 0; i < bound.length; i++) {
    const digit = Number(bound[i]);
    // No leading zero, except for 0 itself.
    const lowest = i === 0 && bound.length > 1 ? 1 : 0;
    const next = isGreater ? digits(digit + 1, 9) : digits(lowest, digit - 1);
    const rest = bound.length - i - 1;
    options.push(sequence(text(bound.slice(0, i)), next, repeat(DIGIT, rest, rest)));
  }
  return choice(options);
}

function wholeGreater(bound: string): Expression {
  return choice([
    sameLength(bound, true),
    sequence(digits(1, 9), repeat(DIGIT, bound.length, null)),
  ]);
}

function wholeLess(bound: string): Expression {
  if (bound.length === 1) return sameLength(bound, false);
  const shorter = sequence(digits(1, 9), repeat(DIGIT, 0, bound.length - 2));
  return choice([sameLength(bound, false), digits(0, 0), shorter]);
}

/** A point and digits that are greater (or less) than the bound's, or as the bound's if allowed. */
function fractions(bound: string, isGreater: boolean, mayEqual: boolean): Expression {
  const options: Expression[] = [];
  for (let i = 0; i < bound.length; i++) {
    const digit = Number(bound[i]);
    const next = isGreater ? digits(digit + 1, 9) : digits(0, digit - 1);
    options.push(sequence(text(`.${bound.slice(0, i)}`), next, anyDigits));
    // 1.2 is less than 1.23.
    if (!isGreater && i > 0) options.push(text(`.${bound.slice(0, i)}`));
  }
  const zeros = repeat(digits(0, 0), 0, null);
  if (bound === '') {
    if (isGreater) options.push(sequence(text('.'), nonzeroDigits));
    if (mayEqual) options.push(EMPTY, sequence(text('.0'), zeros));
  } else {
    if (isGreater) options.push(sequence(text(`.${bound}`), nonzeroDigits));
    else options.push(EMPTY);
    if (mayEqual) options.push(sequence(text(`.${bound}`), zeros));
  }
  return choice(options);
}

/** Numbers without a sign that are at least (or at most) the magnitude of the bound. */
function magnitudes(bound: Bound, isGreater: boolean): Expression {
  const { whole, fraction } = split(bound.value);
  const anyFraction = repeat(sequence(text('.'), DIGIT, anyDigits), 0, 1);
  return choice([
    sequence(isGreater ? wholeGreater(whole) : wholeLess(whole), anyFraction),
    sequence(text(whole), fractions(fraction, isGreater, !bound.isExclusive)),
  ]);
}

const minus = (magnitude: Expression) => sequence(text('-'), magnitude);
const anyMagnitude = sequence(
  choice([digits(0, 0), sequence(digits(1, 9), anyDigits)]),
  repeat(sequence(text('.'), DIGIT, anyDigits), 0, 1),
);

/** Numbers without exponent that are at least (above) the bound. */
export function atLeast(bound: Bound): Expression {
  if (bound.value > 0) return magnitudes(bound, true);
  if (bound.value === 0) {
    const zero = sequence(
      text('0'),
      repeat(sequence(text('.0'), repeat(digits(0, 0), 0, null)), 0, 1),
    );
    return bound.isExclusive ? magnitudes(bound, true) : choice([anyMagnitude, minus(zero)]);
  }
  return choice([anyMagnitude, minus(magnitudes(bound, false))]);
}

/** Numbers without exponent that are at most (below) the bound. */
export function atMost(bound: Bound): Expression {
  if (bound.value < 0) return minus(magnitudes(bound, true));
  if (bound.value === 0) {
    const positive = magnitudes({ value: 0, isExclusive: true }, true);
    if (bound.isExclusive) return minus(positive);
    const zero = sequence(
      text('0'),
      repeat(sequence(text('.0'), repeat(digits(0, 0), 0, null)), 0, 1),
    );
    return choice([zero, minus(anyMagnitude)]);
  }
  return choice([minus(anyMagnitude), magnitudes(bound, false)]);
}
