/** How few tokens a text can be: what lets a prompt that is far too long be refused without encoding it. */
import { BYTE_LETTERS } from './byteLevel';
import { InvalidRequestError } from '../errors';
import type { AddedToken } from './specialTokens';

/** As fields of tokenizer.json, which the library has read without complaint. */
export interface TokenizerJson {
  normalizer?: unknown;
  pre_tokenizer?: unknown;
  model: {
    type?: string;
    unk_token?: string | null;
    fuse_unk?: boolean;
    byte_fallback?: boolean;
    [field: string]: unknown;
  };
  [field: string]: unknown;
}

/** Tokens of a text are at least its size in `unit`s by `maxPerToken`. */
export interface LengthBound {
  /** Bytes of UTF-8, or UTF-16 units. */
  unit: 'bytes' | 'units';
  maxPerToken: number;
  /** Whether characters may be composed (NFC): of 4 units, one. ASCII stays as it is. */
  composes: boolean;
  /** Tokens that take the white space around them, however much: a text with one has no bound. */
  absorbing: readonly string[];
}

/** Units that NFC makes one of, at most: an alpha and its three marks. */
const MAX_COMPOSED = 4;

interface Part {
  type?: string;
  [field: string]: unknown;
}

const flatten = (part: unknown, list: string): Part[] => {
  if (part === null || part === undefined) return [];
  const inner = (part as Part)[list];
  return Array.isArray(inner) ? inner.flatMap((one) => flatten(one, list)) : [part as Part];
};

/** Whether a normalizer never makes a text shorter but by composing characters. */
function keepsLength({ type, pattern, content }: Part): boolean {
  if (type === 'NFC' || type === 'Prepend' || type === 'ByteLevel') return true;
  if (type !== 'Replace') return false;
  const { String: text, Regex: regex } = pattern as { String?: string; Regex?: string };
  const literal = text ?? (regex !== undefined && /^[\p{L} ]$/u.test(regex) ? regex : null);
  return literal !== null && (content as string).length >= literal.length;
}

/** Whether a pre-tokenizer only cuts a text, and drops none of it. */
function keepsText({ type, behavior }: Part): boolean {
  switch (type) {
    case 'ByteLevel':
    case 'Metaspace':
    case 'Digits':
    case 'UnicodeScripts':
    case 'FixedLength':
      return true;
    case 'Split':
    case 'Punctuation':
      return behavior !== 'Removed';
    default:
      return false;
  }
}

const BYTE_TOKENS = Array.from(
  { length: 256 },
  (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`,
);

/**
 * The bound of a tokenizer, by its file and its tokens; null where none is sound: text that is dropped
 * or shortened before it is encoded, or unknown characters that become one token together.
 */
export function lengthBound(
  { normalizer, pre_tokenizer, model }: TokenizerJson,
  vocab: Readonly<Record<string, number | undefined>>,
  addedTokens: readonly AddedToken[],
): LengthBound | null {
  const normalizers = flatten(normalizer, 'normalizers');
  const preTokenizers = flatten(pre_tokenizer, 'pretokenizers');
  if (!normalizers.every(keepsLength) || !preTokenizers.every(keepsText)) return null;

  const isByteLevel = [...normalizers, ...preTokenizers].some(({ type }) => type === 'ByteLevel');
  const hasAll = (tokens: readonly string[]) => tokens.every((token) => vocab[token] !== undefined);
  const isUnigram = Array.isArray(model.vocab);
  const isBpe = !isUnigram && model.merges !== undefined;
  const countsUnknown =
    typeof model.unk_token === 'string' &&
    vocab[model.unk_token] !== undefined &&
    model.fuse_unk !== true;
  const losesNothing =
    (isByteLevel && hasAll(BYTE_LETTERS)) ||
    (!isByteLevel && model.byte_fallback === true && hasAll(BYTE_TOKENS)) ||
    (isBpe && countsUnknown);
  if (!losesNothing || !(isBpe || isUnigram)) return null;

  // An unknown character is a token: of two units at most.
  let maxPerToken = isByteLevel ? 1 : 2;
  for (const token of Object.keys(vocab)) maxPerToken = Math.max(maxPerToken, token.length);
  for (const { content } of addedTokens) {
    const size = isByteLevel ? Buffer.byteLength(content) : content.length;
    maxPerToken = Math.max(maxPerToken, size);
  }
  const composes = normalizers.some(({ type }) => type === 'NFC');
  const absorbing = addedTokens.filter(({ lstrip, rstrip }) => lstrip || rstrip);
  if (normalizers.length > 0 && absorbing.some(({ normalized }) => normalized)) return null;
  return {
    unit: isByteLevel ? 'bytes' : 'units',
    maxPerToken,
    composes,
    absorbing: absorbing.map(({ content }) => content),
  };
}

/** A number of tokens that `text` has at least. */
export function minNumTokens(text: string, bound: LengthBound | null): number {
  if (bound === null || text === '') return 0;
  if (bound.absorbing.some((content) => text.includes(content))) return 0;
  const numBytes = Buffer.byteLength(text);
  let size = bound.unit === 'bytes' ? numBytes : text.length;
  if (bound.composes && numBytes !== text.length) size = text.length / MAX_COMPOSED;
  return Math.ceil(size / bound.maxPerToken);
}

/** Refuses a prompt of `least` tokens at least, which cannot fit, before it is encoded. Throws InvalidRequestError. */
export function checkFits(least: number, maxModelLen: number): void {
  if (least < maxModelLen) return;
  throw new InvalidRequestError(
    `it has at least ${least} tokens; with maxModelLen ${maxModelLen} a prompt may have ` +
      `${maxModelLen - 1}, so that one can be generated`,
  );
}
