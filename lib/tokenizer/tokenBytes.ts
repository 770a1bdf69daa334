/** Bytes of tokens that hold only part of a character, read from how the vocabulary writes them. */

/** Byte fallback's tokens (SentencePiece): one for each byte. */
const BYTE_TOKEN = /^<0x([0-9A-F]{2})>$/i;

/**
 * How byte-level BPE writes bytes: printable ones as themselves, the others from U+0100 on (GPT-2's
 * bytes_to_unicode).
 */
function byteLetters(): ReadonlyMap<string, number> {
  const letters = new Map<string, number>();
  let next = 0x100;
  for (let byte = 0; byte < 256; byte++) {
    const isPrintable =
      (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    letters.set(String.fromCharCode(isPrintable ? byte : next++), byte);
  }
  return letters;
}

const BYTES_BY_LETTER = byteLetters();

/** The bytes of the token that the vocabulary writes so; null when it is written in characters. */
export function bytesOf(token: string): number[] | null {
  const byteToken = BYTE_TOKEN.exec(token);
  if (byteToken !== null) return [parseInt(byteToken[1], 16)];
  const bytes: number[] = [];
  for (const letter of token) {
    const byte = BYTES_BY_LETTER.get(letter);
    if (byte === undefined) return null;
    bytes.push(byte);
  }
  return bytes;
}
