import path from 'node:path';
import { createUniprocConfig, type EngineArgs } from '../../lib/config/engineArgs';
import { folderWith } from '../support/folder';
import { LLAMA, rejection } from '../model/checkpointFolder';

class TestWorker {
  readonly device = null;
}

/** A Llama checkpoint with additional keys in config.json and generation_config.json. */
async function llama(keys: object = {}, generation?: object): Promise<string> {
  return folderWith({
    'config.json': { ...LLAMA, ...keys },
    ...(generation && { 'generation_config.json': generation }),
  });
}

async function complaint(args: unknown): Promise<string> {
  const error = await rejection(createUniprocConfig(args as EngineArgs));
  expect(error.code).toBe('CONFIG_INVALID');
  return error.message;
}

function expectDeeplyFrozen(value: unknown): void {
  if (typeof value !== 'object' || value === null) return;
  expect(Object.isFrozen(value)).toBe(true);
  Object.values(value).forEach(expectDeeplyFrozen);
}

describe('createUniprocConfig', () => {
  it('has defaults for all but the model', async () => {
    const model = await llama();
    expect(await createUniprocConfig({ model })).toMatchObject({
      model: {
        path: model,
        transformer: { architecture: 'LlamaForCausalLM' },
        generation: {},
        dtype: 'float32',
        maxModelLen: 512,
        seed: 0,
        tokenizer: model,
        skipTokenizerInit: false,
        enforceEager: false,
        maxLogprobs: 20,
      },
      load: { loadFormat: 'auto' },
      cache: { blockSize: 16, memoryUtilization: null, kvCacheMemoryBytes: null },
      scheduler: {
        maxNumSeqs: 64,
        maxNumBatchedTokens: 2048,
        maxQueuedRequests: null,
        asyncScheduling: true,
      },
      parallel: {
        tensorParallelSize: 1,
        distributedExecutorBackend: 'uni',
        distributedTimeoutMs: 300_000,
        disableCustomAllReduce: false,
        workerCls: null,
        workerExtensionCls: null,
      },
      device: { kind: 'cpu', name: 'cpu', index: null },
    });
  });

  it('maps every option to its field', async () => {
    const model = await llama();
    const workerExtensionCls = { module: './extension.js', export: 'Extension' };
    const config = await createUniprocConfig({
      model,
      device: 'cuda:3',
      dtype: 'bfloat16',
      maxModelLen: 100,
      blockSize: 32,
      memoryUtilization: 0.5,
      kvCacheMemoryBytes: 1 << 20,
      maxNumSeqs: 8,
      maxNumBatchedTokens: 128,
      maxQueuedRequests: 40,
      asyncScheduling: false,
      enforceEager: true,
      loadFormat: 'dummy',
      seed: -5,
      tensorParallelSize: 2,
      distributedExecutorBackend: 'external_launcher',
      distributedTimeoutMs: 5000,
      disableCustomAllReduce: true,
      workerCls: TestWorker,
      workerExtensionCls,
      tokenizer: 'models/other',
      skipTokenizerInit: true,
    });
    expect(config).toMatchObject({
      model: {
        dtype: 'bfloat16',
        maxModelLen: 100,
        seed: -5,
        tokenizer: path.resolve('models/other'),
        skipTokenizerInit: true,
        enforceEager: true,
      },
      load: { loadFormat: 'dummy' },
      cache: { blockSize: 32, memoryUtilization: 0.5, kvCacheMemoryBytes: 1 << 20 },
      scheduler: {
        maxNumSeqs: 8,
        maxNumBatchedTokens: 128,
        maxQueuedRequests: 40,
        asyncScheduling: false,
      },
      parallel: {
        tensorParallelSize: 2,
        distributedExecutorBackend: 'external_launcher',
        distributedTimeoutMs: 5000,
        disableCustomAllReduce: true,
        workerExtensionCls,
      },
      device: { kind: 'cuda', name: 'cuda:3', index: 3 },
    });
    expect(config.parallel.workerCls).toBe(TestWorker);
  });

  it("is deeply frozen, but does not freeze the user's classes", async () => {
    const distributedExecutorBackend = { module: './backend.js', export: 'Backend' };
    const workerExtensionCls = { module: './extension.js', export: 'Extension' };
    const config = await createUniprocConfig({
      model: await llama({ eos_token_id: [1, 2] }),
      distributedExecutorBackend,
      workerCls: TestWorker,
      workerExtensionCls,
    });
    const { parallel, ...sections } = config;
    Object.values(sections).forEach(expectDeeplyFrozen);
    expect(Object.isFrozen(config)).toBe(true);
    expect(Object.isFrozen(parallel)).toBe(true);
    for (const owned of [TestWorker, distributedExecutorBackend, workerExtensionCls]) {
      expect(Object.isFrozen(owned)).toBe(false);
    }
  });

  it.each([
    ['cpu', { kind: 'cpu', name: 'cpu', index: null }],
    ['cuda', { kind: 'cuda', name: 'cuda', index: null }],
    ['cuda:0', { kind: 'cuda', name: 'cuda:0', index: 0 }],
    ['cuda:12', { kind: 'cuda', name: 'cuda:12', index: 12 }],
  ])('reads the device %s', async (device, expected) => {
    expect((await createUniprocConfig({ model: await llama(), device })).device).toEqual(expected);
  });

  it.each(['float32', 'float16', 'bfloat16'] as const)(
    "takes %s from the checkpoint for 'auto'",
    async (dtype) => {
      const model = await llama({ torch_dtype: dtype });
      expect((await createUniprocConfig({ model, dtype: 'auto' })).model.dtype).toBe(dtype);
    },
  );

  it("defaults maxModelLen to at most 8192 on a CPU and to the model's length on CUDA", async () => {
    const model = await llama({ max_position_embeddings: 131072 });
    const length = async (args: EngineArgs) =>
      (await createUniprocConfig({ model, ...args })).model.maxModelLen;
    expect(await length({})).toBe(8192);
    expect(await length({ device: 'cuda' })).toBe(131072);
    expect(await length({ maxModelLen: 100000 })).toBe(100000);
  });

  it('defaults to larger batches on CUDA', async () => {
    const { scheduler } = await createUniprocConfig({ model: await llama(), device: 'cuda' });
    expect(scheduler).toMatchObject({ maxNumSeqs: 256, maxNumBatchedTokens: 8192 });
  });

  it("fits a default to the user's option", async () => {
    const model = await llama();
    const many = await createUniprocConfig({ model, maxNumSeqs: 4000 });
    expect(many.scheduler.maxNumBatchedTokens).toBe(4000);
    const few = await createUniprocConfig({ model, maxNumBatchedTokens: 32 });
    expect(few.scheduler.maxNumSeqs).toBe(32);
  });

  it("reads generation_config.json's defaults", async () => {
    const model = await llama({}, { temperature: 0.6, eos_token_id: [7, 8] });
    const config = await createUniprocConfig({ model });
    expect(config.model.generation).toEqual({ temperature: 0.6 });
  });

  it("defaults to the package's model", async () => {
    const { model } = await createUniprocConfig();
    expect(model.path).toBe(path.join(__dirname, '..', '..', 'models', 'stories'));
    expect(model.transformer.architecture).toBe('LlamaForCausalLM');
  });

  it('resolves a relative path against the working directory', async () => {
    const model = await llama();
    const config = await createUniprocConfig({ model: path.relative(process.cwd(), model) });
    expect(config.model.path).toBe(model);
  });

  it('reports a missing folder', async () => {
    const error = await rejection(createUniprocConfig({ model: '/no/such/model' }));
    expect(error.code).toBe('CHECKPOINT_INVALID');
    expect(error.message).toContain('the folder /no/such/model does not exist');
  });

  it('refuses an unknown option and suggests a known one', async () => {
    expect(await complaint({ max_model_len: 5 })).toBe(
      'engine arguments: unknown option max_model_len; did you mean maxModelLen?',
    );
    expect(await complaint({ gpuMemoryUtilization: 0.9 })).toContain('memoryUtilization?');
    expect(await complaint({ tensorParalelSize: 2 })).toContain('tensorParallelSize?');
  });

  it.each([
    [{ model: 7 }, 'model is 7; it must be the path of a folder'],
    [{ model: '' }, "model is ''"],
    [{ device: 'gpu' }, "device is 'gpu'; it must be 'cpu', 'cuda' or 'cuda:N'"],
    [{ device: 'cuda:x' }, "device is 'cuda:x'"],
    [{ device: 'cpu:0' }, "device is 'cpu:0'"],
    [{ dtype: 'int8' }, "dtype is 'int8'; it must be 'auto', 'float32', 'float16' or 'bfloat16'"],
    [
      { kvCacheDtype: 'fp8_e5m2' },
      "kvCacheDtype is 'fp8_e5m2'; it must be 'auto' or 'fp8', which is fp8_e4m3",
    ],
    [{ maxModelLen: 0 }, 'maxModelLen is 0; it must be an integer from 2 to 2147483647'],
    [{ maxModelLen: '2048' }, "maxModelLen is '2048'"],
    [{ blockSize: 16.5 }, 'blockSize is 16.5; it must be an integer from 1 to 256'],
    [
      { memoryUtilization: 1.5 },
      'memoryUtilization is 1.5; it must be a number above 0 and up to 1',
    ],
    [{ memoryUtilization: 0 }, 'memoryUtilization is 0'],
    [{ kvCacheMemoryBytes: -1 }, 'kvCacheMemoryBytes is -1'],
    [{ maxNumSeqs: 0 }, 'maxNumSeqs is 0'],
    [{ maxQueuedRequests: 0 }, 'maxQueuedRequests is 0'],
    [{ maxNumBatchedTokens: 1e10 }, 'maxNumBatchedTokens is 10000000000'],
    [{ asyncScheduling: 'yes' }, "asyncScheduling is 'yes'; it must be true or false"],
    [{ enforceEager: 1 }, 'enforceEager is 1'],
    [{ loadFormat: 'gguf' }, "loadFormat is 'gguf'; it must be 'auto' or 'dummy'"],
    [{ seed: 1.5 }, 'seed is 1.5'],
    [{ tensorParallelSize: 0 }, 'tensorParallelSize is 0'],
    [{ distributedTimeoutMs: 0 }, 'distributedTimeoutMs is 0; it must be an integer from 1 to'],
    [{ distributedTimeoutMs: 2 ** 31 }, 'distributedTimeoutMs is 2147483648'],
    [{ disableCustomAllReduce: 1 }, 'disableCustomAllReduce is 1'],
    [{ workerCls: 'Worker' }, "workerCls is 'Worker'; it must be a class or { module, export }"],
    [{ workerExtensionCls: { module: 'x' } }, "workerExtensionCls is { module: 'x' }"],
    [{ skipTokenizerInit: 0 }, 'skipTokenizerInit is 0'],
    [null, 'expected an object, not null'],
    ['path', "expected an object, not 'path'"],
  ])('refuses %j', async (args, message) => {
    expect(await complaint(args)).toContain(message);
  });

  describe('refuses contradictions', () => {
    const kvHeads = { num_attention_heads: 12, num_key_value_heads: 3, head_dim: 16 };
    it.each([
      [
        'requests longer than the model',
        {},
        { maxModelLen: 513 },
        /maxModelLen is 513; it must be at most 512, the positions of the model in .*/,
      ],
      [
        'more requests than tokens in a step',
        {},
        { maxNumSeqs: 65, maxNumBatchedTokens: 64 },
        /maxNumBatchedTokens is 64; it must be at least maxNumSeqs, 65/,
      ],
      [
        'heads that do not divide among ranks',
        {},
        { tensorParallelSize: 3, distributedExecutorBackend: 'external_launcher' },
        /tensorParallelSize is 3; it must divide the model's numHeads, 4/,
      ],
      [
        'an intermediate size that does not',
        { intermediate_size: 98 },
        { tensorParallelSize: 4, distributedExecutorBackend: 'external_launcher' },
        /tensorParallelSize is 4; it must divide the model's intermediateSize, 98/,
      ],
      [
        'key heads that neither divide nor repeat',
        kvHeads,
        { tensorParallelSize: 2, distributedExecutorBackend: 'external_launcher' },
        /tensorParallelSize is 2; it must divide the model's numKvHeads, 3, or be a multiple/,
      ],
      [
        'several ranks in one process',
        {},
        { tensorParallelSize: 2 },
        /tensorParallelSize is 2, but distributedExecutorBackend 'uni' .*; use 'external_launcher'/,
      ],
      [
        'ranks without a seed',
        {},
        { tensorParallelSize: 2, distributedExecutorBackend: 'external_launcher' },
        /tensorParallelSize is 2, but seed is not set/,
      ],
    ])('%s', async (_, keys, args, message) => {
      expect(await complaint({ model: await llama(keys), ...args })).toMatch(message);
    });
  });

  it('allows several ranks to share a key head', async () => {
    const config = await createUniprocConfig({
      model: await llama(),
      tensorParallelSize: 4,
      distributedExecutorBackend: 'external_launcher',
      seed: 1,
    });
    expect(config.parallel.tensorParallelSize).toBe(4);
  });
});
