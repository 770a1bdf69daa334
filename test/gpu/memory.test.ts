/** GPU memory: copies, the KV cache's share, out of memory, leaks. */
import { execFile } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import path from 'node:path';
import { promisify } from 'node:util';
import {
  type EngineArgs,
  InvalidStateError,
  LLM,
  OutOfMemoryError,
  SamplingParams,
  UniProcExecutor,
} from '../../lib';
import { createUniprocConfig } from '../../lib/config/engineArgs';
import { cudaOps, type Tensor } from '../native/ops/binding';
import { folderWith } from '../support/folder';
import { stories } from '../support/stories';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

const gpu = cudaOps();
const freeMemory = () => gpu.memory().free;

const hogs: Tensor[] = [];

/** Occupies GPU memory until `giveBack` or the end of the test. */
const take = (bytes: number) => hogs.push(gpu.allocate(Math.floor(bytes / 4), 'float32', 'a test'));
const takeAllBut = (rest: number) => take(freeMemory() - rest);
const giveBack = () => hogs.splice(0).forEach((hog) => gpu.release(hog));

afterEach(giveBack);

/** An executor with the small model, before its cache is created. */
async function start(args: EngineArgs): Promise<UniProcExecutor> {
  const config = await createUniprocConfig({ device: 'cuda', maxModelLen: 512, ...args });
  return UniProcExecutor.create(config);
}

describe('between the host and the GPU', () => {
  test.each([1, 12_345, MIB, 3 * MIB + 1, 50_000_003])(
    '%d elements are unchanged by a round trip',
    (count) => {
      const elements = randomFillSync(new Uint16Array(count));
      const tensor = gpu.zeros(count, 'bfloat16');
      gpu.upload(tensor, elements, 'bfloat16');
      const back = new Uint16Array(count);
      gpu.download(back, tensor);
      gpu.release(tensor);
      expect(Buffer.compare(Buffer.from(back.buffer), Buffer.from(elements.buffer))).toBe(0);
    },
  );

  test('a copy waits for a kernel that is still writing', () => {
    const count = 30_000_001;
    const tensor = gpu.zeros(count);
    gpu.fillRandom(tensor, 0, 1, 7n);
    const back = new Float32Array(count);
    gpu.download(back, tensor);
    gpu.synchronize();
    expect(Buffer.compare(Buffer.from(back.buffer), bytesOf(gpu.readFloats(tensor, count)))).toBe(
      0,
    );
    gpu.release(tensor);
  });

  const bytesOf = ({ buffer }: Float32Array) => Buffer.from(buffer);
});

describe('the share for the cache', () => {
  test.each([undefined, 0.3])(
    'is the rest of memoryUtilization %p after the model',
    async (share) => {
      const { total } = gpu.memory();
      const executor = await start({ memoryUtilization: share });
      const [bytes] = await executor.determineAvailableMemory();
      const most = (share ?? 0.9) * total;
      expect(bytes).toBeLessThan(most);
      expect(bytes).toBeGreaterThan(most - 4 * GIB);
      await executor.shutdown();
    },
  );

  test('is an error with the sizes if less is free than requested', async () => {
    takeAllBut(8 * GIB);
    const refused = start({ memoryUtilization: 0.5 });
    await expect(refused).rejects.toThrow(OutOfMemoryError);
    await expect(refused).rejects.toThrow(
      /memoryUtilization 0\.5 asks for [\d.]+ GiB of [\d.]+ GiB, but only 7\.\d\d GiB are free/,
    );
  });

  test('is an error with the sizes if another process frees memory meanwhile', async () => {
    take(8 * GIB);
    const executor = await start({ memoryUtilization: 0.3 });
    giveBack();
    const error: unknown = await executor.determineAvailableMemory().catch((e: unknown) => e);
    expect(error).toBeInstanceOf(InvalidStateError);
    const figures =
      /^([\d.]+) GiB were free before the model was loaded and ([\d.]+) GiB are now: .* retry/;
    const [, before, now] = figures.exec((error as Error).message) ?? [];
    // The model and its largest step need less than 4 of the 8.
    expect(Number(now) - Number(before)).toBeGreaterThan(4);
    expect(Number(now) - Number(before)).toBeLessThan(8);
    await executor.shutdown();

    const again = await start({ memoryUtilization: 0.3 });
    await expect(again.determineAvailableMemory()).resolves.toHaveLength(1);
    await again.shutdown();
  });
});

describe('too little memory', () => {
  /** 512 MiB of weights, of logits, and of sampling buffers; a cache of 1 GiB. */
  const args: EngineArgs = {
    device: 'cuda',
    loadFormat: 'dummy',
    maxNumSeqs: 1024,
    maxNumBatchedTokens: 2048,
    kvCacheMemoryBytes: 2 * GIB,
    skipTokenizerInit: true,
  };

  beforeAll(async () => {
    args.model = await folderWith({
      'config.json': {
        architectures: ['LlamaForCausalLM'],
        model_type: 'llama',
        torch_dtype: 'bfloat16',
        vocab_size: 131_072,
        hidden_size: 2048,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        head_dim: 64,
        max_position_embeddings: 1024,
        tie_word_embeddings: true,
      },
    });
    // Once with enough memory: the driver keeps memory for kernels from their first use.
    await (await LLM.create(args)).shutdown();
  });

  test.each([
    ['opening the device', "the kernels' scratch", 24 * MIB],
    ['the weights', 'the weights', 300 * MIB],
    ["steps' buffers", 'the logits', 850 * MIB],
    ['the profiling step', "the kernels' scratch", 1380 * MIB],
    ['the cache', 'the KV cache', 2150 * MIB],
  ])('for %s is an error with the figures, and leaves the GPU as it was', async (_, what, rest) => {
    takeAllBut(rest);
    const free = freeMemory();
    const create = LLM.create(args);
    await expect(create).rejects.toThrow(OutOfMemoryError);
    await expect(create).rejects.toThrow(
      new RegExp(
        `^not enough memory for ${what}: \\d+ bytes .* requested, .* GiB free of .* GiB, .* used`,
      ),
    );
    expect(freeMemory()).toBeGreaterThanOrEqual(free);
    giveBack();
    expect(await story()).toEqual(reference.tokenIds);
  });

  const [reference] = stories.prompts;

  /** Expects that a new engine generates transformers' tokens. */
  async function story(): Promise<number[]> {
    const llm = await LLM.create({
      device: 'cuda',
      dtype: 'float32',
      maxModelLen: 512,
      maxNumSeqs: 8,
      kvCacheMemoryBytes: 64 * MIB,
    });
    const greedy = new SamplingParams({ temperature: 0, maxTokens: 64 });
    const [{ outputs }] = await llm.generate(reference.prompt, greedy);
    await llm.shutdown();
    return [...outputs[0].tokenIds];
  }
});

describe('200 cycles of create and shutdown', () => {
  interface Footprint {
    residentMiB: number;
    threads: number;
    files: number;
    freeBytes: number;
  }
  let before: Footprint;
  let after: Footprint;

  beforeAll(async () => {
    const { stdout } = await promisify(execFile)(process.execPath, [
      '--expose-gc',
      '--require',
      path.join(__dirname, '..', 'executor', 'requireTypescript.js'),
      path.join(__dirname, 'createShutdown.js'),
    ]);
    ({ before, after } = JSON.parse(stdout) as { before: Footprint; after: Footprint });
  }, 300_000);

  test('leak no GPU memory', () => {
    // The driver may free more later.
    expect(after.freeBytes).toBeGreaterThanOrEqual(before.freeBytes);
  });

  test('do not grow the resident set', () => {
    // The pinned buffers of one cycle are 32 MiB.
    expect(after.residentMiB - before.residentMiB).toBeLessThan(24);
  });

  test('leak no thread and no open file', () => {
    expect([after.threads, after.files]).toEqual([before.threads, before.files]);
  });
});
