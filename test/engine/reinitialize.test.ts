/** Requests continue after the worker loses its state and becomes another rank. */
import {
  DeviceError,
  ExecutorFailedError,
  NotSupportedError,
  ShutdownError,
} from '../../lib/errors';
import { decodeState, lastCommonStep, type RankState } from '../../lib/engine/reinitialization';
import {
  type ReconfigureDistributedRequest,
  ReconfigureRankType,
} from '../../lib/config/reconfigureRequest';
import { until } from '../executor/support';
import { generateAlone } from './pagedModel';
import { shutdownEngines, SlowPagedWorker, TestEngine } from './pagedWorker';
import { promptOf } from './schedulerDriver';

afterEach(shutdownEngines);

const request = (
  newDataParallelRank: number = ReconfigureRankType.KEEP_CURRENT_RANK,
  newDataParallelSize = 1,
): ReconfigureDistributedRequest => ({
  newDataParallelSize,
  newDataParallelRank,
  newDataParallelRankLocal: -1,
  newDataParallelMasterIp: '127.0.0.1',
  newDataParallelMasterPort: 1,
});

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

class ReinitializedWorker extends SlowPagedWorker {
  reinitializeDistributed(): Promise<void> {
    this.calls.push('reinitializeDistributed');
    // Later caches are smaller.
    ReinitializedWorker.numBlocks = 40;
    return Promise.resolve();
  }
}

beforeEach(() => (ReinitializedWorker.numBlocks = 1024));

const create = (asyncScheduling: boolean) =>
  TestEngine.create(ReinitializedWorker, { asyncScheduling, maxNumSeqs: 3 });

describe.each([false, true])('with asyncScheduling %s', (asyncScheduling) => {
  test('every request gets the tokens it gets alone, whenever the change happens', async () => {
    const prompts = [promptOf(5), promptOf(17), promptOf(2), promptOf(30)];
    const params = { maxTokens: 20, stopTokenIds: [3, 33, 63, 93] };
    for (let step = 0; step < 24; step += 3) {
      const engine = await create(asyncScheduling);
      const outputs = engine.generateAll(prompts, params);
      for (let i = 0; i < step; i++) await pause(1);
      await engine.engine.reinitializeDistributed(request());
      expect((await outputs).map(({ outputs: [{ tokenIds }] }) => tokenIds)).toEqual(
        prompts.map((prompt) => generateAlone(prompt, params)),
      );
      expect(engine.engine.stats().kvCacheUsage).toBe(0);
      expect(engine.worker.calls.slice(-5)).toEqual([
        'reinitializeDistributed',
        'getKvCacheSpec',
        'determineAvailableMemory',
        'initializeFromConfig 40',
        'compileOrWarmUpModel',
      ]);
    }
  });

  test('a call during the change waits, and later calls overlap again', async () => {
    const engine = await create(asyncScheduling);
    const first = engine.generate(promptOf(5), { maxTokens: 12 });
    const changing = engine.engine.reinitializeDistributed(request());
    const second = engine.generate(promptOf(7), { maxTokens: 12 });
    await changing;
    expect((await first).outputs[0].tokenIds).toEqual(
      generateAlone(promptOf(5), { maxTokens: 12 }),
    );
    expect((await second).outputs[0].tokenIds).toEqual(
      generateAlone(promptOf(7), { maxTokens: 12 }),
    );
    const calls = [promptOf(3), promptOf(4)].map((prompt) => engine.generate(prompt));
    await Promise.all(calls);
    const together = engine.worker.steps.some(
      ({ numScheduledTokens }) => numScheduledTokens.size > 1,
    );
    expect(together).toBe(true);
  });
});

class RefusingWorker extends SlowPagedWorker {
  reinitializeDistributed(): Promise<void> {
    return Promise.reject(new NotSupportedError('reinitializeDistributed'));
  }
}

test.each([
  ['done', ReinitializedWorker, 'done'],
  ['refused', RefusingWorker, 'NOT_SUPPORTED'],
])('a single rank leaves lockstep once a change is %s', async (_, workerCls, end) => {
  const engine = await TestEngine.create<SlowPagedWorker>(workerCls);
  const changing = engine.engine.reinitializeDistributed(request());
  const outcome = changing.then(
    () => 'done',
    (error: unknown) => (error as { code: string }).code,
  );
  expect(await outcome).toBe(end);
  // Ranks in lockstep refuse a signal.
  const { signal } = new AbortController();
  const output = await engine.generate(promptOf(3), { maxTokens: 2 }, { signal });
  expect(output.outputs[0].tokenIds).toHaveLength(2);
});

test('requests not made yet are sent to joining ranks, by arrival', async () => {
  const engine = await create(false);
  const prompts = Array.from({ length: 50 }, (_, i) => promptOf(3 + i));
  const calls = [engine.generateAll(prompts, { maxTokens: 3 }), engine.generate(promptOf(9))];
  const broadcast = jest.spyOn(engine.engine.executor, 'broadcast');
  await engine.engine.reinitializeDistributed(request());
  const [[bytes]] = broadcast.mock.calls;
  const { requests } = decodeState(bytes as Uint8Array, engine.engine.config.model.maxModelLen);
  const ids = requests.map(({ requestId }) => Number(requestId));
  expect(ids).toEqual([...ids].sort((a, b) => a - b));
  expect(ids.at(-1)).toBe(50);
  expect(ids.length).toBeGreaterThan(45);
  await Promise.all(calls);
});

test('a leaving rank shuts down: pending and later calls reject', async () => {
  const engine = await create(true);
  const pending = engine.generate(promptOf(5), { maxTokens: 40 });
  const rejected = expect(pending).rejects.toBeInstanceOf(ShutdownError);
  const leaving = request(ReconfigureRankType.SHUTDOWN_CURRENT_RANK);
  await engine.engine.reinitializeDistributed(leaving);
  await rejected;
  expect(engine.worker.calls.at(-1)).toBe('shutdown');
  await expect(engine.generate(promptOf(3))).rejects.toBeInstanceOf(ShutdownError);
});

test('a change that fails rejects all calls and shuts the executor down', async () => {
  class FailingWorker extends ReinitializedWorker {
    override reinitializeDistributed(): Promise<void> {
      return Promise.reject(new DeviceError('gone'));
    }
  }
  const engine = await TestEngine.create(FailingWorker);
  const settled = Promise.allSettled([
    engine.generate(promptOf(5), { maxTokens: 40 }),
    engine.engine.reinitializeDistributed(request()),
  ]);
  for (const outcome of await settled) {
    expect(outcome).toMatchObject({ reason: expect.any(ExecutorFailedError) as Error });
  }
  await until(() => engine.worker.calls.at(-1) === 'shutdown');
});

test('a second change during the first is refused', async () => {
  const engine = await create(true);
  const first = engine.engine.reinitializeDistributed(request());
  await expect(engine.engine.reinitializeDistributed(request())).rejects.toThrow('in progress');
  await first;
});

test('a change requested as soon as another is refused is made', async () => {
  const engine = await create(true);
  const output = engine.generate(promptOf(5), { maxTokens: 12 });
  await until(() => engine.worker.steps.length > 2);
  const change = (...args: Parameters<typeof request>) =>
    engine.engine.reinitializeDistributed(request(...args));
  await change(1).catch((refusal: unknown) => {
    expect((refusal as Error).message).toContain('rank 0 would be rank 1 of 1');
    return change();
  });
  expect(engine.worker.calls).toContain('reinitializeDistributed');
  expect((await output).outputs[0].tokenIds).toEqual(generateAlone(promptOf(5), { maxTokens: 12 }));
});

describe('the ranks agree', () => {
  const rankState = (fields: Partial<RankState> = {}): RankState => ({
    numSteps: 5,
    numCalls: 1,
    request: request(-1, 2),
    fault: null,
    ...fields,
  });

  test('on the last step launched by any rank', () => {
    expect(
      lastCommonStep([
        rankState(),
        rankState({ numSteps: 7 }),
        rankState({ request: request(-2, 2) }),
      ]),
    ).toBe(7);
  });

  test.each([
    [
      'a fault',
      { fault: 'its executor is asleep' },
      'is not possible on rank 1: its executor is asleep',
    ],
    ['other calls', { numCalls: 2 }, 'after 2 calls on rank 1, but after 1 on rank 0'],
    ['another size', { request: request(-1, 3) }, 'newDataParallelSize is 3 on rank 1, but 2'],
    [
      'a rank twice',
      { request: request(0, 2) },
      'rank 1 would be rank 0 of 2, and so would rank 0',
    ],
    [
      'a rank too high',
      { request: request(2, 2) },
      'rank 1 would be rank 2 of 2; a rank must be less',
    ],
  ])('or all refuse: %s', (_, fields, message) => {
    expect(() => lastCommonStep([rankState(), rankState(fields)])).toThrow(message);
  });
});
