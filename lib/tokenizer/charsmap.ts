/**
 * SentencePiece's precompiled_charsmap: the size of a trie in bytes, the trie (a double array of u32 units, after
 * Yata's darts-clone), and texts that end with a zero byte. The trie's values are offsets of texts.
 */
import { isUtf8 } from 'node:buffer';

/** Longest replacement text in bytes; real charsmaps have at most 33. */
const MAX_TEXT_BYTES = 64;

const UNITS_PER_BLOCK = 256;

/** Rounds up to whole blocks: a transition can reach any unit of its block. */
const roundToBlocks = (numUnits: number) => Math.ceil(numUnits / UNITS_PER_BLOCK) * UNITS_PER_BLOCK;

/** Whether the trie's last block is incomplete, so that a transition can leave the trie. */
export function needsCharsmapPadding(base64: string): boolean {
  const numUnits = Buffer.from(base64.slice(0, 8), 'base64').readUInt32LE(0) >>> 2;
  return numUnits % UNITS_PER_BLOCK !== 0;
}

/** Completes the trie's last block with unreachable units. */
export function padCharsmap(base64: string): string {
  const bytes = Buffer.from(base64, 'base64');
  const numUnits = bytes.readUInt32LE(0) >>> 2;
  const size = Buffer.alloc(4);
  size.writeUInt32LE(4 * roundToBlocks(numUnits));
  const end = 4 + 4 * numUnits;
  const padding = Buffer.alloc(4 * (roundToBlocks(numUnits) - numUnits));
  const padded = [size, bytes.subarray(4, end), padding, bytes.subarray(end)];
  return Buffer.concat(padded).toString('base64');
}

/** Why a lookup could leave the padded charsmap's bounds; null if none can. */
export function charsmapError(base64: unknown): string | null {
  if (typeof base64 !== 'string') return 'it must be a string';
  // The library rejects other alphabets.
  if (!/^[A-Za-z\d+/]*={0,2}$/.test(base64)) return 'it must be base64';
  const bytes = Buffer.from(base64, 'base64');
  if (bytes.length < 4) return 'it is too short for a trie';
  const numUnits = bytes.readUInt32LE(0) >>> 2;
  const start = 4 + 4 * numUnits;
  if (numUnits === 0 || start > bytes.length)
    return `it is truncated: it must hold a trie of ${numUnits} units`;
  const texts = bytes.subarray(start);
  if (!isUtf8(texts)) return 'its texts are not UTF-8';
  const unit = (at: number) => bytes.readUInt32LE(4 + 4 * at);
  for (let at = 0; at < numUnits; at++) {
    const value = unit(at);
    // A value unit has no transitions.
    if (value >= 2 ** 31 && at > 0) continue;
    const base = (at ^ ((value >>> 10) << ((value & 0x200) >>> 6))) >>> 0;
    // A transition from here can reach any unit of the block.
    if (base >= roundToBlocks(numUnits)) return `trie unit ${at} points outside the trie`;
    if ((value & 0x100) === 0) continue;
    if (base >= numUnits) return `the value of trie unit ${at} is outside the trie`;
    const offset = unit(base) & 0x7fffffff;
    if (offset > texts.length || (texts[offset] & 0xc0) === 0x80) {
      return `trie unit ${base} has the invalid text offset ${offset}`;
    }
    const end = texts.indexOf(0, offset);
    if ((end === -1 ? texts.length : end) - offset > MAX_TEXT_BYTES) {
      return `the replacement text at offset ${offset} is longer than ${MAX_TEXT_BYTES} bytes`;
    }
  }
  return null;
}
