/** An engine in lockstep makes the same schedule whenever calls arrive. */
import { NotSupportedError, QueueFullError, ShutdownError } from '../../lib/errors';
import { UniProcExecutor } from '../../lib/executor/uniProcExecutor';
import { PagedWorker, shutdownEngines, SlowPagedWorker, TestEngine, turns } from './pagedWorker';
import { promptOf } from './schedulerDriver';

afterEach(shutdownEngines);

class LockstepExecutor extends UniProcExecutor {
  override get inLockstep(): boolean {
    return true;
  }
}

const create = (asyncScheduling: boolean, args = {}) =>
  TestEngine.create(SlowPagedWorker, {
    distributedExecutorBackend: LockstepExecutor,
    asyncScheduling,
    ...args,
  });

/** The schedule of each step, on which all ranks must agree. */
function schedule({ steps }: PagedWorker): string[] {
  return steps
    .filter((step) => step.totalNumScheduledTokens > 0)
    .map(({ numScheduledTokens, scheduledNewReqs, preemptedReqIds }) =>
      JSON.stringify([
        [...numScheduledTokens],
        scheduledNewReqs.map(({ reqId, numComputedTokens }) => [reqId, numComputedTokens]),
        preemptedReqIds,
      ]),
    );
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

describe.each([false, true])('with asyncScheduling %s', (asyncScheduling) => {
  test('overlapping calls run one after another, in the order made', async () => {
    const engine = await create(asyncScheduling);
    const ended: string[] = [];
    await Promise.all([
      engine
        .generateAll([promptOf(5), promptOf(3)], { maxTokens: 6 })
        .then(() => ended.push('first')),
      engine.generateAll([promptOf(2)], { maxTokens: 1 }).then(() => ended.push('second')),
      engine.generateAll([promptOf(4)], { maxTokens: 2 }).then(() => ended.push('third')),
    ]);
    expect(ended).toEqual(['first', 'second', 'third']);
    const together = engine.worker.steps.map(({ numScheduledTokens }) =>
      [...numScheduledTokens.keys()].join(),
    );
    expect(new Set(together.filter((ids) => ids !== ''))).toEqual(new Set(['0,1', '2', '3']));
    expect(engine.engine.numUnfinishedRequests).toBe(0);
  });

  test('the schedule does not depend on when a call is made', async () => {
    // Stop tokens that finish some requests early, with one more step in flight.
    const prompts = [[promptOf(5), promptOf(9)], [promptOf(5), promptOf(2)], [promptOf(13)]];
    const params = { maxTokens: 12, stopTokenIds: Array.from({ length: 60 }, (_, i) => i) };
    const run = async (wait: (previous: Promise<unknown>) => Promise<unknown>) => {
      const engine = await create(asyncScheduling, { maxNumSeqs: 2 });
      let previous: Promise<unknown> = Promise.resolve();
      const calls: Promise<unknown>[] = [];
      for (const batch of prompts) {
        await wait(previous);
        previous = engine.generateAll(batch, params);
        calls.push(previous);
      }
      await Promise.all(calls);
      return schedule(engine.worker);
    };
    const atOnce = await run(() => Promise.resolve());
    expect(await run((previous) => previous)).toEqual(atOnce);
    expect(await run((previous) => previous.then(() => turns(1)))).toEqual(atOnce);
    expect(await run((previous) => previous.then(() => pause(7)))).toEqual(atOnce);
    expect(await run(() => pause(3))).toEqual(atOnce);
  });
});

test('a refused call does not block the next one', async () => {
  const engine = await create(true, { maxQueuedRequests: 1, maxNumSeqs: 1 });
  const first = engine.generateAll([promptOf(3)], { maxTokens: 3 });
  const refused = engine.generateAll(
    [3, 4, 5].map((length) => promptOf(length)),
    { maxTokens: 3 },
  );
  const last = engine.generateAll([promptOf(5)], { maxTokens: 3 });
  await expect(refused).rejects.toBeInstanceOf(QueueFullError);
  expect(engine.engine.stats().numFinishedReqs).toMatchObject({ abort: 0, error: 0 });
  expect((await first)[0].outputs[0].tokenIds).toHaveLength(3);
  expect((await last)[0].outputs[0].tokenIds).toHaveLength(3);
});

test('a call without prompts waits for nothing', async () => {
  const engine = await create(true);
  expect(await engine.generateAll([])).toEqual([]);
});

test('the prefix cache is reset between the calls before and after it', async () => {
  const engine = await create(true);
  const calls = [engine.generateAll([promptOf(12)]), engine.generateAll([promptOf(12)])];
  engine.engine.resetPrefixCache();
  calls.push(engine.generateAll([promptOf(12)]));
  await Promise.all(calls);
  const found = engine.worker.steps.flatMap((step) => step.scheduledNewReqs);
  expect(found.map(({ numComputedTokens }) => numComputedTokens)).toEqual([0, 8, 0]);
});

test('queued calls reject at shutdown', async () => {
  const engine = await create(true);
  const calls = [engine.generateAll([promptOf(3)]), engine.generateAll([promptOf(4)])];
  const settled = Promise.allSettled(calls);
  await engine.engine.shutdown();
  for (const [i, call] of (await settled).entries()) {
    expect(call).toMatchObject({ status: 'rejected', reason: expect.any(ShutdownError) as Error });
    // Each has an error of its own, with its own prompt.
    const { outputs } = (call as PromiseRejectedResult).reason as ShutdownError;
    expect(outputs).toMatchObject([{ requestId: String(i), promptTokenIds: promptOf(3 + i) }]);
  }
  await expect(engine.generateAll([promptOf(3)])).rejects.toBeInstanceOf(ShutdownError);
  expect(engine.engine.stats().numFinishedReqs).toMatchObject({ abort: 2, error: 0 });
});

describe('rank-local decisions are refused', () => {
  test.each([
    ['a signal', { signal: new AbortController().signal }],
    ['a timeout', { timeoutMs: 1000 }],
  ])('%s', async (_, options) => {
    const engine = await create(true);
    const call = engine.generate(promptOf(3), {}, options);
    await expect(call).rejects.toBeInstanceOf(NotSupportedError);
    expect((await engine.generate(promptOf(3))).outputs).toHaveLength(1);
  });

  test('a stream, at its first read', async () => {
    const engine = await create(true);
    const read = engine.stream(promptOf(3))[Symbol.asyncIterator]().next();
    await expect(read).rejects.toBeInstanceOf(NotSupportedError);
    expect(engine.worker.steps).toHaveLength(0);
  });
});
