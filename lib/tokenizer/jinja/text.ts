/** Python's string operations: white space, code points, splitting, case. */
import { raise } from './errors';

/** White space of `str.isspace` and `\s`, as the inside of a character class. */
export const SPACES =
  '\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000';

const LEADING_SPACE = new RegExp(`^[${SPACES}]+`);
const IS_SPACE = new RegExp(`^[${SPACES}]+$`);
const ONE_SPACE = new RegExp(`[${SPACES}]`);
// eslint-disable-next-line no-control-regex -- Python's line breaks
const LINE_BREAK = /\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/g;

/** Characters of the longest string, and items of the longest list, that a template may create. */
const MAX_STRING = 2 ** 26;
const MAX_LIST = 2 ** 20;

export function checkLength(length: number): void {
  if (length > MAX_STRING) {
    raise('MemoryError', `a string of ${length} characters exceeds the limit of ${MAX_STRING}`);
  }
}

export function checkItems(length: number): void {
  if (length > MAX_LIST) {
    raise('MemoryError', `a list of ${length} items exceeds the limit of ${MAX_LIST}`);
  }
}

/** `text * times`. */
export function repeat(text: string, times: bigint): string {
  if (times <= 0n || text === '') return '';
  checkLength(text.length * Number(times));
  return text.repeat(Number(times));
}

/** The code points of `text`: a string if each is one code unit, else a list. */
export function characters(text: string): string | string[] {
  return /[\ud800-\udfff]/.test(text) ? Array.from(text) : text;
}

export function joinCharacters(part: string | string[]): string {
  return typeof part === 'string' ? part : part.join('');
}

type Side = 'both' | 'left' | 'right';

/** `strip`, `lstrip` or `rstrip`; `chars` defaults to white space. */
export function strip(text: string, chars: string | undefined, side: Side): string {
  if (chars === undefined) {
    let start = 0;
    let end = text.length;
    if (side !== 'right') start = LEADING_SPACE.exec(text)?.[0].length ?? 0;
    if (side !== 'left') while (end > start && ONE_SPACE.test(text[end - 1])) end--;
    return text.slice(start, end);
  }
  const all = Array.from(text);
  const stripped = new Set(chars);
  let start = 0;
  let end = all.length;
  if (side !== 'right') while (start < end && stripped.has(all[start])) start++;
  if (side !== 'left') while (end > start && stripped.has(all[end - 1])) end--;
  return all.slice(start, end).join('');
}

/** `text.split(separator, maxSplits)`; the default separator is a run of white space. */
export function split(text: string, separator: string | undefined, maxSplits: number): string[] {
  if (separator === undefined) return splitAtSpaces(text, maxSplits);
  if (separator === '') raise('ValueError', 'empty separator');
  const parts = text.split(separator);
  if (maxSplits < 0 || parts.length <= maxSplits + 1) return parts;
  return [...parts.slice(0, maxSplits), parts.slice(maxSplits).join(separator)];
}

function splitAtSpaces(text: string, maxSplits: number): string[] {
  const parts: string[] = [];
  let rest = strip(text, undefined, 'left');
  while (rest !== '') {
    const end = parts.length === maxSplits ? -1 : rest.search(ONE_SPACE);
    if (end < 0) {
      parts.push(rest);
      break;
    }
    parts.push(rest.slice(0, end));
    rest = strip(rest.slice(end), undefined, 'left');
  }
  return parts;
}

/** `text.rsplit(separator, maxSplits)`. */
export function splitFromRight(
  text: string,
  separator: string | undefined,
  maxSplits: number,
): string[] {
  if (maxSplits < 0) return split(text, separator, -1);
  if (separator === '') raise('ValueError', 'empty separator');
  const parts: string[] = [];
  let rest = separator === undefined ? strip(text, undefined, 'right') : text;
  for (;;) {
    if (separator === undefined && rest === '') return parts;
    let at = -1;
    if (parts.length < maxSplits) {
      at = separator === undefined ? lastSpace(rest) : rest.lastIndexOf(separator);
    }
    if (at < 0) {
      parts.unshift(rest);
      return parts;
    }
    parts.unshift(rest.slice(at + (separator?.length ?? 1)));
    rest = rest.slice(0, at);
    if (separator === undefined) rest = strip(rest, undefined, 'right');
  }
}

function lastSpace(text: string): number {
  for (let i = text.length - 1; i >= 0; i--) if (ONE_SPACE.test(text[i])) return i;
  return -1;
}

/** `text.splitlines(keepEnds)`. */
export function splitLines(text: string, keepEnds = false): string[] {
  const lines: string[] = [];
  let start = 0;
  for (const { 0: lineBreak, index } of text.matchAll(LINE_BREAK)) {
    lines.push(text.slice(start, keepEnds ? index + lineBreak.length : index));
    start = index + lineBreak.length;
  }
  if (start < text.length) lines.push(text.slice(start));
  return lines;
}

/** `text.replace(old, replacement, count)`; a negative count replaces all. */
export function replace(text: string, old: string, replacement: string, count: number): string {
  const parts = old === '' ? ['', ...Array.from(text), ''] : text.split(old);
  const numReplaced = count < 0 ? parts.length - 1 : Math.min(count, parts.length - 1);
  checkLength(text.length + numReplaced * replacement.length);
  const joined = parts.slice(0, numReplaced + 1).join(replacement);
  return [joined, ...parts.slice(numReplaced + 1)].join(old);
}

/** Title case of letters for which it is not a prefix of their upper case. */
const TITLE_CASE = new Map([
  ...['Ǆ', 'ǅ', 'ǆ'].map((c) => [c, 'ǅ'] as const),
  ...['Ǉ', 'ǈ', 'ǉ'].map((c) => [c, 'ǈ'] as const),
  ...['Ǌ', 'ǋ', 'ǌ'].map((c) => [c, 'ǋ'] as const),
  ...['Ǳ', 'ǲ', 'ǳ'].map((c) => [c, 'ǲ'] as const),
]);

function titleCase(char: string): string {
  const known = TITLE_CASE.get(char);
  if (known !== undefined) return known;
  const [first = '', ...rest] = char.toUpperCase();
  return first + rest.join('').toLowerCase();
}

/** `text.capitalize()`. */
export function capitalize(text: string): string {
  const [first = '', ...rest] = text;
  return titleCase(first) + rest.join('').toLowerCase();
}

const CASED = /[\p{Uppercase}\p{Lowercase}\p{Lt}]/u;

/** `text.title()`: a word starts after any uncased character. */
export function title(text: string): string {
  let afterCased = false;
  let result = '';
  for (const char of text) {
    result += afterCased ? char.toLowerCase() : titleCase(char);
    afterCased = CASED.test(char);
  }
  return result;
}

export function swapCase(text: string): string {
  return Array.from(text, (char) =>
    char === char.toLowerCase() ? char.toUpperCase() : char.toLowerCase(),
  ).join('');
}

/** `text.islower()` or `text.isupper()`: has cased letters, all of the `wanted` case. */
export function isCase(text: string, wanted: 'lower' | 'upper'): boolean {
  const other = wanted === 'lower' ? /[\p{Uppercase}\p{Lt}]/u : /[\p{Lowercase}\p{Lt}]/u;
  const own = wanted === 'lower' ? /\p{Lowercase}/u : /\p{Uppercase}/u;
  return own.test(text) && !other.test(text);
}

export function isTitle(text: string): boolean {
  let afterCased = false;
  let found = false;
  for (const char of text) {
    const begins = /[\p{Uppercase}\p{Lt}]/u.test(char);
    const goesOn = /\p{Lowercase}/u.test(char);
    if ((begins && afterCased) || (goesOn && !afterCased)) return false;
    afterCased = begins || goesOn;
    found ||= afterCased;
  }
  return found;
}

/** Non-decimal digits (Numeric_Type=Digit): superscripts, subscripts, circled digits etc. */
const OTHER_DIGITS =
  '\\xb2\\xb3\\xb9\\u1369-\\u1371\\u19da\\u2070\\u2074-\\u2079\\u2080-\\u2089\\u2460-\\u2468' +
  '\\u2474-\\u247c\\u2488-\\u2490\\u24ea\\u24f5-\\u24fd\\u24ff\\u2776-\\u277e\\u2780-\\u2788' +
  '\\u278a-\\u2792\\u{10a40}-\\u{10a43}\\u{10e60}-\\u{10e68}\\u{11052}-\\u{1105a}\\u{1f100}-\\u{1f10a}';
/** Chinese numerals. */
const OTHER_NUMBERS =
  '\\u3405\\u3483\\u382a\\u3b4d\\u4e00\\u4e03\\u4e07\\u4e09\\u4e24\\u4e5d\\u4e8c\\u4e94\\u4e96' +
  '\\u4ebf-\\u4ec0\\u4edf\\u4ee8\\u4f0d\\u4f70\\u4fe9\\u5006\\u5104\\u5146\\u5169\\u516b\\u516d' +
  '\\u5341\\u5343-\\u5345\\u534c\\u53c1-\\u53c4\\u56db\\u58f1\\u58f9\\u5e7a\\u5efe-\\u5eff' +
  '\\u5f0c-\\u5f0e\\u5f10\\u62d0\\u62fe\\u634c\\u67d2\\u6d1e\\u6f06\\u7396\\u767e\\u7695\\u79ed' +
  '\\u8086\\u842c\\u8cae\\u8cb3\\u8d30\\u920e\\u94a9\\u9621\\u9646\\u964c\\u9678\\u96f6';

/** Methods `is...` that test each character separately. */
export const CHARACTER_TESTS: Readonly<Record<string, RegExp>> = {
  isalnum: new RegExp(`^[\\p{L}\\p{N}${OTHER_DIGITS}]+$`, 'u'),
  isalpha: /^\p{L}+$/u,
  isdecimal: /^\p{Nd}+$/u,
  isdigit: new RegExp(`^[\\p{Nd}${OTHER_DIGITS}]+$`, 'u'),
  isnumeric: new RegExp(`^[\\p{N}${OTHER_NUMBERS}]+$`, 'u'),
  isspace: IS_SPACE,
  // eslint-disable-next-line no-control-regex -- the range is ASCII
  isascii: /^[\x00-\x7f]*$/,
  isidentifier: /^[\p{XID_Start}_][\p{XID_Continue}]*$/u,
  isprintable: /^(?:[^\p{C}\p{Z}]| )*$/u,
};
