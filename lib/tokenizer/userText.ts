/**
 * Text of a conversation that must not become control tokens: what looks like a special token in it is
 * broken by a mark, which outlives the template and tells it from those that the template wrote.
 */

/** A stretch of rendered text. */
export interface RenderedPart {
  text: string;
  /** It has text of a user's that reads like a special token: special tokens in it are text. */
  isPlain: boolean;
}

const escapeRegExp = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');

/** Longest first, so that of two that begin alike the longer is found. */
const anyOf = (tokens: readonly string[]): string =>
  [...tokens]
    .sort((a, b) => b.length - a.length)
    .map(escapeRegExp)
    .join('|');

/** A character that is nowhere in `texts`, of those that Unicode leaves to private use. */
function unusedCharacter(texts: readonly string[]): string {
  for (let code = 0xe000; code < 0xf8ff; code++) {
    const char = String.fromCharCode(code);
    if (!texts.some((text) => text.includes(char))) return char;
  }
  throw new RangeError('a conversation uses all characters of private use');
}

function collectTexts(value: unknown, into: string[]): void {
  if (typeof value === 'string') into.push(value);
  else if (typeof value === 'object' && value !== null) {
    for (const item of Object.values(value)) collectTexts(item, into);
  }
}

function mapTexts(value: unknown, change: (text: string) => string): unknown {
  if (typeof value === 'string') return change(value);
  if (Array.isArray(value)) return value.map((item: unknown) => mapTexts(item, change));
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value);
  return Object.fromEntries(entries.map(([name, item]) => [name, mapTexts(item, change)]));
}

export interface ProtectedText<T> {
  value: T;
  /** Takes the rendered text apart, without the marks. */
  split: (rendered: string) => RenderedPart[];
}

/**
 * `value` with its special tokens broken, where `isOurs` does not say of one of its items that it is to
 * stay; null when nothing in it reads like one of `specialTokens`.
 */
export function protectTexts<T extends readonly unknown[]>(
  value: T,
  specialTokens: readonly string[],
  isOurs: (item: unknown) => boolean,
): ProtectedText<T> | null {
  const tokens = specialTokens.filter((token) => token !== '');
  if (tokens.length === 0) return null;
  const texts: string[] = [];
  for (const item of value) if (!isOurs(item)) collectTexts(item, texts);
  const found = new RegExp(anyOf(tokens), 'u');
  if (!texts.some((text) => found.test(text))) return null;

  const all: string[] = [...tokens];
  collectTexts(value, all);
  const mark = unusedCharacter(all);
  // Wherever one begins, so that of two that overlap neither is left.
  const begins = new RegExp(`(?=(?:${anyOf(tokens)}))`, 'gu');
  const broken = (text: string): string =>
    text.replace(begins, mark).replace(new RegExp(`${mark}(.)`, 'gsu'), `$1${mark}`);
  const items = value.map((item) => (isOurs(item) ? item : mapTexts(item, broken)));
  return {
    value: items as unknown as T,
    split: (rendered) => splitAtTokens(rendered, tokens, mark),
  };
}

/** Stretches that are marked, from one special token of the template's to the next, and the others. */
function splitAtTokens(rendered: string, tokens: readonly string[], mark: string): RenderedPart[] {
  const parts: RenderedPart[] = [];
  // A token of one character cannot be broken: the mark follows it.
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
