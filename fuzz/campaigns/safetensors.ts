/** Safetensors files and their index. */
import { decodeText } from '../../lib/config/jsonFile';
import { CheckpointError } from '../../lib/errors';
import {
  headerLength,
  parseHeader,
  parseWeightMap,
  type TensorEntry,
} from '../../lib/model/safetensors';
import { fileOf, safetensors as fileWith } from '../../test/worker/safetensors';
import { type BytesTarget, type Campaign, expect } from '../campaign';
import { accepted, isObject } from './typed';

const FILE = '/checkpoint/model.safetensors';
const INDEX = '/checkpoint/model.safetensors.index.json';

/** Bytes per element, independently from the format's description. */
const ELEMENT_BYTES: Record<string, number> = {
  BOOL: 1, U8: 1, I8: 1, F8_E4M3: 1, F8_E5M2: 1, F8_E8M0: 1,
  U16: 2, I16: 2, F16: 2, BF16: 2,
  U32: 4, I32: 4, F32: 4,
  U64: 8, I64: 8, F64: 8, C64: 8,
}; // prettier-ignore

/** Parses a file that has only its header, with as many data bytes as the header declares. */
function parse(bytes: Buffer): { tensors: Map<string, TensorEntry>; dataStart: number } {
  if (bytes.length < 8) throw new CheckpointError(FILE, 'shorter than a length');
  const dataStart = 8 + headerLength(FILE, bytes.subarray(0, 8), bytes.length);
  const tensors = new Map<string, TensorEntry>();
  const header = bytes.subarray(8, dataStart);
  const pieces = parseHeader({ file: FILE, index: 0, header, size: bytes.length }, tensors);
  while (pieces.next().done !== true);
  return { tensors, dataStart };
}

/**
 * The entries [name, type, shape, begin, end] of a clearly valid file by the format's description; null
 * for any other.
 */
function reference(bytes: Buffer): [string, string, number[], number, number][] | null {
  const length = bytes.readUIntLE(0, 6);
  if (bytes[6] !== 0 || bytes[7] !== 0 || length > bytes.length - 8 || bytes[8] !== 0x7b)
    return null;
  let header: unknown;
  try {
    header = JSON.parse(
      new TextDecoder('utf8', { fatal: true }).decode(bytes.subarray(8, 8 + length)),
    );
  } catch {
    return null;
  }
  if (!isObject(header)) return null;
  const { __metadata__: metadata, ...entries } = header;
  const isMetadata =
    metadata === undefined ||
    (isObject(metadata) && Object.values(metadata).every((value) => typeof value === 'string'));
  if (!isMetadata) return null;
  const tensors: [string, string, number[], number, number][] = [];
  for (const [name, entry] of Object.entries(entries)) {
    if (!isObject(entry)) return null;
    const { dtype, shape, data_offsets: offsets } = entry;
    const isSizes = (list: unknown): list is number[] =>
      Array.isArray(list) && list.every((n) => Number.isSafeInteger(n) && n >= 0);
    if (typeof dtype !== 'string' || !Object.hasOwn(ELEMENT_BYTES, dtype)) return null;
    if (!isSizes(shape) || !isSizes(offsets) || offsets.length !== 2) return null;
    const numBytes = shape.reduce(
      (product, n) => product * BigInt(n),
      BigInt(ELEMENT_BYTES[dtype]),
    );
    if (BigInt(offsets[1]) - BigInt(offsets[0]) !== numBytes) return null;
    tensors.push([name, dtype, shape, offsets[0], offsets[1]]);
  }
  let end = 0;
  for (const [, , , from, to] of [...tensors].sort((a, b) => a[3] - b[3] || a[4] - b[4])) {
    if (from !== end) return null;
    end = to;
  }
  return end === bytes.length - 8 - length ? tensors : null;
}

function checkFile(bytes: Buffer): boolean {
  const table = accepted(FILE, () => parse(bytes));
  const expected = bytes.length >= 8 ? reference(bytes) : null;
  if (expected !== null) {
    expect(table !== null, 'a file that is right is refused');
    expect(table.tensors.size === expected.length, 'another number of tensors');
    for (const [name, dtype, shape, begin, end] of expected) {
      const found = table.tensors.get(name);
      const wanted = {
        dtype,
        shape,
        file: 0,
        offset: table.dataStart + begin,
        numBytes: end - begin,
      };
      expect(JSON.stringify(found) === JSON.stringify(wanted), () => `tensor ${name} differs`);
    }
  }
  if (table === null) return false;
  let total = 0;
  const spans: [number, number][] = [];
  for (const [name, { offset, numBytes, shape }] of table.tensors) {
    expect(
      Number.isSafeInteger(offset) && Number.isSafeInteger(numBytes) && numBytes >= 0,
      () => `tensor ${name} has no place`,
    );
    expect(
      offset >= table.dataStart && offset + numBytes <= bytes.length,
      () => `tensor ${name} is outside the file`,
    );
    expect(
      shape.every((n) => Number.isSafeInteger(n) && n >= 0),
      () => `shape of ${name}`,
    );
    spans.push([offset, offset + numBytes]);
    total += numBytes;
  }
  spans.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  expect(
    spans.every(([begin], i) => i === 0 || begin >= spans[i - 1][1]),
    'tensors overlap',
  );
  expect(total === bytes.length - table.dataStart, 'the tensors are not all of the data');
  return true;
}

export const safetensors: Campaign = {
  name: 'safetensors',
  about: 'headers of safetensors files: refused by name, or every tensor inside the file',
  open() {
    const counts = { accepted: 0 };
    const target: BytesTarget = {
      kind: 'bytes',
      counts,
      seeds: [
        fileOf({ a: { dtype: 'F32', shape: [2, 3] } }),
        fileOf({
          'model.embed_tokens.weight': { dtype: 'BF16', shape: [4, 2] },
          'model.norm.weight': { dtype: 'F16', shape: [2] },
          scalar: { dtype: 'F64', shape: [] },
          empty: { dtype: 'U8', shape: [3, 0] },
        }),
        fileWith({ a: { dtype: 'F4', shape: [2], data_offsets: [0, 1] } }, 1),
        fileWith({}, 0),
        fileWith(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}   `, 4),
      ],
      words: [
        '__metadata__', 'dtype', 'shape', 'data_offsets', ...Object.keys(ELEMENT_BYTES), 'F4', 'F6_E2M3',
        '__proto__', '{', '}', '[', ']', ':', ',', '"', '\\u0000', '\\ud800', '1e3', '-0', 'NaN', '\ufeff',
      ], // prettier-ignore
      jsonFrom: 8,
      check(bytes) {
        // A mutated header with a correct length reaches more code.
        if (bytes.length >= 8 && bytes[0] % 2 === 0) {
          const end = bytes.lastIndexOf('}') + 1;
          if (end > 8) {
            const copy = Buffer.from(bytes);
            copy.writeBigUInt64LE(BigInt(end - 8));
            if (checkFile(copy)) counts.accepted++;
          }
        }
        if (checkFile(bytes)) counts.accepted++;
      },
    };
    return Promise.resolve(target);
  },
};

export const safetensorsIndex: Campaign = {
  name: 'safetensors-index',
  about: 'model.safetensors.index.json: refused by name, or files of the same folder only',
  open() {
    const counts = { accepted: 0 };
    const index = {
      metadata: { total_size: 16 },
      weight_map: {
        'model.norm.weight': 'model-00001-of-00002.safetensors',
        'lm_head.weight': 'model-00002-of-00002.safetensors',
      },
    };
    const target: BytesTarget = {
      kind: 'bytes',
      counts,
      seeds: [Buffer.from(JSON.stringify(index)), Buffer.from(JSON.stringify(index, null, 2))],
      words: [
        'weight_map',
        'metadata',
        '../a.safetensors',
        '/a.safetensors',
        '.safetensors',
        '\0.safetensors',
      ],
      jsonFrom: 0,
      check(bytes) {
        const map = accepted(INDEX, () => {
          const files = new Map<string, string>();
          const pieces = parseWeightMap(INDEX, decodeText(INDEX, bytes), files);
          while (pieces.next().done !== true);
          return files;
        });
        if (map === null) return;
        counts.accepted++;
        for (const shard of map.values()) {
          expect(
            typeof shard === 'string' && /^[^/\\\0]+\.safetensors$/.test(shard),
            () => `the shard ${shard} is not a file of the folder`,
          );
        }
      },
    };
    return Promise.resolve(target);
  },
};
