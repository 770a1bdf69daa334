/** Python's literals as JSON. */
import { Cursor, type Parsing } from './cursor';

const MAX_DEPTH = 100;
const WORDS: Readonly<Record<string, string>> = { True: 'true', False: 'false', None: 'null' };
const ESCAPES: Readonly<Record<string, string>> = {
  n: '\n',
  t: '\t',
  r: '\r',
  b: '\b',
  f: '\f',
  v: '\v',
  a: '\x07',
  0: '\0',
  '\n': '',
};

/** A value as JSON; null if it is none or has no end. */
export function* pythonValue(cursor: Cursor, depth = 0): Parsing<string | null> {
  if (depth > MAX_DEPTH) return null;
  yield* cursor.skipSpace();
  const next = yield* cursor.peek();
  if (next === '"' || next === "'") return yield* string(cursor, next);
  const close = { '[': ']', '(': ')', '{': '}' }[next];
  if (close !== undefined) return yield* collection(cursor, next, close, depth);
  let raw = '';
  for (;;) {
    const character = yield* cursor.peek();
    if (character === '' || !/[\w.+-]/.test(character)) break;
    yield* cursor.takes(character);
    raw += character;
  }
  if (Object.hasOwn(WORDS, raw)) return WORDS[raw];
  try {
    JSON.parse(raw);
    return raw;
  } catch {
    return raw === '' ? null : JSON.stringify(raw);
  }
}

function* collection(
  cursor: Cursor,
  open: string,
  close: string,
  depth: number,
): Parsing<string | null> {
  yield* cursor.takes(open);
  const parts: string[] = [];
  for (;;) {
    yield* cursor.skipSpace();
    if (yield* cursor.takes(close)) break;
    if (parts.length > 0 && !(yield* cursor.takes(','))) return null;
    yield* cursor.skipSpace();
    if (yield* cursor.takes(close)) break;
    const value = yield* pythonValue(cursor, depth + 1);
    if (value === null) return null;
    if (open !== '{') {
      parts.push(value);
      continue;
    }
    yield* cursor.skipSpace();
    if (!(yield* cursor.takes(':'))) return null;
    const member = yield* pythonValue(cursor, depth + 1);
    if (member === null) return null;
    parts.push(`${value.startsWith('"') ? value : JSON.stringify(value)}: ${member}`);
  }
  return open === '{' ? `{${parts.join(', ')}}` : `[${parts.join(', ')}]`;
}

function* string(cursor: Cursor, quote: string): Parsing<string | null> {
  yield* cursor.takes(quote);
  let content = '';
  for (;;) {
    const { text, stop } = yield* cursor.textUntil([quote, '\\']);
    content += text;
    if (stop === null) return null;
    if (stop === quote) return JSON.stringify(content);
    const escaped = yield* cursor.peek();
    if (escaped === '') return null;
    yield* cursor.takes(escaped);
    const length = { x: 2, u: 4, U: 8 }[escaped];
    if (length === undefined) {
      content += ESCAPES[escaped] ?? ('\\\'"/'.includes(escaped) ? escaped : `\\${escaped}`);
      continue;
    }
    let digits = '';
    for (let i = 0; i < length; i++) {
      const digit = yield* cursor.peek();
      if (!/^[\da-fA-F]$/.test(digit)) return null;
      yield* cursor.takes(digit);
      digits += digit;
    }
    const code = parseInt(digits, 16);
    if (code > 0x10ffff) return null;
    content += String.fromCodePoint(code);
  }
}

/** A whole text as JSON; null unless it is a word, a list, a tuple, or a dictionary. */
export function pythonLiteral(text: string): string | null {
  const trimmed = text.trim();
  if (!/^(?:[[({]|(?:True|False|None)$)/.test(trimmed)) return null;
  const cursor = new Cursor();
  cursor.push(trimmed);
  cursor.end();
  // All of the text is there: the parser never waits.
  const { value } = pythonValue(cursor).next();
  const rest = cursor.peek().next().value;
  return typeof value === 'string' && rest === '' ? value : null;
}
