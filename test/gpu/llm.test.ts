/** The public face on a GPU: the tokens of transformers and of the CPU, the same ones every time. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import {
  type CreateArgs,
  LLM,
  OutOfMemoryError,
  type RequestOutput,
  SamplingParams,
} from '../../lib';
import { createUniprocConfig } from '../../lib/config/engineArgs';
import { UniProcExecutor } from '../../lib/executor/uniProcExecutor';
import { cudaOps } from '../native/ops/binding';

const reference = JSON.parse(
  readFileSync(path.join(__dirname, '..', 'golden', 'stories.json'), 'utf8'),
) as { prompts: { prompt: string; tokenIds: number[] }[] };
const prompts = reference.prompts.map(({ prompt }) => prompt);
const greedy = new SamplingParams({ temperature: 0, maxTokens: 64 });
const sampled = new SamplingParams({ temperature: 0.9, topP: 0.95, seed: 11, maxTokens: 64 });

const gpu = cudaOps();

const tokensOf = (outputs: RequestOutput[]) =>
  outputs.map(({ outputs: [{ tokenIds }] }) => tokenIds);

async function generate(args: CreateArgs, params: SamplingParams): Promise<number[][]> {
  const llm = await LLM.create({
    device: 'cuda',
    maxModelLen: 512,
    maxNumSeqs: 8,
    kvCacheMemoryBytes: 64 * 2 ** 20,
    ...args,
  });
  try {
    return tokensOf(await llm.generate(prompts, params));
  } finally {
    await llm.shutdown();
  }
}

test('a model in float32 gives what transformers gives', async () => {
  expect(await generate({ dtype: 'float32' }, greedy)).toEqual(
    reference.prompts.map(({ tokenIds }) => tokenIds),
  );
});

test('a model in float32 samples what the CPU samples', async () => {
  const onCpu = await generate({ device: 'cpu', dtype: 'float32' }, sampled);
  expect(await generate({ dtype: 'float32' }, sampled)).toEqual(onCpu);
});

describe.each(['float32', 'bfloat16', 'float16'] as const)('in %s', (dtype) => {
  test('the same requests give the same tokens, every time and with either scheduling', async () => {
    const once = await generate({ dtype }, sampled);
    expect(await generate({ dtype }, sampled)).toEqual(once);
    expect(await generate({ dtype, asyncScheduling: false }, sampled)).toEqual(once);
  });
});

test('the cache may take what the model leaves of the share of the GPU', async () => {
  const { total } = gpu.memory();
  for (const memoryUtilization of [undefined, 0.3]) {
    const config = await createUniprocConfig({
      device: 'cuda',
      maxModelLen: 512,
      memoryUtilization,
    });
    const executor = await UniProcExecutor.create<UniProcExecutor>(config);
    try {
      const [bytes] = await executor.determineAvailableMemory();
      const most = (memoryUtilization ?? 0.9) * total;
      expect(bytes).toBeLessThan(most);
      expect(bytes).toBeGreaterThan(most - 4 * 2 ** 30);
    } finally {
      await executor.shutdown();
    }
  }
});

test('too little memory is an error with the figures, and leaves the GPU as it was', async () => {
  const ops = cudaOps();
  // The cache of 256 requests of 1,024 tokens is 640 MiB.
  const rest = 400 * 2 ** 20;
  const hog = ops.allocate(Math.floor((ops.memory().free - rest) / 4), 'float32', 'a test');
  const { free } = ops.memory();
  const large = { maxModelLen: 1024, maxNumSeqs: 256, maxNumBatchedTokens: 2048 };
  const create = generate({ ...large, kvCacheMemoryBytes: 2 ** 30 }, greedy);
  await expect(create).rejects.toThrow(OutOfMemoryError);
  await expect(create).rejects.toThrow(/the KV cache: \d+ bytes .* GiB free of .* GiB/);
  expect(ops.memory().free).toBe(free);
  ops.release(hog);
  expect(await generate({ dtype: 'float32' }, greedy)).toEqual(
    reference.prompts.map(({ tokenIds }) => tokenIds),
  );
});

test('engines made and shut down keep no memory', async () => {
  await generate({}, greedy);
  const { free } = gpu.memory();
  for (let i = 0; i < 20; ++i) await generate({}, greedy);
  // The driver may give back more, in its own time, than the first engine did.
  expect(gpu.memory().free).toBeGreaterThanOrEqual(free);
});

test('a GPU is taken where no device is named', async () => {
  const llm = await LLM.create({ maxModelLen: 512, kvCacheMemoryBytes: 64 * 2 ** 20 });
  expect(llm.engine.config.device.name).toBe('cuda');
  await llm.shutdown();
});

test('CUDA graphs change nothing', async () => {
  const eager = await generate({ dtype: 'bfloat16', enforceEager: true }, sampled);
  expect(await generate({ dtype: 'bfloat16' }, sampled)).toEqual(eager);
});
