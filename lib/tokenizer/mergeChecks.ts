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
  let maxBytes = 0;
  for (const token in vocab) {
    if (token.length * BYTES_PER_UNIT <= maxBytes) continue;
    maxBytes = Math.max(maxBytes, Buffer.byteLength(token));
  }
  const prefixBytes = typeof prefix === 'string' ? Buffer.byteLength(prefix) : 0;
  for (let i = 0; i < merges.length; i++) {
    const merge = merges[i];
    if (typeof merge === 'string') {
      if (prefixBytes === 0 && merge.length * BYTES_PER_UNIT <= maxBytes) continue;
      const [first, second, ...rest] = merge.split(' ');
      // The library refuses others, and drops a first line of a version.
      if (second === undefined || rest.length > 0) continue;
      checkMerge(i, merge, first, second);
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
    if (size > maxBytes)
      fail(path, merge, 'what it makes is longer than every token of model.vocab');
  }
}
