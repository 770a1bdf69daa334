/** Writes GGUF files (ggml's docs/gguf.md). */

export type Value =
  | { u8: number }
  | { u32: number }
  | { i32: number }
  | { u64: bigint }
  | { f32: number }
  | { bool: boolean }
  | { text: string }
  | { texts: readonly string[] }
  | { f32s: readonly number[] }
  | { i32s: readonly number[] }
  | { bools: readonly boolean[] };

export interface Tensor {
  /** The number of its type. */
  type: number;
  /** Row-major, as in checkpoints; the file has the dimensions in the other order. */
  shape: readonly number[];
  data: Uint8Array;
  /** In place of the place behind the tensors before. */
  offset?: bigint;
}

export const F32 = 0;
export const F16 = 1;
export const BF16 = 30;

export interface GgufFile {
  metadata?: Record<string, Value>;
  tensors?: Record<string, Tensor>;
  version?: number;
  alignment?: number;
}

export const uint32 = (value: number): Buffer => {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value >>> 0);
  return buffer;
};
export const uint64 = (value: bigint | number): Buffer => {
  const buffer = Buffer.alloc(8);
  buffer.writeBigUInt64LE(BigInt(value));
  return buffer;
};
const float32 = (value: number) => {
  const buffer = Buffer.alloc(4);
  buffer.writeFloatLE(value);
  return buffer;
};
export const text = (value: string): Buffer => {
  const bytes = Buffer.from(value);
  return Buffer.concat([uint64(bytes.length), bytes]);
};
const array = (type: number, items: readonly Buffer[]) =>
  Buffer.concat([uint32(9), uint32(type), uint64(items.length), ...items]);
const bool = (value: boolean) => Buffer.from([value ? 1 : 0]);

export function encode(value: Value): Buffer {
  if ('u8' in value) return Buffer.concat([uint32(0), Buffer.from([value.u8])]);
  if ('u32' in value) return Buffer.concat([uint32(4), uint32(value.u32)]);
  if ('i32' in value) return Buffer.concat([uint32(5), uint32(value.i32)]);
  if ('u64' in value) return Buffer.concat([uint32(10), uint64(value.u64)]);
  if ('f32' in value) return Buffer.concat([uint32(6), float32(value.f32)]);
  if ('bool' in value) return Buffer.concat([uint32(7), bool(value.bool)]);
  if ('text' in value) return Buffer.concat([uint32(8), text(value.text)]);
  if ('texts' in value) return array(8, value.texts.map(text));
  if ('f32s' in value) return array(6, value.f32s.map(float32));
  if ('i32s' in value) return array(5, value.i32s.map(uint32));
  return array(7, value.bools.map(bool));
}

/** The bytes of a file. */
export function gguf({ metadata = {}, tensors = {}, version = 3, alignment }: GgufFile): Buffer {
  const align = alignment ?? 32;
  const padded = (length: number) => Math.ceil(length / align) * align;
  const entries = Object.entries({
    ...metadata,
    ...(alignment !== undefined && { 'general.alignment': { u32: alignment } }),
  });
  const all = Object.entries(tensors);
  let end = 0;
  const offsets = all.map(([, { data, offset }]) => {
    const own = offset ?? BigInt(end);
    end = padded(end + data.length);
    return own;
  });
  const header = Buffer.concat([
    Buffer.from('GGUF'),
    uint32(version),
    uint64(all.length),
    uint64(entries.length),
    ...entries.flatMap(([key, value]) => [text(key), encode(value)]),
    ...all.flatMap(([name, { type, shape }], i) => [
      text(name),
      uint32(shape.length),
      ...[...shape].reverse().map(uint64),
      uint32(type),
      uint64(offsets[i]),
    ]),
  ]);
  const pad = (bytes: Uint8Array) =>
    Buffer.concat([bytes, Buffer.alloc(padded(bytes.length) - bytes.length)]);
  return Buffer.concat([pad(header), ...all.map(([, { data }]) => pad(data))]);
}
