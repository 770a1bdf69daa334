/** What a call had generated is in the error of its signal, its timeout or its engine's end. */
import {
  ExecutorFailedError,
  RequestAbortedError,
  RequestTimeoutError,
  ShutdownError,
} from '../../lib/errors';
import { stopClock } from './clock';
import { generateAlone } from './pagedModel';
import { ManualPagedWorker, shutdownEngines, TestEngine, turns } from './pagedWorker';
import { promptOf } from './schedulerDriver';

afterEach(() => {
  jest.useRealTimers();
  return shutdownEngines();
});

const LONG = { maxTokens: 50 };
const SYNC = { asyncScheduling: false };
const reason = new Error('the client went away');

/** Completes `count` steps. */
async function runSteps({ worker }: TestEngine<ManualPagedWorker>, count: number): Promise<void> {
  for (let i = 0; i < count; i++) {
    await turns();
    worker.complete.shift()?.();
  }
  await turns();
}

async function errorOf(call: Promise<unknown>): Promise<unknown> {
  return call.then(
    () => {
      throw new Error('it did not reject');
    },
    (error: unknown) => error,
  );
}

const alone = (length: number, numTokens: number) =>
  generateAlone(promptOf(length), { maxTokens: 50 }).slice(0, numTokens);

test('of one prompt, when its signal is aborted', async () => {
  const engine = await TestEngine.create(ManualPagedWorker, SYNC);
  const controller = new AbortController();
  const call = errorOf(engine.generate(promptOf(8), LONG, { signal: controller.signal }));
  await runSteps(engine, 3);
  controller.abort(reason);
  const error = (await call) as RequestAbortedError;
  expect(error).toBeInstanceOf(RequestAbortedError);
  expect(error.cause).toBe(reason);
  expect(error.numOutputTokens).toBe(3);
  expect(error.outputs).toMatchObject([
    {
      requestId: '0',
      promptTokenIds: promptOf(8),
      outputs: [{ index: 0, tokenIds: alone(8, 3), finishReason: 'abort', stopReason: null }],
      metrics: { timeToFirstTokenMs: expect.any(Number) as number },
    },
  ]);
  // Computed once.
  expect(error.outputs).toBe(error.outputs);
});

test('of a default reason, as of AbortSignal.timeout', async () => {
  const engine = await TestEngine.create(ManualPagedWorker, SYNC);
  const controller = new AbortController();
  const call = errorOf(engine.generate(promptOf(8), LONG, { signal: controller.signal }));
  await runSteps(engine, 2);
  controller.abort();
  expect(await call).toMatchObject({
    name: 'AbortError',
    code: 'ABORT_ERR',
    cause: { name: 'AbortError' },
    outputs: [{ outputs: [{ tokenIds: alone(8, 2) }] }],
  });
});

test('of a call that ran out of time', async () => {
  const engine = await TestEngine.create(ManualPagedWorker, SYNC);
  stopClock();
  const call = errorOf(engine.generate(promptOf(8), LONG, { timeoutMs: 1000 }));
  await runSteps(engine, 3);
  jest.advanceTimersByTime(1000);
  const error = (await call) as RequestTimeoutError;
  expect(error).toBeInstanceOf(RequestTimeoutError);
  expect(error.outputs).toMatchObject([
    { outputs: [{ tokenIds: alone(8, 3), finishReason: 'abort' }] },
  ]);
});

test('of several prompts: complete, unfinished and not begun', async () => {
  const engine = await TestEngine.create(ManualPagedWorker, { ...SYNC, maxNumSeqs: 1 });
  const controller = new AbortController();
  const { signal } = controller;
  const call = errorOf(
    engine.generateAll([promptOf(8), promptOf(4), promptOf(5)], { maxTokens: 3 }, { signal }),
  );
  await runSteps(engine, 3 + 2);
  controller.abort(reason);
  expect(((await call) as RequestAbortedError).outputs).toMatchObject([
    { requestId: '0', outputs: [{ tokenIds: alone(8, 3), finishReason: 'length' }] },
    { requestId: '1', outputs: [{ tokenIds: alone(4, 2), finishReason: 'abort' }] },
    { requestId: '2', promptTokenIds: promptOf(5), outputs: [], numCachedTokens: 0 },
  ]);
});

test('of several samples: one complete, one not', async () => {
  const engine = await TestEngine.create(ManualPagedWorker, { ...SYNC, maxNumSeqs: 1 });
  const controller = new AbortController();
  const { signal } = controller;
  const call = errorOf(engine.generate(promptOf(8), { maxTokens: 3, n: 2 }, { signal }));
  await runSteps(engine, 3 + 1);
  controller.abort(reason);
  const [{ outputs }] = ((await call) as RequestAbortedError).outputs;
  expect(outputs.map(({ finishReason, tokenIds }) => [finishReason, tokenIds.length])).toEqual([
    ['length', 3],
    ['abort', 1],
  ]);
});

test('of a stream: also the deltas that were read', async () => {
  const engine = await TestEngine.create(ManualPagedWorker, SYNC);
  const controller = new AbortController();
  const stream = engine.stream(promptOf(8), LONG, { signal: controller.signal });
  const first = stream.next();
  await runSteps(engine, 3);
  await first;
  controller.abort(reason);
  const error = (await errorOf(stream.next())) as RequestAbortedError;
  expect(error.outputs).toMatchObject([{ outputs: [{ tokenIds: alone(8, 3) }] }]);
});

test('a signal aborted before the call leaves no outputs', async () => {
  const engine = await TestEngine.create(ManualPagedWorker, SYNC);
  const call = engine.generate(promptOf(8), LONG, { signal: AbortSignal.abort(reason) });
  expect(await errorOf(call)).toMatchObject({ cause: reason, numOutputTokens: 0, outputs: [] });
});

test('a large call: its outputs are complete although its requests are dropped in slices', async () => {
  const engine = await TestEngine.create(ManualPagedWorker, { ...SYNC, maxNumSeqs: 2 });
  const controller = new AbortController();
  const { signal } = controller;
  const prompts = Array.from({ length: 200 }, () => promptOf(4));
  const call = errorOf(engine.generateAll(prompts, { maxTokens: 1 }, { signal }));
  await runSteps(engine, 80);
  controller.abort(reason);
  const { outputs } = (await call) as RequestAbortedError;
  const numDone = outputs.filter(({ outputs: all }) =>
    all.some(({ finishReason }) => finishReason === 'length'),
  ).length;
  expect(outputs).toHaveLength(200);
  expect(numDone).toBeGreaterThan(100);
  const ids = outputs.map(({ requestId }) => requestId);
  expect(ids).toEqual(prompts.map((_, i) => String(i)));
});

test('of a call that was pending when the engine was shut down: each call has its own', async () => {
  const engine = await TestEngine.create(ManualPagedWorker, SYNC);
  const calls = [8, 4].map((length) => errorOf(engine.generate(promptOf(length), LONG)));
  await runSteps(engine, 2);
  const stopping = engine.engine.shutdown();
  const errors = (await Promise.all(calls)) as ShutdownError[];
  for (const error of errors) expect(error).toBeInstanceOf(ShutdownError);
  expect(errors.map(({ outputs }) => outputs?.[0].outputs[0].tokenIds)).toEqual([
    alone(8, 2),
    alone(4, 2),
  ]);
  while (engine.worker.complete.length > 0) engine.worker.complete.shift()?.();
  await stopping;
  const late = await errorOf(engine.generate(promptOf(8), LONG));
  expect(late).toBeInstanceOf(ShutdownError);
  expect((late as ShutdownError).outputs).toBeUndefined();
});

test('of a call that was pending when the executor failed', async () => {
  const engine = await TestEngine.create(ManualPagedWorker, SYNC);
  const call = errorOf(engine.generate(promptOf(8), LONG));
  await runSteps(engine, 2);
  jest.spyOn(engine.worker, 'executeModel').mockImplementation(() => {
    throw new Error('the device burns');
  });
  await runSteps(engine, 1);
  const error = (await call) as ExecutorFailedError;
  expect(error).toBeInstanceOf(ExecutorFailedError);
  expect(error.cause).toMatchObject({ message: 'the device burns' });
  expect(error.outputs?.[0].outputs[0].tokenIds).toEqual(alone(8, 3));
});

test('printing the error does not compute them', () => {
  const partialOutputs = jest.fn(() => []);
  const progress = { numPrompts: 1, numPromptsDone: 0, numOutputTokens: 0 };
  const error = new RequestAbortedError(reason, progress, partialOutputs);
  expect(JSON.stringify(error)).not.toContain('outputs');
  expect(Object.keys(error)).not.toContain('outputs');
  expect(partialOutputs).not.toHaveBeenCalled();
  expect(error.outputs).toEqual([]);
});
