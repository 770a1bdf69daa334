/** An error of one request, at any stage, fails that request alone. */
import { RequestFailedError, InvalidRequestError, UniprocError } from '../../lib/errors';
import { KVCacheManager } from '../../lib/engine/kvCacheManager';
import { OutputProcessor } from '../../lib/engine/outputProcessor';
import type { Request } from '../../lib/engine/request';
import { Scheduler } from '../../lib/engine/scheduler';
import { IncrementalDetokenizer } from '../../lib/tokenizer/detokenizer';
import type { ModelRunnerOutput } from '../../lib/contract/modelRunnerOutput';
import { RefusedRequests } from '../../lib/worker/refusedRequests';
import type { SchedulerOutput } from '../../lib/contract/schedulerOutput';
import type { StepOutput } from '../../lib/worker/workerBase';
import { byteTokenizer } from './byteTokenizer';
import { generateAlone } from './pagedModel';
import { PagedWorker, shutdownEngines, SlowPagedWorker, TestEngine } from './pagedWorker';
import { promptOf } from './schedulerDriver';

afterEach(shutdownEngines);
afterEach(() => jest.restoreAllMocks());

const PARAMS = { maxTokens: 12 };
/** Prompt tokens of the failing request; no other request has as many. */
const BAD_LENGTH = 7;

/** Makes a method throw for the failing request alone. */
function sabotage<T extends object>(
  prototype: T,
  method: keyof T & string,
  isBad: (...args: never[]) => boolean,
): void {
  const original = prototype[method] as (...args: never[]) => unknown;
  jest
    .spyOn(prototype as Record<string, (...args: never[]) => unknown>, method)
    .mockImplementation(function (this: unknown, ...args: never[]) {
      if (isBad(...args)) throw new Error('sabotage');
      return original.apply(this, args);
    });
}

const isBadRequest = (request: Request) => request.numPromptTokens === BAD_LENGTH;

/**
 * Checks that the bad request fails and its blocks are free, and that requests before, beside and
 * after it complete.
 */
async function expectContained(
  engine: TestEngine<PagedWorker>,
  stage: RegExp = /sabotage/,
  params = PARAMS,
): Promise<void> {
  const good = [promptOf(3), promptOf(9), promptOf(20)];
  const before = good.map((prompt) => engine.generate(prompt, params));
  const bad = engine.generate(promptOf(BAD_LENGTH), params);
  const inOneCall = engine.generateAll([promptOf(5), promptOf(BAD_LENGTH), promptOf(6)], params);
  const stream = engine.stream(promptOf(BAD_LENGTH), params);
  const failed = [bad, inOneCall, readAll(stream)];
  for (const outcome of await Promise.allSettled(failed)) {
    expect(outcome).toMatchObject({
      status: 'rejected',
      reason: expect.any(UniprocError) as Error,
    });
    expect(String((outcome as PromiseRejectedResult).reason)).toMatch(stage);
  }
  const outputs = await Promise.all([...before, engine.generate(promptOf(4), params)]);
  expect(outputs.map(({ outputs: [{ tokenIds }] }) => tokenIds)).toEqual(
    [...good, promptOf(4)].map((prompt) => generateAlone(prompt, params)),
  );
  expect(engine.engine.numUnfinishedRequests).toBe(0);
  expect(engine.engine.stats()).toMatchObject({
    numRunningReqs: 0,
    numWaitingReqs: 0,
    kvCacheUsage: 0,
  });
  expect(engine.worker.model.requests.size).toBe(0);
  // Each request is counted once, even one that was never made.
  const { numFinishedReqs } = engine.engine.stats();
  expect(Object.values(numFinishedReqs).reduce((sum, count) => sum + count)).toBe(9);
}

async function readAll(stream: AsyncIterable<unknown>): Promise<void> {
  const reader = stream[Symbol.asyncIterator]();
  while ((await reader.next()).done !== true);
}

describe.each([false, true])('with asyncScheduling %s', (asyncScheduling) => {
  const create = (workerCls: typeof PagedWorker = SlowPagedWorker, args = {}) =>
    TestEngine.create(workerCls, { asyncScheduling, ...args });

  test('an error thrown while it is admitted', async () => {
    sabotage(OutputProcessor.prototype, 'addRequest', isBadRequest);
    await expectContained(await create(), /could not be admitted: sabotage/);
  });

  test('an error thrown while it is queued', async () => {
    sabotage(Scheduler.prototype, 'addRequest', isBadRequest);
    await expectContained(await create(), /could not be scheduled: sabotage/);
  });

  test.each(['shareBlocks', 'allocateSlots', 'findRoom'] as const)(
    'what %s throws while it is scheduled',
    async (method) => {
      sabotage(KVCacheManager.prototype, method, isBadRequest);
      await expectContained(await create(), /could not be scheduled: sabotage/);
    },
  );

  test('an error thrown while its next block is allocated', async () => {
    const isDecoding = (request: Request) => isBadRequest(request) && request.numOutputTokens > 3;
    sabotage(KVCacheManager.prototype, 'allocateSlots', isDecoding);
    await expectContained(await create(), /could not be scheduled: sabotage/);
  });

  test('an error thrown while it is detokenized', async () => {
    const tokenizer = byteTokenizer();
    const engine = await TestEngine.create(SlowPagedWorker, { asyncScheduling }, { tokenizer });
    let numAppended = 0;
    sabotage(IncrementalDetokenizer.prototype, 'append', () => numAppended++ === 5);
    const outcomes = await Promise.allSettled(
      [3, 4, 5].map((length) => engine.generate(promptOf(length), PARAMS)),
    );
    expect(outcomes.map(({ status }) => status).sort()).toEqual([
      'fulfilled',
      'fulfilled',
      'rejected',
    ]);
    for (const outcome of outcomes) {
      if (outcome.status !== 'rejected') continue;
      expect(outcome.reason).toBeInstanceOf(RequestFailedError);
    }
    expect(engine.engine.stats()).toMatchObject({ numRunningReqs: 0, kvCacheUsage: 0 });
  });

  test.each([
    ['at once', PagedWorker],
    ['later', SlowPagedWorker],
  ])('what the worker refuses, its output coming %s', async (_, base) => {
    class RefusingWorker extends base {
      private readonly refused = new RefusedRequests();

      protected override run(step: SchedulerOutput): ModelRunnerOutput {
        const { prepared, failedReqs } = this.refused.prepare(step, (rest) => {
          for (const { reqId, promptTokenIds } of rest.scheduledNewReqs) {
            if (promptTokenIds.length === BAD_LENGTH) {
              throw new InvalidRequestError('sabotage', { requestId: reqId });
            }
          }
          return super.run(rest);
        });
        return { ...prepared, failedReqs };
      }
      override executeModel(step: SchedulerOutput): StepOutput | Promise<StepOutput> {
        return super.executeModel(step);
      }
    }
    await expectContained(await create(RefusingWorker));
  });

  test('a request that fails alone in the engine, and a call after it', async () => {
    sabotage(KVCacheManager.prototype, 'shareBlocks', isBadRequest);
    const engine = await create();
    await expect(engine.generate(promptOf(BAD_LENGTH), PARAMS)).rejects.toBeInstanceOf(
      RequestFailedError,
    );
    const { outputs } = await engine.generate(promptOf(4), PARAMS);
    expect(outputs[0].tokenIds).toEqual(generateAlone(promptOf(4), PARAMS));
  });
});
