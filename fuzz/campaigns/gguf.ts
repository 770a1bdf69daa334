/** Headers of GGUF files. */
import { CheckpointError } from '../../lib/errors';
import { Cursor } from '../../lib/model/gguf/cursor';
import { type GgufHeader, parseGgufHeader } from '../../lib/model/gguf/header';
import { gguf as fileOf } from '../../test/support/ggufFile';
import { type BytesTarget, type Campaign, expect } from '../campaign';
import { accepted } from './typed';

const FILE = '/checkpoint/model.gguf';

/** Of types in seeds: elements and bytes of a block, independently from the code under test. */
const BLOCKS: Record<string, [cols: number, bytes: number]> = {
  F32: [1, 4], F16: [1, 2], BF16: [1, 2], Q4_0: [32, 18], Q4_1: [32, 20], Q5_0: [32, 22],
  Q5_1: [32, 24], Q8_0: [32, 34], Q2_K: [256, 84], Q3_K: [256, 110], Q4_K: [256, 144],
  Q5_K: [256, 176], Q6_K: [256, 210], IQ4_NL: [32, 18], IQ4_XS: [256, 136], MXFP4: [32, 17],
}; // prettier-ignore

/** The numbers of entries and tensors of a file that a plain reading finds whole; null for others. */
function reference(bytes: Buffer): { keys: Set<string>; names: string[] } | null {
  let at = 24;
  const u32 = () => bytes.readUInt32LE((at += 4) - 4);
  const u64 = () => Number(bytes.readBigUInt64LE((at += 8) - 8));
  const pass = (count: number) => {
    if (!(count <= bytes.length - at)) throw new RangeError('past the end');
    at += count;
  };
  const text = () => {
    const length = u64();
    pass(length);
    return bytes.toString('utf8', at - length, at);
  };
  const SIZES = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
  const value = (type: number, inList = false): void => {
    if (type === 8) text();
    else if (type === 9 && !inList) {
      const [element, count] = [u32(), u64()];
      for (let i = 0; i < count; i++) value(element, true);
    } else if (SIZES[type] > 0) pass(SIZES[type]);
    else throw new RangeError('unknown type');
  };
  try {
    if (bytes.toString('latin1', 0, 4) !== 'GGUF' || bytes.readUInt32LE(4) !== 3) return null;
    const [numTensors, numEntries] = [8, 16].map((place) => Number(bytes.readBigUInt64LE(place)));
    const keys = new Set<string>();
    for (let i = 0; i < numEntries; i++) {
      keys.add(text());
      value(u32());
    }
    if (keys.size !== numEntries || keys.has('general.alignment')) return null;
    const names: string[] = [];
    for (let i = 0; i < numTensors; i++) {
      names.push(text());
      const sizes = Array.from({ length: u32() }, u64);
      const isVector = sizes.length === 1 && sizes[0] > 0 && sizes[0] < 100;
      if (!isVector || u32() !== 0 || u64() % 32 !== 0) return null;
    }
    return { keys, names };
  } catch (error) {
    if (error instanceof RangeError) return null;
    throw error;
  }
}

async function parse(bytes: Buffer): Promise<GgufHeader | CheckpointError | Error> {
  const handle = {
    read(buffer: Buffer, offset: number, length: number, position: number) {
      const bytesRead = bytes.copy(buffer, offset, position, position + length);
      return Promise.resolve({ bytesRead, buffer });
    },
  };
  return parseGgufHeader(new Cursor(handle, FILE, bytes.length)).catch((error: unknown) =>
    error instanceof Error ? error : new Error(String(error)),
  );
}

function checkTensors(bytes: Buffer, { tensors, metadata }: GgufHeader): void {
  const alignment = metadata.get('general.alignment') ?? 32;
  const spans: [number, number][] = [];
  for (const { name, type, shape, offset, numBytes } of tensors) {
    const [cols, size] = BLOCKS[type];
    const count = shape.reduce((product, n) => product * BigInt(n), 1n);
    expect(count * BigInt(size) === BigInt(numBytes) * BigInt(cols), () => `bytes of ${name}`);
    expect(shape[shape.length - 1] % cols === 0, () => `rows of ${name}`);
    expect(offset >= 24 && offset + numBytes <= bytes.length, () => `${name} is outside the file`);
    expect(offset % Number(alignment) === 0, () => `${name} is not aligned`);
    spans.push([offset, offset + numBytes]);
  }
  spans.sort((a, b) => a[0] - b[0]);
  expect(
    spans.every(([begin], i) => i === 0 || begin >= spans[i - 1][1]),
    'tensors overlap',
  );
}

export const gguf: Campaign = {
  name: 'gguf',
  about: 'headers of GGUF files: refused by name, or every tensor inside the file',
  open() {
    const counts = { accepted: 0 };
    const data = (length: number) => new Uint8Array(length);
    const target: BytesTarget = {
      kind: 'bytes',
      counts,
      seeds: [
        fileOf({}),
        fileOf({ metadata: { a: { u32: 1 }, b: { text: 'x' } } }),
        fileOf({
          metadata: {
            'general.architecture': { text: 'llama' },
            list: { i32s: [1, 2, 3] },
            words: { texts: ['a', '', 'bc'] },
            big: { u64: 2n ** 53n },
          },
          tensors: { w: { type: 0, shape: [3], data: data(12) } },
        }),
        fileOf({
          alignment: 8,
          tensors: {
            a: { type: 12, shape: [2, 256], data: data(288) },
            b: { type: 8, shape: [1, 2, 32], data: data(68) },
            c: { type: 0, shape: [5], data: data(20) },
          },
        }),
        fileOf({ version: 2, tensors: { v: { type: 0, shape: [16], data: data(64) } } }),
      ],
      words: ['GGUF', 'general.alignment', '\0\0\0\0\0\0\0\0', '\xff\xff\xff\xff\xff\xff\xff\x7f'],
      async check(bytes) {
        const result = await parse(bytes);
        const header = accepted(FILE, () => {
          if (result instanceof Error) throw result;
          return result;
        });
        if (header === null) return;
        counts.accepted++;
        checkTensors(bytes, header);
        const expected = bytes.length >= 24 ? reference(bytes) : null;
        if (expected === null) return;
        expect(header.metadata.size === expected.keys.size, 'another number of entries');
        expect(
          header.tensors.map(({ name }) => name).join('\0') === expected.names.join('\0'),
          'other tensors',
        );
      },
    };
    return Promise.resolve(target);
  },
};
