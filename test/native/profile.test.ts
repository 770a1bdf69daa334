/**
 * Memory of steps on a CPU. `profile` counts that of the largest step without computing it; the
 * reference is the step computed (runLargestStep of the testing addon).
 */
import { readdirSync } from 'node:fs';
import path from 'node:path';
import { LLM, SamplingParams } from '../../lib';
import { divisionFault } from '../../lib/model/division';
import {
  type ModelLimits,
  type ModelSpec,
  native,
  type NativeCommunicator,
  type NativeDeviceThread,
  type NativeModelRunner,
} from '../../lib/native';
import type { Worker } from '../../lib/worker/worker';
import { readModel } from '../support/modelSpec';
import { ready } from '../support/ready';
import { GREEDY } from '../support/sampling';
import { runLargestStep } from '../support/testingAddon';
import { plainSpec } from '../support/plainSpec';

const CHECKPOINTS = path.join(__dirname, '..', 'golden', 'checkpoints');

const LIMITS: ModelLimits = {
  maxNumSeqs: 6,
  maxNumBatchedTokens: 300,
  maxModelLen: 512,
  blockSize: 16,
  numSteps: 2,
  maxLogprobs: 5,
  listMemoryBytes: 2 ** 20,
  enforceEager: false,
};

/** A model of which a step's memory or time is large, the weights are small. */
const WIDE: ModelSpec = {
  dtype: 'float32',
  vocabSize: 512,
  hiddenSize: 64,
  intermediateSize: 4096,
  numLayers: 2,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 16,
  rmsNormEps: 1e-5,
  ...plainSpec(2, 16),
  tieWordEmbeddings: true,
  weightFormats: {},
};
const WIDE_LIMITS: ModelLimits = { ...LIMITS, maxNumSeqs: 8, maxNumBatchedTokens: 4096 };

interface Rank {
  device: NativeDeviceThread;
  communicator: NativeCommunicator | null;
  model: NativeModelRunner;
}

const opened: Rank[] = [];

afterEach(async () => {
  const ranks = opened.splice(0);
  ranks.forEach(({ communicator }) => communicator?.abort('the test is over'));
  for (const { device, communicator, model } of ranks) {
    await model.shutdown();
    await communicator?.shutdown();
    await device.shutdown();
  }
});

/** Ranks with random weights, each with a device of its own. */
async function openRanks(spec: ModelSpec, worldSize = 1, limits = LIMITS): Promise<Rank[]> {
  const devices = Array.from({ length: worldSize }, () => new (native().DeviceThread)('cpu', 0, 2));
  await Promise.all(devices.map((device) => device.open()));
  const options = { worldSize, timeout: 200_000, customAllReduce: true };
  const communicators = devices.map((device, rank) =>
    worldSize === 1 ? null : new (native().Communicator)(device, { ...options, rank }),
  );
  const connected = communicators.flatMap((each) => each ?? []);
  const addresses = await Promise.all(connected.map((each) => each.address()));
  await Promise.all(connected.map((each) => each.connect(addresses)));
  const ranks = devices.map((device, rank) => {
    const communicator = communicators[rank];
    const model = new (native().ModelRunner)(device, spec, limits, communicator);
    return { device, communicator, model };
  });
  opened.push(...ranks);
  await Promise.all(ranks.map(({ model }) => model.loadDummy(1)));
  return ranks;
}

/** Bytes that `run` allocates at most beside those allocated before. */
async function peaksOf(
  ranks: readonly Rank[],
  run: (model: NativeModelRunner) => Promise<unknown>,
): Promise<number[]> {
  await Promise.all(ranks.map(({ device }) => device.resetPeakMemory()));
  await Promise.all(ranks.map(({ model }) => run(model)));
  const memory = await Promise.all(ranks.map(({ device }) => device.memory()));
  return memory.map(({ allocated, peakAllocated }) => peakAllocated - allocated);
}

describe.each([1, 2, 4])('on %i ranks, the bytes are those of the computed step', (worldSize) => {
  test.each(readdirSync(CHECKPOINTS))('of %s', async (name) => {
    const { spec } = await readModel(path.join(CHECKPOINTS, name));
    if (divisionFault(spec, worldSize) !== null) return;
    const ranks = await openRanks(spec, worldSize);
    const [counted, computed] = [
      await peaksOf(ranks, (model) => model.profile()),
      await peaksOf(ranks, runLargestStep),
    ];
    expect(counted).toEqual(computed);
    expect(Math.min(...counted)).toBeGreaterThan(0);
  });
});

test.each(['bfloat16', 'float16'] as const)('the bytes are those computed in %s', async (dtype) => {
  const ranks = await openRanks({ ...WIDE, dtype });
  const counted = await peaksOf(ranks, (model) => model.profile());
  expect(counted).toEqual(await peaksOf(ranks, runLargestStep));
});

test('one rank needs no other, as nothing is computed', async () => {
  const [first] = await openRanks(WIDE, 2);
  // A computed step waits for the other rank's part of each layer.
  await first.model.profile();
});

describe('compared with the computed step', () => {
  /** Milliseconds of processor time. */
  async function cpuTimeOf(run: () => Promise<unknown>): Promise<number> {
    const start = process.cpuUsage();
    await run();
    const { user, system } = process.cpuUsage(start);
    return (user + system) / 1000;
  }

  test('profile and warmUp take next to no time', async () => {
    const [{ model }] = await openRanks(
      { ...WIDE, hiddenSize: 512, headDim: 128, ...plainSpec(2, 128) },
      1,
      WIDE_LIMITS,
    );
    const profiled = await cpuTimeOf(() => model.profile());
    const warmed = await cpuTimeOf(() => model.warmUp());
    const computed = await cpuTimeOf(() => runLargestStep(model));
    expect(profiled + warmed).toBeLessThan(computed / 4);
  });
});

test("memory that profile counted is not free, though the step's pages are not there yet", async () => {
  const [probe] = await openRanks(WIDE);
  const { free } = await probe.device.memory();
  // Of each token: residual, hidden, gateUp and its product.
  const bytesPerToken = 4 * (2 * WIDE.hiddenSize + 3 * WIDE.intermediateSize);
  const maxNumBatchedTokens = Math.floor(free / 2 / bytesPerToken);
  const limits = { ...LIMITS, maxNumSeqs: 1024, maxLogprobs: 0, maxNumBatchedTokens };
  const [{ device, model }] = await openRanks(WIDE, 1, limits);
  const rss = process.memoryUsage.rss();
  await model.profile();
  // The other devices of the process count it, too.
  for (const each of [device, probe.device]) {
    const after = await each.memory();
    // Half of the free memory, within what other processes take or free meanwhile.
    expect((free - after.free) / free).toBeGreaterThan(0.3);
    expect((free - after.free) / free).toBeLessThan(0.7);
  }
  expect(process.memoryUsage.rss() - rss).toBeLessThan(free / 8);
});

test("the first token takes small pages of each layer's cache", async () => {
  const slidingWindows = Array.from({ length: 32 }, () => 0);
  const spec = {
    ...WIDE,
    intermediateSize: 64,
    numLayers: 32,
    slidingWindows,
    layerRopes: slidingWindows.map(() => 0),
  };
  const [{ model }] = await openRanks(spec);
  // 16 MiB of keys and of values in each layer.
  await model.allocateKvCache(2 ** 24 / (LIMITS.blockSize * spec.numKvHeads * spec.headDim * 4));
  await model.warmUp();
  const sampling = { ...GREEDY, numLogprobs: -1 };
  model.addRequest(0, {
    tokenIds: Int32Array.of(1),
    numPromptTokens: 1,
    blockIds: Int32Array.of(0),
    sampling,
  });
  const [buffers] = model.steps;
  buffers.slots[0] = 0;
  buffers.numComputedTokens[0] = 0;
  buffers.numScheduledTokens[0] = 1;
  buffers.sampledRows[0] = 0;
  const rss = process.memoryUsage.rss();
  model.forward(0, 1, 0, 1, 0);
  await ready(model.sample(0, null));
  // Huge pages would be 2 MiB for keys and for values of each layer, 128 MiB.
  expect((process.memoryUsage.rss() - rss) / 2 ** 20).toBeLessThan(40);
});

test('the largest step fits into the planned memory, with less than a block left', async () => {
  const maxNumBatchedTokens = 512;
  const limits = { maxNumSeqs: 32, maxNumBatchedTokens, maxModelLen: 128 };
  const options = { device: 'cpu', enablePrefixCaching: false, skipTokenizerInit: true, ...limits };
  const worker = (llm: LLM) =>
    (llm.engine.executor as unknown as { driverWorker: { worker: Worker } }).driverWorker.worker;
  // The bytes that a share leaves for the cache are known from an engine without a share.
  let llm = await LLM.create({ ...options, kvCacheMemoryBytes: 2 ** 22 });
  const { model, device } = worker(llm);
  const { total, allocated } = (await device?.memory()) ?? { total: 0, allocated: 0 };
  const { kvCacheBytes, numKvBlocks } = llm.startup;
  const bytesPerBlock = kvCacheBytes / numKvBlocks;
  const [step] = await peaksOf([{ device, model } as Rank], runLargestStep);
  await llm.shutdown();

  const memoryUtilization = (allocated - kvCacheBytes + step + 200.5 * bytesPerBlock) / total;
  llm = await LLM.create({ ...options, memoryUtilization });
  try {
    expect(llm.startup.numKvBlocks).toBe(200);
    const { device, model } = worker(llm);
    const planned = Math.floor(total * memoryUtilization);
    await device?.resetPeakMemory();
    const prompts = Array.from({ length: 16 }, (_, i) => ({
      promptTokenIds: Array.from({ length: 100 }, (_, j) => 5 + ((i + j) % 90)),
    }));
    await llm.generate(
      prompts,
      new SamplingParams({ maxTokens: 3, logprobs: 5, promptLogprobs: 5 }),
    );
    const memory = await device?.memory();
    // A step of requests allocates nothing: its memory is there since the start.
    expect(memory?.peakAllocated).toBe(memory?.allocated);
    await runLargestStep(model);
    const { peakAllocated = 0 } = (await device?.memory()) ?? {};
    expect(peakAllocated).toBeLessThanOrEqual(planned);
    expect(peakAllocated).toBeGreaterThan(planned - bytesPerBlock);
  } finally {
    await llm.shutdown();
  }
});
