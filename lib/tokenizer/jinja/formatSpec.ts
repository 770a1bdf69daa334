/** Python's format specification mini-language and `round`. */
import { raise } from './errors';
import { floatRepr, intStr, str } from './repr';
import { checkLength } from './text';
import { isNumber, textOf, typeName, type Value } from './values';

/** `value` as mantissa * 2 ** exponent, exactly. */
function decompose(value: number): { mantissa: bigint; exponent: number } {
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, Math.abs(value));
  const bits = view.getBigUint64(0);
  const biased = Number(bits >> 52n);
  const fraction = bits & (2n ** 52n - 1n);
  return biased === 0
    ? { mantissa: fraction, exponent: -1074 }
    : { mantissa: fraction | (2n ** 52n), exponent: biased - 1075 };
}

/** |value| * 10 ** digits, rounded to the nearest integer, ties to even. */
function scaled(value: number, digits: number): bigint {
  const { mantissa, exponent } = decompose(value);
  let numerator = mantissa;
  let denominator = 1n;
  if (digits >= 0) numerator *= 10n ** BigInt(digits);
  else denominator *= 10n ** BigInt(-digits);
  if (exponent >= 0) numerator <<= BigInt(exponent);
  else denominator <<= BigInt(-exponent);
  const quotient = numerator / denominator;
  const twice = (numerator % denominator) * 2n;
  const up = twice > denominator || (twice === denominator && quotient % 2n === 1n);
  return up ? quotient + 1n : quotient;
}

/** |value| with `digits` digits after the point, correctly rounded. */
function fixed(value: number, digits: number): string {
  checkLength(digits);
  const text = scaled(value, digits)
    .toString()
    .padStart(digits + 1, '0');
  return digits === 0 ? text : `${text.slice(0, -digits)}.${text.slice(-digits)}`;
}

/** `round(value, digits)` of a float. */
export function roundFloat(value: number, digits: number): number {
  if (!Number.isFinite(value) || digits > 323) return value;
  if (digits < -309) return 0 * value;
  const magnitude = scaled(value, digits);
  const rounded = Number(`${magnitude}e${-digits}`);
  return value < 0 || Object.is(value, -0) ? -rounded : rounded;
}

/** `round(value, digits)` of an int. */
export function roundInt(value: bigint, digits: number): bigint {
  if (digits >= 0) return value;
  if (digits < -1000) return 0n;
  const unit = 10n ** BigInt(-digits);
  const magnitude = value < 0n ? -value : value;
  const quotient = magnitude / unit;
  const twice = (magnitude % unit) * 2n;
  const up = twice > unit || (twice === unit && quotient % 2n === 1n);
  const rounded = (up ? quotient + 1n : quotient) * unit;
  return value < 0n ? -rounded : rounded;
}

function exponential(value: number, digits: number): string {
  const [mantissa, exponent] = Math.abs(value).toExponential(Math.min(digits, 100)).split('e');
  const power = Number(exponent);
  return `${mantissa}e${power < 0 ? '-' : '+'}${String(Math.abs(power)).padStart(2, '0')}`;
}

function general(value: number, precision: number, keepZeros: boolean): string {
  const digits = Math.max(precision, 1);
  const power = value === 0 ? 0 : Number(exponential(value, digits - 1).split('e')[1]);
  const text =
    power < -4 || power >= digits
      ? exponential(value, digits - 1)
      : fixed(value, digits - 1 - power);
  if (keepZeros || !text.includes('.')) return text;
  return text.replace(/\.?0+(?=e|$)/, '');
}

/** |value| formatted with the conversion `type`: e, f, g or %, in either case. */
export function formatFloat(
  value: number,
  type: string,
  precision: number,
  alternate = false,
): string {
  const upper = type === type.toUpperCase() && type !== '%';
  let text: string;
  if (!Number.isFinite(value)) text = Number.isNaN(value) ? 'nan' : 'inf';
  else if (type.toLowerCase() === 'e') text = exponential(value, precision);
  else if (type.toLowerCase() === 'g') text = general(value, precision, alternate);
  else text = fixed(value, precision);
  return upper ? text.toUpperCase() : text;
}

const SPEC =
  /^(?:(.)?([<>=^]))?([-+ ])?(z)?(#)?(0)?(\d+)?([,_])?(?:\.(\d+))?([bcdeEfFgGnosxX%])?$/su;

const BASES: Partial<Record<string, number>> = { b: 2, o: 8, x: 16, X: 16 };

function group(digits: string, separator: string, every: number): string {
  const whole =
    /^[\da-fA-F]*/.exec(every === 3 ? digits.replace(/[.e].*$/s, '') : digits)?.[0] ?? '';
  const tail = digits.slice(whole.length);
  return whole.replace(new RegExp(`\\B(?=(.{${every}})+$)`, 'g'), separator) + tail;
}

function digitsOf(value: bigint | number, type: string | undefined, precision?: number): string {
  if (typeof value === 'bigint' && (type === undefined || 'bdnoxX'.includes(type))) {
    if (precision !== undefined) {
      raise('ValueError', 'Precision not allowed in integer format specifier');
    }
    const magnitude = value < 0n ? -value : value;
    const base = BASES[type ?? 'd'] ?? 10;
    const digits = base === 10 ? intStr(magnitude) : magnitude.toString(base);
    return type === 'X' ? digits.toUpperCase() : digits;
  }
  const float = Math.abs(Number(value));
  if (type === undefined) {
    if (precision === undefined) return floatRepr(float);
    const text = general(float, precision, false);
    return /[.en]/.test(text) ? text : `${text}.0`;
  }
  if (type === '%') return `${formatFloat(float * 100, 'f', precision ?? 6)}%`;
  return formatFloat(float, type === 'n' ? 'g' : type, precision ?? 6);
}

/** `format(value, spec)`. Raises ValueError or TypeError. */
export function format(value: Value, spec: string): string {
  if (spec === '') return str(value);
  const text = textOf(value);
  if (text === undefined && !isNumber(value)) {
    raise('TypeError', `unsupported format string passed to ${typeName(value)}.__format__`);
  }
  const match = SPEC.exec(spec);
  if (!match)
    raise(
      'ValueError',
      `Invalid format specifier '${spec}' for object of type '${typeName(value)}'`,
    );
  const [, fill, align, sign, , alternate, zero, width, separator, precision, type] = match as (
    string | undefined
  )[];
  const size = Number(width ?? 0);
  checkLength(size);
  checkLength(Number(precision ?? 0));
  const unknown = (): never =>
    raise('ValueError', `Unknown format code '${type}' for object of type '${typeName(value)}'`);

  if (text !== undefined) {
    if (type !== undefined && type !== 's') unknown();
    if (sign !== undefined || separator !== undefined || align === '=') {
      raise('ValueError', 'Sign, grouping and = alignment not allowed in string format specifier');
    }
    const all = Array.from(text);
    const cut = precision === undefined ? all : all.slice(0, Number(precision));
    return pad(cut.join(''), size, fill ?? (zero ? '0' : ' '), align ?? '<', cut.length);
  }

  const number = typeof value === 'boolean' ? BigInt(value) : (value as bigint | number);
  if (typeof value === 'boolean' && type === undefined && precision === undefined) {
    return format(BigInt(value), spec);
  }
  if (type === 's') unknown();
  if (type === 'c') {
    return pad(String.fromCodePoint(Number(number)), size, fill ?? ' ', align ?? '<', 1);
  }
  if (typeof number === 'number' && type !== undefined && 'bdoxX'.includes(type)) unknown();
  let digits = digitsOf(number, type, precision === undefined ? undefined : Number(precision));
  if (separator) digits = group(digits, separator, type && BASES[type] ? 4 : 3);
  const isNegative = number < 0 || Object.is(number, -0);
  let prefix = isNegative ? '-' : sign === '+' || sign === ' ' ? sign : '';
  if (alternate && type && BASES[type]) prefix += `0${type}`;
  const filling = fill ?? (zero ? '0' : ' ');
  const placing = align ?? (zero ? '=' : '>');
  if (placing !== '=') {
    return pad(prefix + digits, size, filling, placing, prefix.length + digits.length);
  }
  return prefix + pad(digits, size - prefix.length, filling, '>', digits.length);
}

/** Pads `text`, of `length` characters, to `width`. */
export function pad(
  text: string,
  width: number,
  fill: string,
  align: string,
  length: number,
): string {
  const missing = width - length;
  if (missing <= 0) return text;
  checkLength(width);
  if (align === '<') return text + fill.repeat(missing);
  if (align === '>') return fill.repeat(missing) + text;
  const left = Math.floor(missing / 2);
  return fill.repeat(left) + text + fill.repeat(missing - left);
}
