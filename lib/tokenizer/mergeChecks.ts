/** The merges of a BPE model, which the library copies into a buffer before it looks them up. */

type Fail = (path: string, value: unknown, reason: string) => never;

/** UTF-8 bytes that a UTF-16 unit is at most. */
const BYTES_PER_UNIT = 3;

/**
 * A merge's result, its first half and what follows the prefix in its second, must fit into the longest
 * token's bytes, and the prefix must end between two characters: else the library panics.
 */
export function checkMerges(model: Record<string, unknown>, fail: Fail): void {
  const merges = model.merges as unknown[];
  const { vocab, continuing_subword_prefix: prefix } = model;
  if (typeof vocab !== 'object' || vocab === null) return;
  const tokens = vocab as Record<string, unknown>;
  // Of the tokens seen so far: most merges are shorter, and none needs the whole vocabulary.
  let maxBytes = 0;
  let isWhole = false;
  const prefixBytes = typeof prefix === 'string' ? Buffer.byteLength(prefix) : 0;
  for (let i = 0; i < merges.length; i++) {
    const merge = merges[i];
    if (typeof merge === 'string') {
      if (prefixBytes === 0 && merge.length * BYTES_PER_UNIT <= maxBytes) continue;
      // The library refuses others than two words, and drops a first line of a version.
      const words = merge.split(' ');
      if (words.length === 2) checkMerge(i, merge, words[0], words[1]);
    } else if (Array.isArray(merge)) {
      const [first, second] = merge as unknown[];
      if (typeof first === 'string' && typeof second === 'string') {
        checkMerge(i, merge, first, second);
      }
    }
  }

  function checkMerge(i: number, merge: unknown, first: string, second: string): void {
    const numUnits = first.length + second.length;
    if (prefixBytes === 0 && numUnits * BYTES_PER_UNIT <= maxBytes) return;
    const path = `model.merges[${i}]`;
    const bytes = Buffer.from(second);
    if (bytes.length < prefixBytes) {
      fail(
        path,
        merge,
        `its second half is shorter than continuing_subword_prefix, ${prefixBytes} bytes`,
      );
    }
    if (bytes.length > prefixBytes && (bytes[prefixBytes] & 0xc0) === 0x80) {
      fail(
        path,
        merge,
        `continuing_subword_prefix, ${prefixBytes} bytes, ends in a character of it`,
      );
    }
    const size = Buffer.byteLength(first) + bytes.length - prefixBytes;
    if (size <= maxBytes) return;
    if (Object.hasOwn(tokens, first + bytes.toString('utf8', prefixBytes))) {
      maxBytes = size;
      return;
    }
    if (!isWhole) maxBytes = longestToken();
    isWhole = true;
    if (size > maxBytes) {
      fail(path, merge, 'what it makes is longer than every token of model.vocab');
    }
  }

  function longestToken(): number {
    let longest = 0;
    for (const token in tokens) {
      if (token.length * BYTES_PER_UNIT <= longest) continue;
      longest = Math.max(longest, Buffer.byteLength(token));
    }
    return longest;
  }
}
