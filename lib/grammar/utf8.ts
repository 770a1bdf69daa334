/** Ranges of code points as ranges of UTF-8 bytes. */
import type { CodeRange } from './expression';

/** Inclusive ranges of bytes, one for each byte of the encoded characters. */
export type ByteRanges = readonly (readonly [from: number, to: number])[];

/** The last code points of 1, 2, 3 and 4 bytes. */
const LAST_OF_LENGTH = [0x7f, 0x7ff, 0xffff, 0x10ffff];

function encode(code: number, length: number): number[] {
  if (length === 1) return [code];
  const bytes: number[] = [];
  for (let i = 1; i < length; i++) {
    bytes.unshift(0x80 | (code & 0x3f));
    code >>= 6;
  }
  bytes.unshift(((0xf00 >> length) & 0xff) | code);
  return bytes;
}

/**
 * The encodings of code points `from` to `to`, without surrogates, as a union of products of byte
 * ranges (as Russ Cox's RE2 and BurntSushi's utf8-ranges divide them).
 */
export function utf8Ranges([from, to]: CodeRange): ByteRanges[] {
  const products: ByteRanges[] = [];
  let first = 0;
  for (const [index, last] of LAST_OF_LENGTH.entries()) {
    if (from <= last && to >= first) {
      split(Math.max(from, first), Math.min(to, last), index + 1, products);
    }
    first = last + 1;
  }
  return products;
}

function split(from: number, to: number, length: number, products: ByteRanges[]): void {
  // A product needs all continuation bytes behind the first byte in which its ends differ.
  for (let i = 1; i < length; i++) {
    const mask = 2 ** (6 * i) - 1;
    if (from >> (6 * i) === to >> (6 * i)) continue;
    if ((from & mask) !== 0) {
      split(from, from | mask, length, products);
      split((from | mask) + 1, to, length, products);
      return;
    }
    if ((to & mask) !== mask) {
      split(from, (to & ~mask) - 1, length, products);
      split(to & ~mask, to, length, products);
      return;
    }
  }
  const low = encode(from, length);
  const high = encode(to, length);
  products.push(low.map((byte, i) => [byte, high[i]] as const));
}
