/**
 * SentencePiece's precompiled_charsmap: the size of a trie in bytes, the trie (a double array of u32 units, after
 * Yata's darts-clone), and texts that end with a zero byte. The trie's values are offsets of texts.
 */
import { isUtf8 } from 'node:buffer';

/** Bytes of a text that stands for what was found: honest ones have 33 at most. */
const MAX_TEXT_BYTES = 64;

const UNITS_PER_BLOCK = 256;

/** Whole blocks of a trie: a step from a unit goes to any unit of one. */
const wholeBlocks = (numUnits: number) => Math.ceil(numUnits / UNITS_PER_BLOCK) * UNITS_PER_BLOCK;

/** Whether the trie ends in a block, so that the step by some byte leads out of it: see `padCharsmap`. */
export function isCharsmapCut(base64: string): boolean {
  const numUnits = Buffer.from(base64.slice(0, 8), 'base64').readUInt32LE(0) >>> 2;
  return numUnits % UNITS_PER_BLOCK !== 0;
}

/** The same, with units that no byte leads to at the end of the trie. */
export function padCharsmap(base64: string): string {
  const bytes = Buffer.from(base64, 'base64');
  const numUnits = bytes.readUInt32LE(0) >>> 2;
  const size = Buffer.alloc(4);
  size.writeUInt32LE(4 * wholeBlocks(numUnits));
  const end = 4 + 4 * numUnits;
  const padding = Buffer.alloc(4 * (wholeBlocks(numUnits) - numUnits));
  const padded = [size, bytes.subarray(4, end), padding, bytes.subarray(end)];
  return Buffer.concat(padded).toString('base64');
}

/** What is wrong with it, so that a text could lead out of its bounds once it is padded; null for nothing. */
export function charsmapFault(base64: unknown): string | null {
  if (typeof base64 !== 'string') return 'it must be a string';
  // Others the library refuses.
  if (!/^[A-Za-z\d+/]*={0,2}$/.test(base64)) return 'it must be base64';
  const bytes = Buffer.from(base64, 'base64');
  if (bytes.length < 4) return 'it is too short for a trie';
  const numUnits = bytes.readUInt32LE(0) >>> 2;
  const start = 4 + 4 * numUnits;
  if (numUnits === 0 || start > bytes.length)
    return `its trie of ${numUnits} units is not all there`;
  const texts = bytes.subarray(start);
  if (!isUtf8(texts)) return 'its texts are not UTF-8';
  const unit = (at: number) => bytes.readUInt32LE(4 + 4 * at);
  for (let at = 0; at < numUnits; at++) {
    const value = unit(at);
    // A value, which no byte leads to.
    if (value >= 2 ** 31 && at > 0) continue;
    const base = (at ^ ((value >>> 10) << ((value & 0x200) >>> 6))) >>> 0;
    // A step from here goes to any unit of the block.
    if (base >= wholeBlocks(numUnits)) return `unit ${at} of its trie leads out of it`;
    if ((value & 0x100) === 0) continue;
    if (base >= numUnits) return `unit ${at} of its trie has no value`;
    const offset = unit(base) & 0x7fffffff;
    if (offset > texts.length || (texts[offset] & 0xc0) === 0x80) {
      return `unit ${base} of its trie is no text's offset, ${offset}`;
    }
    const end = texts.indexOf(0, offset);
    if ((end === -1 ? texts.length : end) - offset > MAX_TEXT_BYTES) {
      return `its text at ${offset} is longer than ${MAX_TEXT_BYTES} bytes`;
    }
  }
  return null;
}
