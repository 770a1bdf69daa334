/** The alphabet of byte-level BPE (GPT-2's bytes_to_unicode): a printable character for each byte. */

/** [256] by byte: printable bytes of Latin-1 as they are, the others from U+0100 on. */
export const BYTE_LETTERS: readonly string[] = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable =
      (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCharCode(printable ? byte : next++);
  });
})();

const BYTES = new Map(BYTE_LETTERS.map((letter, byte) => [letter, byte]));

/** The bytes that a token stands for: those of its letters, or its own UTF-8 if one is no letter. */
export function byteLevelBytes(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = BYTES.get(token[i]);
    if (byte === undefined) return Uint8Array.from(Buffer.from(token));
    bytes[i] = byte;
  }
  return bytes;
}
