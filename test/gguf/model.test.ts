/** Models in GGUF's blocks, against the same model in float32, whose elements the test computes. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { ConfigError, type EngineArgs, LLM, UnsupportedModelError } from '../../lib';
import type { BlockType } from '../../lib/contract/workerSummary';
import * as formats from '../../lib/model/gguf/formats';
import { F32 } from '../support/ggufFile';
import { everyType, quantizedModel } from '../support/ggufQuantized';
import { runLLMs } from '../support/tensorParallel';

const folder = mkdtempSync(path.join(os.tmpdir(), 'uniproc-test-'));
afterAll(() => rmSync(folder, { recursive: true }));

const PROMPTS = [
  [1, 5, 9, 33, 2, 71],
  [90, 3],
  Array.from({ length: 40 }, (_, i) => (i * 37) % 96),
];

type Model = ReturnType<typeof quantizedModel>;

function write({ file, config, safetensors }: Model, name: string) {
  const [own, twin] = [path.join(folder, `${name}.gguf`), path.join(folder, name)];
  writeFileSync(own, file);
  mkdirSync(twin);
  writeFileSync(path.join(twin, 'config.json'), JSON.stringify(config));
  writeFileSync(path.join(twin, 'model.safetensors'), safetensors());
  return { own, twin };
}

const create = (model: string, args: EngineArgs = {}) =>
  LLM.create({
    model,
    device: 'cpu',
    dtype: 'float32',
    maxModelLen: 128,
    kvCacheMemoryBytes: 2 ** 23,
    skipTokenizerInit: true,
    ...args,
  });

async function generate(model: string, args?: EngineArgs) {
  const llm = await create(model, args);
  try {
    const outputs = await llm.generate(
      PROMPTS.map((promptTokenIds) => ({ promptTokenIds })),
      { temperature: 0, maxTokens: 12, logprobs: 1, ignoreEos: true },
    );
    return outputs.map(({ outputs: [{ tokenIds, logprobs }] }) => ({
      tokenIds,
      logprobs: tokenIds.map((id, i) => logprobs?.[i].get(id)?.logprob ?? NaN),
    }));
  } finally {
    await llm.shutdown();
  }
}

type Generated = Awaited<ReturnType<typeof generate>>;

function expectSame(own: Generated, twin: Generated, digits = 3): void {
  own.forEach(({ tokenIds, logprobs }, i) => {
    expect(tokenIds).toEqual(twin[i].tokenIds);
    logprobs.forEach((logprob, at) => expect(logprob).toBeCloseTo(twin[i].logprobs[at], digits));
  });
}

/** Of types that the halves of a row still have whole blocks of. */
const divisible = (tensor: string): BlockType =>
  tensor === 'attn_output' ? 'q8_0' : tensor === 'ffn_down' ? 'q4_1' : 'q4_k';

describe('a model in GGUF', () => {
  it('of every type, mixed, has the tokens of its elements in float32', async () => {
    const { own, twin } = write(quantizedModel(everyType), 'every');
    expectSame(await generate(own), await generate(twin));
  });

  it('is divided among ranks where blocks allow it', async () => {
    const { own, twin } = write(quantizedModel(divisible), 'divisible');
    const program = `
      const llm = await createLLM({ model: ${JSON.stringify(own)}, skipTokenizerInit: true });
      const outputs = await llm.generate(
        ${JSON.stringify(PROMPTS)}.map((promptTokenIds) => ({ promptTokenIds })),
        { temperature: 0, maxTokens: 12, ignoreEos: true },
      );
      say(outputs.map(({ outputs: [{ tokenIds }] }) => [...tokenIds]));
      await llm.shutdown();`;
    const ranks = await runLLMs<number[][]>(program, 2);
    const expected = (await generate(twin)).map(({ tokenIds }) => [...tokenIds]);
    for (const [tokenIds] of ranks) expect(tokenIds).toEqual(expected);
  });

  it('is refused by the tensor where ranks would cut through blocks', async () => {
    const own = path.join(folder, 'blocks.gguf');
    writeFileSync(own, quantizedModel(() => 'q4_k').file);
    const program = `
      say(await errorOf(createLLM({ model: ${JSON.stringify(own)}, skipTokenizerInit: true })));`;
    for (const [error] of await runLLMs<{ code: string; message: string }>(program, 2)) {
      expect(error.code).toBe('MODEL_UNSUPPORTED');
      expect(error.message).toContain(
        'tensor blk.0.attn_output.weight has 256 columns in blocks of 256, which ranks cannot ' +
          'divide into 128; set tensorParallelSize to less',
      );
    }
  });

  it('keeps its blocks in memory', async () => {
    const model = quantizedModel(everyType);
    writeFileSync(path.join(folder, 'memory.gguf'), model.file);
    const llm = await create(path.join(folder, 'memory.gguf'));
    try {
      const { weightBytes, weightFormats } = llm.startup;
      expect(Number(weightBytes) - Number(weightFormats?.float32)).toBe(model.matrixBytes);
      expect(weightBytes).toBeLessThan(1.05 * model.file.length);
    } finally {
      await llm.shutdown();
    }
  });

  /** As for CUDA: repacked codes with scales beside them, and an embedding of the model's type. */
  it.each<[string, BlockType, BlockType]>([
    ['Q8_0', 'q8_0', 'q6_k'],
    ['Q4_0', 'q4_0', 'q8_0'],
  ])('of %s repacked has the same tokens', async (name, type, embedding) => {
    const model = quantizedModel((tensor) => (tensor === 'token_embd' ? embedding : type));
    const { own, twin } = write(model, `repacked ${name}`);
    const { ggufFormats } = formats;
    const spy = jest
      .spyOn(formats, 'ggufFormats')
      .mockImplementation((declared, names) => ggufFormats(declared, names, 'cuda'));
    try {
      expectSame(await generate(own), await generate(twin));
      const made = (await spy.mock.results[0].value) as Record<string, { type: string }>;
      expect(new Set(Object.values(made).map((format) => format.type))).toEqual(
        new Set([type === 'q8_0' ? 'int8' : 'uint4']),
      );
    } finally {
      spy.mockRestore();
    }
  });

  it.each<[string, BlockType, RegExp]>([
    ['another type', 'q4_k', /attn_q\.weight has the type Q4_K, which is not supported on CUDA/],
    [
      'mixed types',
      'q8_0',
      /attn_q\.weight has the type Q8_0 and tensor blk\.0\.attn_v\.weight Q4_0/,
    ],
  ])('of %s is refused on CUDA by the tensor', async (_, type, message) => {
    const model = quantizedModel((tensor) => (tensor === 'attn_v' ? 'q4_0' : type));
    const file = path.join(folder, 'cuda.gguf');
    writeFileSync(file, model.file);
    const { ggufFormats } = formats;
    const spy = jest
      .spyOn(formats, 'ggufFormats')
      .mockImplementation((declared, names) => ggufFormats(declared, names, 'cuda'));
    try {
      const creating = create(file);
      await expect(creating).rejects.toThrow(UnsupportedModelError);
      await expect(creating).rejects.toThrow(message);
    } finally {
      spy.mockRestore();
    }
  });

  const norm = { type: F32, shape: [256], data: new Uint8Array(1024) };
  it.each<[string, Parameters<typeof quantizedModel>[1], string, EngineArgs]>([
    [
      'an unknown architecture',
      { metadata: { 'general.architecture': { text: 'mamba' } } },
      "metadata 'general.architecture' is 'mamba', which is not supported; supported: llama",
      {},
    ],
    [
      'a tensor that is not a part of it',
      { tensors: { 'blk.0.attn_sub_norm.weight': norm } },
      'tensor blk.0.attn_sub_norm.weight is not part of the model that its metadata describe',
      {},
    ],
    [
      'a tensor of another shape',
      {
        tensors: { 'blk.1.ffn_norm.weight': { ...norm, shape: [128], data: new Uint8Array(512) } },
      },
      'tensor blk.1.ffn_norm.weight has shape [ 128 ]; its metadata require [ 256 ]: embedding_length 256',
      {},
    ],
    [
      'a key of another type',
      { metadata: { 'llama.block_count': { text: 'two' } } },
      "metadata 'llama.block_count' is 'two'; it must be a number",
      {},
    ],
    [
      'another number of layers',
      { metadata: { 'llama.block_count': { u32: 3 } } },
      'tensor blk.2.attn_norm.weight is missing',
      {},
    ],
    [
      'rope scaling of another type',
      {
        metadata: {
          'llama.rope.scaling.type': { text: 'new' },
          'llama.rope.scaling.factor': { f32: 2 },
        },
      },
      "metadata 'llama.rope.scaling.type' is 'new', which is not supported",
      {},
    ],
    [
      'rope scaling beside tensors of factors',
      {
        metadata: { 'llama.rope.scaling.factor': { f32: 2 } },
        tensors: {
          'rope_freqs.weight': { type: F32, shape: [32], data: new Uint8Array(128).fill(63) },
        },
      },
      "rope scaling 'linear' by 2 beside tensors of factors is not supported",
      {},
    ],
    [
      'short factors alone',
      {
        tensors: {
          'rope_factors_short.weight': { type: F32, shape: [32], data: new Uint8Array(128) },
        },
      },
      'tensor rope_factors_long.weight is missing',
      {},
    ],
    [
      'a key that its architecture ignores',
      { metadata: { 'llama.attn_logit_softcapping': { f32: 30 } } },
      "metadata 'llama.attn_logit_softcapping' is 30, which is not supported with architecture 'llama'",
      {},
    ],
    [
      'another scale of attention',
      { metadata: { 'llama.attention.scale': { f32: 0.5 } } },
      "metadata 'llama.attention.scale' is 0.5, which is not supported",
      {},
    ],
    [
      'an adapter',
      { metadata: { 'general.type': { text: 'adapter' } } },
      "metadata 'general.type' is 'adapter'; only models are supported",
      {},
    ],
    [
      'the option quantization',
      {},
      'is a GGUF file, whose types are kept',
      { quantization: 'int4' },
    ],
  ])('with %s is refused', async (_, changes, message, args) => {
    const file = path.join(folder, 'refused.gguf');
    writeFileSync(file, quantizedModel(everyType, changes).file);
    await expect(create(file, args)).rejects.toThrow(message);
    if (args.quantization) await expect(create(file, args)).rejects.toThrow(ConfigError);
  });

  it('is found in a folder without safetensors files', async () => {
    const only = path.join(folder, 'only');
    mkdirSync(only);
    const model = quantizedModel(everyType);
    writeFileSync(path.join(only, 'a.gguf'), model.file);
    writeFileSync(path.join(only, 'config.json'), '{}');
    const llm = await create(only);
    expect(llm.engine.config.model.path).toBe(path.join(only, 'a.gguf'));
    await llm.shutdown();
    writeFileSync(path.join(only, 'b.gguf'), model.file);
    rmSync(path.join(only, 'config.json'));
    await expect(create(only)).rejects.toThrow(
      'the folder holds 2 models as GGUF files (a.gguf, b.gguf); pass one of them',
    );
  });
});
