/**
 * The header of a GGUF file (ggml's docs/gguf.md), versions 2 and 3: metadata and descriptions of
 * tensors. Every count, length and offset is checked against the file's size before anything is
 * allocated by it.
 */
import { open } from 'node:fs/promises';
import { fileExists, reasonOf } from '../../config/jsonFile';
import { show } from '../../config/schema';
import { CheckpointError, UnsupportedModelError } from '../../errors';
import { Cursor } from './cursor';
import { LOADABLE_TYPES, TENSOR_TYPES } from './types';

export type Scalar = number | bigint | boolean | string;
/** An array; null in place of one that is large and not wanted. */
export type MetadataValue = Scalar | readonly Scalar[] | null;
export type Metadata = ReadonlyMap<string, MetadataValue>;

export interface GgufTensor {
  name: string;
  /** Name of its type. */
  type: string;
  /** Row-major: the last dimension is contiguous. */
  shape: number[];
  /** Offset of its data in the file, and its bytes. */
  offset: number;
  numBytes: number;
}

export interface GgufHeader {
  metadata: Metadata;
  /** Ids of the tokens that end a turn, by their text. */
  endTokens: ReadonlyMap<string, number>;
  tensors: GgufTensor[];
}

const MAGIC = 'GGUF';
const VERSIONS = [2, 3];
const DEFAULT_ALIGNMENT = 32;

const MAX_KEY_BYTES = 2 ** 16 - 1;
const MAX_NAME_BYTES = 1024;
const MAX_DIMENSIONS = 4;
const MAX_ALIGNMENT = 2 ** 30;
/** Strings, such as a chat template. */
const MAX_STRING_BYTES = 2 ** 24;
/** Tensors, and entries of metadata. */
const MAX_COUNT = 2 ** 16;
/** Longer arrays are passed over unless they are wanted. */
const MAX_ARRAY = 4096;
/** What strings and arrays that are not wanted may take in memory together. */
const MAX_KEPT_BYTES = 2 ** 26;
/** Of an element of an array in memory. */
const ELEMENT_BYTES = 16;

const TOKENS = 'tokenizer.ggml.tokens';
/**
 * Tokens that end a turn in published models. Files of many models that end their turns with one name
 * another, such as the end of a document, as eos.
 */
const END_TOKENS: ReadonlySet<string> = new Set([
  '<|eot_id|>',
  '<|eom_id|>',
  '<|im_end|>',
  '<end_of_turn>',
  '<|end|>',
  '<|endoftext|>',
  '<|end_of_text|>',
  '<|return|>',
  '<|call|>',
]);
const MAX_END_BYTES = Math.max(...[...END_TOKENS].map((token) => token.length));
const END_START = '<'.charCodeAt(0);

const STRING = 8;
const ARRAY = 9;
const BOOL = 7;

/** Of each numeric type of metadata, its bytes and how a buffer reads it. */
const NUMBERS: ReadonlyMap<number, { bytes: number; read: (from: Buffer) => Scalar }> = new Map([
  [0, { bytes: 1, read: (from: Buffer): Scalar => from.readUInt8() }],
  [1, { bytes: 1, read: (from: Buffer): Scalar => from.readInt8() }],
  [2, { bytes: 2, read: (from: Buffer): Scalar => from.readUInt16LE() }],
  [3, { bytes: 2, read: (from: Buffer): Scalar => from.readInt16LE() }],
  [4, { bytes: 4, read: (from: Buffer): Scalar => from.readUInt32LE() }],
  [5, { bytes: 4, read: (from: Buffer): Scalar => from.readInt32LE() }],
  [6, { bytes: 4, read: (from: Buffer): Scalar => from.readFloatLE() }],
  [BOOL, { bytes: 1, read: (from: Buffer): Scalar => from.readUInt8() !== 0 }],
  [10, { bytes: 8, read: (from: Buffer): Scalar => small(from.readBigUInt64LE()) }],
  [11, { bytes: 8, read: (from: Buffer): Scalar => small(from.readBigInt64LE()) }],
  [12, { bytes: 8, read: (from: Buffer): Scalar => from.readDoubleLE() }],
]);

function small(value: bigint): Scalar {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

/** Least bytes of a metadata entry: key's length, type, value; of a tensor: name, dimensions, type, offset. */
const MIN_ENTRY_BYTES = 8 + 4 + 1;
const MIN_TENSOR_BYTES = 8 + 4 + 4 + 8;

/**
 * Reads metadata, and tensors unless `metadataOnly`. `wanted`: whether a key's array is kept, however
 * long. Rejects with CheckpointError, which names the key or tensor, and with UnsupportedModelError for
 * a version or a type of tensor that is not supported.
 */
export async function readGgufHeader(
  file: string,
  wanted: (key: string) => boolean = () => false,
  metadataOnly = false,
): Promise<GgufHeader> {
  if (!(await fileExists(file))) throw new CheckpointError(file, 'the file is missing');
  const handle = await open(file, 'r').catch((cause: unknown) => {
    throw new CheckpointError(file, `it cannot be read: ${reasonOf(cause)}`, { cause });
  });
  try {
    const { size } = await handle.stat();
    return await parseGgufHeader(new Cursor(handle, file, size), wanted, metadataOnly);
  } finally {
    await handle.close();
  }
}

/** As readGgufHeader, from the beginning of what `cursor` reads. */
export function parseGgufHeader(
  cursor: Cursor,
  wanted: (key: string) => boolean = () => false,
  metadataOnly = false,
): Promise<GgufHeader> {
  return new HeaderReader(cursor, wanted).read(metadataOnly);
}

class HeaderReader {
  private readonly file: string;
  private readonly metadata = new Map<string, MetadataValue>();
  private readonly endTokens = new Map<string, number>();
  private keptBytes = 0;

  constructor(
    private readonly cursor: Cursor,
    private readonly wanted: (key: string) => boolean,
  ) {
    this.file = cursor.file;
  }

  async read(metadataOnly: boolean): Promise<GgufHeader> {
    const { cursor } = this;
    await cursor.need(8, 'the magic number and version');
    const magic = cursor.bytes(4).toString('latin1');
    if (magic !== MAGIC) throw this.fail(`it begins with ${show(magic)}; a GGUF file with 'GGUF'`);
    this.checkVersion(cursor.uint32());
    await cursor.need(16, 'the numbers of tensors and of metadata entries');
    const numTensors = this.count('tensors', MIN_TENSOR_BYTES, MAX_COUNT);
    const numEntries = this.count('metadata entries', MIN_ENTRY_BYTES, MAX_COUNT);
    for (let i = 0; i < numEntries; i++) await this.entry(i);
    const tensors = metadataOnly ? [] : await this.tensors(numTensors);
    return { metadata: this.metadata, endTokens: this.endTokens, tensors };
  }

  private fail(message: string): CheckpointError {
    return new CheckpointError(this.file, message);
  }

  private checkVersion(version: number): void {
    if (VERSIONS.includes(version)) return;
    // The bytes of a small number in the other order.
    const isBigEndian = version !== 0 && (version & 0xffff) === 0;
    throw new UnsupportedModelError(
      this.file,
      isBigEndian
        ? 'it is a big-endian GGUF file, which is not supported; convert it to little-endian'
        : `it is a GGUF file of version ${version}, which is not supported; versions 2 and 3 are`,
    );
  }

  /** A number of things of at least `bytes` bytes each. */
  private count(what: string, bytes: number, max = Infinity): number {
    const count = this.cursor.uint64();
    const possible = Math.min(max, Math.floor(this.cursor.remaining / bytes));
    if (count > BigInt(possible)) {
      throw this.fail(
        `its header names ${count} ${what}; in a file of ${this.cursor.size} bytes at most ` +
          `${possible} are possible`,
      );
    }
    return Number(count);
  }

  private async string(what: string, maxBytes: number): Promise<string> {
    const length = await this.stringLength(what, maxBytes);
    await this.cursor.need(length, what);
    return this.cursor.text(length);
  }

  private async stringLength(what: string, maxBytes: number): Promise<number> {
    const { cursor } = this;
    if (!cursor.has(8)) await cursor.need(8, what);
    const length = cursor.uint64();
    if (length > BigInt(Math.min(maxBytes, cursor.remaining))) {
      throw this.fail(
        `${what} has a length of ${length} bytes; at most ` +
          `${Math.min(maxBytes, cursor.remaining)} are possible here`,
      );
    }
    return Number(length);
  }

  private async entry(index: number): Promise<void> {
    const key = await this.string(`the key of metadata entry ${index}`, MAX_KEY_BYTES);
    const what = `metadata ${show(key)}`;
    if (this.metadata.has(key)) throw this.fail(`${what} is there twice`);
    await this.cursor.need(4, what);
    const type = this.cursor.uint32();
    this.metadata.set(
      key,
      type === ARRAY ? await this.array(key, what) : await this.scalar(type, what),
    );
  }

  private async scalar(type: number, what: string): Promise<Scalar> {
    if (type === STRING) {
      const text = await this.string(what, MAX_STRING_BYTES);
      this.keep(text.length, what);
      return text;
    }
    const number = NUMBERS.get(type);
    if (!number) throw this.fail(`${what} has the unknown type ${type}`);
    await this.cursor.need(number.bytes, what);
    return number.read(this.cursor.bytes(number.bytes));
  }

  /** Counts bytes that stay in memory. */
  private keep(bytes: number, what: string): void {
    this.keptBytes += bytes;
    if (this.keptBytes <= MAX_KEPT_BYTES) return;
    throw this.fail(`with ${what} its metadata take more than ${MAX_KEPT_BYTES} bytes of memory`);
  }

  private async array(key: string, what: string): Promise<Scalar[] | null> {
    const { cursor } = this;
    await cursor.need(12, what);
    const type = cursor.uint32();
    if (type === ARRAY) throw this.fail(`${what} is an array of arrays, which is not supported`);
    const number = NUMBERS.get(type);
    if (!number && type !== STRING) {
      throw this.fail(`${what} is an array of the unknown type ${type}`);
    }
    const count = this.count(`elements of ${what}`, number?.bytes ?? 8);
    const isKept = count <= MAX_ARRAY || this.wanted(key);
    if (number && !isKept) {
      cursor.skip(count * number.bytes);
      return null;
    }
    const isBounded = isKept && !this.wanted(key);
    if (isBounded) this.keep(count * ELEMENT_BYTES, what);
    const values: Scalar[] = [];
    for (let i = 0; i < count; i++) {
      if (number) {
        if (!cursor.has(number.bytes)) await cursor.need(number.bytes, what);
        values.push(number.read(cursor.bytes(number.bytes)));
        continue;
      }
      const length = await this.stringLength(what, MAX_STRING_BYTES);
      if (isBounded) this.keep(length, what);
      const mayEnd = key === TOKENS && length > 0 && length <= MAX_END_BYTES;
      if ((isKept || mayEnd) && !cursor.has(length)) await cursor.need(length, what);
      if (!isKept && !(mayEnd && cursor.peek() === END_START)) {
        cursor.skip(length);
        continue;
      }
      const text = cursor.text(length);
      if (isKept) values.push(text);
      if (mayEnd && END_TOKENS.has(text) && !this.endTokens.has(text)) this.endTokens.set(text, i);
    }
    return isKept ? values : null;
  }

  private async tensors(count: number): Promise<GgufTensor[]> {
    const { cursor } = this;
    const alignment = this.alignment();
    const described: Omit<GgufTensor, 'offset'>[] = [];
    const offsets: bigint[] = [];
    const names = new Set<string>();
    for (let i = 0; i < count; i++) {
      const name = await this.string(`the name of tensor ${i}`, MAX_NAME_BYTES);
      if (names.has(name)) throw this.fail(`tensor ${show(name)} is there twice`);
      names.add(name);
      described.push(await this.tensor(name));
      offsets.push(cursor.uint64());
    }
    const start = Math.ceil(cursor.position / alignment) * alignment;
    const tensors = described.map((tensor, i): GgufTensor => {
      const what = `tensor ${show(tensor.name)}`;
      const offset = offsets[i];
      if (offset % BigInt(alignment) !== 0n) {
        throw this.fail(`${what}: its data begin at ${offset}, not at a multiple of ${alignment}`);
      }
      if (offset + BigInt(tensor.numBytes) > BigInt(Math.max(0, cursor.size - start))) {
        throw this.fail(
          `${what}: it needs ${tensor.numBytes} bytes from byte ${BigInt(start) + offset}, but the ` +
            `file has ${cursor.size}; it is truncated or damaged`,
        );
      }
      return { ...tensor, offset: start + Number(offset) };
    });
    this.refuseOverlaps(tensors);
    return tensors;
  }

  private alignment(): number {
    const value = this.metadata.get('general.alignment') ?? DEFAULT_ALIGNMENT;
    if (typeof value === 'number' && Number.isInteger(value) && value > 0) {
      if (value <= MAX_ALIGNMENT) return value;
    }
    throw this.fail(
      `metadata 'general.alignment' is ${show(value)}; it must be an integer from 1 to ${MAX_ALIGNMENT}`,
    );
  }

  /** A tensor's dimensions and type; its offset is readable afterwards. */
  private async tensor(name: string): Promise<Omit<GgufTensor, 'offset'>> {
    const { cursor } = this;
    const what = `tensor ${show(name)}`;
    await cursor.need(4, what);
    const numDimensions = cursor.uint32();
    if (numDimensions < 1 || numDimensions > MAX_DIMENSIONS) {
      throw this.fail(
        `${what} has ${numDimensions} dimensions; 1 to ${MAX_DIMENSIONS} are possible`,
      );
    }
    await cursor.need(8 * numDimensions + 4 + 8, what);
    const sizes = Array.from({ length: numDimensions }, () => cursor.uint64());
    const number = cursor.uint32();
    const type = TENSOR_TYPES.get(number);
    if (!type?.block) {
      throw new UnsupportedModelError(
        this.file,
        `${what} has the type ${type?.name ?? number}, which is not supported; supported: ` +
          LOADABLE_TYPES.join(', '),
      );
    }
    const numElements = sizes.reduce((product, size) => product * size, 1n);
    // Bounds the sizes too, so that all of them are safe integers.
    if (sizes.includes(0n) || numElements > BigInt(Number.MAX_SAFE_INTEGER) / 8n) {
      throw this.fail(`${what} has the shape [${sizes.join(', ')}], which is empty or too large`);
    }
    const shape = sizes.map(Number).reverse();
    const { cols, bytes } = type.block;
    if (Number(sizes[0]) % cols !== 0) {
      throw this.fail(
        `${what} has rows of ${sizes[0]} elements; of type ${type.name} it must be a multiple of ${cols}`,
      );
    }
    return { name, type: type.name, shape, numBytes: (Number(numElements) / cols) * bytes };
  }

  private refuseOverlaps(tensors: readonly GgufTensor[]): void {
    const inOrder = [...tensors].sort((a, b) => a.offset - b.offset);
    for (let i = 1; i < inOrder.length; i++) {
      const [before, after] = [inOrder[i - 1], inOrder[i]];
      if (after.offset >= before.offset + before.numBytes) continue;
      throw this.fail(
        `tensor ${show(after.name)}: its data, from byte ${after.offset}, overlap those of tensor ` +
          `${show(before.name)}, up to byte ${before.offset + before.numBytes}`,
      );
    }
  }
}
