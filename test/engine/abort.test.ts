/** Requests that end early: by a signal, a leaving reader or a timeout. */
import { getEventListeners } from 'node:events';
import type { EngineArgs } from '../../lib/config/engineArgs';
import { RequestTimeoutError, ShutdownError } from '../../lib/errors';
import { OutputProcessor } from '../../lib/engine/outputProcessor';
import type { OutputStream } from '../../lib/engine/outputs';
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
import { abortedBy } from '../support/aborted';

afterEach(shutdownEngines);

const LONG = { maxTokens: 50 };
const reason = new Error('the client went away');

const numListeners = (signal: AbortSignal) => getEventListeners(signal, 'abort').length;

/** Completes the current step and waits for the next. */
async function nextStep({ worker }: TestEngine<ManualPagedWorker>) {
  worker.complete.shift()?.();
  await turns();
  return worker.steps.at(-1);
}

/** An engine with request 0, which continues, and request 1, which has computed its prompt. */
async function twoRunning(start: (engine: TestEngine<ManualPagedWorker>) => Promise<unknown>) {
  const engine = await TestEngine.create(ManualPagedWorker, { asyncScheduling: false });
  void engine.generate(promptOf(8), LONG).catch(() => undefined);
  const ended = start(engine);
  ended.catch(() => undefined);
  await turns();
  await nextStep(engine);
  expect(engine.engine.stats().numRunningReqs).toBe(2);
  return { engine, ended, usageOfTwo: engine.engine.stats().kvCacheUsage };
}

/** Checks that the next step frees request 1 on the worker and its blocks. */
async function expectFreedInNextStep(
  engine: TestEngine<ManualPagedWorker>,
  usageOfTwo: number,
): Promise<void> {
  const step = await nextStep(engine);
  expect(step?.finishedReqIds).toEqual(['1']);
  expect([...(step?.numScheduledTokens.keys() ?? [])]).toEqual(['0']);
  // Both had prompts and outputs of the same length.
  expect(engine.engine.stats().kvCacheUsage).toBeCloseTo(usageOfTwo / 2);
  expect(engine.engine.stats().numRunningReqs).toBe(1);
}

describe('a signal', () => {
  test('aborts generate: its reason at once, the blocks in the next step', async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const { engine, ended, usageOfTwo } = await twoRunning((engine) =>
      engine.generate(promptOf(8, 2), LONG, { signal }),
    );
    controller.abort(reason);
    // No step completes meanwhile.
    await expect(ended).rejects.toMatchObject(abortedBy(reason));
    await expectFreedInNextStep(engine, usageOfTwo);
  });

  test('aborts a stream: the next read rejects and unread deltas are dropped', async () => {
    const controller = new AbortController();
    const { signal } = controller;
    let stream!: OutputStream;
    const { engine, usageOfTwo } = await twoRunning((engine) => {
      stream = engine.stream(promptOf(8, 2), LONG, { signal });
      return stream.next();
    });
    await nextStep(engine);
    controller.abort(reason);
    await expect(stream.next()).rejects.toMatchObject(abortedBy(reason));
    expect(await stream.next()).toEqual({ done: true, value: undefined });
    await expectFreedInNextStep(engine, usageOfTwo);
  });

  test('rejects a pending read', async () => {
    const controller = new AbortController();
    const { engine, ended } = await twoRunning(async (engine) => {
      const stream = engine.stream(promptOf(8, 2), LONG, { signal: controller.signal });
      await stream.next();
      return stream.next();
    });
    controller.abort(reason);
    await expect(ended).rejects.toMatchObject(abortedBy(reason));
    expect(engine.engine.numUnfinishedRequests).toBe(1);
  });

  test('aborts a waiting request', async () => {
    const engine = await TestEngine.create(ManualPagedWorker, { maxNumSeqs: 1 });
    void engine.generate(promptOf(3), LONG).catch(() => undefined);
    const controller = new AbortController();
    const waiting = engine.generate(promptOf(3), LONG, { signal: controller.signal });
    await turns();
    expect(engine.engine.stats().numWaitingReqs).toBe(1);
    controller.abort(reason);
    await expect(waiting).rejects.toMatchObject(abortedBy(reason));
    await nextStep(engine);
    expect(engine.engine.stats().numWaitingReqs).toBe(0);
  });

  test('aborts all prompts and samples of its call, and no other call', async () => {
    const engine = await TestEngine.create(SlowPagedWorker);
    const controller = new AbortController();
    const other = engine.generate(promptOf(7), { maxTokens: 40 });
    const prompts = [1, 2, 3].map((first) => promptOf(4, first));
    const { signal } = controller;
    const call = engine.generateAll(prompts, { ...LONG, n: 2 }, { signal });
    const rejected = expect(call).rejects.toMatchObject(abortedBy(reason));
    while (engine.worker.steps.length < 5) await turns(1);
    controller.abort(reason);
    await rejected;
    expect(engine.engine.numUnfinishedRequests).toBe(1);
    expect((await other).outputs[0].tokenIds).toEqual(
      generateAlone(promptOf(7), { maxTokens: 40 }),
    );
    expect(engine.worker.model.requests.size).toBe(0);
    expect(engine.engine.stats().kvCacheUsage).toBe(0);
  });

  test('that is already aborted refuses the call and adds no request', async () => {
    const engine = await TestEngine.create(PagedWorker);
    const signal = AbortSignal.abort(reason);
    await expect(engine.generate(promptOf(3), LONG, { signal })).rejects.toMatchObject(
      abortedBy(reason),
    );
    await expect(engine.generateAll([], LONG, { signal })).rejects.toMatchObject(abortedBy(reason));
    await expect(engine.stream(promptOf(3), LONG, { signal }).next()).rejects.toMatchObject(
      abortedBy(reason),
    );
    await turns();
    expect(engine.worker.steps).toEqual([]);
    expect(engine.engine.stats()).toMatchObject({ numWaitingReqs: 0, numRunningReqs: 0 });
  });

  test("that is aborted before a stream's first read refuses the call too", async () => {
    const engine = await TestEngine.create(PagedWorker);
    const controller = new AbortController();
    const stream = engine.stream(promptOf(3), LONG, { signal: controller.signal });
    controller.abort(reason);
    await expect(stream.next()).rejects.toMatchObject(abortedBy(reason));
    expect(engine.worker.steps).toEqual([]);
  });

  test.each([['stop'], [null], [7]])('rejects with its reason: %p', async (value) => {
    const engine = await TestEngine.create(SlowPagedWorker);
    const controller = new AbortController();
    const { signal } = controller;
    const call = engine.generate(promptOf(3), LONG, { signal });
    const read = engine.stream(promptOf(3), LONG, { signal }).next();
    controller.abort(value);
    await expect(call).rejects.toMatchObject(abortedBy(value));
    await expect(read).rejects.toMatchObject(abortedBy(value));
  });

  test('shared by many requests keeps no listener of finished ones', async () => {
    const engine = await TestEngine.create(SlowPagedWorker, { maxQueuedRequests: 30 });
    const { signal } = new AbortController();
    const short = { maxTokens: 2 };

    const calls = Array.from({ length: 20 }, () => engine.generate(promptOf(3), short, { signal }));
    const batch = engine.generateAll([promptOf(3), promptOf(4)], { ...short, n: 2 }, { signal });
    const stream = engine.stream(promptOf(3), short, { signal });
    const left = engine.stream(promptOf(3), short, { signal });
    await Promise.all([stream.next(), left.next()]);
    // Node warns of a leak at the eleventh listener.
    expect(numListeners(signal)).toBe(1);
    await Promise.all([...calls, batch]);
    expect(numListeners(signal)).toBe(1);
    await left.return();
    while ((await stream.next()).done !== true);
    expect(numListeners(signal)).toBe(0);

    // Nor do refused calls.
    await engine.generateAll([], short, { signal });
    const tooMany = Array.from({ length: 39 }, () => promptOf(3));
    await expect(engine.generateAll(tooMany, short, { signal })).rejects.toThrow();
    const timedOut = engine.generate(promptOf(3), LONG, { signal, timeoutMs: 5 });
    await expect(timedOut).rejects.toThrow(RequestTimeoutError);
    expect(numListeners(signal)).toBe(0);
    const pending = engine.generate(promptOf(3), LONG, { signal });
    expect(numListeners(signal)).toBe(1);
    const rejected = expect(pending).rejects.toThrow(ShutdownError);
    await engine.engine.shutdown();
    await rejected;
    expect(numListeners(signal)).toBe(0);
  });

  test('aborted after the call has ended changes nothing', async () => {
    const engine = await TestEngine.create(PagedWorker);
    const controller = new AbortController();
    const { signal } = controller;
    const stream = engine.stream(promptOf(3), { maxTokens: 4 }, { signal });
    const output = await engine.generate(promptOf(3), { maxTokens: 4 }, { signal });
    const tokenIds: number[] = [];
    for await (const delta of stream) tokenIds.push(...delta.tokenIds);
    controller.abort(reason);
    expect(output.outputs[0].tokenIds).toEqual(tokenIds);
    expect(await stream.next()).toEqual({ done: true, value: undefined });
  });
});

test('leaving a stream frees its blocks in the next step', async () => {
  let leave = () => {};
  const leaves = new Promise<void>((resolve) => (leave = resolve));
  const { engine, usageOfTwo } = await twoRunning(async (engine) => {
    for await (const delta of engine.stream(promptOf(8, 2), LONG)) {
      expect(delta.tokenIds).toHaveLength(1);
      await leaves;
      break;
    }
  });
  leave();
  await turns();
  await expectFreedInNextStep(engine, usageOfTwo);
});

describe.each([false, true])('with asyncScheduling %s', (asyncScheduling) => {
  /** Too few blocks for all, and chunked prompts. */
  class SmallPool extends ManualPagedWorker {
    static override numBlocks = 16;
  }

  test('a request aborted at any step leaks no block and changes no token', async () => {
    const lengths = [5, 9, 21, 3];
    const prompts = lengths.map((length, i) => promptOf(length, i));
    const params = { maxTokens: 15 };
    let wasPreempted = false;
    for (let numSteps = 0; numSteps < 40; numSteps++) {
      const engine = await TestEngine.create(SmallPool, {
        asyncScheduling,
        maxNumBatchedTokens: 8,
        enablePrefixCaching: numSteps % 2 === 0,
      });
      const controllers = prompts.map(() => new AbortController());
      const outputs = prompts.map((prompt, i) =>
        engine.generate(prompt, params, { signal: controllers[i].signal }),
      );
      const settled = Promise.allSettled(outputs);
      for (let step = 0; step < numSteps; step++) await nextStep(engine);
      const which = numSteps % prompts.length;
      controllers[which].abort(reason);
      while (engine.engine.numUnfinishedRequests > 0) await nextStep(engine);

      (await settled).forEach((result, i) => {
        const alone = generateAlone(prompts[i], params);
        if (result.status === 'rejected') {
          expect([i, result.reason]).toMatchObject([which, abortedBy(reason)]);
        } else expect(result.value.outputs[0].tokenIds).toEqual(alone);
      });
      for (let i = 0; i < 3; i++) await nextStep(engine);
      expect(engine.engine.stats()).toMatchObject({
        kvCacheUsage: 0,
        numRunningReqs: 0,
        numWaitingReqs: 0,
      });
      expect(engine.worker.model.requests.size).toBe(0);
      wasPreempted ||= engine.engine.stats().numPreemptions > 0;
    }
    expect(wasPreempted).toBe(true);
  });
});

describe('a timeout', () => {
  afterEach(() => {
    jest.useRealTimers();
  });

  /** An engine with steps and clock under the test's control. */
  async function create(args: EngineArgs = {}): Promise<TestEngine<ManualPagedWorker>> {
    const engine = await TestEngine.create(ManualPagedWorker, { asyncScheduling: false, ...args });
    stopClock();
    return engine;
  }

  test('aborts the request and reports its time and progress', async () => {
    const engine = await create();
    const call = engine.generate(promptOf(3), { maxTokens: 60 }, { timeoutMs: 20 });
    const settled = jest.fn();
    const ended = call.then(
      () => {
        throw new Error('it was done in time');
      },
      (error: unknown) => {
        settled();
        return error as RequestTimeoutError;
      },
    );
    await turns();
    for (let i = 0; i < 3; i++) await nextStep(engine);
    jest.advanceTimersByTime(19);
    await turns();
    expect(settled).not.toHaveBeenCalled();
    jest.advanceTimersByTime(1);
    const error = await ended;
    expect(error).toBeInstanceOf(RequestTimeoutError);
    expect(error.code).toBe('REQUEST_TIMEOUT');
    expect(error.timeoutMs).toBe(20);
    expect(error.numOutputTokens).toBe(3);
    expect(error.message).toMatch(/within 20 ms: it had generated 3 tokens;/);
    const next = engine.generate(promptOf(3), { maxTokens: 1 });
    await turns();
    while (engine.engine.numUnfinishedRequests > 0) await nextStep(engine);
    await next;
    await nextStep(engine);
    expect(engine.engine.stats().kvCacheUsage).toBe(0);
    expect(engine.worker.model.requests.size).toBe(0);
  });

  test('of several prompts reports how many were done', async () => {
    const engine = await create();
    // One of the two finishes at its first token.
    const [first] = generateAlone(promptOf(3), { maxTokens: 1 });
    const params = { maxTokens: 9, stopTokenIds: [first] };
    const call = engine.generateAll([promptOf(3), promptOf(4)], params, { timeoutMs: 30 });
    const rejected = expect(call).rejects.toMatchObject({
      message: expect.stringContaining(
        'it had generated 2 tokens, and 1 of 2 prompts were done',
      ) as string,
      numOutputTokens: 2,
    });
    await turns();
    await nextStep(engine);
    jest.advanceTimersByTime(30);
    await rejected;
    await nextStep(engine);
    expect(engine.engine.stats().kvCacheUsage).toBe(0);
  });

  test('ends a stream after the delivered deltas', async () => {
    const engine = await create();
    const tokenIds: number[] = [];
    const read = async () => {
      const stream = engine.stream(promptOf(3), { maxTokens: 60 }, { timeoutMs: 20 });
      for await (const delta of stream) tokenIds.push(...delta.tokenIds);
    };
    const ended = read().catch((error: unknown) => error as RequestTimeoutError);
    await turns();
    for (let i = 0; i < 5; i++) await nextStep(engine);
    jest.advanceTimersByTime(20);
    const error = await ended;
    expect(error).toBeInstanceOf(RequestTimeoutError);
    expect((error as RequestTimeoutError).numOutputTokens).toBe(5);
    expect(tokenIds).toEqual(generateAlone(promptOf(3), { maxTokens: 5 }));
  });

  test('ends a stream after the deltas that a slow reader has not read', async () => {
    const engine = await create();
    const stream = engine.stream(promptOf(3), { maxTokens: 60 }, { timeoutMs: 20 });
    const reading = stream.next();
    await turns();
    await nextStep(engine);
    const first = await reading;
    for (let i = 0; i < 3; i++) await nextStep(engine);
    jest.advanceTimersByTime(20);
    await turns();
    const rest = await stream.next();
    const error = await stream.next().catch((error: unknown) => error as RequestTimeoutError);
    expect(error).toBeInstanceOf(RequestTimeoutError);
    const tokenIds = [first, rest].flatMap(({ value }) => value?.tokenIds ?? []);
    expect((error as RequestTimeoutError).numOutputTokens).toBe(4);
    expect(tokenIds).toEqual(generateAlone(promptOf(3), { maxTokens: 4 }));
  });

  test('includes the time in the queue', async () => {
    const engine = await create({ maxNumSeqs: 1 });
    void engine.generate(promptOf(3), LONG).catch(() => undefined);
    const waiting = engine.generate(promptOf(3), LONG, { timeoutMs: 5 });
    const rejected = expect(waiting).rejects.toMatchObject({
      code: 'REQUEST_TIMEOUT',
      numOutputTokens: 0,
    });
    await turns();
    jest.advanceTimersByTime(5);
    await rejected;
  });

  test('that does not expire leaves no timer behind', async () => {
    const engine = await TestEngine.create(PagedWorker);
    const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout');
    const before = timers().length;
    const options = { timeoutMs: 100_000 };
    const running = engine.generate(promptOf(3), { maxTokens: 4 }, options);
    expect(timers()).toHaveLength(before + 1);
    await running;
    const stream = engine.stream(promptOf(3), LONG, options);
    await stream.next();
    expect(timers()).toHaveLength(before + 1);
    await stream.return();
    const controller = new AbortController();
    const { signal } = controller;
    const aborted = engine.generate(promptOf(3), LONG, { ...options, signal });
    controller.abort(reason);
    await expect(aborted).rejects.toMatchObject(abortedBy(reason));
    expect(timers()).toHaveLength(before);
  });
});

test('running requests of a large aborted call end at once, the rest soon after', async () => {
  const engine = await TestEngine.create(ManualPagedWorker, { asyncScheduling: false });
  const controller = new AbortController();
  const prompts = Array.from({ length: 5000 }, (_, i) => promptOf(8, i));
  const statsNow = () => engine.engine.stats();
  const ended = engine.generateAll(prompts, LONG, { signal: controller.signal });
  ended.catch(() => undefined);
  while (statsNow().numRunningReqs === 0) await turns();
  controller.abort(reason);
  await expect(ended).rejects.toMatchObject(abortedBy(reason));
  expect(statsNow()).toMatchObject({ numRunningReqs: 0, kvCacheUsage: 0 });
  while (statsNow().numWaitingReqs > 0) await turns();
  expect(statsNow().numFinishedReqs.abort).toBe(5000);
  const { finishedReqIds } = (await nextStep(engine)) ?? { finishedReqIds: [] };
  expect(finishedReqIds.length).toBeLessThan(5000);
});

test('waiting requests are made only at the head of the queue, and each is reported on abort', async () => {
  const engine = await TestEngine.create(ManualPagedWorker, { maxNumSeqs: 2 });
  const made = jest.spyOn(OutputProcessor.prototype, 'addRequest');
  const finished: string[] = [];
  engine.engine.events.on('finished', ({ requestId, numPromptTokens, finishReason }) =>
    finished.push(`${requestId} ${numPromptTokens} ${finishReason}`),
  );
  const controller = new AbortController();
  const prompts = Array.from({ length: 100 }, (_, i) => promptOf(3 + (i % 2)));
  const ended = engine.generateAll(prompts, { ...LONG, n: 2 }, { signal: controller.signal });
  const rejected = expect(ended).rejects.toMatchObject(abortedBy(reason));
  while (engine.engine.stats().numRunningReqs === 0) await turns();
  expect(engine.engine.stats().numWaitingReqs).toBe(198);
  expect(engine.engine.numUnfinishedRequests).toBe(200);
  expect(made.mock.calls.length).toBeLessThan(5);
  made.mockRestore();
  controller.abort(reason);
  await rejected;
  expect(engine.engine.stats().numFinishedReqs.abort).toBe(200);
  while (finished.length < 200) await turns();
  expect(new Set(finished)).toEqual(
    new Set(
      prompts.flatMap(({ length }, i) => [`${i}-0 ${length} abort`, `${i}-1 ${length} abort`]),
    ),
  );
});
