/** The executor's contract with the real worker, on a checkpoint also run by transformers. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { SamplingParams, type SamplingParamsOptions } from '../../lib/config/samplingParams';
import { createUniprocConfig, type EngineArgs } from '../../lib/config/engineArgs';
import {
  ConfigError,
  InvalidStateError,
  NotSupportedError,
  OutOfMemoryError,
  ShutdownError,
} from '../../lib/errors';
import { Executor } from '../../lib/executor/executor';
import { UniProcExecutor } from '../../lib/executor/uniProcExecutor';
import type { ModelRunnerOutput } from '../../lib/contract/modelRunnerOutput';
import {
  emptySchedulerOutput,
  type NewRequestData,
  type SchedulerOutput,
} from '../../lib/contract/schedulerOutput';

const BLOCK_SIZE = 16;
const NUM_BLOCKS = 32;
const golden = path.resolve(__dirname, '..', 'golden');
const [, { promptTokenIds, tokenIds: expectedTokenIds }] = (
  JSON.parse(readFileSync(path.join(golden, 'expected', 'llama3.json'), 'utf8')) as {
    prompts: { promptTokenIds: number[]; tokenIds: number[] }[];
  }
).prompts;
const VOCAB_SIZE = 501;

function makeConfig(args: EngineArgs = {}) {
  return createUniprocConfig({
    model: path.join(golden, 'checkpoints', 'llama3'),
    device: 'cpu',
    dtype: 'float32',
    maxModelLen: 256,
    maxNumSeqs: 4,
    maxNumBatchedTokens: 64,
    blockSize: BLOCK_SIZE,
    skipTokenizerInit: true,
    ...args,
  });
}

/** An executor started in the engine's order. */
async function start(args: EngineArgs = {}): Promise<UniProcExecutor> {
  const executor = await UniProcExecutor.create(await makeConfig(args));
  await executor.getKvCacheSpecs();
  await executor.determineAvailableMemory();
  await executor.initializeFromConfig([{ numBlocks: NUM_BLOCKS }]);
  await executor.compileOrWarmUpModel();
  return executor;
}

function newRequest(reqId: string, options: SamplingParamsOptions = {}): NewRequestData {
  return {
    reqId,
    promptTokenIds: Int32Array.from(promptTokenIds),
    samplingParams: new SamplingParams({ temperature: 0, ...options }),
    stopTokenIds: [],
    badWordsTokenIds: [],
    seed: 0n,
    blockIds: Array.from({ length: 4 }, (_, i) => i),
    numComputedTokens: 0,
  };
}

const prefill = (request = newRequest('r')): SchedulerOutput => ({
  ...emptySchedulerOutput(),
  scheduledNewReqs: [request],
  numScheduledTokens: new Map([[request.reqId, promptTokenIds.length]]),
  totalNumScheduledTokens: promptTokenIds.length,
});

const decode = (step: number, reqId = 'r'): SchedulerOutput => ({
  ...emptySchedulerOutput(),
  scheduledCachedReqs: {
    ...emptySchedulerOutput().scheduledCachedReqs,
    reqIds: [reqId],
    newBlockIds: [null],
    numComputedTokens: [promptTokenIds.length + step],
  },
  numScheduledTokens: new Map([[reqId, 1]]),
  totalNumScheduledTokens: 1,
});

const finish = (reqId = 'r'): SchedulerOutput => ({
  ...emptySchedulerOutput(),
  finishedReqIds: [reqId],
});

const sampled = (output: ModelRunnerOutput | null) => [...(output?.sampledTokenIds.tokenIds ?? [])];

describe('UniProcExecutor with the real worker', () => {
  let executor: UniProcExecutor;

  afterEach(() => executor.shutdown());

  it("is getClass's result for the default configuration", async () => {
    executor = await start();
    expect(await Executor.getClass(executor.config)).toBe(UniProcExecutor);
    expect(executor.driverWorker.worker.modelRunner.model).toBeDefined();
  });

  it('describes each layer of the cache', async () => {
    executor = await start();
    const [specs] = await executor.getKvCacheSpecs();
    expect(specs.size).toBe(3);
    for (const spec of specs.values()) {
      expect(spec).toMatchObject({ blockSize: 16, numKvHeads: 2, headSize: 32, dtype: 'float32' });
      expect(spec.pageSizeBytes).toBe(2 * 16 * 2 * 32 * 4);
    }
  });

  it('runs a prompt and its continuation as transformers does', async () => {
    executor = await start();
    const tokens = sampled(await executor.executeModel(prefill()));
    for (let step = 0; step < 7; step++) {
      tokens.push(...sampled(await executor.executeModel(decode(step))));
    }
    expect(tokens).toEqual(expectedTokenIds.slice(0, 8));
  });

  it('runs a step launched before the previous one is read', async () => {
    executor = await start({ asyncScheduling: true });
    expect(executor.maxConcurrentBatches).toBe(2);
    let last = executor.executeModel(prefill(), { nonBlock: true });
    const tokens: number[] = [];
    for (let step = 0; step < 7; step++) {
      const next = executor.executeModel(decode(step), { nonBlock: true });
      tokens.push(...sampled(await last));
      last = next;
    }
    tokens.push(...sampled(await last));
    expect(tokens).toEqual(expectedTokenIds.slice(0, 8));
  });

  it('refuses more steps in flight than staging sets', async () => {
    executor = await start({ asyncScheduling: false });
    const { model } = executor.driverWorker.worker;
    // The first step is queued behind these, so it stays in flight.
    const before = Promise.all(Array.from({ length: 50 }, () => model.warmUp()));
    const first = executor.executeModel(prefill(), { nonBlock: true });
    await expect(executor.executeModel(decode(0))).rejects.toThrow(InvalidStateError);
    await before;
    expect(sampled(await first)).toEqual(expectedTokenIds.slice(0, 1));
  });

  it('returns an empty list for an unfinished prompt', async () => {
    executor = await start();
    const step = { ...prefill(), numScheduledTokens: new Map([['r', 5]]) };
    const output = await executor.executeModel(step);
    expect(output?.reqIds).toEqual(['r']);
    expect([...(output?.sampledTokenIds.at(0) ?? [1])]).toEqual([]);
  });

  it('waits for a grammar between forward and sampling, and applies its bitmask', async () => {
    executor = await start();
    const step = { ...prefill(), hasStructuredOutputRequests: true };
    expect(await executor.executeModel(step)).toBeNull();

    const only = 77;
    const grammarBitmask = new Int32Array(Math.ceil(VOCAB_SIZE / 32));
    grammarBitmask[only >> 5] = 1 << (only & 31);
    const output = await executor.sampleTokens({
      structuredOutputRequestIds: ['r'],
      grammarBitmask,
    });
    expect(sampled(output)).toEqual([only]);
  });

  it('samples without a bitmask for the request', async () => {
    executor = await start();
    await executor.executeModel({ ...prefill(), hasStructuredOutputRequests: true });
    expect(sampled(await executor.sampleTokens(null))).toEqual(expectedTokenIds.slice(0, 1));
  });

  it('frees the state of finished requests in a step without tokens', async () => {
    executor = await start();
    await executor.executeModel(prefill());
    const output = await executor.executeModel(finish());
    expect(output?.reqIds).toEqual([]);
    expect(executor.driverWorker.worker.modelRunner.inputBatch.size).toBe(0);
    // Its id and slot can be reused.
    expect(sampled(await executor.executeModel(prefill()))).toEqual(expectedTokenIds.slice(0, 1));
  });

  it('returns prompt logprobs for every position but the last', async () => {
    executor = await start();
    const output = await executor.executeModel(prefill(newRequest('r', { promptLogprobs: 2 })));
    const lists = output?.promptLogprobs.get('r');
    expect(lists?.ranks).toHaveLength(promptTokenIds.length - 1);
    expect(lists?.width).toBe(3);
    const own = lists?.tokenIds.filter((_, i) => i % 3 === 0);
    expect([...(own ?? [])]).toEqual(promptTokenIds.slice(1));
  });

  describe('memory', () => {
    it('overrides the figure with kvCacheMemoryBytes', async () => {
      executor = await UniProcExecutor.create(await makeConfig({ kvCacheMemoryBytes: 12345678 }));
      expect(await executor.determineAvailableMemory()).toEqual([12345678]);
    });

    it('still profiles with kvCacheMemoryBytes', async () => {
      executor = await UniProcExecutor.create(await makeConfig({ kvCacheMemoryBytes: 12345678 }));
      const { device } = executor.driverWorker.worker;
      const before = await device?.memory();
      await executor.determineAvailableMemory();
      const after = await device?.memory();
      expect(after?.peakAllocated).toBeGreaterThan(before?.peakAllocated ?? Infinity);
      expect(after?.allocated).toBe(before?.allocated);
    });

    it('is a share of the free memory by default', async () => {
      executor = await UniProcExecutor.create(await makeConfig());
      const { free } = (await executor.driverWorker.worker.device?.memory()) ?? { free: 0 };
      const [bytes] = await executor.determineAvailableMemory();
      expect(bytes).toBeGreaterThan(0);
      expect(bytes).toBeLessThan(free);
    });

    it('is an error with the figures if less is free than requested', async () => {
      executor = await start();
      const config = await makeConfig({ memoryUtilization: 1 });
      const refused = UniProcExecutor.create(config);
      await expect(refused).rejects.toThrow(OutOfMemoryError);
      await expect(refused).rejects.toThrow(
        /asks for [\d.]+ GiB of [\d.]+ GiB, but only [\d.]+ GiB are free/,
      );
    });

    it('is an error with the figures if the model needs more than its share', async () => {
      const config = await makeConfig({ memoryUtilization: 1e-9 });
      executor = await UniProcExecutor.create(config);
      const refused = executor.determineAvailableMemory();
      await expect(refused).rejects.toThrow(OutOfMemoryError);
      await expect(refused).rejects.toThrow(
        /gives [\d.]+ GiB of [\d.]+ GiB, but the model and its largest step need/,
      );
    });

    it('that cannot be allocated is a typed error, after which the executor can be shut down', async () => {
      executor = await UniProcExecutor.create(await makeConfig());
      const config = { numBlocks: 2 ** 30 };
      await expect(executor.initializeFromConfig([config])).rejects.toThrow(OutOfMemoryError);
      await executor.shutdown();
      executor = await start();
      expect(sampled(await executor.executeModel(prefill()))).toEqual(expectedTokenIds.slice(0, 1));
    });
  });

  it('does not affect sampling when warming up', async () => {
    executor = await start();
    await executor.executeModel(prefill());
    await executor.compileOrWarmUpModel();
    expect(sampled(await executor.executeModel(decode(0)))).toEqual([expectedTokenIds[1]]);
  });

  describe('sleep', () => {
    const allocated = async () =>
      (await executor.driverWorker.worker.device?.memory())?.allocated ?? NaN;
    let awake: number;

    beforeEach(async () => {
      executor = await start();
      awake = await allocated();
    });

    it.each([1, 2] as const)(
      'level %d gives memory back, and wakes to the same tokens',
      async (level) => {
        await executor.sleep(level);
        expect(await allocated()).toBeLessThan(awake);
        await executor.wakeUp();
        expect(await allocated()).toBe(awake);
        expect(sampled(await executor.executeModel(prefill()))).toEqual(
          expectedTokenIds.slice(0, 1),
        );
      },
    );

    it('level 2 releases the weights too', async () => {
      await executor.sleep(1);
      const withWeights = await allocated();
      await executor.wakeUp();
      await executor.sleep(2);
      expect(await allocated()).toBeLessThan(withWeights);
    });

    it('lasts until all tags are awake', async () => {
      await executor.sleep(2);
      await executor.wakeUp(['weights']);
      await expect(executor.executeModel(prefill())).rejects.toThrow(/kv_cache/);
      await executor.wakeUp(['kv_cache']);
      expect(executor.isSleeping).toBe(false);
      expect(sampled(await executor.executeModel(prefill()))).toEqual(expectedTokenIds.slice(0, 1));
    });

    it('is refused while requests are unfinished', async () => {
      await executor.executeModel(prefill());
      const asleep = executor.sleep(1);
      // Launched before the refusal is known, as by a running engine.
      const step = executor.executeModel(decode(0));
      await expect(asleep).rejects.toThrow(/1 requests unfinished/);
      expect(executor.isSleeping).toBe(false);
      expect(sampled(await step)).toEqual([expectedTokenIds[1]]);
    });
  });

  it('resolves checkHealth while it can run', async () => {
    executor = await start();
    await expect(executor.checkHealth()).resolves.toBeUndefined();
  });

  it('has no profiler on the CPU', async () => {
    executor = await start();
    for (const isStart of [true, false]) {
      const refused = executor.profile(isStart);
      await expect(refused).rejects.toThrow(NotSupportedError);
      await expect(refused).rejects.toMatchObject({ call: 'profile' });
      await expect(executor.driverWorker.worker.device?.profile(isStart)).rejects.toMatchObject({
        code: 'NOT_SUPPORTED',
      });
    }
    await expect(executor.checkHealth()).resolves.toBeUndefined();
  });

  it('generates, runs a dummy batch and exposes its model', async () => {
    executor = await start();
    expect(await executor.supportedTasks()).toEqual(['generate']);
    await expect(executor.executeDummyBatch()).resolves.toBeUndefined();
    const [steps] = await executor.applyModel((model: { steps: unknown[] }) => model.steps.length);
    expect(steps).toBe(executor.maxConcurrentBatches);
  });

  it('reports load progress from start to end', async () => {
    const seen: { bytes: number; totalBytes: number; tensors: number; totalTensors: number }[] = [];
    executor = await UniProcExecutor.create(await makeConfig(), {
      onProgress: (progress) => seen.push({ ...progress }),
    });
    const last = seen.at(-1);
    expect(last?.bytes).toBe(last?.totalBytes);
    expect(last?.tensors).toBe(last?.totalTensors);
    expect(last?.totalBytes).toBeGreaterThan(100_000);
    const bytes = seen.map((progress) => progress.bytes);
    expect(bytes).toEqual([...bytes].sort((a, b) => a - b));
  });

  it('is shut down if the device does not exist', async () => {
    executor = await start();
    await expect(
      makeConfig({ device: 'cuda:99' }).then((config) => UniProcExecutor.create(config)),
    ).rejects.toThrow(/cuda/);
  });

  it('completes a launched step at shutdown and refuses later ones', async () => {
    executor = await start();
    const launched = executor.executeModel(prefill(), { nonBlock: true });
    const done = executor.shutdown();
    expect(sampled(await launched)).toEqual(expectedTokenIds.slice(0, 1));
    await done;
    await expect(executor.executeModel(decode(0))).rejects.toThrow(ShutdownError);
  });

  it('detaches the staging memory when it is shut down', async () => {
    executor = await start();
    const [buffers] = executor.driverWorker.worker.model.steps;
    expect(buffers.slots.length).toBe(4);
    await executor.shutdown();
    expect(buffers.slots.length).toBe(0);
  });

  it('refuses an invalid thread count', async () => {
    executor = await start();
    process.env.UNIPROC_CPU_THREADS = 'many';
    try {
      await expect(makeConfig().then((config) => UniProcExecutor.create(config))).rejects.toThrow(
        ConfigError,
      );
    } finally {
      delete process.env.UNIPROC_CPU_THREADS;
    }
  });
});
