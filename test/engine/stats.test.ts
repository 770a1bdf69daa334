/** Engine statistics and events. */
import type { EngineArgs } from '../../lib/config/engineArgs';
import type { FinishedRequest } from '../../lib/engine/metrics';
import type { SchedulerOutput } from '../../lib/contract/schedulerOutput';
import type { StepOutput } from '../../lib/worker/workerBase';
import { stopClock } from './clock';
import { generateAlone } from './pagedModel';
import {
  ManualPagedWorker,
  PagedWorker,
  shutdownEngines,
  SlowPagedWorker,
  TestEngine,
  turns,
} from './pagedWorker';
import { promptOf } from './schedulerDriver';

afterEach(shutdownEngines);

const LONG = { maxTokens: 50 };

/** Collects the records of finished requests. */
function records(engine: TestEngine<PagedWorker>): FinishedRequest[] {
  const list: FinishedRequest[] = [];
  engine.engine.events.on('finished', (request) => list.push(request));
  return list;
}

describe('stats', () => {
  test('of a new engine are zero', async () => {
    const { engine } = await TestEngine.create(PagedWorker);
    const none = { sum: 0, count: 0 };
    expect(engine.stats()).toMatchObject({
      numWaitingReqs: 0,
      numRunningReqs: 0,
      kvCacheUsage: 0,
      prefixCacheStats: { queries: 0, hits: 0 },
      numPreemptions: 0,
      numFinishedReqs: { stop: 0, length: 0, abort: 0, timeout: 0, error: 0 },
      numPromptTokens: 0,
      numOutputTokens: 0,
      timeToFirstTokenMs: none,
      interTokenLatencyMs: none,
    });
  });

  test('report running and waiting requests and the KV cache usage', async () => {
    const engine = await TestEngine.create(ManualPagedWorker, {
      maxNumSeqs: 2,
      asyncScheduling: false,
    });
    for (let i = 0; i < 5; i++) void engine.generate(promptOf(9, i), LONG).catch(() => undefined);
    expect(engine.engine.stats()).toMatchObject({ numWaitingReqs: 5, numRunningReqs: 0 });
    await turns();
    // 9 tokens are 3 blocks of 4; the pool has room for 2 requests of 64 tokens, 32 blocks.
    expect(engine.engine.stats()).toMatchObject({
      numWaitingReqs: 3,
      numRunningReqs: 2,
      kvCacheUsage: expect.closeTo(6 / 32) as number,
    });
  });

  test('report what the KV cache holds', async () => {
    const engine = await TestEngine.create(ManualPagedWorker, {
      maxNumSeqs: 2,
      asyncScheduling: false,
    });
    // 32 blocks of 4 tokens; requests of up to 64 tokens take 16 blocks.
    const held = {
      dtype: 'float32',
      numBlocks: 32,
      blockSize: 4,
      numTokens: 128,
      maxModelLen: 64,
      maxFullLengthRequests: 2,
    };
    const unused = { usage: 0, numUsedBlocks: 0, peakNumUsedBlocks: 0 };
    const groups = [{ numLayers: 1, slidingWindow: null }];
    expect(engine.engine.stats().kvCache).toEqual({ ...unused, groups, ...held });
    void engine.generate(promptOf(9), LONG).catch(() => undefined);
    await turns();
    const { kvCache, kvCacheUsage } = engine.engine.stats();
    const used = { usage: 3 / 32, numUsedBlocks: 3, peakNumUsedBlocks: 3 };
    expect(kvCache).toEqual({ ...used, groups, ...held });
    expect(kvCache.usage).toBe(kvCacheUsage);
  });

  test('report as many requests of full length as run without preemption', async () => {
    class SmallPool extends PagedWorker {
      static override numBlocks = 2 * 16 + 15;
    }
    for (const isOneMore of [false, true]) {
      const engine = await TestEngine.create(SmallPool);
      const { maxModelLen, maxFullLengthRequests } = engine.engine.stats().kvCache;
      expect(maxFullLengthRequests).toBe(2);
      const count = maxFullLengthRequests + (isOneMore ? 1 : 0);
      const params = { maxTokens: maxModelLen - 8, ignoreEos: true };
      await Promise.all(
        Array.from({ length: count }, (_, i) => engine.generate(promptOf(8, i), params)),
      );
      expect(engine.engine.stats().numPreemptions > 0).toBe(isOneMore);
    }
  });

  test('count prompt and output tokens, and finish reasons', async () => {
    const engine = await TestEngine.create(PagedWorker);
    const [stopTokenId] = generateAlone(promptOf(4), { maxTokens: 3 }).slice(2);
    await engine.generate(promptOf(4), { ...LONG, stopTokenIds: [stopTokenId] });
    await engine.generateAll([promptOf(5), promptOf(6)], { maxTokens: 7, n: 2 });
    const { numFinishedReqs, numPromptTokens, numOutputTokens } = engine.engine.stats();
    expect(numFinishedReqs).toEqual({ stop: 1, length: 4, abort: 0, timeout: 0, error: 0 });
    expect(numPromptTokens).toBe(4 + 2 * 5 + 2 * 6);
    expect(numOutputTokens).toBe(3 + 4 * 7);
  });

  test('count aborts, timeouts and errors', async () => {
    class FailingWorker extends SlowPagedWorker {
      fails = false;
      override executeModel(step: SchedulerOutput): Promise<StepOutput> {
        if (this.fails) throw new Error('lost');
        return super.executeModel(step);
      }
    }
    const engine = await TestEngine.create(FailingWorker);
    const reasons = records(engine);
    const stream = engine.stream(promptOf(3), LONG);
    await stream.next();
    await stream.return();
    const controller = new AbortController();
    const { signal } = controller;
    const aborted = engine.generate(promptOf(3), { ...LONG, n: 2 }, { signal });
    controller.abort(new Error('no longer wanted'));
    await expect(aborted).rejects.toThrow('no longer wanted');
    await expect(engine.generate(promptOf(3), LONG, { timeoutMs: 5 })).rejects.toThrow();
    const failing = engine.generate(promptOf(3), LONG);
    await turns();
    engine.worker.fails = true;
    await expect(failing).rejects.toThrow('lost');
    expect(engine.engine.stats().numFinishedReqs).toEqual({
      stop: 0,
      length: 0,
      abort: 3,
      timeout: 1,
      error: 1,
    });
    expect(reasons.map(({ finishReason }) => finishReason)).toEqual([
      'abort',
      'abort',
      'abort',
      'timeout',
      'error',
    ]);
  });

  test('count preemptions, which are events too', async () => {
    class SmallPool extends PagedWorker {
      static override numBlocks = 16;
    }
    const engine = await TestEngine.create(SmallPool);
    const preempted: string[] = [];
    engine.engine.events.on('preempted', (requestId) => preempted.push(requestId));
    await Promise.all([0, 1, 2].map((i) => engine.generate(promptOf(8, i), { maxTokens: 40 })));
    const told = engine.worker.steps.flatMap((step) => step.preemptedReqIds);
    expect(told.length).toBeGreaterThan(0);
    expect(preempted).toEqual(told);
    expect(engine.engine.stats().numPreemptions).toBe(told.length);
  });

  test('report prefix cache queries and hits', async () => {
    const engine = await TestEngine.create(PagedWorker);
    const finished = records(engine);
    await engine.generate(promptOf(9), { maxTokens: 1 });
    await engine.generate(promptOf(9), { maxTokens: 1 });
    // Two whole blocks of 4 tokens.
    expect(engine.engine.stats().prefixCacheStats).toEqual({ queries: 18, hits: 8 });
    expect(finished.map(({ numCachedTokens }) => numCachedTokens)).toEqual([0, 8]);
  });

  test('separate prompts of different salts', async () => {
    const engine = await TestEngine.create(PagedWorker);
    const finished = records(engine);
    for (const cacheSalt of ['a', 'b', 'a']) {
      await engine.generate(promptOf(9), { maxTokens: 1 }, { cacheSalt });
    }
    expect(finished.map(({ numCachedTokens }) => numCachedTokens)).toEqual([0, 0, 8]);
  });

  test('show the order by priority', async () => {
    const engine = await TestEngine.create(PagedWorker, {
      maxNumSeqs: 1,
      schedulingPolicy: 'priority',
    });
    const finished = records(engine);
    const priorities = [5, undefined, -5];
    const calls = priorities.map((priority) =>
      engine.generate(promptOf(4), { maxTokens: 2 }, { priority }),
    );
    await Promise.all(calls);
    expect(finished.map(({ requestId }) => requestId)).toEqual(['2', '1', '0']);
  });

  test('are a copy', async () => {
    const engine = await TestEngine.create(PagedWorker);
    const before = engine.engine.stats();
    const copy = structuredClone(before);
    await engine.generate(promptOf(9), { maxTokens: 3 });
    expect(before).toEqual(copy);
    expect(engine.engine.stats()).not.toEqual(copy);
  });
});

describe('latencies', () => {
  const STEP_MS = 30;

  afterEach(() => {
    jest.useRealTimers();
  });

  /** Runs one call, advancing the test's clock by STEP_MS per step. */
  async function generate(args: EngineArgs, maxTokens: number) {
    const engine = await TestEngine.create(ManualPagedWorker, { asyncScheduling: false, ...args });
    stopClock();
    const call = engine.generateAll([promptOf(3), promptOf(4)], { maxTokens });
    await turns();
    const finished = records(engine);
    while (engine.engine.numUnfinishedRequests > 0) {
      jest.advanceTimersByTime(STEP_MS);
      engine.worker.complete.shift()?.();
      await turns();
    }
    await call;
    return { stats: engine.engine.stats(), finished };
  }

  test('are from the call to the first token, and from token to token', async () => {
    const { stats, finished } = await generate({}, 4);
    expect(stats.timeToFirstTokenMs).toMatchObject({ sum: 2 * STEP_MS, count: 2 });
    expect(stats.interTokenLatencyMs).toMatchObject({ sum: 6 * STEP_MS, count: 6 });
    expect(finished).toHaveLength(2);
    for (const request of finished) {
      expect(request).toMatchObject({
        queueTimeMs: 0,
        timeToFirstTokenMs: STEP_MS,
        totalTimeMs: 4 * STEP_MS,
      });
    }
  });

  test('include the queue time, which is reported separately', async () => {
    const { finished } = await generate({ maxNumSeqs: 1 }, 2);
    expect(finished).toMatchObject([
      { queueTimeMs: 0, timeToFirstTokenMs: STEP_MS, totalTimeMs: 2 * STEP_MS },
      { queueTimeMs: 2 * STEP_MS, timeToFirstTokenMs: 3 * STEP_MS, totalTimeMs: 4 * STEP_MS },
    ]);
  });
});

describe('the event finished', () => {
  test('has a record of each sample', async () => {
    const engine = await TestEngine.create(SlowPagedWorker);
    const finished = records(engine);
    await engine.generate(promptOf(5), { maxTokens: 7, n: 2 });
    const record = {
      numPromptTokens: 5,
      numOutputTokens: 7,
      finishReason: 'length',
      queueTimeMs: expect.any(Number) as number,
      timeToFirstTokenMs: expect.any(Number) as number,
      totalTimeMs: expect.any(Number) as number,
    };
    expect(finished).toEqual([
      { ...record, requestId: '0-0', numCachedTokens: 0 },
      { ...record, requestId: '0-1', numCachedTokens: expect.any(Number) as number },
    ]);
  });

  test('has null for times that did not occur', async () => {
    const engine = await TestEngine.create(ManualPagedWorker, { maxNumSeqs: 1 });
    const finished = records(engine);
    void engine.generate(promptOf(3), LONG).catch(() => undefined);
    await expect(engine.generate(promptOf(4), LONG, { timeoutMs: 5 })).rejects.toThrow();
    expect(finished).toMatchObject([
      {
        requestId: '1',
        numPromptTokens: 4,
        numCachedTokens: 0,
        numOutputTokens: 0,
        finishReason: 'timeout',
        queueTimeMs: null,
        timeToFirstTokenMs: null,
      },
    ]);
    expect(finished[0].totalTimeMs).toBeGreaterThanOrEqual(4);
  });

  test('may trigger another call', async () => {
    const engine = await TestEngine.create(PagedWorker);
    const next = new Promise((resolve) => {
      engine.engine.events.once('finished', () => {
        resolve(engine.generate(promptOf(4), { maxTokens: 2 }));
      });
    });
    await engine.generate(promptOf(3), { maxTokens: 2 });
    expect(await next).toMatchObject({
      outputs: [{ tokenIds: generateAlone(promptOf(4), { maxTokens: 2 }) }],
    });
  });
});

test('the event failed is emitted once, but not at shutdown', async () => {
  class FailingWorker extends PagedWorker {
    override executeModel(): StepOutput {
      throw new Error('lost');
    }
  }
  const failing = await TestEngine.create(FailingWorker);
  const failed = jest.fn();
  failing.engine.events.on('failed', failed);
  await expect(failing.generate(promptOf(3))).rejects.toThrow('lost');
  await expect(failing.generate(promptOf(3))).rejects.toThrow('lost');
  await failing.engine.shutdown();
  expect(failed).toHaveBeenCalledTimes(1);
  expect(failed).toHaveBeenCalledWith(expect.objectContaining({ code: 'EXECUTOR_FAILED' }));

  const sound = await TestEngine.create(PagedWorker);
  sound.engine.events.on('failed', failed);
  await sound.engine.shutdown();
  expect(failed).toHaveBeenCalledTimes(1);
});
