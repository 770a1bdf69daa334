/**
 * What each weight format costs: the perplexity of the package's model on text of its corpus that it
 * was not trained on (test/golden/heldOut.json), in the format against bfloat16.
 */
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { readFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { type EngineArgs, LLM, SamplingParams } from '../lib';
import { readTensorTable } from '../lib/model/safetensors';
import { bfloat16ToNumber } from './native/ops/reference';
import { fileOf } from './worker/safetensors';

const MODEL = path.join(__dirname, '..', 'models', 'stories');
const { texts } = JSON.parse(
  readFileSync(path.join(__dirname, 'golden', 'heldOut.json'), 'utf8'),
) as { texts: number[][] };

/** Percent that docs/checkpoints.md states. */
const EIGHT_BITS = 0.1;
const FP8_CACHE = 0.1;
const FOUR_BITS = 0.5;

interface Stored {
  dtype: string;
  shape: number[];
  data: Buffer;
}
type Writer = (weight: Float32Array, rows: number, cols: number) => Record<string, Stored>;

const buffer = (array: Float32Array | Int32Array | Uint8Array | Int8Array) =>
  Buffer.from(array.buffer, array.byteOffset, array.byteLength);

/** The code of the nearest number of float8 E4M3 to one of at most 448. */
function float8Code(value: number): number {
  const size = Math.abs(value);
  const exponent = Math.max(-6, Math.floor(Math.log2(size)));
  // Numbers of one exponent are equidistant, and the codes beyond them follow.
  const code = (exponent + 6) * 8 + Math.round((size / 2 ** exponent) * 8);
  return code | (value < 0 ? 0x80 : 0);
}

/** A scale for each block of elements: the largest magnitude becomes `largest`. */
function scaled(dtype: 'F8_E4M3' | 'I8', [blockRows, blockCols]: [number, number]): Writer {
  return (weight, rows, cols) => {
    const [height, width] = [Math.min(blockRows, rows), Math.min(blockCols, cols)];
    const shape = [Math.ceil(rows / height), Math.ceil(cols / width)];
    const blockOf = (i: number) =>
      Math.floor(i / cols / height) * shape[1] + Math.floor((i % cols) / width);
    const scales = new Float32Array(shape[0] * shape[1]);
    const largest = dtype === 'I8' ? 127 : 448;
    weight.forEach((value, i) => {
      const block = blockOf(i);
      scales[block] = Math.max(scales[block], Math.abs(value) / largest);
    });
    const codes = new Uint8Array(rows * cols);
    weight.forEach((value, i) => {
      const ratio = value / scales[blockOf(i)];
      codes[i] = dtype === 'I8' ? Math.round(ratio) & 0xff : float8Code(ratio);
    });
    return {
      weight: { dtype, shape: [rows, cols], data: buffer(codes) },
      weight_scale: { dtype: 'F32', shape, data: buffer(scales) },
    };
  };
}

/** compressed-tensors' pack-quantized. */
function packed(group: number, isSymmetric: boolean): Writer {
  return (weight, rows, cols) => {
    const groups = cols / group;
    const scales = new Float32Array(rows * groups);
    const words = new Int32Array((rows * cols) / 8);
    const zeros = new Int32Array((rows * groups) / 8);
    for (let row = 0; row < rows; row++) {
      for (let g = 0; g < groups; g++) {
        const first = row * cols + g * group;
        const part = weight.subarray(first, first + group);
        const [low, high] = [Math.min(0, ...part), Math.max(0, ...part)];
        const scale = Math.fround(isSymmetric ? Math.max(-low, high) / 7.5 : (high - low) / 15);
        const zero = isSymmetric ? 8 : Math.round(-low / scale);
        scales[row * groups + g] = scale;
        zeros[(row >> 3) * groups + g] |= zero << (4 * (row % 8));
        part.forEach((value, i) => {
          const code = Math.min(15, Math.max(0, Math.round(value / scale) + zero));
          words[(first + i) >> 3] |= code << (4 * ((first + i) % 8));
        });
      }
    }
    return {
      weight_packed: { dtype: 'I32', shape: [rows, cols / 8], data: buffer(words) },
      weight_scale: { dtype: 'F32', shape: [rows, groups], data: buffer(scales) },
      ...(!isSymmetric && {
        weight_zero_point: { dtype: 'I32', shape: [rows / 8, groups], data: buffer(zeros) },
      }),
    };
  };
}

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), 'uniproc-format-'));
});
afterEach(() => rm(folder, { recursive: true }));

/** The model with the matrices of its linear layers in a format. */
async function inFormat(write: Writer, weights: object, format: string): Promise<string> {
  await cp(MODEL, folder, { recursive: true });
  const file = path.join(folder, 'model.safetensors');
  const bytes = await readFile(file);
  const { tensors } = await readTensorTable(folder);
  const stored: [string, Stored][] = [];
  for (const [name, { dtype, shape, offset, numBytes }] of tensors) {
    const data = bytes.subarray(offset, offset + numBytes);
    if (!name.endsWith('_proj.weight')) {
      stored.push([name, { dtype, shape, data }]);
      continue;
    }
    const elements = Float32Array.from({ length: numBytes / 2 }, (_, i) =>
      bfloat16ToNumber(data.readUInt16LE(2 * i)),
    );
    const module = name.slice(0, -'.weight'.length);
    for (const [suffix, part] of Object.entries(write(elements, shape[0], shape[1]))) {
      stored.push([`${module}.${suffix}`, part]);
    }
  }
  const empty = fileOf(Object.fromEntries(stored));
  const dataStart = 8 + Number(empty.readBigUInt64LE());
  const all = stored.map(([, { data }]) => data);
  await writeFile(file, Buffer.concat([empty.subarray(0, dataStart), ...all]));
  const config = JSON.parse(await readFile(path.join(folder, 'config.json'), 'utf8')) as object;
  const quantization = {
    quant_method: 'compressed-tensors',
    format,
    quantization_status: 'compressed',
    config_groups: { group_0: { targets: ['Linear'], weights: { symmetric: true, ...weights } } },
    ignore: ['lm_head'],
  };
  await writeFile(
    path.join(folder, 'config.json'),
    JSON.stringify({ ...config, quantization_config: quantization }),
  );
  return folder;
}

async function perplexity(args: EngineArgs): Promise<number> {
  const llm = await LLM.create({
    device: 'cpu',
    dtype: 'bfloat16',
    maxModelLen: 1024,
    kvCacheMemoryBytes: 2 ** 26,
    ...args,
  });
  try {
    const prompts = texts.map((promptTokenIds) => ({ promptTokenIds }));
    const params = new SamplingParams({ maxTokens: 1, promptLogprobs: 0 });
    const outputs = await llm.generate(prompts, params);
    const logprobs = outputs.flatMap(({ promptLogprobs, promptTokenIds }) =>
      (promptLogprobs ?? []).flatMap((each, i) => each?.get(promptTokenIds[i])?.logprob ?? []),
    );
    expect(logprobs).toHaveLength(texts.reduce((sum, { length }) => sum + length - 1, 0));
    return Math.exp(-logprobs.reduce((sum, each) => sum + each, 0) / logprobs.length);
  } finally {
    await llm.shutdown();
  }
}

describe('the perplexity of the stories model', () => {
  let inBFloat16: number;
  beforeAll(async () => {
    inBFloat16 = await perplexity({ model: MODEL });
  });

  /** Percent above bfloat16's. */
  const loss = async (args: EngineArgs) => 100 * ((await perplexity(args)) / inBFloat16 - 1);

  it.each<[string, Writer, object, string, number]>([
    [
      'fp8 by channel',
      scaled('F8_E4M3', [1, 1 << 20]),
      { num_bits: 8, type: 'float', strategy: 'channel' },
      'float-quantized',
      EIGHT_BITS,
    ],
    [
      'fp8 by block',
      scaled('F8_E4M3', [128, 128]),
      { num_bits: 8, type: 'float', strategy: 'block', block_structure: [128, 128] },
      'float-quantized',
      EIGHT_BITS,
    ],
    [
      'int8 by channel',
      scaled('I8', [1, 1 << 20]),
      { num_bits: 8, type: 'int', strategy: 'channel' },
      'int-quantized',
      EIGHT_BITS,
    ],
    [
      'int4 in groups of 32',
      packed(32, true),
      { num_bits: 4, type: 'int', strategy: 'group', group_size: 32 },
      'pack-quantized',
      FOUR_BITS,
    ],
    [
      'int4 in groups of 128',
      packed(128, true),
      { num_bits: 4, type: 'int', strategy: 'group', group_size: 128 },
      'pack-quantized',
      FOUR_BITS,
    ],
    [
      'int4 with zero points in groups of 128',
      packed(128, false),
      { num_bits: 4, type: 'int', strategy: 'group', group_size: 128, symmetric: false },
      'pack-quantized',
      FOUR_BITS,
    ],
  ])('in %s rises by less than the stated loss', async (_, write, weights, format, percent) => {
    expect(await loss({ model: await inFormat(write, weights, format) })).toBeLessThan(percent);
  });

  it('with keys and values in fp8 rises by less than the stated loss', async () => {
    const fp8 = await loss({ model: MODEL, kvCacheDtype: 'fp8' });
    expect(fp8).toBeLessThan(FP8_CACHE);
  });

  it.each([
    ['fp8' as const, EIGHT_BITS],
    ['int4' as const, FOUR_BITS],
  ])('quantized to %s while loading rises by less than %d %', async (quantization, percent) => {
    expect(await loss({ model: MODEL, quantization })).toBeLessThan(percent);
  });
});
