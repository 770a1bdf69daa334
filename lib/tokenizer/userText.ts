/**
 * Keeps special tokens in a conversation's text from becoming control tokens: a mark splits them,
 * survives the template, and distinguishes them from the special tokens that the template adds.
 */
import { types } from 'node:util';

/** A part of a rendered text. */
export interface RenderedPart {
  text: string;
  /** Whether special tokens in it are plain text, because the user wrote one of them. */
  isPlain: boolean;
}

const escapeRegExp = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');

/** Longest first, so that the longest of several tokens with a common prefix matches. */
const anyOf = (tokens: readonly string[]): string =>
  [...tokens]
    .sort((a, b) => b.length - a.length)
    .map(escapeRegExp)
    .join('|');

/** A private-use character that does not occur in `texts`. */
function unusedCharacter(texts: readonly string[]): string {
  for (let code = 0xe000; code < 0xf8ff; code++) {
    const char = String.fromCharCode(code);
    if (!texts.some((text) => text.includes(char))) return char;
  }
  throw new RangeError(
    'splitSpecialTokens needs a private-use character that does not occur in the conversation',
  );
}

function collectTexts(value: unknown, into: string[]): void {
  if (typeof value === 'string') into.push(value);
  else if (types.isMap(value)) {
    for (const item of value.values()) collectTexts(item, into);
  } else if (typeof value === 'object' && value !== null) {
    for (const item of Object.values(value)) collectTexts(item, into);
  }
}

function mapTexts(value: unknown, change: (text: string) => string): unknown {
  if (typeof value === 'string') return change(value);
  if (Array.isArray(value)) return value.map((item: unknown) => mapTexts(item, change));
  if (typeof value !== 'object' || value === null || types.isNumberObject(value)) return value;
  if (types.isMap(value)) {
    return new Map(Array.from(value, ([key, item]) => [key, mapTexts(item, change)]));
  }
  const entries = Object.entries(value);
  return Object.fromEntries(entries.map(([name, item]) => [name, mapTexts(item, change)]));
}

export interface ProtectedText<T> {
  value: T;
  /** Splits the rendered text into parts and removes the marks. */
  split: (rendered: string) => RenderedPart[];
}

/**
 * Marks the special tokens in each item of `value` unless `isTrusted(item)`; null if there are none
 * to mark.
 */
export function protectTexts<T extends readonly unknown[]>(
  value: T,
  specialTokens: readonly string[],
  isTrusted: (item: unknown) => boolean,
): ProtectedText<T> | null {
  const tokens = specialTokens.filter((token) => token !== '');
  if (tokens.length === 0) return null;
  const texts: string[] = [];
  for (const item of value) if (!isTrusted(item)) collectTexts(item, texts);
  const found = new RegExp(anyOf(tokens), 'u');
  if (!texts.some((text) => found.test(text))) return null;

  const all: string[] = [...tokens];
  collectTexts(value, all);
  const mark = unusedCharacter(all);
  // Marks every start of a token, so that both of two overlapping tokens are split.
  const begins = new RegExp(`(?=(?:${anyOf(tokens)}))`, 'gu');
  const marked = (text: string): string =>
    text.replace(begins, mark).replace(new RegExp(`${mark}(.)`, 'gsu'), `$1${mark}`);
  const items = value.map((item) => (isTrusted(item) ? item : mapTexts(item, marked)));
  return {
    value: items as unknown as T,
    split: (rendered) => splitAtTokens(rendered, tokens, mark),
  };
}

/** Splits at the template's special tokens; parts with a mark are plain, adjacent others are joined. */
function splitAtTokens(rendered: string, tokens: readonly string[], mark: string): RenderedPart[] {
  const parts: RenderedPart[] = [];
  // A token of one character cannot be split: the mark follows it.
  const pieces = rendered.split(new RegExp(`((?:${anyOf(tokens)})(?!${mark}))`, 'u'));
  for (const piece of pieces) {
    if (piece === '') continue;
    const isPlain = piece.includes(mark);
    const text = piece.replaceAll(mark, '');
    const last = parts.at(-1);
    if (last && last.isPlain === isPlain && !isPlain) last.text += text;
    else parts.push({ text, isPlain });
  }
  return parts;
}
