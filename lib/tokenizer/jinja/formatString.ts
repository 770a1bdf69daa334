/** Python's string formatting: `%` and `str.format`. */
import { getAttribute, getItem } from './attributes';
import { raise } from './errors';
import { format, formatFloat, pad } from './formatSpec';
import { asciiRepr, intStr, repr, str } from './repr';
import {
  Dict,
  isList,
  isNumber,
  type Kwargs,
  Range,
  textOf,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from './values';

const CONVERSION = /%(?:\(([^)]*)\))?([-+ #0]*)(\*|\d+)?(?:\.(\*|\d+)?)?[hlL]?(.)?/gsu;

/** Escapes values inserted into safe HTML; the identity for other strings. */
export type Escape = (text: string, value: Value) => string;
const asIs: Escape = (text) => text;

function numberFor(value: Value, type: string): bigint | number {
  if (typeof value === 'boolean') return BigInt(value);
  if (value instanceof Undefined) value.fail();
  if (!isNumber(value)) {
    const wanted = 'eEfFgG'.includes(type)
      ? 'must be real number, not'
      : 'a real number is required, not';
    if (wanted.startsWith('must')) raise('TypeError', `${wanted} ${typeName(value)}`);
    raise('TypeError', `%${type} format: ${wanted} ${typeName(value)}`);
  }
  return value;
}

function convert(value: Value, type: string, flags: string, precision?: number): [string, string] {
  const alternate = flags.includes('#');
  const signOf = (number: bigint | number) => {
    if (number < 0 || Object.is(number, -0)) return '-';
    return flags.includes('+') ? '+' : flags.includes(' ') ? ' ' : '';
  };
  if ('sra'.includes(type)) {
    const text = type === 's' ? str(value) : type === 'r' ? repr(value) : asciiRepr(value);
    return ['', precision === undefined ? text : Array.from(text).slice(0, precision).join('')];
  }
  if (type === 'c') {
    const char = textOf(value);
    if (char !== undefined && Array.from(char).length === 1) return ['', char];
    if (typeof value !== 'bigint') raise('TypeError', '%c requires int or char');
    return ['', String.fromCodePoint(Number(value))];
  }
  if ('diuoxX'.includes(type)) {
    let number = numberFor(value, type);
    if (typeof number === 'number') {
      if ('oxX'.includes(type)) {
        raise('TypeError', `%${type} format: an integer is required, not float`);
      }
      if (!Number.isFinite(number))
        raise('OverflowError', `cannot convert float ${str(number)} to integer`);
      number = BigInt(Math.trunc(number));
    }
    const base = type === 'o' ? 8 : type === 'x' || type === 'X' ? 16 : 10;
    const magnitude = number < 0n ? -number : number;
    let digits = base === 10 ? intStr(magnitude) : magnitude.toString(base);
    if (type === 'X') digits = digits.toUpperCase();
    const prefix = alternate && base !== 10 ? `0${type}` : '';
    return [signOf(number) + prefix, digits.padStart(precision ?? 0, '0')];
  }
  const number = Number(numberFor(value, type));
  return [signOf(number), formatFloat(Math.abs(number), type, precision ?? 6, alternate)];
}

/** `template % values`. Raises TypeError or ValueError. */
export function percent(template: string, values: Value, escape: Escape = asIs): string {
  const list = values instanceof Tuple ? values.items : [values];
  let used = 0;
  const next = (): Value => {
    if (used >= list.length) raise('TypeError', 'not enough arguments for format string');
    return list[used++];
  };
  const star = (size: string | undefined): number | undefined => {
    if (size !== '*') return size === undefined ? undefined : Number(size);
    const value = next();
    if (typeof value !== 'bigint') raise('TypeError', '* wants int');
    return Number(value);
  };
  const result = template.replace(
    CONVERSION,
    (
      all: string,
      name: string | undefined,
      flags: string,
      width: string | undefined,
      precision: string | undefined,
      type: string | undefined,
      at: number,
    ) => {
      if (type === undefined) raise('ValueError', 'incomplete format');
      const named = name === undefined ? undefined : valueNamed(values, name);
      const size = star(width) ?? 0;
      const digits = /\.(?![*\d])/.test(all) ? 0 : star(precision);
      if (type === '%') return '%';
      if (!'sracdiuoxXeEfFgG'.includes(type)) {
        raise(
          'ValueError',
          `unsupported format character '${type}' at index ${at + all.length - 1}`,
        );
      }
      const value = named === undefined ? next() : named;
      const [prefix, body] = convert(value, type, flags, digits);
      const escaped = escape(body, value);
      const length = Array.from(prefix + escaped).length;
      if (flags.includes('-') || size < 0) {
        return pad(prefix + escaped, Math.abs(size), ' ', '<', length);
      }
      if (flags.includes('0') && !'srac'.includes(type)) {
        return prefix + pad(escaped, size - prefix.length, '0', '>', length - prefix.length);
      }
      return pad(prefix + escaped, size, ' ', '>', length);
    },
  );
  if (used < list.length && !isMapping(values)) {
    raise('TypeError', 'not all arguments converted during string formatting');
  }
  return result;
}

function valueNamed(values: Value, name: string): Value {
  if (!(values instanceof Dict)) raise('TypeError', 'format requires a mapping');
  const value = values.get(name);
  return value === undefined ? raise('KeyError', repr(name)) : value;
}

// For `%`, a value with keys or indices is a mapping, which may be unused, unless a string or tuple.
const isMapping = (values: Value): boolean =>
  values instanceof Dict ||
  values instanceof Undefined ||
  isList(values) ||
  values instanceof Range;

/** `template.format(*args, **kwargs)` with the sandbox's attribute lookup. */
export function formatString(
  template: string,
  args: readonly Value[],
  kwargs: Kwargs,
  escape: Escape = asIs,
  depth = 2,
): string {
  let automatic = 0;
  let mode: 'automatic' | 'manual' | null = null;
  const field = (name: string): Value => {
    const [first] = /^[^.[]*/.exec(name) ?? [''];
    let key = first;
    if (key === '' || /^\d+$/.test(key)) {
      const own = key === '' ? 'automatic' : 'manual';
      if (mode !== null && mode !== own) {
        raise('ValueError', `cannot switch between automatic and manual field numbering`);
      }
      mode = own;
      if (key === '') key = String(automatic++);
    }
    let value = /^\d+$/.test(key) ? args[Number(key)] : kwargs.get(key);
    if (value === undefined) {
      if (!/^\d+$/.test(key)) raise('KeyError', repr(key));
      raise('IndexError', `Replacement index ${key} out of range for positional args tuple`);
    }
    for (const [, attribute, item] of name
      .slice(first.length)
      .matchAll(/\.([^.[]+)|\[([^\]]+)\]/g)) {
      value = attribute
        ? getAttribute(value, attribute)
        : getItem(value, /^\d+$/.test(item) ? BigInt(item) : item);
    }
    return value;
  };

  let result = '';
  for (let at = 0; at < template.length;) {
    const char = template[at];
    if ((char === '{' || char === '}') && template[at + 1] === char) {
      result += char;
      at += 2;
    } else if (char === '{') {
      const end = closing(template, at);
      const [, name, conversion, spec = ''] =
        /^([^!:]*(?:\[[^\]]*\][^!:]*)*)(?:!(.))?(?::(.*))?$/su.exec(template.slice(at + 1, end)) ??
        raise('ValueError', "expected ':' after conversion specifier");
      let value = field(name);
      if (conversion === 'r') value = repr(value);
      else if (conversion === 's') value = str(value);
      else if (conversion === 'a') value = asciiRepr(value);
      else if ((conversion as string | undefined) !== undefined) {
        raise('ValueError', `Unknown conversion specifier '${conversion}'`);
      }
      if (depth === 0) raise('ValueError', 'Max string recursion exceeded');
      const inner = spec.includes('{') ? formatNested(spec, field) : spec;
      result += escape(format(value, inner), value);
      at = end + 1;
    } else if (char === '}') {
      raise('ValueError', "Single '}' encountered in format string");
    } else {
      result += char;
      at++;
    }
  }
  return result;
}

const formatNested = (spec: string, field: (name: string) => Value): string =>
  spec.replace(/\{([^{}]*)\}/g, (_, name: string) => str(field(name)));

function closing(template: string, open: number): number {
  let depth = 0;
  for (let at = open; at < template.length; at++) {
    if (template[at] === '{') depth++;
    else if (template[at] === '}' && --depth === 0) return at;
  }
  if (open === template.length - 1) raise('ValueError', "Single '{' encountered in format string");
  raise('ValueError', "expected '}' before end of string");
}
