import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { LLM, SamplingParams } from '../../lib';
import { CheckpointError, UnsupportedModelError } from '../../lib/errors';
import { type ModelSpec, native } from '../../lib/native';
import { ParameterNames } from '../../lib/model/parameterNames';
import { readTensorTable } from '../../lib/model/safetensors';
import { readQuantization, schemesOf, weightFormats } from '../../lib/model/quantization';
import { readModel } from '../support/modelSpec';
import { fileOf } from '../worker/safetensors';

const FILE = '/checkpoint/config.json';
const FP8 = path.join(__dirname, '..', 'golden', 'checkpoints', 'qwen3-fp8');
const PLAIN = path.join(__dirname, '..', 'golden', 'checkpoints', 'qwen3');

const fp8 = { quant_method: 'fp8', fmt: 'e4m3', weight_block_size: [128, 128] };

describe('readQuantization', () => {
  it('finds none where config.json has none', () => {
    expect([readQuantization(FILE, undefined), readQuantization(FILE, null)]).toEqual([null, null]);
  });

  it('reads the block size of an fp8 checkpoint', () => {
    expect(readQuantization(FILE, fp8)).toMatchObject({
      method: 'fp8',
      schemes: [{ type: 'float8_e4m3', block: [128, 128], tensors: 'plain' }],
    });
  });

  it.each<[object, RegExp]>([
    [{ quant_method: 'bitsandbytes' }, /quant_method 'bitsandbytes' is not supported/],
    [{}, /quant_method undefined is not supported/],
    [{ ...fp8, fmt: 'e5m2' }, /fmt 'e5m2' is not supported; only 'e4m3' is/],
    [{ ...fp8, activation_scheme: 'none' }, /activation_scheme 'none' is not supported/],
  ])('refuses %j by name', (given, message) => {
    expect(() => readQuantization(FILE, given)).toThrow(UnsupportedModelError);
    expect(() => readQuantization(FILE, given)).toThrow(message);
  });

  it.each<[object]>([
    [{ ...fp8, weight_block_size: [128] }],
    [{ ...fp8, weight_block_size: [0, 128] }],
    [{ ...fp8, weight_block_size: '128' }],
    [{ ...fp8, fmt: 4 }],
  ])('refuses %j as wrong', (given) => {
    expect(() => readQuantization(FILE, given)).toThrow(CheckpointError);
  });
});

describe('weightFormats', () => {
  it('has the modules whose tensors are in fp8', async () => {
    const { spec } = await readModel(FP8);
    const modules = Object.keys(spec.weightFormats);
    // Two layers of q, k, v, o, gate, up and down, and one o that the checkpoint keeps in bfloat16.
    expect(modules).toHaveLength(13);
    expect(modules).not.toContain('layers.1.attention.o');
    expect(spec.weightFormats['layers.0.attention.o']).toEqual({
      type: 'float8_e4m3',
      scaleRows: 48,
      scaleCols: 24,
      hasZeros: false,
      isOrdered: false,
      roundsInput: true,
    });
  });

  it('without files has every linear layer but the head and the routers', async () => {
    const moe = await readModel(path.join(FP8, '..', 'qwen3-moe'));
    const declared = native().declareParameters(moe.spec, 0, 1);
    const names = new ParameterNames(moe.family, moe.table, false);
    const schemes = await schemesOf(readQuantization(FILE, fp8), declared, names, false);
    const modules = Object.keys(weightFormats(schemes, declared));
    expect(modules).toContain('layers.0.experts.down');
    expect(modules.filter((name) => /head|router|norm|embedding/i.test(name))).toEqual([]);
  });
});

describe('a checkpoint in fp8', () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), 'uniproc-fp8-'));
  });
  afterEach(() => rm(folder, { recursive: true }));

  const create = (model: string, loadFormat: 'auto' | 'dummy') =>
    LLM.create({ model, loadFormat, skipTokenizerInit: true, kvCacheMemoryBytes: 2 ** 22 });

  it('is refused by its tensor where config.json does not say how it is scaled', async () => {
    await cp(FP8, folder, { recursive: true });
    const file = path.join(folder, 'config.json');
    const config = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>;
    delete config.quantization_config;
    await writeFile(file, JSON.stringify(config));
    await expect(create(folder, 'auto')).rejects.toThrow(
      /q_proj.weight has dtype F8_E4M3.*quantization_config/,
    );
  });

  interface Stored {
    dtype: string;
    shape: number[];
    data: Buffer;
  }

  /** A copy of the golden checkpoint whose tensors `change` has had its way with. */
  async function withTensors(change: (tensors: Map<string, Stored>) => void): Promise<string> {
    await cp(FP8, folder, { recursive: true });
    const file = path.join(folder, 'model.safetensors');
    const bytes = await readFile(file);
    const { files, tensors } = await readTensorTable(folder);
    expect(files).toHaveLength(1);
    const stored = new Map(
      [...tensors].map(([name, { dtype, shape, offset, numBytes }]): [string, Stored] => [
        name,
        { dtype, shape, data: bytes.subarray(offset, offset + numBytes) },
      ]),
    );
    change(stored);
    const empty = fileOf(Object.fromEntries(stored));
    const dataStart = 8 + Number(empty.readBigUInt64LE());
    const data = [...stored.values()].map((tensor) => tensor.data);
    await writeFile(file, Buffer.concat([empty.subarray(0, dataStart), ...data]));
    return folder;
  }

  const ATTENTION = 'model.layers.0.self_attn';
  /** As many elements in float32 or bfloat16, all zero. */
  const zeros = (dtype: 'F32' | 'BF16', shape: number[]): Stored => ({
    dtype,
    shape,
    data: Buffer.alloc(shape.reduce((a, b) => a * b, dtype === 'F32' ? 4 : 2)),
  });
  const get = (tensors: Map<string, Stored>, name: string) =>
    tensors.get(name) ?? { dtype: '', shape: [], data: Buffer.alloc(0) };

  it.each<[string, (tensors: Map<string, Stored>) => void, RegExp]>([
    [
      'scales that are missing',
      (tensors) => tensors.delete(`${ATTENTION}.k_proj.weight_scale_inv`),
      /tensor model\.layers\.0\.self_attn\.k_proj\.weight_scale_inv is missing/,
    ],
    [
      'scales of another shape',
      (tensors) => tensors.set(`${ATTENTION}.k_proj.weight_scale_inv`, zeros('F32', [1, 1])),
      /k_proj\.weight_scale_inv has shape \[ 1, 1 \].*ceil\(num_key_value_heads \* head_dim \/ 48\) \d+, ceil\(hidden_size \/ 24\) \d+/,
    ],
    [
      'one of three matrices that share one weight',
      (tensors) => {
        const name = `${ATTENTION}.k_proj.weight`;
        tensors.set(name, zeros('BF16', get(tensors, name).shape));
        tensors.delete(`${name}_scale_inv`);
      },
      /q_proj\.weight has dtype F8_E4M3 and tensor \S+k_proj\.weight BF16; they share one weight/,
    ],
    [
      'scales of a matrix in bfloat16',
      (tensors) =>
        tensors.set('model.layers.1.self_attn.o_proj.weight_scale_inv', zeros('BF16', [1, 1])),
      /o_proj\.weight_scale_inv is not part of the model.*only quantized matrices have it/,
    ],
    [
      'an embedding',
      (tensors) => {
        const { shape } = get(tensors, 'model.embed_tokens.weight');
        const data = Buffer.alloc(shape[0] * shape[1]);
        tensors.set('model.embed_tokens.weight', { dtype: 'F8_E4M3', shape, data });
      },
      /embed_tokens\.weight has dtype F8_E4M3; it must be F32, F16 or BF16/,
    ],
  ])('is refused by name for %s', async (_, change, message) => {
    const created = create(await withTensors(change), 'auto');
    await expect(created).rejects.toThrow(CheckpointError);
    await expect(created).rejects.toThrow(message);
  });

  const generate = async (llm: LLM) => {
    const params = new SamplingParams({ maxTokens: 8, ignoreEos: true, logprobs: 1 });
    const [{ outputs }] = await llm.generate([{ promptTokenIds: [1, 2, 3] }], params);
    return outputs;
  };

  it('gives the same with scales in float32 as in bfloat16', async () => {
    const results = [];
    for (const dtype of ['F32', 'BF16'] as const) {
      const model = await withTensors((tensors) => {
        for (const [name, { shape, data }] of tensors) {
          if (!name.endsWith('_scale_inv')) continue;
          const rounded = zeros(dtype, shape);
          // The upper half of a float32 is a bfloat16.
          for (let i = 0; i < data.length / 4; i++) {
            const upper = data.readUInt16LE(4 * i + 2);
            rounded.data.writeUInt16LE(upper, dtype === 'F32' ? 4 * i + 2 : 2 * i);
          }
          tensors.set(name, rounded);
        }
      });
      const llm = await create(model, 'auto');
      const [{ tokenIds, logprobs }] = await generate(llm).finally(() => llm.shutdown());
      results.push({ tokenIds, logprobs: logprobs?.map((position) => [...position]) });
    }
    expect(results[1]).toEqual(results[0]);
  });

  it('unties a head in fp8 from the embedding', async () => {
    const model = await withTensors((tensors) => {
      const { shape } = get(tensors, 'model.embed_tokens.weight');
      const data = Buffer.alloc(shape[0] * shape[1]);
      tensors.set('lm_head.weight', { dtype: 'F8_E4M3', shape, data });
      const blocks = [Math.ceil(shape[0] / 48), Math.ceil(shape[1] / 24)];
      tensors.set('lm_head.weight_scale_inv', zeros('F32', blocks));
    });
    const file = path.join(folder, 'config.json');
    const config = JSON.parse(await readFile(file, 'utf8')) as object;
    await writeFile(file, JSON.stringify({ ...config, tie_word_embeddings: true }));
    const llm = await create(model, 'auto');
    const [{ logprobs }] = await generate(llm).finally(() => llm.shutdown());
    // The head is all zeros: each token of the vocabulary is as likely as the others.
    const all = (logprobs ?? []).flatMap((position) => [...position.values()]);
    const { vocab_size: vocabSize } = config as { vocab_size: number };
    for (const { logprob } of all) expect(logprob).toBeCloseTo(-Math.log(vocabSize), 4);
  });

  it('is refused by name for a scale that is not finite', async () => {
    const model = await withTensors((tensors) =>
      get(tensors, `${ATTENTION}.o_proj.weight_scale_inv`).data.fill(0xff),
    );
    const created = create(model, 'auto');
    await expect(created).rejects.toThrow(CheckpointError);
    await expect(created).rejects.toThrow(/layers\.0\.attention\.o\.scales has the scale -?nan/);
  });

  it.each([FP8, PLAIN])('generates from random weights in the shape of %s', async (model) => {
    const llm = await create(model, 'dummy');
    try {
      const [{ outputs }] = await llm.generate(
        [{ promptTokenIds: [1, 2, 3] }],
        new SamplingParams({ maxTokens: 4, ignoreEos: true, logprobs: 0 }),
      );
      expect(outputs[0].tokenIds).toHaveLength(4);
      for (const position of outputs[0].logprobs ?? []) {
        for (const { logprob } of position.values()) expect(logprob).toBeLessThan(0);
      }
    } finally {
      await llm.shutdown();
    }
  });
});

it('experts in one tensor cannot be quantized while they are loaded', async () => {
  const created = LLM.create({
    model: path.join(FP8, '..', 'gpt-oss'),
    skipTokenizerInit: true,
    quantization: 'fp8',
  });
  await expect(created).rejects.toThrow(UnsupportedModelError);
  await expect(created).rejects.toThrow(/stacks the experts.*leave out the option quantization/);
});

it('a quantized model takes no option quantization', async () => {
  const created = LLM.create({ model: FP8, skipTokenizerInit: true, quantization: 'int4' });
  await expect(created).rejects.toThrow(/quantization is 'int4', but.*quantized already, by fp8/);
});

describe('the shares of scales', () => {
  it.each([1, 2, 4])('cover each rank its blocks, of %i ranks', async (worldSize) => {
    const { spec } = await readModel(FP8);
    const declared = (rank: number, of: ModelSpec) =>
      native().declareParameters(of, rank, worldSize);
    for (let rank = 0; rank < worldSize; rank++) {
      const parameters = declared(rank, spec);
      for (const [i, scales] of parameters.entries()) {
        if (scales.part !== 'scales') continue;
        const matrix = parameters[i - 1];
        scales.shape.forEach(({ size, first, count }, d) => {
          const block = d === 0 ? 48 : 24;
          const { size: elements, first: from, count: held } = matrix.shape[d];
          expect(size).toBe(Math.ceil(elements / block));
          expect(first).toBe(Math.floor(from / block));
          expect(first + count).toBe(Math.ceil((from + held) / block));
        });
      }
    }
  });
});
