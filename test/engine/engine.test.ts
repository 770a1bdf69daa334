import {
  ConfigError,
  DeviceError,
  ExecutorFailedError,
  InvalidStateError,
  ShutdownError,
} from '../../lib/errors';
import { UniProcExecutor } from '../../lib/executor/uniProcExecutor';
import type { OutputDelta } from '../../lib/engine/outputs';
import {
  EMPTY_MODEL_RUNNER_OUTPUT,
  type ModelRunnerOutput,
  RaggedTokenIds,
} from '../../lib/contract/modelRunnerOutput';
import type { SchedulerOutput } from '../../lib/contract/schedulerOutput';
import type { StepOutput } from '../../lib/worker/workerBase';
import { generateAlone } from './pagedModel';
import { byteTokenizer } from './byteTokenizer';
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

/** Ids of the requests in each step that has tokens. */
function batches(worker: PagedWorker): string[][] {
  return worker.steps
    .filter((step) => step.totalNumScheduledTokens > 0)
    .map((step) => [...step.numScheduledTokens.keys()]);
}

async function readAll(stream: AsyncIterable<OutputDelta>): Promise<OutputDelta[]> {
  const deltas: OutputDelta[] = [];
  for await (const delta of stream) deltas.push(delta);
  return deltas;
}

describe('start', () => {
  test('gets specs and memory, allocates the cache and warms up, in this order', async () => {
    const { worker } = await TestEngine.create(PagedWorker);
    expect(worker.calls).toEqual([
      'initDevice',
      'loadModel',
      'getKvCacheSpec',
      'determineAvailableMemory',
      'initializeFromConfig 128',
      'compileOrWarmUpModel',
    ]);
  });

  test('fails and shuts the worker down if the cache cannot hold one request', async () => {
    const made: PagedWorker[] = [];
    class TinyWorker extends PagedWorker {
      static override numBlocks = 15;
      override initDevice(): void {
        made.push(this);
      }
    }
    await expect(TestEngine.create(TinyWorker)).rejects.toThrow(ConfigError);
    expect(made[0].calls.at(-1)).toBe('shutdown');
  });

  test('can be aborted, which shuts the worker down', async () => {
    const controller = new AbortController();
    const made: PagedWorker[] = [];
    class AbortedWorker extends PagedWorker {
      override loadModel(): void {
        made.push(this);
        controller.abort(new Error('no longer wanted'));
      }
    }
    const { signal } = controller;
    await expect(TestEngine.create(AbortedWorker, {}, { signal })).rejects.toThrow(
      'no longer wanted',
    );
    expect(made[0].calls).toEqual(['initDevice', 'shutdown']);
  });
});

test('an executor failure before the first call is reported', async () => {
  const calls: string[] = [];
  let fail: (error: ExecutorFailedError) => void = () => {};
  class RecordingExecutor extends UniProcExecutor {
    override registerFailureCallback(callback: typeof fail): void {
      calls.push('registerFailureCallback');
      fail = callback;
    }
    override getKvCacheSpecs(): ReturnType<UniProcExecutor['getKvCacheSpecs']> {
      calls.push('getKvCacheSpecs');
      return super.getKvCacheSpecs();
    }
  }
  const engine = await TestEngine.create(ManualPagedWorker, {
    distributedExecutorBackend: RecordingExecutor,
  });
  expect(calls).toEqual(['registerFailureCallback', 'getKvCacheSpecs']);
  const pending = engine.generate(promptOf(3));
  const failure = new ExecutorFailedError('lost');
  fail(failure);
  // A pending call has its own copy, with its outputs.
  await expect(pending).rejects.toMatchObject({ code: 'EXECUTOR_FAILED', message: 'lost' });
  await expect(engine.generate(promptOf(3))).rejects.toBe(failure);
});

describe.each([false, true])('with asyncScheduling %s', (asyncScheduling) => {
  describe.each([
    ['done at once', PagedWorker],
    ['slow', SlowPagedWorker],
  ])('over a worker that is %s', (_, workerCls) => {
    test("generate returns the model's tokens", async () => {
      const engine = await TestEngine.create(workerCls, { asyncScheduling });
      expect(await engine.generate(promptOf(5), { maxTokens: 7 })).toMatchObject({
        requestId: '0',
        prompt: null,
        promptTokenIds: promptOf(5),
        promptLogprobs: null,
        outputs: [
          {
            index: 0,
            text: '',
            tokenIds: generateAlone(promptOf(5), { maxTokens: 7 }),
            finishReason: 'length',
            logprobs: null,
          },
        ],
      });
    });

    test('requests of any lengths in one batch get the tokens each gets alone', async () => {
      const engine = await TestEngine.create(workerCls, {
        asyncScheduling,
        maxNumBatchedTokens: 16,
        maxNumSeqs: 4,
      });
      const outputs = await Promise.all(
        Array.from({ length: 12 }, (_, i) =>
          engine.generate(promptOf(1 + 4 * i, i), { maxTokens: 1 + ((5 * i) % 13) }),
        ),
      );
      expect(outputs.map((output) => output.outputs[0].tokenIds)).toEqual(
        outputs.map((_, i) =>
          generateAlone(promptOf(1 + 4 * i, i), { maxTokens: 1 + ((5 * i) % 13) }),
        ),
      );
    });

    test('preemption in a small pool changes no token', async () => {
      class SmallPool extends workerCls {
        static override numBlocks = 16;
      }
      const engine = await TestEngine.create(SmallPool, { asyncScheduling });
      const outputs = await Promise.all(
        [0, 1, 2, 3].map((i) => engine.generate(promptOf(8, i), { maxTokens: 40 })),
      );
      expect(engine.worker.steps.some((step) => step.preemptedReqIds.length > 0)).toBe(true);
      expect(outputs.map((output) => output.outputs[0].tokenIds)).toEqual(
        [0, 1, 2, 3].map((i) => generateAlone(promptOf(8, i), { maxTokens: 40 })),
      );
    });

    test('stop tokens, including EOS, finish with reason stop', async () => {
      const engine = await TestEngine.create(workerCls, { asyncScheduling });
      const free = generateAlone(promptOf(4), { maxTokens: 30 });
      const [stopped, unstopped] = await Promise.all([
        engine.generate(promptOf(4), { maxTokens: 30, stopTokenIds: [free[6]] }),
        engine.generate(promptOf(4), { maxTokens: 30 }),
      ]);
      expect(stopped.outputs[0]).toMatchObject({
        finishReason: 'stop',
        tokenIds: generateAlone(promptOf(4), { maxTokens: 30, stopTokenIds: [free[6]] }),
      });
      expect(unstopped.outputs[0]).toMatchObject({ finishReason: 'length', tokenIds: free });
    });

    test('the worker frees a request before its caller gets the output', async () => {
      const engine = await TestEngine.create(workerCls, { asyncScheduling });
      await engine.generate(promptOf(5), { maxTokens: 3 });
      expect(engine.worker.model.requests.size).toBe(0);
    });

    test('queued calls share the batch', async () => {
      const engine = await TestEngine.create(workerCls, { asyncScheduling });
      await Promise.all([
        engine.generate(promptOf(3), { maxTokens: 2 }),
        engine.generate(promptOf(4), { maxTokens: 2 }),
      ]);
      expect(batches(engine.worker)).toEqual([
        ['0', '1'],
        ['0', '1'],
      ]);
    });

    test('a call joins the running batch', async () => {
      const engine = await TestEngine.create(workerCls, { asyncScheduling });
      const first = engine.generate(promptOf(3), { maxTokens: 40 });
      await turns();
      await engine.generate(promptOf(3), { maxTokens: 2 });
      await first;
      expect(batches(engine.worker)).toContainEqual(['0', '1']);
    });

    test('deltas of a stream add up to the output of generate', async () => {
      const engine = await TestEngine.create(workerCls, { asyncScheduling });
      const deltas = await readAll(engine.stream(promptOf(6), { maxTokens: 20 }));
      expect(deltas.flatMap(({ tokenIds }) => tokenIds)).toEqual(
        generateAlone(promptOf(6), { maxTokens: 20 }),
      );
      expect(deltas.pop()?.finishReason).toBe('length');
      expect(deltas.every(({ finishReason }) => finishReason === null)).toBe(true);
    });

    test('a stop string finishes its request on the worker too', async () => {
      const tokenizer = byteTokenizer();
      const engine = await TestEngine.create(workerCls, { asyncScheduling }, { tokenizer });
      const text = Buffer.from(generateAlone(promptOf(4), { maxTokens: 20 })).toString();
      const stop = text.slice(5, 7);
      const { outputs } = await engine.generate(promptOf(4), { maxTokens: 40, stop });
      expect(outputs[0]).toMatchObject({
        text: text.slice(0, text.indexOf(stop)),
        finishReason: 'stop',
      });
      expect(engine.worker.model.requests.size).toBe(0);
      expect(engine.worker.steps.length).toBeLessThan(12);
    });

    test('leaving a stream early aborts its request and no other', async () => {
      const engine = await TestEngine.create(workerCls, { asyncScheduling });
      const other = engine.generate(promptOf(7), { maxTokens: 50 });
      const stream = engine.stream(promptOf(6), { maxTokens: 50 });
      await stream.next();
      await stream.return();
      const numSteps = engine.worker.steps.length;
      expect((await other).outputs[0].tokenIds).toEqual(
        generateAlone(promptOf(7), { maxTokens: 50 }),
      );
      // The worker gets it with the next step.
      const ended = engine.worker.steps.findIndex((step) => step.finishedReqIds.includes('1'));
      expect(ended).toBe(numSteps);
      const after = engine.worker.steps.slice(ended);
      expect(after.every((step) => !step.numScheduledTokens.has('1'))).toBe(true);
      expect(engine.engine.numUnfinishedRequests).toBe(0);
    });
  });
});

describe('steps in flight', () => {
  test('are two with async scheduling, and the oldest is awaited', async () => {
    const engine = await TestEngine.create(ManualPagedWorker, { asyncScheduling: true });
    const { worker } = engine;
    const output = engine.generate(promptOf(3), { maxTokens: 4 });
    await turns();
    expect(worker.steps).toHaveLength(2);
    worker.complete[1]();
    await turns();
    expect(worker.steps).toHaveLength(2);
    worker.complete[0]();
    await turns();
    // With both outputs read, two steps are launched again.
    expect(worker.steps).toHaveLength(4);
    worker.complete[2]();
    worker.complete[3]();
    expect((await output).outputs[0].tokenIds).toHaveLength(4);
  });

  test('are one without async scheduling', async () => {
    const engine = await TestEngine.create(ManualPagedWorker, { asyncScheduling: false });
    const { worker } = engine;
    const output = engine.generate(promptOf(3), { maxTokens: 2 });
    await turns();
    expect(worker.steps).toHaveLength(1);
    worker.complete[0]();
    await turns();
    expect(worker.steps).toHaveLength(2);
    worker.complete[1]();
    await output;
  });

  test('requests that arrive meanwhile are admitted in arrival order', async () => {
    const engine = await TestEngine.create(ManualPagedWorker, { asyncScheduling: false });
    const outputs = [engine.generate(promptOf(3), { maxTokens: 2 })];
    await turns();
    for (let i = 0; i < 3; i++) outputs.push(engine.generate(promptOf(3), { maxTokens: 1 }));
    engine.worker.complete[0]();
    await turns();
    expect(batches(engine.worker)).toEqual([['0'], ['0', '1', '2', '3']]);
    engine.worker.complete[1]();
    await Promise.all(outputs);
  });

  test('a step that only frees requests is not awaited', async () => {
    const engine = await TestEngine.create(ManualPagedWorker, { asyncScheduling: false });
    const first = engine.generate(promptOf(3), { maxTokens: 1 });
    await turns();
    engine.worker.complete[0]();
    await first;
    expect(engine.worker.steps[1]).toMatchObject({ finishedReqIds: ['0'] });
    // That step is pending, and the next one runs.
    const second = engine.generate(promptOf(3), { maxTokens: 1 });
    await turns();
    engine.worker.complete[2]();
    await second;
  });
});

describe('samples', () => {
  /** Seeds of all requests sent to the worker. */
  const seeds = ({ worker }: TestEngine<PagedWorker>) =>
    worker.steps.flatMap((step) => step.scheduledNewReqs.map(({ seed }) => seed));

  test('are collected into one output, by index', async () => {
    const engine = await TestEngine.create(PagedWorker);
    const { outputs } = await engine.generate(promptOf(3), { n: 3, maxTokens: 4 });
    expect(outputs.map(({ index, tokenIds }) => [index, tokenIds])).toEqual(
      [0, 1, 2].map((index) => [index, generateAlone(promptOf(3), { maxTokens: 4 })]),
    );
    expect(new Set(seeds(engine)).size).toBe(3);
  });

  test('are streamed separately, by index', async () => {
    const engine = await TestEngine.create(PagedWorker);
    const tokenIds: number[][] = [[], []];
    for await (const delta of engine.stream(promptOf(3), { n: 2, maxTokens: 4 })) {
      tokenIds[delta.index].push(...delta.tokenIds);
    }
    const alone = generateAlone(promptOf(3), { maxTokens: 4 });
    expect(tokenIds).toEqual([alone, alone]);
  });

  test('use the requested seed', async () => {
    const engine = await TestEngine.create(PagedWorker);
    await engine.generate(promptOf(3), { seed: 1234, maxTokens: 1 });
    await engine.generate(promptOf(3), { seed: -5, maxTokens: 1 });
    expect(seeds(engine)).toEqual([1234n, 2n ** 64n - 5n]);
  });

  test("use a seed derived from the engine's seed and the arrival order otherwise", async () => {
    const run = async (seed: number) => {
      const engine = await TestEngine.create(PagedWorker, { seed });
      for (let i = 0; i < 4; i++) await engine.generate(promptOf(3), { n: 2, maxTokens: 1 });
      return seeds(engine);
    };
    const [first, again, other] = [await run(7), await run(7), await run(8)];
    expect(again).toEqual(first);
    expect(new Set([...first, ...other]).size).toBe(16);
  });
});

test('a worker that completes at once does not block the event loop', async () => {
  const engine = await TestEngine.create(PagedWorker, { maxModelLen: 512 });
  let numTurns = 0;
  let running = true;
  const count = () => {
    numTurns++;
    if (running) setImmediate(count);
  };
  setImmediate(count);
  await engine.generate(promptOf(3), { maxTokens: 500 });
  running = false;
  expect(numTurns).toBeGreaterThan(100);
});

test('a slow reader gets merged deltas', async () => {
  const engine = await TestEngine.create(PagedWorker);
  const sizes: number[] = [];
  for await (const delta of engine.stream(promptOf(3), { maxTokens: 40 })) {
    sizes.push(delta.tokenIds.length);
    await turns(50);
  }
  expect(sizes).toHaveLength(2);
  expect(sizes[0] + sizes[1]).toBe(40);
});

describe('shutdown', () => {
  test('rejects running, waiting and later requests', async () => {
    const engine = await TestEngine.create(ManualPagedWorker, { maxNumSeqs: 1 });
    const stream = engine.stream(promptOf(3), { maxTokens: 9 });
    const pending = [
      engine.generate(promptOf(3), { maxTokens: 9 }),
      engine.generate(promptOf(4), { maxTokens: 9 }),
      stream.next(),
    ];
    await turns();
    const shutdown = engine.engine.shutdown();
    for (const call of pending) await expect(call).rejects.toThrow(ShutdownError);
    await expect(engine.generate(promptOf(3))).rejects.toThrow(ShutdownError);
    await expect(engine.stream(promptOf(3)).next()).rejects.toThrow(ShutdownError);
    for (const complete of engine.worker.complete) complete();
    await shutdown;
  });

  test('shuts the worker down once, however often it is called', async () => {
    const engine = await TestEngine.create(PagedWorker);
    await Promise.all([engine.engine.shutdown(), engine.engine.shutdown()]);
    await engine.engine.shutdown();
    expect(engine.worker.calls.filter((call) => call === 'shutdown')).toHaveLength(1);
  });
});

describe('a failure', () => {
  class FailingWorker extends SlowPagedWorker {
    failure: Error | null = null;
    override executeModel(step: SchedulerOutput): Promise<StepOutput> {
      if (this.failure !== null) throw this.failure;
      return super.executeModel(step);
    }
  }

  test.each([
    ['a device', new DeviceError('lost')],
    ['a step', new TypeError('a bug')],
  ])('of %s rejects every pending request, and what comes later', async (_, failure) => {
    const engine = await TestEngine.create(FailingWorker, { maxNumSeqs: 1 });
    const stream = engine.stream(promptOf(3), { maxTokens: 40 });
    const pending = [
      engine.generate(promptOf(3), { maxTokens: 40 }),
      engine.generate(promptOf(3), { maxTokens: 40 }),
      readAll(stream),
    ];
    const settled = Promise.allSettled(pending);
    await turns();
    engine.worker.failure = failure;
    for (const result of await settled) {
      expect(result).toMatchObject({ status: 'rejected', reason: { cause: failure } });
      expect((result as PromiseRejectedResult).reason).toBeInstanceOf(ExecutorFailedError);
    }
    await expect(engine.generate(promptOf(3))).rejects.toThrow(ExecutorFailedError);
    await engine.engine.shutdown();
  });

  test('of a step that only frees requests stops the engine too', async () => {
    class Worker extends PagedWorker {
      override executeModel(step: SchedulerOutput): StepOutput {
        if (step.finishedReqIds.length > 0) throw new Error('cannot forget');
        return super.executeModel(step) as StepOutput;
      }
    }
    const engine = await TestEngine.create(Worker);
    await engine.generate(promptOf(3), { maxTokens: 1 });
    await expect(engine.generate(promptOf(3))).rejects.toThrow(/cannot forget/);
  });

  test('is reported when a worker returns no token, instead of waiting forever', async () => {
    class Worker extends PagedWorker {
      protected override run(step: SchedulerOutput): ModelRunnerOutput {
        const output = super.run(step);
        const empty = RaggedTokenIds.from(output.reqIds.map(() => []));
        return { ...output, sampledTokenIds: empty };
      }
    }
    const engine = await TestEngine.create(Worker);
    await expect(engine.generate(promptOf(3), { maxTokens: 2 })).rejects.toThrow(/fewer tokens/);
  });

  test('is reported when a worker leaves a request out', async () => {
    class Worker extends PagedWorker {
      override executeModel(): StepOutput {
        return EMPTY_MODEL_RUNNER_OUTPUT;
      }
    }
    const engine = await TestEngine.create(Worker);
    await expect(engine.generate(promptOf(3))).rejects.toThrow(/request 0 /);
  });
});

test('no call is admitted while the executor sleeps', async () => {
  class Sleeper extends PagedWorker {
    sleep(): void {}
    wakeUp(): void {}
  }
  const engine = await TestEngine.create(Sleeper);
  await engine.engine.executor.sleep(1);
  await expect(engine.generate(promptOf(3))).rejects.toThrow(InvalidStateError);
  await engine.engine.executor.wakeUp();
  expect((await engine.generate(promptOf(3), { maxTokens: 2 })).outputs[0].tokenIds).toHaveLength(
    2,
  );
});

test('requests share cached prefixes until a reset', async () => {
  const engine = await TestEngine.create(PagedWorker);
  for (const reset of [false, false, true, false]) {
    if (reset) engine.engine.resetPrefixCache();
    await engine.generate(promptOf(11), { maxTokens: 1 });
  }
  const found = engine.worker.steps.flatMap(({ scheduledNewReqs }) =>
    scheduledNewReqs.map(({ numComputedTokens }) => numComputedTokens),
  );
  expect(found).toEqual([0, 8, 0, 8]);
});
