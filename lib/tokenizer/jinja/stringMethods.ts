/** Methods of `str` and Markup. */
import { bind, signature, type Signature, toBool, toInt, toText } from './arguments';
import { raise } from './errors';
import { pad } from './formatSpec';
import { formatString } from './formatString';
import { escapeHtml } from './html';
import * as text from './text';
import {
  Callable,
  Dict,
  iterate,
  type Kwargs,
  Markup,
  numCodePoints,
  textOf,
  Tuple,
  typeName,
  type Value,
} from './values';

type Arguments = readonly (Value | undefined)[];
type Method = (self: string, args: Arguments) => Value;

const given = (value: Value | undefined): Value | undefined => (value === null ? undefined : value);

const optionalText = (value: Value | undefined, what: string): string | undefined =>
  value === undefined || value === null ? undefined : toText(value, what);

/** `self[start:end]`, and the number of code points before it; null if `start` is beyond the end. */
function part(self: string, start: Value | undefined, end: Value | undefined) {
  const from = given(start);
  const to = given(end);
  if (from === undefined && to === undefined) return { text: self, offset: 0 };
  const all = text.characters(self);
  const place = (value: Value | undefined, fallback: number) => {
    const at = toInt(value, fallback);
    return at < 0 ? Math.max(at + all.length, 0) : at;
  };
  const offset = place(from, 0);
  const stop = Math.min(place(to, all.length), all.length);
  if (offset > all.length || offset > stop) return null;
  return { text: text.joinCharacters(all.slice(offset, stop)), offset };
}

function find(self: string, [sub, start, end]: Arguments, last: boolean): number {
  const wanted = toText(sub, 'argument');
  const found = part(self, start, end);
  if (!found) return -1;
  const at = last ? found.text.lastIndexOf(wanted) : found.text.indexOf(wanted);
  return at < 0 ? -1 : found.offset + numCodePoints(found.text.slice(0, at));
}

function index(self: string, args: Arguments, last: boolean): Value {
  const at = find(self, args, last);
  return at < 0 ? raise('ValueError', 'substring not found') : BigInt(at);
}

function count(self: string, [sub, start, end]: Arguments): Value {
  const wanted = toText(sub, 'argument');
  const found = part(self, start, end);
  if (!found) return 0n;
  const length =
    wanted === '' ? numCodePoints(found.text) + 1 : found.text.split(wanted).length - 1;
  return BigInt(length);
}

function matches(
  name: 'startswith' | 'endswith',
  self: string,
  [wanted, start, end]: Arguments,
): boolean {
  const choices = wanted instanceof Tuple ? wanted.items : [wanted ?? null];
  const found = part(self, start, end);
  for (const choice of choices) {
    const affix = textOf(choice);
    if (affix === undefined) {
      const what = wanted instanceof Tuple ? 'tuple for' : '';
      raise(
        'TypeError',
        what
          ? `${what} ${name} must only contain str, not ${typeName(choice)}`
          : `${name} first arg must be str or a tuple of str, not ${typeName(choice)}`,
      );
    }
    const isMatch = name === 'startswith' ? 'startsWith' : 'endsWith';
    if (found?.text[isMatch](affix)) return true;
  }
  return false;
}

function partition(self: string, separator: Value | undefined, last: boolean): Value {
  const mark = toText(separator, 'argument');
  if (mark === '') raise('ValueError', 'empty separator');
  const at = last ? self.lastIndexOf(mark) : self.indexOf(mark);
  if (at < 0) return new Tuple(last ? ['', '', self] : [self, '', '']);
  return new Tuple([self.slice(0, at), mark, self.slice(at + mark.length)]);
}

function joinTexts(separator: string, items: Value): string {
  const texts: string[] = [];
  let length = 0;
  for (const item of iterate(items)) {
    const own = textOf(item);
    if (own === undefined) {
      raise(
        'TypeError',
        `sequence item ${texts.length}: expected str instance, ${typeName(item)} found`,
      );
    }
    texts.push(own);
    text.checkLength((length += own.length + separator.length));
  }
  return texts.join(separator);
}

function padded(self: string, [width, fill]: Arguments, align: string): string {
  const filling = fill === undefined ? ' ' : toText(fill, 'The fill character');
  if (numCodePoints(filling) !== 1) {
    raise('TypeError', 'The fill character must be exactly one character long');
  }
  const size = toInt(width, 0);
  const length = numCodePoints(self);
  if (align !== '^') return pad(self, size, filling, align, length);
  // CPython puts the extra character on the left if the width is odd.
  const missing = Math.max(size - length, 0);
  text.checkLength(size);
  const left = Math.floor(missing / 2) + (missing & size & 1);
  return filling.repeat(left) + self + filling.repeat(missing - left);
}

function zeroFill(self: string, width: number): string {
  const missing = width - numCodePoints(self);
  if (missing <= 0) return self;
  text.checkLength(width);
  const sign = /^[+-]/.exec(self)?.[0] ?? '';
  return sign + '0'.repeat(missing) + self.slice(sign.length);
}

function expandTabs(self: string, size: number): string {
  let column = 0;
  let result = '';
  for (const char of self) {
    if (char === '\t') {
      const width = size > 0 ? size - (column % size) : 0;
      text.checkLength(result.length + width);
      result += ' '.repeat(width);
      column += width;
    } else {
      result += char;
      column = char === '\n' || char === '\r' ? 0 : column + 1;
    }
  }
  return result;
}

function translate(self: string, table: Value | undefined): string {
  if (!(table instanceof Dict)) raise('TypeError', 'the table must be a dict');
  return Array.from(self, (char) => {
    const to = table.get(BigInt(char.codePointAt(0) ?? 0));
    if (to === undefined) return char;
    if (to === null) return '';
    return typeof to === 'bigint' ? String.fromCodePoint(Number(to)) : toText(to, 'a translation');
  }).join('');
}

/** Methods by signature. */
const METHODS: readonly (readonly [string, Method])[] = [
  ['capitalize(/)', text.capitalize],
  ['casefold(/)', (self) => self.toUpperCase().toLowerCase()],
  ['center(width, fillchar=, /)', (self, args) => padded(self, args, '^')],
  ['count(sub, start=, end=, /)', count],
  ['endswith(suffix, start=, end=, /)', (self, args) => matches('endswith', self, args)],
  ['expandtabs(tabsize=)', (self, [size]) => expandTabs(self, toInt(size, 8))],
  ['find(sub, start=, end=, /)', (self, args) => BigInt(find(self, args, false))],
  ['index(sub, start=, end=, /)', (self, args) => index(self, args, false)],
  ['istitle(/)', text.isTitle],
  ['islower(/)', (self) => text.isCase(self, 'lower')],
  ['isupper(/)', (self) => text.isCase(self, 'upper')],
  ['join(iterable, /)', (self, [items]) => joinTexts(self, items ?? null)],
  ['ljust(width, fillchar=, /)', (self, args) => padded(self, args, '<')],
  ['lower(/)', (self) => self.toLowerCase()],
  [
    'lstrip(chars=, /)',
    (self, [chars]) => text.strip(self, optionalText(chars, 'lstrip arg'), 'left'),
  ],
  ['partition(sep, /)', (self, [separator]) => partition(self, separator, false)],
  [
    'removeprefix(prefix, /)',
    (self, [prefix]) => {
      const affix = toText(prefix, 'removeprefix() argument');
      return self.startsWith(affix) ? self.slice(affix.length) : self;
    },
  ],
  [
    'removesuffix(suffix, /)',
    (self, [suffix]) => {
      const affix = toText(suffix, 'removesuffix() argument');
      return self.endsWith(affix) ? self.slice(0, self.length - affix.length) : self;
    },
  ],
  [
    'replace(old, new, count=, /)',
    (self, [old, replacement, times]) =>
      text.replace(
        self,
        toText(old, 'replace() argument 1'),
        toText(replacement, 'replace() argument 2'),
        toInt(times, -1),
      ),
  ],
  ['rfind(sub, start=, end=, /)', (self, args) => BigInt(find(self, args, true))],
  ['rindex(sub, start=, end=, /)', (self, args) => index(self, args, true)],
  ['rjust(width, fillchar=, /)', (self, args) => padded(self, args, '>')],
  ['rpartition(sep, /)', (self, [separator]) => partition(self, separator, true)],
  [
    'rsplit(sep=, maxsplit=)',
    (self, [separator, max]) =>
      text.splitFromRight(self, optionalText(separator, 'separator'), toInt(max, -1)),
  ],
  [
    'rstrip(chars=, /)',
    (self, [chars]) => text.strip(self, optionalText(chars, 'rstrip arg'), 'right'),
  ],
  [
    'split(sep=, maxsplit=)',
    (self, [separator, max]) =>
      text.split(self, optionalText(separator, 'separator'), toInt(max, -1)),
  ],
  ['splitlines(keepends=)', (self, [keepEnds]) => text.splitLines(self, toBool(keepEnds))],
  ['startswith(prefix, start=, end=, /)', (self, args) => matches('startswith', self, args)],
  [
    'strip(chars=, /)',
    (self, [chars]) => text.strip(self, optionalText(chars, 'strip arg'), 'both'),
  ],
  ['swapcase(/)', text.swapCase],
  ['title(/)', text.title],
  ['translate(table, /)', (self, [table]) => translate(self, table)],
  ['upper(/)', (self) => self.toUpperCase()],
  ['zfill(width, /)', (self, [width]) => zeroFill(self, toInt(width, 0))],
  ...Object.entries(text.CHARACTER_TESTS).map(([name, test]): readonly [string, Method] => [
    `${name}(/)`,
    (self) => test.test(self),
  ]),
];

const TABLE = new Map<string, readonly [Signature, Method]>(
  METHODS.map(([declaration, method]) => {
    const own = signature(declaration);
    return [own.name, [own, method]];
  }),
);

const asSafe = (value: Value): Value => {
  if (typeof value === 'string') return new Markup(value);
  if (value instanceof Tuple) return new Tuple(value.items.map(asSafe));
  return Array.isArray(value) ? (value as readonly Value[]).map(asSafe) : value;
};

/** Methods that escape their arguments on a Markup. */
const ESCAPED = ['join', 'replace', 'ljust', 'rjust', 'center', 'strip', 'lstrip', 'rstrip'];

function escapeArgument(name: string, value: Value): Value {
  if (name === 'join') return Array.from(iterate(value), escapeHtml);
  return typeof value === 'string' ? escapeHtml(value) : value;
}

/** The method `name` of `self`; undefined if strings have no such method. */
export function stringMethod(self: string | Markup, name: string): Value | undefined {
  const own = typeof self === 'string' ? self : self.text;
  const isSafe = typeof self !== 'string';
  if (name === 'format' || name === 'format_map') {
    return new Callable(name, (args, kwargs) => format(self, name, args, kwargs));
  }
  const found = TABLE.get(name);
  if (!found) return undefined;
  const [parameters, method] = found;
  return new Callable(
    name,
    (args, kwargs) => {
      const bound = bind(parameters, args, kwargs);
      if (!isSafe) return method(own, bound);
      const escaped = ESCAPED.includes(name)
        ? bound.map((value) => (value === undefined ? value : escapeArgument(name, value)))
        : bound;
      return asSafe(method(own, escaped));
    },
    'builtin_function_or_method',
  );
}

function format(
  self: string | Markup,
  name: string,
  args: readonly Value[],
  kwargs: Kwargs,
): Value {
  let [values, named] = [args, kwargs];
  if (name === 'format_map') {
    const [map] = args;
    if (args.length !== 1 || !(map instanceof Dict)) {
      raise('TypeError', `format_map() takes exactly one argument (${args.length} given)`);
    }
    values = [];
    named = new Map(Array.from(map.items(), ([key, value]) => [textOf(key) ?? '', value]));
  }
  if (typeof self === 'string') return formatString(self, values, named);
  return new Markup(
    formatString(self.text, values, named, (own, value) =>
      value instanceof Markup ? own : escapeHtml(own).text,
    ),
  );
}
