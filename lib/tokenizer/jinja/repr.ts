/** Python's `str` and `repr`. */
import { spend } from './budget';
import { raise } from './errors';
import {
  Callable,
  Dict,
  DictView,
  isList,
  iterate,
  Markup,
  Namespace,
  Range,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from './values';

/** Limit of printing ints: sys.get_int_max_str_digits(). */
const MAX_INT_DIGITS = 4300;
const TOO_LARGE = 10n ** BigInt(MAX_INT_DIGITS);

/** Characters that `repr` escapes: categories C and Z except the space. */
const UNPRINTABLE = /[\p{C}\p{Zl}\p{Zp}\p{Zs}]/u;
const SHORT_ESCAPES: Readonly<Record<string, string>> = {
  '\\': '\\\\',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
};

export function floatRepr(value: number): string {
  if (Number.isNaN(value)) return 'nan';
  if (!Number.isFinite(value)) return value > 0 ? 'inf' : '-inf';
  if (Object.is(value, -0)) return '-0.0';
  const [mantissa, exponentText] = value.toExponential().split('e');
  const exponent = Number(exponentText);
  if (exponent < -4 || exponent >= 16) {
    const sign = exponent < 0 ? '-' : '+';
    return `${mantissa}e${sign}${String(Math.abs(exponent)).padStart(2, '0')}`;
  }
  const fixed = Number.isInteger(value) ? `${value}.0` : String(value);
  // From 1e-7 to 1e-4 JavaScript also writes digits; the code above handles smaller numbers.
  return fixed;
}

export function intStr(value: bigint): string {
  if (value >= TOO_LARGE || value <= -TOO_LARGE) {
    raise(
      'ValueError',
      `Exceeds the limit (${MAX_INT_DIGITS} digits) for integer string conversion`,
    );
  }
  return value.toString();
}

export function stringRepr(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  let escaped = '';
  for (const char of text) {
    if (char in SHORT_ESCAPES) escaped += SHORT_ESCAPES[char];
    else if (char === quote) escaped += `\\${char}`;
    else if (char !== ' ' && UNPRINTABLE.test(char)) escaped += hexEscape(char);
    else escaped += char;
  }
  return `${quote}${escaped}${quote}`;
}

function hexEscape(char: string): string {
  const code = char.codePointAt(0) ?? 0;
  if (code < 0x100) return `\\x${code.toString(16).padStart(2, '0')}`;
  if (code < 0x10000) return `\\u${code.toString(16).padStart(4, '0')}`;
  return `\\U${code.toString(16).padStart(8, '0')}`;
}

/** `ascii(value)`: `repr` with non-ASCII characters escaped. */
export function asciiRepr(value: Value): string {
  // eslint-disable-next-line no-control-regex -- the range is ASCII
  return repr(value).replace(/[^\x00-\x7f]/gu, hexEscape);
}

const joined = (values: Iterable<Value>): string => Array.from(values, repr).join(', ');

function dictRepr(dict: Dict): string {
  const items = Array.from(dict.items(), ([key, value]) => `${repr(key)}: ${repr(value)}`);
  return `{${items.join(', ')}}`;
}

/** `repr(value)`, without memory addresses such as a function's. */
export function repr(value: Value): string {
  spend(1);
  if (typeof value === 'string') return stringRepr(value);
  if (isList(value)) return `[${joined(value)}]`;
  if (value instanceof Tuple) {
    return value.items.length === 1 ? `(${repr(value.items[0])},)` : `(${joined(value.items)})`;
  }
  if (value instanceof Dict) return dictRepr(value);
  if (value instanceof DictView) return `${value.typeName}([${joined(iterate(value))}])`;
  if (value instanceof Markup) return `Markup(${stringRepr(value.text)})`;
  if (value instanceof Undefined) return 'Undefined';
  return str(value);
}

/** `str(value)`. */
export function str(value: Value): string {
  if (typeof value === 'string') return value;
  if (value === null) return 'None';
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  if (typeof value === 'bigint') return intStr(value);
  if (typeof value === 'number') return floatRepr(value);
  if (value instanceof Markup) return value.text;
  if (value instanceof Undefined) return '';
  if (value instanceof Range) {
    const step = value.step === 1n ? '' : `, ${value.step}`;
    return `range(${value.start}, ${value.stop}${step})`;
  }
  if (value instanceof Namespace) return `<Namespace ${dictRepr(new Dict(value.attributes))}>`;
  if (value instanceof Callable && value.typeName === 'Macro') {
    return `<Macro ${stringRepr(value.name)}>`;
  }
  if (value instanceof Callable && value.typeName === 'type') return `<class '${value.name}'>`;
  if (
    isList(value) ||
    value instanceof Tuple ||
    value instanceof Dict ||
    value instanceof DictView
  ) {
    return repr(value);
  }
  return `<${typeName(value)} object>`;
}
