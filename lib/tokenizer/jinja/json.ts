/** transformers' `tojson`: Python's json.dumps. */
import { bind, signature, toBool, toText } from './arguments';
import { spend } from './budget';
import { isOrdered } from './compare';
import { raise } from './errors';
import { floatRepr, intStr, repr } from './repr';
import { checkLength } from './text';
import {
  Dict,
  intOf,
  isList,
  type Kwargs,
  textOf,
  toList,
  Tuple,
  typeName,
  type Value,
} from './values';

const SHORT: Readonly<Record<string, string>> = {
  '"': '\\"',
  '\\': '\\\\',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
  '\b': '\\b',
  '\f': '\\f',
};

const escapeUnit = (char: string): string =>
  SHORT[char] ?? `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`;

interface Style {
  indent: string | null;
  itemSeparator: string;
  keySeparator: string;
  ascii: boolean;
  sortKeys: boolean;
}

function quote(text: string, ascii: boolean): string {
  // Escapes each code unit above ASCII: Python also writes surrogate pairs.
  // eslint-disable-next-line no-control-regex -- JSON escapes them
  const escaped = ascii ? /[\x00-\x1f"\\]|[^\x00-\x7e\x7f]/g : /[\x00-\x1f"\\]/g;
  return `"${text.replace(escaped, escapeUnit)}"`;
}

function number(value: number): string {
  if (Number.isNaN(value)) return 'NaN';
  if (!Number.isFinite(value)) return value > 0 ? 'Infinity' : '-Infinity';
  return floatRepr(value);
}

/** JSON of None, True, False and numbers, as values and keys; undefined for others. */
function scalar(value: Value): string | undefined {
  if (value === null) return 'null';
  if (typeof value === 'boolean') return String(value);
  if (typeof value === 'bigint') return intStr(value);
  return typeof value === 'number' ? number(value) : undefined;
}

function keyText(key: Value): string {
  const text = textOf(key) ?? scalar(key);
  if (text !== undefined) return text;
  return raise('TypeError', `keys must be str, int, float, bool or None, not ${typeName(key)}`);
}

function list(open: string, close: string, items: string[], style: Style, depth: number): string {
  if (items.length === 0) return open + close;
  if (style.indent === null) return open + items.join(style.itemSeparator) + close;
  const line = (level: number) => `\n${(style.indent ?? '').repeat(level)}`;
  const separator = style.itemSeparator + line(depth + 1);
  return open + line(depth + 1) + items.join(separator) + line(depth) + close;
}

function dump(value: Value, style: Style, depth: number): string {
  spend(1);
  const text = textOf(value);
  if (text !== undefined) return quote(text, style.ascii);
  const simple = scalar(value);
  if (simple !== undefined) return simple;
  if (isList(value) || value instanceof Tuple) {
    const items = isList(value) ? value : value.items;
    return list(
      '[',
      ']',
      items.map((item) => dump(item, style, depth + 1)),
      style,
      depth,
    );
  }
  if (value instanceof Dict) {
    const entries = Array.from(value.items());
    if (style.sortKeys) {
      entries.sort(([a], [b]) => (isOrdered('<', a, b) ? -1 : Number(isOrdered('<', b, a))));
    }
    const members = entries.map(
      ([key, item]) =>
        quote(keyText(key), style.ascii) + style.keySeparator + dump(item, style, depth + 1),
    );
    return list('{', '}', members, style, depth);
  }
  return raise('TypeError', `Object of type ${typeName(value)} is not JSON serializable`);
}

const TOJSON = signature('tojson(x, ensure_ascii=, indent=, separators=, sort_keys=)');

export function toJson(args: readonly Value[], kwargs: Kwargs): Value {
  const [value = null, ascii, indent = null, separators = null, sortKeys] = bind(
    TOJSON,
    args,
    kwargs,
  );
  let margin = textOf(indent) ?? null;
  const width = intOf(indent);
  if (width !== undefined) {
    checkLength(Number(width));
    margin = ' '.repeat(Math.max(Number(width), 0));
  } else if (indent !== null && margin === null) {
    raise('TypeError', `can't multiply sequence by non-int of type '${typeName(indent)}'`);
  }
  let [itemSeparator, keySeparator] = [margin === null ? ', ' : ',', ': '];
  if (separators !== null) {
    const pair = toList(separators);
    if (pair.length !== 2) {
      raise('ValueError', `separators is ${repr(separators)}; it must have two items`);
    }
    itemSeparator = toText(pair[0], 'a separator');
    keySeparator = toText(pair[1], 'a separator');
  }
  const style = {
    indent: margin,
    itemSeparator,
    keySeparator,
    ascii: toBool(ascii),
    sortKeys: toBool(sortKeys),
  };
  return dump(value, style, 0);
}
