/** Filters on text and numbers. */
import { softText, toBool, toInt, toText } from './arguments';
import { raise } from './errors';
import { format as formatValue, pad, roundFloat, roundInt } from './formatSpec';
import { escapeHtml, stripTags } from './html';
import { calculate } from './operators';
import { repr, str } from './repr';
import * as text from './text';
import {
  Dict,
  intOf,
  isNumber,
  iterate,
  iteratorOf,
  type Kwargs,
  Markup,
  numCodePoints,
  textOf,
  toList,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from './values';

/** Applies `change` to a value's text; a safe string stays safe. */
export const changed =
  (change: (own: string) => string) =>
  (value: Value): Value =>
    value instanceof Markup ? new Markup(change(value.text)) : change(softText(value));

const WORD_BEGINNING = new RegExp(`([-${text.SPACES}({[<]+)`);

export const title = (own: string): string =>
  own
    .split(WORD_BEGINNING)
    .map((word) => {
      const [first = '', ...rest] = word;
      return first.toUpperCase() + rest.join('').toLowerCase();
    })
    .join('');

export function trim(value: Value, chars: Value = null): Value {
  const stripped = chars === null ? undefined : toText(chars, 'strip arg');
  return changed((own) => text.strip(own, stripped, 'both'))(value);
}

export function center(value: Value, width: Value = 80n): Value {
  return changed((own) => {
    const size = toInt(width, 80);
    const length = numCodePoints(own);
    const odd = Math.max(size - length, 0) & size & 1;
    return odd ? ` ${pad(own, size - 1, ' ', '^', length)}` : pad(own, size, ' ', '^', length);
  })(value);
}

export function replace(value: Value, old: Value, replacement: Value, count: Value = null): Value {
  return text.replace(
    str(value),
    str(old),
    str(replacement),
    count === null ? -1 : toInt(count, -1),
  );
}

export function indent(value: Value, width: Value = 4n, first?: Value, blank?: Value): Value {
  const own = textOf(value);
  const margin = textOf(width) ?? text.repeat(' ', BigInt(toInt(width, 4)));
  if (own === undefined) {
    if (value instanceof Undefined) value.fail();
    raise('TypeError', `unsupported operand type(s) for +=: '${typeName(value)}' and 'str'`);
  }
  const lines = text.splitLines(`${own}\n`);
  text.checkLength(own.length + lines.length * margin.length);
  const indented = lines.map((line, i) =>
    i > 0 && (line !== '' || toBool(blank)) ? margin + line : line,
  );
  const result = (toBool(first) ? margin : '') + indented.join('\n');
  return value instanceof Markup ? new Markup(result) : result;
}

export function truncate(
  value: Value,
  length: Value = 255n,
  killWords?: Value,
  end: Value = '...',
  leeway: Value = null,
): Value {
  const mark = toText(end, 'end');
  const size = toInt(length, 255);
  const slack = leeway === null ? 5 : toInt(leeway, 5);
  if (size < numCodePoints(mark)) {
    raise('AssertionError', `expected length >= ${numCodePoints(mark)}, got ${size}`);
  }
  if (slack < 0) raise('AssertionError', `expected leeway >= 0, got ${slack}`);
  if (value instanceof Undefined) return value;
  const all = Array.from(toText(value, 'the truncated value'));
  if (all.length <= size + slack) return value;
  const cut = all.slice(0, size - numCodePoints(mark)).join('');
  return (toBool(killWords) ? cut : text.splitFromRight(cut, ' ', 1)[0]) + mark;
}

export function wordCount(value: Value): Value {
  return BigInt(softText(value).match(/[\p{L}\p{N}_]+/gu)?.length ?? 0);
}

function encodeUtf8(text: string): string {
  try {
    return encodeURIComponent(text);
  } catch {
    return raise('ValueError', 'surrogates not allowed');
  }
}

const quoteUrl = (value: Value, plus: boolean): string => {
  const encoded = encodeUtf8(str(value)).replace(
    /[!'()*]/g,
    (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`,
  );
  return plus ? encoded.replaceAll('%20', '+') : encoded.replaceAll('%2F', '/');
};

export function urlEncode(value: Value): Value {
  if (textOf(value) !== undefined || iteratorOf(value) === undefined) return quoteUrl(value, false);
  const pairs =
    value instanceof Dict ? Array.from(value.items()) : Array.from(iterate(value), toList);
  return pairs.map(([key, item]) => `${quoteUrl(key, true)}=${quoteUrl(item, true)}`).join('&');
}

export function xmlAttributes(value: Value, autospace: Value = true): Value {
  if (value instanceof Undefined) value.fail();
  if (!(value instanceof Dict)) {
    raise('AttributeError', `'${typeName(value)}' object has no attribute 'items'`);
  }
  const pairs: string[] = [];
  for (const [key, item] of value.items()) {
    if (item === null || item instanceof Undefined) continue;
    if (/[ \t\n\r\f\v/>=]/.test(toText(key, 'a key'))) {
      raise('ValueError', `Invalid character in attribute name: ${repr(key)}`);
    }
    pairs.push(`${escapeHtml(key).text}="${escapeHtml(item).text}"`);
  }
  const joined = pairs.join(' ');
  return toBool(autospace) && joined !== '' ? ` ${joined}` : joined;
}

export function stripMarkup(value: Value): Value {
  return stripTags(str(value));
}

export function format(value: Value, args: readonly Value[], kwargs: Kwargs): Value {
  if (args.length > 0 && kwargs.size > 0) {
    raise('FilterArgumentError', "can't handle positional and keyword arguments at the same time");
  }
  const own = value instanceof Markup ? value : softText(value);
  return calculate('%', own, kwargs.size > 0 ? new Dict(kwargs) : new Tuple(args));
}

const INT_TEXT = /^[+-]?(?:0|[1-9])?(?:_?\d)*$/;

/** `int(own, base)`; undefined if it raises ValueError. */
function parseInt(own: string, base: number): bigint | undefined {
  const plain = text.strip(own, undefined, 'both').replace(/\p{Nd}/gu, decimalDigit);
  const [, sign = '', body = ''] = /^([+-]?)(.*)$/s.exec(plain) ?? [];
  const prefix = { 2: '0b', 8: '0o', 16: '0x' }[base] ?? '';
  const digits =
    prefix && body.toLowerCase().startsWith(prefix) ? body.slice(2).replace(/^_/, '') : body;
  if (!/^[\da-z]+(?:_[\da-z]+)*$/i.test(digits)) return undefined;
  if (base === 0 && !INT_TEXT.test(plain)) return undefined;
  let value = 0n;
  const radix = BigInt(base === 0 ? 10 : base);
  if (radix === 10n) {
    if (!/^[\d_]+$/.test(digits)) return undefined;
    value = BigInt(digits.replaceAll('_', ''));
  } else {
    for (const char of digits.replaceAll('_', '').toLowerCase()) {
      const digit = '0123456789abcdefghijklmnopqrstuvwxyz'.indexOf(char);
      if (digit >= base) return undefined;
      value = value * radix + BigInt(digit);
    }
  }
  return sign === '-' ? -value : value;
}

/** The value of a decimal digit of any script; each script's ten digits are consecutive. */
function decimalDigit(char: string): string {
  if (char >= '0' && char <= '9') return char;
  const code = char.codePointAt(0) ?? 0;
  let zero = code;
  while (code - zero < 9 && /\p{Nd}/u.test(String.fromCodePoint(zero - 1))) zero--;
  return String(code - zero);
}

/** `float(value)`; undefined if it raises TypeError or ValueError. */
function parseFloatValue(value: Value): number | undefined {
  if (value instanceof Undefined) value.fail();
  if (value !== null && isNumber(value)) return Number(value);
  const own = textOf(value);
  if (own === undefined) return undefined;
  const plain = text
    .strip(own, undefined, 'both')
    .replace(/\p{Nd}/gu, decimalDigit)
    .toLowerCase();
  const special = /^([+-]?)(inf|infinity|nan)$/.exec(plain);
  if (special) return special[2] === 'nan' ? NaN : special[1] === '-' ? -Infinity : Infinity;
  const number = /^[+-]?(?:\d(?:_?\d)*\.?(?:\d(?:_?\d)*)?|\.\d(?:_?\d)*)(?:e[+-]?\d(?:_?\d)*)?$/;
  return number.test(plain) ? Number(plain.replaceAll('_', '')) : undefined;
}

export function toInteger(value: Value, fallback: Value = 0n, base: Value = 10n): Value {
  const int = intOf(value);
  if (int !== undefined) return int;
  const own = textOf(value);
  const parsed = own === undefined ? undefined : parseInt(own, toInt(base, 10));
  if (parsed !== undefined) return parsed;
  const float = parseFloatValue(value);
  if (float === undefined || Number.isNaN(float)) return fallback;
  if (Number.isFinite(float)) return BigInt(Math.trunc(float));
  // int(inf) raises OverflowError, which jinja2's filter catches only in its second attempt.
  if (typeof value === 'number') raise('OverflowError', 'cannot convert float infinity to integer');
  return fallback;
}

export function toFloat(value: Value, fallback: Value = 0): Value {
  return parseFloatValue(value) ?? fallback;
}

function numberOf(value: Value, refusal: string): bigint | number {
  if (value === null || !isNumber(value)) raise('TypeError', refusal);
  return typeof value === 'boolean' ? BigInt(value) : value;
}

export function absolute(value: Value): Value {
  const number = numberOf(value, `bad operand type for abs(): '${typeName(value)}'`);
  return number < 0 ? -number : typeof number === 'number' ? Math.abs(number) : number;
}

export function round(value: Value, precision: Value = 0n, method: Value = 'common'): Value {
  if (method !== 'common' && method !== 'ceil' && method !== 'floor') {
    raise('FilterArgumentError', 'method must be common, ceil or floor');
  }
  const number = numberOf(value, `type ${typeName(value)} doesn't define __round__ method`);
  const digits = toInt(precision, 0);
  if (method === 'common') {
    return typeof number === 'bigint' ? roundInt(number, digits) : roundFloat(number, digits);
  }
  const unit = 10 ** digits;
  return Math[method](Number(number) * unit) / unit;
}

const DECIMAL_UNITS = ['kB', 'MB', 'GB', 'TB', 'PB', 'EB', 'ZB', 'YB'];
const BINARY_UNITS = ['KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB', 'ZiB', 'YiB'];

export function fileSize(value: Value, binary?: Value): Value {
  const bytes = parseFloatValue(value);
  if (bytes === undefined) raise('ValueError', `could not convert to float: ${repr(value)}`);
  const [base, units] = toBool(binary) ? [1024, BINARY_UNITS] : [1000, DECIMAL_UNITS];
  if (bytes === 1) return '1 Byte';
  if (bytes < base) return `${Math.trunc(bytes)} Bytes`;
  let at = 0;
  while (at < units.length - 1 && bytes >= base ** (at + 2)) at++;
  return `${formatValue((base * bytes) / base ** (at + 2), '.1f')} ${units[at]}`;
}
