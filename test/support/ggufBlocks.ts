/** GGUF's blocks: random ones, and their elements in float64 by the format's description, one by one. */
import type { BlockType } from '../../lib/contract/workerSummary';
import { float16ToNumber, type Random } from '../native/ops/reference';

/** [elements, bytes] of a block, and the places of its halves, which must be finite. */
const BLOCKS: Record<BlockType, [cols: number, bytes: number, halves: number[]]> = {
  q4_0: [32, 18, [0]],
  q4_1: [32, 20, [0, 2]],
  q5_0: [32, 22, [0]],
  q5_1: [32, 24, [0, 2]],
  q8_0: [32, 34, [0]],
  q2_k: [256, 84, [80, 82]],
  q3_k: [256, 110, [108]],
  q4_k: [256, 144, [0, 2]],
  q5_k: [256, 176, [0, 2]],
  q6_k: [256, 210, [208]],
  iq4_nl: [32, 18, [0]],
  iq4_xs: [256, 136, [0]],
  mxfp4: [32, 17, []],
};

export const BLOCK_TYPES = Object.keys(BLOCKS) as BlockType[];
export const colsOf = (type: BlockType) => BLOCKS[type][0];
export const bytesOf = (type: BlockType) => BLOCKS[type][1];

const IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
const FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** Blocks of random bits, with scales of about 0.01. */
export function randomBlocks(type: BlockType, count: number, random: Random): Uint8Array {
  const [, bytes, halves] = BLOCKS[type];
  const out = Buffer.from(Uint8Array.from({ length: count * bytes }, () => random.below(256)));
  for (let block = 0; block < count; block++) {
    for (const at of halves) {
      // An exponent of 2 ** -9 to 2 ** -6, either sign.
      const exponent = (6 + random.below(4)) << 10;
      out.writeUInt16LE(
        (random.below(2) << 15) | exponent | random.below(1024),
        block * bytes + at,
      );
    }
    if (type === 'mxfp4') out[block * bytes] = 116 + random.below(6);
  }
  return new Uint8Array(out);
}

/** Element `e` of the block that begins at byte `at`. */
export function elementOf(type: BlockType, bytes: Uint8Array, at: number, e: number): number {
  const b = (i: number) => bytes[at + i];
  const half = (i: number) => float16ToNumber(b(i) | (b(i + 1) << 8));
  const signed = (i: number) => (b(i) << 24) >> 24;
  /** Four bits: element i of 32 is in the low ones of byte i, or the high ones of byte i - 16. */
  const nibble = (first: number, i: number) =>
    i < 16 ? b(first + i) & 15 : b(first + i - 16) >> 4;
  const bit = (first: number, i: number) => (b(first + (i >> 3)) >> (i & 7)) & 1;
  // Of a block of 256: its half, the quarter of that, and the element in it.
  const [n, j, l] = [e >> 7, (e >> 5) & 3, e & 31];
  const sub = e >> 5;
  switch (type) {
    case 'q4_0':
      return half(0) * (nibble(2, e) - 8);
    case 'q4_1':
      return half(0) * nibble(4, e) + half(2);
    case 'q5_0':
      return half(0) * (nibble(6, e) + 16 * bit(2, e) - 16);
    case 'q5_1':
      return half(0) * (nibble(8, e) + 16 * bit(4, e)) + half(2);
    case 'q8_0':
      return half(0) * signed(2 + e);
    case 'q2_k': {
      const scale = b(e >> 4);
      const code = (b(16 + 32 * n + l) >> (2 * j)) & 3;
      return half(80) * (scale & 15) * code - half(82) * (scale >> 4);
    }
    case 'q3_k': {
      const i = e >> 4;
      const low = i < 8 ? b(96 + i) & 15 : b(96 + i - 8) >> 4;
      const scale = low + 16 * ((b(104 + (i & 3)) >> (2 * (i >> 2))) & 3) - 32;
      const code = ((b(32 + 32 * n + l) >> (2 * j)) & 3) - ((b(l) >> (4 * n + j)) & 1 ? 0 : 4);
      return half(108) * scale * code;
    }
    case 'q4_k':
    case 'q5_k': {
      const s = (i: number) => b(4 + i);
      const [scale, min] =
        sub < 4
          ? [s(sub) & 63, s(sub + 4) & 63]
          : [(s(sub + 4) & 15) + 16 * (s(sub - 4) >> 6), (s(sub + 4) >> 4) + 16 * (s(sub) >> 6)];
      const codes = type === 'q4_k' ? 16 : 48;
      let code = (b(codes + 32 * (sub >> 1) + l) >> (4 * (sub & 1))) & 15;
      if (type === 'q5_k') code += 16 * ((b(16 + l) >> sub) & 1);
      return half(0) * scale * code - half(2) * min;
    }
    case 'q6_k': {
      const low = (b(64 * n + 32 * (j & 1) + l) >> (4 * (j >> 1))) & 15;
      const high = (b(128 + 32 * n + l) >> (2 * j)) & 3;
      return half(208) * signed(192 + (e >> 4)) * (low + 16 * high - 32);
    }
    case 'iq4_nl':
      return half(0) * IQ4[nibble(2, e)];
    case 'iq4_xs': {
      const low = (b(4 + (sub >> 1)) >> (4 * (sub & 1))) & 15;
      const high = ((b(2) + 256 * b(3)) >> (2 * sub)) & 3;
      return half(0) * (low + 16 * high - 32) * IQ4[nibble(8 + 16 * sub, l)];
    }
    case 'mxfp4': {
      const code = nibble(1, e);
      return (code & 8 ? -1 : 1) * FP4[code & 7] * 2 ** (b(0) - 127);
    }
  }
}

/** All elements of blocks. */
export function elementsOf(type: BlockType, bytes: Uint8Array): Float64Array {
  const [cols, size] = BLOCKS[type];
  const count = (bytes.length / size) * cols;
  return Float64Array.from({ length: count }, (_, i) =>
    elementOf(type, bytes, Math.floor(i / cols) * size, i % cols),
  );
}
