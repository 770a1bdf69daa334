/** Added tokens that the library cannot look for in every text without a panic. */
import { show } from '../config/schema';
import { CheckpointError, InvalidRequestError } from '../errors';
import type { FileLimits } from './fileChecks';
import { exceededLimit } from './longRuns';
import type { AddedToken } from './specialTokens';

/** UTF-16 units of all contents, normalized. */
const MAX_LENGTH = 2 ** 25;

const WHITE_SPACE = /^[\s\u0085]+$/;

/** White space in a row that a token of white space that takes more of it is looked for in: quadratic. */
const MAX_WHITE_SPACE = 4096;
const LONG_WHITE_SPACE = new RegExp(`[\\s\\u0085]{${MAX_WHITE_SPACE + 1}}`);

/** Throws InvalidRequestError for a text that takes the library hours. */
export function checkWhiteSpace(text: string, tokens: readonly AddedToken[]): void {
  const slow = tokens.find(
    ({ content, lstrip, rstrip }) => (lstrip || rstrip) && WHITE_SPACE.test(content),
  );
  if (slow === undefined || !LONG_WHITE_SPACE.test(text)) return;
  throw new InvalidRequestError(
    `the text has more than ${MAX_WHITE_SPACE} characters of white space in a row, which cannot be ` +
      `encoded with the added token ${show(slow.content)}`,
  );
}

/** `normalize`: as the file's normalizer does; null for a file without. Throws CheckpointError. */
export function checkAddedTokens(
  file: string,
  tokens: readonly AddedToken[],
  { maxTextLength, runs, growth, insertsText }: FileLimits,
  normalize: ((text: string) => string) | null,
): void {
  const fail = (content: string, reason: string): never => {
    throw new CheckpointError(file, `the added token ${show(content)} ${reason}`);
  };
  let length = 0;
  for (const { content } of tokens) {
    if (content.length > maxTextLength || exceededLimit(content, runs))
      fail(content, `has ${content.length} characters`);
    length += content.length * growth;
    if (length > MAX_LENGTH) fail(content, 'and those before it are too long in all');
  }
  const taking = tokens.find(({ rstrip }) => rstrip);
  for (const { content, normalized, lstrip, rstrip } of tokens) {
    if (content === '') continue;
    const isNormalized = normalized && normalize !== null;
    if (isNormalized && insertsText) {
      fail(content, 'is normalized, by a normalizer that inserts text: it cannot be located');
    }
    const found = isNormalized ? normalize(content) : content;
    // It would be found everywhere, inside characters too.
    if (found === '') fail(content, 'is normalized to nothing; it must not be normalized');
    // One before it may have taken all the white space that this one is found in.
    if (taking !== undefined && lstrip && !rstrip && WHITE_SPACE.test(found)) {
      const before = show(taking.content);
      fail(
        content,
        `is white space and has lstrip, while ${before} before it may take that (rstrip)`,
      );
    }
  }
}
