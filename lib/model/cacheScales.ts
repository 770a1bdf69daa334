/** Scales of an fp8 KV cache, which a checkpoint may hold for each layer. */
import { open } from 'node:fs/promises';
import { reasonOf } from '../config/jsonFile';
import { CheckpointError, UnsupportedModelError } from '../errors';
import type { Family } from './families/family';
import { readBytes, type TensorEntry, type TensorTable } from './safetensors';
import type { Fp8CacheSpec } from './spec';

/** Of keys ('k') or values ('v') beside a layer's attention: each spelling that vLLM knows. */
const spellings = (part: 'k' | 'v') => [
  `${part}_scale`,
  `attn.${part}_scale`,
  `${part}_proj.${part}_scale`,
  `qkv_proj.${part}_scale`,
  `${part}_proj.output_scale`,
  'kv_scale',
];

/** Of each dtype that a scale may have. */
const DECODERS: Partial<Record<TensorEntry['dtype'], (bytes: Buffer) => number>> = {
  F32: (bytes) => bytes.readFloatLE(),
  BF16: (bytes) => Buffer.from([0, 0, bytes[0], bytes[1]]).readFloatLE(),
  F16: (bytes) => {
    const bits = bytes.readUInt16LE();
    const [exponent, fraction] = [(bits >> 10) & 0x1f, bits & 0x3ff];
    const size =
      exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    return exponent === 0x1f ? NaN : bits & 0x8000 ? -size : size;
  },
};

/**
 * The scales in the files. Without one, 1: an element of e4m3 has the same relative error from 2^-6 to
 * 448, whatever its scale. With one of the two, both have it, as in vLLM. Rejects with CheckpointError
 * for a scale that is not a positive number, and UnsupportedModelError for scales by head.
 */
export async function readCacheScales(
  { modules }: Family,
  table: TensorTable,
  numLayers: number,
): Promise<Fp8CacheSpec> {
  const keys = modules['attention.k'];
  const attention = keys.slice(0, keys.lastIndexOf('.'));
  const spec: Fp8CacheSpec = { keyScales: [], valueScales: [] };
  for (let layer = 0; layer < numLayers; layer++) {
    const of = async (part: 'k' | 'v') => {
      const names = spellings(part).map((name) => `${attention}.${name}`);
      const name = names
        .map((each) => each.replace('{layer}', `${layer}`))
        .find((each) => table.tensors.has(each));
      return name === undefined ? null : readScale(table, name);
    };
    const [key, value] = [await of('k'), await of('v')];
    spec.keyScales.push(key ?? value ?? 1);
    spec.valueScales.push(value ?? key ?? 1);
  }
  return spec;
}

async function readScale({ files, tensors }: TensorTable, name: string): Promise<number> {
  const { dtype, shape, file, offset, numBytes } = tensors.get(name) as TensorEntry;
  const path = files[file];
  if (shape.some((size) => size !== 1)) {
    throw new UnsupportedModelError(
      path,
      `tensor ${name} has shape [${shape.join(', ')}]; only one scale for all heads is supported`,
    );
  }
  const decode = DECODERS[dtype];
  if (!decode) {
    throw new CheckpointError(
      path,
      `tensor ${name} has dtype ${dtype}; it must be F32, F16 or BF16`,
    );
  }
  const handle = await open(path, 'r').catch((cause: unknown) => {
    throw new CheckpointError(path, `it cannot be read: ${reasonOf(cause)}`, { cause });
  });
  try {
    const scale = decode(await readBytes(handle, path, offset, numBytes));
    if (scale > 0 && scale < Infinity) return scale;
    throw new CheckpointError(path, `tensor ${name} is ${scale}; it must be a positive number`);
  } finally {
    await handle.close();
  }
}
