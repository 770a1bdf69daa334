/**
 * Types of the parts of Hugging Face's `tokenizers` in use (the Rust library through N-API, prebuilt
 * for 13 targets). The library is loaded on first use.
 */
import { AddonUnavailableError } from '../errors';

/* eslint-disable @typescript-eslint/no-require-imports -- loaded on demand */

/** A loaded tokenizer.json. `decode` ignores ids without a token. */
export interface HuggingFaceTokenizer {
  encode(
    text: string,
    pair: null,
    options: { addSpecialTokens: boolean },
  ): Promise<{ getIds(): number[] }>;
  decode(ids: number[], skipSpecialTokens: boolean): Promise<string>;
  addAddedTokens(tokens: readonly object[]): number;
  disableTruncation(): void;
  disablePadding(): void;
  getVocab(withAddedTokens: boolean): Record<string, number>;
  tokenToId(token: string): number | null;
  /** The token as `decode` reads it: an added token with `normalized` in its normalized form. */
  idToToken(id: number): string | null;
  getDecoder(): HuggingFaceDecoder | null;
  getNormalizer(): { normalizeString(text: string): string } | null;
}

export interface HuggingFaceDecoder {
  decode(tokens: readonly string[]): string;
}

export interface TokenizersLibrary {
  Tokenizer: { fromString(json: string): HuggingFaceTokenizer };
  AddedToken: new (
    content: string,
    special: boolean,
    options: { singleWord: boolean; leftStrip: boolean; rightStrip: boolean; normalized: boolean },
  ) => object;
}

/** Throws AddonUnavailableError if the library is not installed or has no build for the platform. */
export function loadTokenizersLibrary(): TokenizersLibrary {
  try {
    return require('tokenizers') as TokenizersLibrary;
  } catch (cause) {
    throw new AddonUnavailableError(
      `the package tokenizers (Hugging Face's Rust library) cannot be loaded on ${process.platform} ` +
        `${process.arch}: ${(cause as Error).message}; reinstall it, or set skipTokenizerInit and ` +
        'use token ids',
      { cause },
    );
  }
}

/** A tokenizer with one part, given as in tokenizer.json. */
function tokenizerOf(part: { decoder: object } | { normalizer: object }): HuggingFaceTokenizer {
  const json = {
    version: '1.0',
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: null,
    model: { type: 'WordLevel', vocab: {}, unk_token: '' },
    ...part,
  };
  return loadTokenizersLibrary().Tokenizer.fromString(JSON.stringify(json));
}

export function createDecoder(decoder: object): HuggingFaceDecoder {
  return tokenizerOf({ decoder }).getDecoder() as HuggingFaceDecoder;
}

/** A function that applies a normalizer of tokenizer.json. */
export function createNormalizer(normalizer: object): (text: string) => string {
  const created = tokenizerOf({ normalizer }).getNormalizer();
  return (text) => created?.normalizeString(text) ?? text;
}
