/** Rows of the executor's contract that need the real worker. */
import type { NewRequestData, SchedulerOutput } from '../../lib/contract/schedulerOutput';
import { emptySchedulerOutput } from '../../lib/contract/schedulerOutput';
import type { AsyncModelRunnerOutput } from '../../lib/contract/modelRunnerOutput';
import { SamplingParams } from '../../lib/config/samplingParams';
import { ConfigError, InvalidStateError } from '../../lib/errors';
import { createUniprocConfig, type EngineArgs } from '../../lib/executor/createConfig';
import { ExecutorWithExternalLauncher } from '../../lib/executor/externalLauncher';
import { UniProcExecutor } from '../../lib/executor/uniProcExecutor';
import { HostEvent } from '../../lib/worker/hostEvent';
import { native } from '../../lib/native';
import { ready } from '../support/ready';
import { PlainWorker } from './support';

const ARGS = { device: 'cpu', maxNumSeqs: 2, maxModelLen: 64, maxNumBatchedTokens: 64 };

async function withExecutor(use: (executor: UniProcExecutor) => Promise<void>): Promise<void> {
  const executor = await UniProcExecutor.create(ARGS);
  try {
    await executor.determineAvailableMemory();
    await executor.initializeFromConfig([{ numBlocks: 8 }]);
    await use(executor);
  } finally {
    await executor.shutdown();
  }
}

const request: NewRequestData = {
  reqId: 'r',
  promptTokenIds: Int32Array.of(0, 5, 7),
  samplingParams: new SamplingParams({ temperature: 0 }),
  stopTokenIds: [],
  badWordsTokenIds: [],
  seed: 0n,
  blockIds: [0],
  numComputedTokens: 0,
};
const prefill: SchedulerOutput = {
  ...emptySchedulerOutput(),
  scheduledNewReqs: [request],
  numScheduledTokens: new Map([['r', 3]]),
  totalNumScheduledTokens: 3,
};

it('getOutput throws before its event and when called twice', async () => {
  await withExecutor(async ({ driverWorker: { worker } }) => {
    // The step waits behind these, so it cannot be done yet.
    const before = Promise.all(Array.from({ length: 50 }, () => worker.model.warmUp()));
    const output = worker.executeModel(prefill) as AsyncModelRunnerOutput;
    expect(() => output.getOutput()).toThrow(InvalidStateError);
    expect(() => output.getOutput()).toThrow(/not ready/);
    await before;
    await ready(output.ready);
    expect(output.getOutput().sampledTokenIds.length).toBe(1);
    expect(() => output.getOutput()).toThrow(InvalidStateError);
    expect(() => output.getOutput()).toThrow(/taken already/);
  });
});

it('compileOrWarmUpModel warms the model up on the device and resolves to its seconds', async () => {
  await withExecutor(async (executor) => {
    const { worker } = executor.driverWorker;
    const { model } = worker;
    const seconds: number[] = [];
    const warmUp = async () => {
      const start = performance.now();
      await model.warmUp();
      seconds.push((performance.now() - start) / 1000);
    };
    Object.defineProperty(worker, 'model', { value: { warmUp } });
    const reported = await executor.compileOrWarmUpModel();
    expect(seconds).toHaveLength(1);
    expect(seconds[0]).toBeGreaterThan(0);
    expect(reported).toBeGreaterThanOrEqual(seconds[0]);
  });
});

describe('create', () => {
  const workerCls = PlainWorker;

  it('takes options or the configuration made of them', async () => {
    const config = await createUniprocConfig({ ...ARGS, workerCls, maxNumSeqs: 3 });
    expect(Object.isFrozen(config)).toBe(true);
    const ofConfig = await UniProcExecutor.create(config);
    expect(ofConfig.config).toBe(config);
    const ofOptions = await UniProcExecutor.create({ ...ARGS, workerCls, maxNumSeqs: 3 });
    expect(ofOptions.config).toEqual(config);
    expect(ofOptions.driverWorker.worker).toBeInstanceOf(PlainWorker);
    await Promise.all([ofConfig.shutdown(), ofOptions.shutdown()]);
  });

  it.each([
    [{ modell: 'm' }, /modell/],
    [[], /engine arguments/],
    [Promise.resolve(ARGS), /expected an object, not Promise/],
    [{ ...ARGS, parallel: {} }, /unknown option parallel/],
    [
      { ...ARGS, distributedExecutorBackend: 'external_launcher' },
      /is 'external_launcher', which is not UniProcExecutor; leave it out, or pass 'uni'/,
    ],
    [{ ...ARGS, distributedExecutorBackend: ExecutorWithExternalLauncher }, /is not UniProcExec/],
    [{ ...ARGS, distributedExecutorBackend: 'ray' }, /is 'ray', which is not UniProcExecutor/],
    [{ ...ARGS, tensorParallelSize: 2, seed: 0 }, /'uni' runs one rank/],
  ])('refuses %j', async (args, message) => {
    const creating = UniProcExecutor.create(args as object);
    await expect(creating).rejects.toBeInstanceOf(ConfigError);
    await expect(creating).rejects.toThrow(message);
  });

  it('takes options that name its own class', async () => {
    for (const distributedExecutorBackend of ['uni', UniProcExecutor] as const) {
      const args = { ...ARGS, workerCls, distributedExecutorBackend };
      const executor = await UniProcExecutor.create(args);
      expect(executor.config.parallel.distributedExecutorBackend).toBe('uni');
      await executor.shutdown();
    }
  });

  // It would wait for ranks that nobody starts.
  it('refuses a configuration of another executor, but not of its base class', async () => {
    class Mine extends UniProcExecutor {}
    const configOf = (distributedExecutorBackend: EngineArgs['distributedExecutorBackend']) =>
      createUniprocConfig({ ...ARGS, seed: 0, workerCls, distributedExecutorBackend });
    const launched = await configOf('external_launcher');
    await expect(UniProcExecutor.create(launched)).rejects.toThrow(ConfigError);
    await expect(Mine.create(launched)).rejects.toThrow(/which is not Mine; .* pass the class/);
    for (const named of ['uni', UniProcExecutor, Mine] as const) {
      await (await Mine.create(await configOf(named))).shutdown();
    }
  });

  it('of the external launcher makes a configuration for it', async () => {
    const env = { ...process.env };
    const own = { RANK: '0', LOCAL_RANK: '0', WORLD_SIZE: '1', MASTER_ADDR: '127.0.0.1' };
    Object.assign(process.env, own, { MASTER_PORT: '29500' });
    try {
      const executor = await ExecutorWithExternalLauncher.create({ ...ARGS, workerCls, seed: 1 });
      expect(executor.config.parallel.distributedExecutorBackend).toBe('external_launcher');
      expect(executor.driverWorker.worker.args.distributedInitMethod).toBe('env://');
      await executor.shutdown();
    } finally {
      process.env = env;
    }
  });

  it('of a subclass keeps its class', async () => {
    class Mine extends UniProcExecutor {}
    const mine = await Mine.create({ ...ARGS, workerCls });
    expect(mine).toBeInstanceOf(Mine);
    expect(mine.config.parallel.distributedExecutorBackend).toBe(Mine);
    await mine.shutdown();
  });
});

describe('HostEvent', () => {
  it('is an event of the addon, done once signalled', async () => {
    class Named extends HostEvent {
      readonly name = 'mine';
      numSignals = 0;
      override signal(): void {
        this.numSignals++;
        super.signal();
      }
    }
    const event = new Named();
    expect([event.done, event.name]).toEqual([false, 'mine']);
    expect(event).toBeInstanceOf(native().Event);
    const called = new Promise((resolve) => event.onReady(resolve));
    event.signal();
    expect(await called).toBeNull();
    expect([event.done, event.numSignals]).toEqual([true, 1]);
    expect(() => event.signal()).toThrow(InvalidStateError);
  });
});
