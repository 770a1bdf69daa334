/** Checks the merges of a BPE model, which the library copies into a buffer of fixed size. */

type Fail = (path: string, value: unknown, reason: string) => never;

/** Most UTF-8 bytes per UTF-16 unit. */
const BYTES_PER_UNIT = 3;

/**
 * The library panics if a merged token (the first half and the second half without the prefix) is
 * longer than the longest token in bytes, or if the prefix ends inside a character.
 */
export function checkMerges(model: Record<string, unknown>, fail: Fail): void {
  const merges = model.merges as unknown[];
  const { vocab, continuing_subword_prefix: prefix } = model;
  if (typeof vocab !== 'object' || vocab === null) return;
  const tokens = vocab as Record<string, unknown>;
  // Longest token seen so far; the whole vocabulary is scanned only for a longer merge.
  let maxBytes = 0;
  let hasScannedVocab = false;
  const prefixBytes = typeof prefix === 'string' ? Buffer.byteLength(prefix) : 0;
  for (let i = 0; i < merges.length; i++) {
    const merge = merges[i];
    if (typeof merge === 'string') {
      if (prefixBytes === 0 && merge.length * BYTES_PER_UNIT <= maxBytes) continue;
      // The library rejects other numbers of words, and ignores a version line.
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
        `its second half is shorter than continuing_subword_prefix (${prefixBytes} bytes)`,
      );
    }
    if (bytes.length > prefixBytes && (bytes[prefixBytes] & 0xc0) === 0x80) {
      fail(
        path,
        merge,
        `continuing_subword_prefix (${prefixBytes} bytes) ends inside a character of its second half`,
      );
    }
    const size = Buffer.byteLength(first) + bytes.length - prefixBytes;
    if (size <= maxBytes) return;
    if (Object.hasOwn(tokens, first + bytes.toString('utf8', prefixBytes))) {
      maxBytes = size;
      return;
    }
    if (!hasScannedVocab) maxBytes = longestToken();
    hasScannedVocab = true;
    if (size > maxBytes) {
      fail(path, merge, 'the merged token is longer than every token in model.vocab');
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
