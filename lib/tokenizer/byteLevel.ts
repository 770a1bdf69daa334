/** The alphabet of byte-level BPE (GPT-2's bytes_to_unicode): a printable character for each byte. */

/** [256], by byte: printable Latin-1 bytes map to themselves, the others to U+0100 and up. */
export const BYTE_LETTERS: readonly string[] = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable =
      (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCharCode(printable ? byte : next++);
  });
})();

const BYTES = new Map(BYTE_LETTERS.map((letter, byte) => [letter, byte]));

/** Maps a token's characters to bytes; returns its UTF-8 if one is outside the alphabet. */
export function byteLevelBytes(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = BYTES.get(token[i]);
    if (byte === undefined) return Uint8Array.from(Buffer.from(token));
    bytes[i] = byte;
  }
  return bytes;
}
