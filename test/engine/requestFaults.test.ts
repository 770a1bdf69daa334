/** An error of one request fails it alone; the engine and other callers go on. */
import { InvalidLogitsError, RequestFailedError } from '../../lib/errors';
import type { KVCacheManager } from '../../lib/engine/kvCacheManager';
import { UniProcExecutor } from '../../lib/executor/uniProcExecutor';
import type { KVCacheConfig, KVCacheSpec } from '../../lib/contract/kvCache';
import type { ModelRunnerOutput } from '../../lib/contract/modelRunnerOutput';
import type { SchedulerOutput } from '../../lib/contract/schedulerOutput';
import { generateAlone } from './pagedModel';
import { ManualPagedWorker, PagedWorker, shutdownEngines, TestEngine, turns } from './pagedWorker';
import { promptOf } from './schedulerDriver';

afterEach(shutdownEngines);

/** Applies `change` to each step's output. */
class ChangingWorker extends PagedWorker {
  change: (output: ModelRunnerOutput) => ModelRunnerOutput = (output) => output;

  protected override run(step: SchedulerOutput): ModelRunnerOutput {
    return this.change(super.run(step));
  }
}

const PARAMS = { maxTokens: 6 };

describe.each([true, false])('with asyncScheduling %s', (asyncScheduling) => {
  test.each([
    [
      'NaN in its logits',
      (output: ModelRunnerOutput) => ({ ...output, numNansInLogits: new Map([['1', 5]]) }),
      { code: 'LOGITS_INVALID', requestId: '1', numNans: 5, vocabSize: 320 },
      InvalidLogitsError,
    ],
    [
      'no row in an output',
      (output: ModelRunnerOutput) => ({
        ...output,
        reqIdToIndex: new Map([...output.reqIdToIndex].filter(([id]) => id !== '1')),
      }),
      { code: 'REQUEST_FAILED', requestId: '1' },
      RequestFailedError,
    ],
  ])('a request with %s rejects, the others resolve', async (_, change, error, type) => {
    const engine = await TestEngine.create(ChangingWorker, { asyncScheduling });
    engine.worker.change = change;
    const calls = [0, 1, 2].map((i) => engine.generate(promptOf(5, i), PARAMS));
    const [first, failed, last] = await Promise.allSettled(calls);
    expect(failed).toMatchObject({ status: 'rejected', reason: error });
    expect((failed as PromiseRejectedResult).reason).toBeInstanceOf(type);
    for (const [i, result] of [
      [0, first],
      [2, last],
    ] as const) {
      const tokenIds = generateAlone(promptOf(5, i), PARAMS);
      expect(result).toMatchObject({ value: { outputs: [{ tokenIds }] } });
    }
    engine.worker.change = (output) => output;
    const again = await engine.generate(promptOf(5, 1), PARAMS);
    expect(again.outputs[0].tokenIds).toEqual(generateAlone(promptOf(5, 1), PARAMS));
    expect(engine.engine.stats()).toMatchObject({
      numWaitingReqs: 0,
      numRunningReqs: 0,
      kvCacheUsage: 0,
      numFinishedReqs: { error: 1, length: 3 },
      numNansInLogits: type === InvalidLogitsError ? 1 : 0,
    });
    expect(engine.worker.model.requests.size).toBe(0);
  });
});

test('a request that cannot be scheduled fails its whole prompt and no other', async () => {
  const engine = await TestEngine.create(PagedWorker);
  const { kvCacheManager } = engine.engine as unknown as { kvCacheManager: KVCacheManager };
  const allocateSlots = kvCacheManager.allocateSlots.bind(kvCacheManager);
  kvCacheManager.allocateSlots = (request, numNewTokens) => {
    if (request.requestId === '0-1') throw new TypeError('no such block');
    return allocateSlots(request, numNewTokens);
  };
  const failing = engine.generate(promptOf(5), { ...PARAMS, n: 3 });
  const other = engine.generate(promptOf(5, 1), PARAMS);
  await expect(failing).rejects.toThrow(/request 0-1 could not be scheduled: no such block/);
  expect((await other).outputs[0].tokenIds).toEqual(generateAlone(promptOf(5, 1), PARAMS));
  await turns();
  expect(engine.engine.stats()).toMatchObject({ numRunningReqs: 0, kvCacheUsage: 0 });
});

test("a sample with NaN fails its prompt's other samples and frees their blocks", async () => {
  const engine = await TestEngine.create(ChangingWorker);
  engine.worker.change = (output) => ({ ...output, numNansInLogits: new Map([['0-1', 1]]) });
  await expect(engine.generate(promptOf(5), { ...PARAMS, n: 3 })).rejects.toThrow(
    InvalidLogitsError,
  );
  await turns();
  expect(engine.engine.stats()).toMatchObject({ numRunningReqs: 0, kvCacheUsage: 0 });
});

test('a stream with NaN delivers earlier deltas, then the error', async () => {
  const engine = await TestEngine.create(ManualPagedWorker, { asyncScheduling: false });
  const stream = engine.stream(promptOf(5), PARAMS);
  const first = stream.next();
  await turns();
  engine.worker.complete[0]();
  expect(await first).toMatchObject({
    value: { tokenIds: [generateAlone(promptOf(5), PARAMS)[0]] },
  });
  const { model } = engine.worker;
  const step = model.step.bind(model);
  // The second step is in flight already.
  model.step = (scheduled) => ({ ...step(scheduled), numNansInLogits: new Map([['0', 2]]) });
  engine.worker.complete[1]();
  await turns();
  engine.worker.complete[2]();
  expect(await stream.next()).toMatchObject({ value: { tokenIds: [expect.any(Number)] } });
  await expect(stream.next()).rejects.toThrow(/request 0: 2 of 320 logits are NaN/);
});

describe('an executor of several workers', () => {
  /** Runs one worker and reports two more. */
  class ThreeWorkers extends UniProcExecutor {
    static bytes = [40, 24, 32];
    configs: readonly KVCacheConfig[] = [];

    override async getKvCacheSpecs(): Promise<Map<string, KVCacheSpec>[]> {
      const [spec] = await super.getKvCacheSpecs();
      return [spec, spec, spec];
    }
    override async determineAvailableMemory(): Promise<number[]> {
      const [spec] = (await this.getKvCacheSpecs())[0].values();
      return ThreeWorkers.bytes.map((numBlocks) => numBlocks * spec.pageSizeBytes);
    }
    override initializeFromConfig(configs: readonly KVCacheConfig[]): Promise<void> {
      this.configs = configs;
      return super.initializeFromConfig(configs);
    }
  }

  test('of unequal memory has as many blocks as the minimum', async () => {
    const engine = await TestEngine.create(PagedWorker, {
      distributedExecutorBackend: ThreeWorkers,
    });
    const { configs } = engine.engine.executor as unknown as ThreeWorkers;
    expect(configs.map(({ numBlocks }) => numBlocks)).toEqual([24, 24, 24]);
    expect(engine.worker.calls).toContain('initializeFromConfig 24');
  });

  test('of which one cannot hold a request is refused by name', async () => {
    class OneTooSmall extends ThreeWorkers {
      override async determineAvailableMemory(): Promise<number[]> {
        const [a, , c] = await super.determineAvailableMemory();
        return [a, 0, c];
      }
    }
    const start = TestEngine.create(PagedWorker, { distributedExecutorBackend: OneTooSmall });
    await expect(start).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
      message: expect.stringMatching(/^worker 1 of 3: /) as string,
    });
  });
});
