/**
 * Reads and checks the headers of a Hugging Face checkpoint's safetensors files before anything is
 * allocated. The format: https://github.com/huggingface/safetensors.
 */
import { open, type FileHandle } from 'node:fs/promises';
import path from 'node:path';
import { HEAD_BYTES, kindOfBytes, LFS_POINTER_MESSAGE } from '../config/fileKind';
import { fileExists, parseJson, parseStrictJson, readText, reasonOf } from '../config/jsonFile';
import { entriesOf, isJsonObject, memberOf, parseInPieces } from '../config/largeJson';
import { weightsIn } from '../config/modelFolder';
import { show } from '../config/schema';
import { CheckpointError } from '../errors';
import { slicedWork } from '../slicedWork';
import type { GgufType } from './gguf/types';
import type { Strides } from './spec';

/** Bits per element of each safetensors dtype. */
const DTYPE_BITS = {
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  BOOL: 8,
  U8: 8,
  I8: 8,
  F8_E4M3: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2: 8,
  F8_E5M2FNUZ: 8,
  F8_E8M0: 8,
  U16: 16,
  I16: 16,
  F16: 16,
  BF16: 16,
  U32: 32,
  I32: 32,
  F32: 32,
  U64: 64,
  I64: 64,
  F64: 64,
  C64: 64,
} as const;
export type SafetensorsDType = keyof typeof DTYPE_BITS;

/** A tensor in a file: row-major, little-endian. Those of GGUF have its types. */
export interface TensorEntry {
  dtype: SafetensorsDType | GgufType;
  shape: number[];
  /** Index into the table's files. */
  file: number;
  /** Offset of its data in the file, in bytes. */
  offset: number;
  /** Bytes of its data. */
  numBytes: number;
  /** Of a part of a tensor; missing: it is contiguous. */
  strides?: Strides;
}

export interface TensorTable {
  /** The file that lists the tensors: model.safetensors or the index. */
  source: string;
  /** Paths of the safetensors files. */
  files: string[];
  tensors: ReadonlyMap<string, TensorEntry>;
  /** What describes the model, for errors; missing: config.json. */
  config?: string;
  /** Queries and keys have a head's rotated pairs in adjacent rows. */
  isInterleaved?: boolean;
  /** Every tensor must be a part of the model; missing: those of unknown modules are ignored. */
  isComplete?: boolean;
}

const SINGLE_FILE = 'model.safetensors';
const INDEX_FILE = 'model.safetensors.index.json';

/** The limit of the format's own reader. */
const MAX_HEADER_BYTES = 100_000_000;
/** Size of the header's length field, u64 little-endian. */
const LENGTH_BYTES = 8;

/**
 * Reads the tensors of `folder`, from its index if it has one; as in vLLM, model.safetensors is then
 * ignored. Throws CheckpointError naming the file and, where it applies, the tensor.
 */
export async function readTensorTable(folder: string): Promise<TensorTable> {
  const single = path.join(folder, SINGLE_FILE);
  const index = path.join(folder, INDEX_FILE);
  if (await fileExists(index)) return readShards(index);
  if (await fileExists(single)) {
    return { source: single, files: [single], tensors: await readHeader(single, 0) };
  }
  const found = await weightsIn(folder);
  throw new CheckpointError(
    single,
    `the file is missing, and so is ${INDEX_FILE}; weights must be in safetensors files` +
      (found === null ? '' : `; the folder holds ${found}`),
  );
}

/** Reads the tensors that an index assigns to files; other tensors in them are ignored. */
async function readShards(index: string): Promise<TensorTable> {
  const weightMap = await readWeightMap(index);
  const names = [...new Set(weightMap.values())].sort();
  const files = names.map((name) => path.join(path.dirname(index), name));
  const headers = await Promise.all(files.map(readHeader));
  const headerOf = new Map(names.map((name, i) => [name, headers[i]]));

  const tensors = new Map<string, TensorEntry>();
  function* collect() {
    for (const [name, shard] of weightMap) {
      yield;
      const entry = headerOf.get(shard)?.get(name);
      if (!entry) {
        throw new CheckpointError(
          index,
          `tensor ${show(name)} is assigned to ${shard}, which does not contain it`,
        );
      }
      tensors.set(name, entry);
    }
  }
  await slicedWork.finish(collect());
  return { source: index, files, tensors };
}

async function readWeightMap(index: string): Promise<Map<string, string>> {
  const map = new Map<string, string>();
  await slicedWork.finish(parseWeightMap(index, await readText(index), map));
  return map;
}

/**
 * Adds each tensor's file in `text`, the content of `index`, to `map`, and yields between pieces of
 * work. Throws CheckpointError.
 */
export function* parseWeightMap(
  index: string,
  text: string,
  map: Map<string, string>,
): Generator<void, void> {
  const json = yield* parseInPieces(text, (whole) => parseJson(index, whole));
  if (!isJsonObject(json)) throw new CheckpointError(index, 'it must hold a JSON object');
  const weightMap = memberOf(json, 'weight_map');
  if (!isJsonObject(weightMap)) {
    throw new CheckpointError(index, `weight_map is ${show(weightMap)}; it must be an object`);
  }
  for (const [name, shard] of entriesOf(weightMap)) {
    yield;
    if (typeof shard !== 'string' || !/^[^/\\\0]+\.safetensors$/.test(shard)) {
      throw new CheckpointError(
        index,
        `weight_map has ${show(shard)} for tensor ${show(name)}; ` +
          'it must be the name of a .safetensors file in the same folder',
      );
    }
    map.set(name, shard);
  }
}

/** Reads the header of a safetensors file. `index`: the file's index in the table. */
async function readHeader(file: string, index: number): Promise<Map<string, TensorEntry>> {
  if (!(await fileExists(file))) throw new CheckpointError(file, 'the file is missing');
  const handle = await open(file, 'r').catch((cause: unknown) => {
    throw new CheckpointError(file, `it cannot be read: ${reasonOf(cause)}`, { cause });
  });
  try {
    const { size } = await handle.stat();
    const header = await readHeaderBytes(handle, file, size);
    const tensors = new Map<string, TensorEntry>();
    await slicedWork.finish(parseHeader({ file, index, header, size }, tensors));
    return tensors;
  } finally {
    await handle.close();
  }
}

async function readHeaderBytes(handle: FileHandle, file: string, size: number): Promise<Buffer> {
  if (size < LENGTH_BYTES) {
    throw new CheckpointError(
      file,
      `it has ${size} bytes; a safetensors file has at least ${LENGTH_BYTES} for its header's length`,
    );
  }
  const head = await readBytes(handle, file, 0, Math.min(size, HEAD_BYTES));
  const { group, name } = kindOfBytes(head, file);
  if (group === 'lfs') throw new CheckpointError(file, LFS_POINTER_MESSAGE);
  if (group === 'gguf' || group === 'pickle' || group === 'archive') {
    throw new CheckpointError(file, `it is ${name}; it must be a safetensors file`);
  }
  return readBytes(handle, file, LENGTH_BYTES, headerLength(file, head, size));
}

/** Parses and checks the header's length in a file of `size` bytes. Throws CheckpointError. */
export function headerLength(file: string, bytes: Buffer, size: number): number {
  const length = bytes.readBigUInt64LE();
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw new CheckpointError(
      file,
      `its header has ${length} bytes; at most ${MAX_HEADER_BYTES} are allowed`,
    );
  }
  if (length > BigInt(size - LENGTH_BYTES)) {
    throw new CheckpointError(
      file,
      `its header has ${length} bytes, but the file has only ${size - LENGTH_BYTES} after the length; ` +
        'it is truncated or not a safetensors file',
    );
  }
  return Number(length);
}

/** Throws CheckpointError if the file ends before. */
export async function readBytes(
  handle: FileHandle,
  file: string,
  position: number,
  length: number,
): Promise<Buffer> {
  const { bytesRead, buffer } = await handle
    .read(Buffer.alloc(length), 0, length, position)
    .catch((cause: unknown) => {
      throw new CheckpointError(file, `it cannot be read: ${reasonOf(cause)}`, { cause });
    });
  if (bytesRead < length) {
    throw new CheckpointError(
      file,
      `it ended after ${position + bytesRead} bytes while it was read`,
    );
  }
  return buffer;
}

/**
 * Parses `header`, without its length, of a file of `size` bytes into `tensors`, and yields
 * between pieces of work. Checks each tensor's type, shape and offsets, and that the tensors fill the file's data
 * without overlap or hole. Of a duplicate name JSON keeps the last. Throws CheckpointError.
 */
export function* parseHeader(
  { file, index, header, size }: { file: string; index: number; header: Buffer; size: number },
  tensors: Map<string, TensorEntry>,
): Generator<void, void> {
  const text = header.toString('utf8');
  const json = yield* parseInPieces(text, (whole) => parseStrictJson(file, whole));
  if (!isJsonObject(json)) throw new CheckpointError(file, 'its header must be a JSON object');
  const dataStart = LENGTH_BYTES + header.length;
  const dataBytes = size - dataStart;
  for (const [name, value] of entriesOf(json)) {
    yield;
    if (name === '__metadata__') continue;
    const fail = (message: string) => new CheckpointError(file, `tensor ${show(name)}: ${message}`);
    if (!isJsonObject(value)) throw fail(`its entry is ${show(value)}; it must be an object`);
    const dtype = checkDType(memberOf(value, 'dtype'), fail);
    const shape = checkShape(memberOf(value, 'shape'), fail);
    const [begin, end] = checkOffsets(memberOf(value, 'data_offsets'), dataBytes, fail);

    const numBits = shape.reduce((product, size) => product * size, DTYPE_BITS[dtype]);
    if (!Number.isSafeInteger(numBits)) throw fail(`its shape ${show(shape)} is too large`);
    if (numBits !== (end - begin) * 8) {
      throw fail(
        `its shape ${show(shape)} of ${dtype} needs ${numBits / 8} bytes, ` +
          `but its data_offsets ${show([begin, end])} hold ${end - begin}`,
      );
    }
    tensors.set(name, {
      dtype,
      shape,
      file: index,
      offset: dataStart + begin,
      numBytes: end - begin,
    });
  }

  if (!(yield* isFilled(tensors, dataStart, size)))
    throw layoutFault(file, tensors, dataStart, size);
}

/** Whether the tensors fill bytes [begin, end) without overlap or hole. Yields after each tensor. */
function* isFilled(
  tensors: ReadonlyMap<string, TensorEntry>,
  begin: number,
  end: number,
): Generator<void, boolean> {
  const ends = new Map<number, number>(); // of tensors with data, by their first byte
  const empty: number[] = [];
  for (const { offset, numBytes } of tensors.values()) {
    yield;
    if (numBytes === 0) empty.push(offset);
    else if (ends.has(offset)) return false;
    else ends.set(offset, offset + numBytes);
  }
  let position = begin;
  let numPassed = 0;
  for (let next = ends.get(position); next !== undefined; next = ends.get(position)) {
    yield;
    position = next;
    numPassed++;
  }
  const isBoundary = (offset: number) => offset === end || ends.has(offset);
  return position === end && numPassed === ends.size && empty.every(isBoundary);
}

/** The first overlap or hole among tensors that do not fill [begin, end). */
function layoutFault(
  file: string,
  tensors: ReadonlyMap<string, TensorEntry>,
  begin: number,
  end: number,
): CheckpointError {
  const inOrder = [...tensors].sort(
    ([, a], [, b]) => a.offset - b.offset || a.numBytes - b.numBytes,
  );
  let position = begin;
  let before = 'the header';
  for (const [name, { offset, numBytes }] of inOrder) {
    if (offset !== position) {
      const fault = offset < position ? 'overlaps' : 'leaves a hole after';
      return new CheckpointError(
        file,
        `tensor ${show(name)}: its data, from byte ${offset}, ${fault} that of ` +
          `${before}, up to byte ${position}`,
      );
    }
    position += numBytes;
    before = `tensor ${show(name)}`;
  }
  return new CheckpointError(file, `its tensors end at byte ${position}, but the file has ${end}`);
}

function isSize(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function checkDType(dtype: unknown, fail: (message: string) => Error): SafetensorsDType {
  if (typeof dtype === 'string' && Object.hasOwn(DTYPE_BITS, dtype)) {
    return dtype as SafetensorsDType;
  }
  throw fail(
    `its dtype is ${show(dtype)}; it must be one of ${Object.keys(DTYPE_BITS).join(', ')}`,
  );
}

function checkShape(shape: unknown, fail: (message: string) => Error): number[] {
  if (Array.isArray(shape) && shape.every(isSize)) return shape;
  throw fail(`its shape is ${show(shape)}; it must be a list of integers of at least 0`);
}

/** Begin and end of a tensor's data, relative to the end of the header. */
function checkOffsets(
  offsets: unknown,
  dataBytes: number,
  fail: (message: string) => Error,
): [number, number] {
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize)) {
    throw fail(`its data_offsets are ${show(offsets)}; they must be two integers of at least 0`);
  }
  const [begin, end] = offsets;
  if (begin > end) {
    throw fail(`its data_offsets are ${show(offsets)}; the first must not be above the second`);
  }
  if (end > dataBytes) {
    throw fail(
      `its data_offsets are ${show(offsets)}, but the file has only ${dataBytes} bytes of data; ` +
        'it is truncated',
    );
  }
  return [begin, end];
}
