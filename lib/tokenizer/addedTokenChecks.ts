/** Rejects added tokens that make Hugging Face's library panic, and texts that they make too slow. */
import { show } from '../config/schema';
import { CheckpointError, InvalidRequestError } from '../errors';
import type { FileLimits } from './fileChecks';
import type { AddedToken } from './specialTokens';

/** Total UTF-16 units of all added tokens after normalization. */
const MAX_LENGTH = 2 ** 25;

const WHITE_SPACE = /^[\s\u0085]+$/;

/** Longest run of white space encoded with a white-space token that has lstrip or rstrip: quadratic. */
const MAX_WHITE_SPACE = 4096;
const LONG_WHITE_SPACE = new RegExp(`[\\s\\u0085]{${MAX_WHITE_SPACE + 1}}`);

/** Throws InvalidRequestError for a text that the library would encode for hours. */
export function checkWhiteSpace(text: string, tokens: readonly AddedToken[]): void {
  const slow = tokens.find(
    ({ content, lstrip, rstrip }) => (lstrip || rstrip) && WHITE_SPACE.test(content),
  );
  if (slow === undefined || !LONG_WHITE_SPACE.test(text)) return;
  throw new InvalidRequestError(
    `the text has more than ${MAX_WHITE_SPACE} consecutive white-space characters, which the added ` +
      `token ${show(slow.content)} (lstrip or rstrip) makes too slow to encode; shorten them`,
  );
}

/** `normalize`: the file's normalizer; null if it has none. Throws CheckpointError. */
export function checkAddedTokens(
  file: string,
  tokens: readonly AddedToken[],
  { maxTextLength, growth, insertsText }: FileLimits,
  normalize: ((text: string) => string) | null,
): void {
  const fail = (content: string, reason: string): never => {
    throw new CheckpointError(file, `the added token ${show(content)} ${reason}`);
  };
  let length = 0;
  for (const { content } of tokens) {
    if (content.length > maxTextLength) {
      fail(content, `has ${content.length} characters; at most ${maxTextLength} are supported`);
    }
    length += content.length * growth;
    if (length > MAX_LENGTH) {
      fail(content, `and the tokens before it have more than ${MAX_LENGTH} characters in total`);
    }
  }
  const stripping = tokens.find(({ rstrip }) => rstrip);
  for (const { content, normalized, lstrip, rstrip } of tokens) {
    if (content === '') continue;
    const isNormalized = normalized && normalize !== null;
    if (isNormalized && insertsText) {
      fail(content, 'has normalized: true, but the normalizer inserts text; set normalized: false');
    }
    const found = isNormalized ? normalize(content) : content;
    // An empty pattern matches everywhere, even inside characters.
    if (found === '') fail(content, 'normalizes to an empty string; set normalized: false');
    // The other token may already have consumed the white space that this one matches.
    if (stripping !== undefined && lstrip && !rstrip && WHITE_SPACE.test(found)) {
      const other = show(stripping.content);
      fail(
        content,
        `is white space with lstrip, but ${other} has rstrip and may consume it; unset one of them`,
      );
    }
  }
}
