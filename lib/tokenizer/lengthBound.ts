/** A lower bound of a text's number of tokens, to reject overlong prompts without encoding them. */
import { BYTE_LETTERS } from './byteLevel';
import { InvalidRequestError } from '../errors';
import type { AddedToken } from './specialTokens';

/** Fields of a tokenizer.json that the library has accepted. */
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

/** A text has at least (its size in `unit`s) / `maxPerToken` tokens. */
export interface LengthBound {
  /** Bytes of UTF-8, or UTF-16 units. */
  unit: 'bytes' | 'units';
  maxPerToken: number;
  /** Whether NFC may compose up to 4 units into one; ASCII is unaffected. */
  composes: boolean;
  /** Tokens with lstrip or rstrip, which absorb any white space: a text with one has no bound. */
  absorbing: readonly string[];
}

/** Most units that NFC composes into one: an alpha with three marks. */
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

/** Whether a normalizer shortens a text only by composing characters. */
function keepsLength({ type, pattern, content }: Part): boolean {
  if (type === 'NFC' || type === 'Prepend' || type === 'ByteLevel') return true;
  if (type !== 'Replace') return false;
  const { String: text, Regex: regex } = pattern as { String?: string; Regex?: string };
  const literal = text ?? (regex !== undefined && /^[\p{L} ]$/u.test(regex) ? regex : null);
  return literal !== null && (content as string).length >= literal.length;
}

/** Whether a pre-tokenizer splits a text without dropping any of it. */
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
 * The bound of a tokenizer; null if none is sound: it drops or shortens text before encoding, or
 * fuses unknown characters into one token.
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
  const isLossless =
    (isByteLevel && hasAll(BYTE_LETTERS)) ||
    (!isByteLevel && model.byte_fallback === true && hasAll(BYTE_TOKENS)) ||
    (isBpe && countsUnknown);
  if (!isLossless || !(isBpe || isUnigram)) return null;

  // An unknown character, of at most two units, is a token.
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

/** A lower bound of the number of tokens of `text`. */
export function minNumTokens(text: string, bound: LengthBound | null): number {
  if (bound === null || text === '') return 0;
  if (bound.absorbing.some((content) => text.includes(content))) return 0;
  const numBytes = Buffer.byteLength(text);
  let size = bound.unit === 'bytes' ? numBytes : text.length;
  if (bound.composes && numBytes !== text.length) size = text.length / MAX_COMPOSED;
  return Math.ceil(size / bound.maxPerToken);
}

/** Rejects a prompt of at least `least` tokens if they cannot fit. Throws InvalidRequestError. */
export function checkFits(least: number, maxModelLen: number): void {
  if (least < maxModelLen) return;
  throw new InvalidRequestError(
    `it has at least ${least} tokens; with maxModelLen ${maxModelLen} a prompt may have at most ` +
      `${maxModelLen - 1}, leaving room to generate one`,
  );
}
