import { QueueFullError } from '../../lib/errors';
import { ManualPagedWorker, PagedWorker, shutdownEngines, TestEngine, turns } from './pagedWorker';
import { promptOf } from './schedulerDriver';

afterEach(shutdownEngines);

const LONG = { maxTokens: 50 };

/** One running request, none waiting. */
async function busyEngine(maxQueuedRequests: number): Promise<TestEngine<ManualPagedWorker>> {
  const engine = await TestEngine.create(ManualPagedWorker, { maxNumSeqs: 1, maxQueuedRequests });
  void engine.generate(promptOf(3), LONG).catch(() => undefined);
  await turns();
  expect(engine.engine.stats()).toMatchObject({ numRunningReqs: 1, numWaitingReqs: 0 });
  return engine;
}

/** Starts requests that will wait. */
function queue(engine: TestEngine<PagedWorker>, count: number): void {
  for (let i = 0; i < count; i++) void engine.generate(promptOf(3), LONG).catch(() => undefined);
}

test('a request beyond the limit is refused with limit and count', async () => {
  const engine = await busyEngine(3);
  queue(engine, 3);
  const call = engine.generate(promptOf(3), LONG);
  await expect(call).rejects.toBeInstanceOf(QueueFullError);
  await expect(call).rejects.toMatchObject({
    code: 'QUEUE_FULL',
    maxQueuedRequests: 3,
    numWaiting: 3,
    numNew: 1,
    message: expect.stringMatching(/^3 requests are waiting and maxQueuedRequests is 3/) as string,
  });
  await expect(engine.stream(promptOf(3), LONG).next()).rejects.toBeInstanceOf(QueueFullError);
});

test('requests count whether new or left waiting by a step', async () => {
  const engine = await busyEngine(2);
  queue(engine, 1);
  // A step completes, and the next leaves the request waiting.
  engine.worker.complete[0]();
  await turns();
  expect(engine.engine.stats().numWaitingReqs).toBe(1);
  queue(engine, 1);
  await expect(engine.generate(promptOf(3), LONG)).rejects.toMatchObject({ numWaiting: 2 });
});

test('there is room again once a waiting request ends', async () => {
  const engine = await busyEngine(1);
  const controller = new AbortController();
  const waiting = engine.generate(promptOf(3), LONG, { signal: controller.signal });
  await expect(engine.generate(promptOf(3), LONG)).rejects.toBeInstanceOf(QueueFullError);
  controller.abort(new Error('no longer wanted'));
  await expect(waiting).rejects.toThrow('no longer wanted');
  engine.worker.complete[0]();
  await turns();
  queue(engine, 1);
  expect(engine.engine.stats().numWaitingReqs).toBe(1);
});

test('each sample of a prompt counts', async () => {
  const engine = await busyEngine(3);
  await expect(engine.generate(promptOf(3), { ...LONG, n: 4 })).rejects.toMatchObject({
    numWaiting: 0,
    numNew: 4,
  });
  void engine.generate(promptOf(3), { ...LONG, n: 3 }).catch(() => undefined);
  expect(engine.engine.stats().numWaitingReqs).toBe(3);
});

test('a call with prompts that do not all fit adds none', async () => {
  const engine = await busyEngine(3);
  queue(engine, 2);
  const prompts = [promptOf(3), promptOf(4)];
  await expect(engine.generateAll(prompts, LONG)).rejects.toMatchObject({
    numWaiting: 2,
    numNew: 2,
  });
  expect(engine.engine.stats().numWaitingReqs).toBe(2);
  expect(engine.engine.numUnfinishedRequests).toBe(3);
});

test('without a limit any number can wait', async () => {
  const engine = await TestEngine.create(PagedWorker, { maxNumSeqs: 1 });
  const calls = Array.from({ length: 500 }, () => engine.generate(promptOf(3), { maxTokens: 1 }));
  expect(engine.engine.stats().numWaitingReqs).toBe(500);
  await Promise.all(calls);
});
