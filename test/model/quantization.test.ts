import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { LLM, SamplingParams } from '../../lib';
import { CheckpointError, UnsupportedModelError } from '../../lib/errors';
import { type ModelSpec, native } from '../../lib/native';
import { readQuantization, weightFormats } from '../../lib/model/quantization';
import { readModel } from '../support/modelSpec';

const FILE = '/checkpoint/config.json';
const FP8 = path.join(__dirname, '..', 'golden', 'checkpoints', 'qwen3-fp8');
const PLAIN = path.join(__dirname, '..', 'golden', 'checkpoints', 'qwen3');

const fp8 = { quant_method: 'fp8', fmt: 'e4m3', weight_block_size: [128, 128] };

describe('readQuantization', () => {
  it('finds none where config.json has none', () => {
    expect([readQuantization(FILE, undefined), readQuantization(FILE, null)]).toEqual([null, null]);
  });

  it('reads the block size of an fp8 checkpoint', () => {
    expect(readQuantization(FILE, fp8)).toEqual({ method: 'fp8', blockSize: [128, 128] });
  });

  it.each<[object, RegExp]>([
    [{ quant_method: 'awq' }, /quant_method 'awq' is not supported/],
    [{}, /quant_method undefined is not supported/],
    [{ ...fp8, fmt: 'e5m2' }, /fmt 'e5m2' is not supported; only 'e4m3' is/],
    [{ ...fp8, activation_scheme: 'static' }, /activation_scheme 'static' is not supported/],
    [{ ...fp8, weight_block_size: null }, /weight_block_size null is not supported/],
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
    });
  });

  it('without files has every linear layer but the head and the routers', async () => {
    const moe = await readModel(path.join(FP8, '..', 'qwen3-moe'));
    const declared = native().declareParameters(moe.spec, 0, 1);
    const formats = await weightFormats({ method: 'fp8', blockSize: [8, 8] }, declared, null);
    const modules = Object.keys(formats);
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
      /q_proj.weight has the dtype F8_E4M3.*quantization_config/,
    );
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
