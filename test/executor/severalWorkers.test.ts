/** A custom executor with several different workers. */
import type { UniprocConfig } from '../../lib/config/uniprocConfig';
import { KVCacheSpec } from '../../lib/contract/kvCache';
import type { ModelRunnerOutput } from '../../lib/contract/modelRunnerOutput';
import type { SchedulerOutput } from '../../lib/contract/schedulerOutput';
import { ConfigError, type ExecutorFailedError, InvalidStateError } from '../../lib/errors';
import { Executor, type RpcMethod, type RpcOptions } from '../../lib/executor/executor';
import { Future } from '../../lib/executor/future';
import type { SleepTag, StepOutput, WorkerArgs } from '../../lib/worker/workerBase';
import { Lock, runMethod, WorkerWrapper } from '../../lib/worker/workerWrapper';
import { generateAlone } from '../engine/pagedModel';
import { PagedWorker, shutdownEngines, TestEngine } from '../engine/pagedWorker';
import { promptOf } from '../engine/schedulerDriver';
import { outputOf, PlainWorker, step, structuredStep, testConfig } from './support';

afterEach(shutdownEngines);

type AnyWorker = PagedWorker | PlainWorker;
type WorkerClass = new (args: WorkerArgs) => AnyWorker;

/** Executors with one worker per class. */
function executorOf(...classes: WorkerClass[]) {
  return class SeveralWorkers extends Executor {
    wrappers: WorkerWrapper<AnyWorker>[] = [];

    protected async initExecutor(): Promise<void> {
      this.wrappers = classes.map((_, i) => new WorkerWrapper<AnyWorker>({ rpcRank: i }));
      const config = (workerCls: WorkerClass): UniprocConfig => ({
        ...this.config,
        parallel: { ...this.config.parallel, workerCls },
      });
      const allKwargs = classes.map((workerCls, rank) => ({
        config: config(workerCls),
        localRank: rank,
        rank,
        distributedInitMethod: 'tcp://127.0.0.1:1',
        isDriverWorker: rank === 0,
        sharedWorkerLock: new Lock(),
      }));
      await this.collectiveRpc('initWorker', { args: [allKwargs] });
      await this.collectiveRpc('initDevice');
      await this.collectiveRpc('loadModel');
    }

    /** Public for the test. */
    get driverWorker(): WorkerWrapper<AnyWorker> {
      return this.wrappers[0];
    }

    get workers(): AnyWorker[] {
      return this.wrappers.map(({ worker }) => worker);
    }

    override collectiveRpc<T>(
      method: RpcMethod,
      options: RpcOptions & { nonBlock: true },
    ): Future<T>[];
    override collectiveRpc<T>(
      method: RpcMethod,
      options?: RpcOptions & { nonBlock?: false },
    ): Promise<T[]>;
    override collectiveRpc<T>(
      method: RpcMethod,
      { args = [], kwargs, nonBlock }: RpcOptions & { nonBlock?: boolean } = {},
    ): Future<T>[] | Promise<T[]> {
      const futures = this.wrappers.map((wrapper) => {
        const future = new Future<T>();
        try {
          const answer = runMethod(wrapper, method, args, kwargs) as T | Promise<T>;
          if (!(answer instanceof Promise)) future.setResult(answer);
          else {
            answer.then(
              (value) => future.setResult(value),
              (error: unknown) => future.setException(error),
            );
          }
        } catch (error) {
          future.setException(error);
        }
        return future;
      });
      return nonBlock ? futures : Promise.all(futures);
    }

    override registerFailureCallback(_callback: (error: ExecutorFailedError) => void): void {}
    override async checkHealth(): Promise<void> {
      await this.collectiveRpc('checkHealth');
    }
    override async shutdown(): Promise<void> {
      await this.collectiveRpc('shutdown');
    }
  };
}

const createExecutor = (...classes: WorkerClass[]) => executorOf(...classes).create(testConfig());

/** PagedWorkers with memory for these numbers of blocks. */
function pagedWorkerOf(blocks: number) {
  return class extends PagedWorker {
    static override numBlocks = blocks;
  };
}

const engineOf = (...classes: WorkerClass[]) =>
  TestEngine.create(PagedWorker, { distributedExecutorBackend: executorOf(...classes) });

describe('under an engine', () => {
  it('all workers have as many blocks as the one with the least memory', async () => {
    for (const blocks of [
      [40, 17, 60],
      [17, 40],
      [33, 32, 31, 17],
    ]) {
      const engine = await engineOf(...blocks.map(pagedWorkerOf));
      const { workers } = engine.engine.executor as unknown as { workers: PagedWorker[] };
      expect(workers.map(({ calls }) => calls.find((call) => /^initialize/.test(call)))).toEqual(
        blocks.map(() => 'initializeFromConfig 17'),
      );
      // As many tokens as 17 blocks hold, so more requests cause preemptions.
      const prompts = [promptOf(20), promptOf(30), promptOf(9)];
      const outputs = await engine.generateAll(prompts, { maxTokens: 20 });
      expect(outputs.map(({ outputs: [{ tokenIds }] }) => tokenIds)).toEqual(
        prompts.map((prompt) => generateAlone(prompt, { maxTokens: 20 })),
      );
    }
  });

  it('workers with different layers divide by their own block sizes', async () => {
    class TwoLayers extends pagedWorkerOf(50) {
      override getKvCacheSpec(): Map<string, KVCacheSpec> {
        const [[, spec]] = super.getKvCacheSpec();
        return new Map([
          ['first', spec],
          ['second', spec],
        ]);
      }
    }
    const engine = await engineOf(pagedWorkerOf(40), TwoLayers);
    expect(engine.worker.calls).toContain('initializeFromConfig 25');
  });

  it.each<[string, WorkerClass, string]>([
    ['too little memory', pagedWorkerOf(3), 'worker 1 of 2: one request of maxModelLen 64'],
    ['no figure for its memory', pagedWorkerOf(NaN), 'worker 1 of 2: .*returned NaN'],
    [
      'blocks of another size',
      class extends PagedWorker {
        override getKvCacheSpec() {
          return new Map([['layer', new KVCacheSpec(8, 1, 1, 'float32', null)]]);
        }
      },
      'worker 1 of 2: layer has blocks of 8 tokens',
    ],
  ])('a worker with %s is refused by its name', async (_, workerCls, message) => {
    const starting = engineOf(pagedWorkerOf(40), workerCls);
    await expect(starting).rejects.toBeInstanceOf(ConfigError);
    await expect(starting).rejects.toThrow(new RegExp(message));
  });

  it('an executor without workers is refused', async () => {
    await expect(engineOf()).rejects.toThrow(/specs of 0 workers/);
  });

  it('a request refused by any worker fails alone', async () => {
    class Refusing extends PagedWorker {
      protected override run(scheduled: SchedulerOutput): ModelRunnerOutput {
        const output = super.run(scheduled);
        if (!scheduled.numScheduledTokens.has('0')) return output;
        return { ...output, failedReqs: new Map([['0', new Error('not here')]]) };
      }
    }
    const engine = await engineOf(PagedWorker, Refusing);
    const refused = engine.generate(promptOf(3));
    const taken = engine.generate(promptOf(4), { maxTokens: 5 });
    await expect(refused).rejects.toMatchObject({ code: 'REQUEST_FAILED' });
    expect((await taken).outputs[0].tokenIds).toEqual(generateAlone(promptOf(4), { maxTokens: 5 }));
  });

  it('a step that fails on any worker stops the engine', async () => {
    class Failing extends PagedWorker {
      override executeModel(): never {
        throw new Error('of the last worker');
      }
    }
    const engine = await engineOf(PagedWorker, PagedWorker, Failing);
    await expect(engine.generate(promptOf(3))).rejects.toMatchObject({
      code: 'EXECUTOR_FAILED',
      cause: new Error('of the last worker'),
    });
  });
});

describe('a step', () => {
  class Silent extends PlainWorker {
    override executeModel(): StepOutput {
      return null;
    }
  }
  class TwoPhase extends PlainWorker {
    override executeModel(): StepOutput {
      return null;
    }
    override sampleTokens(): StepOutput {
      return outputOf('sampled');
    }
  }

  it('has the output of the worker that returns one', async () => {
    const executor = await createExecutor(Silent, PlainWorker, Silent);
    expect(await executor.executeModel(step('a'))).toEqual(outputOf('a'));
  });

  it('completes with the slowest worker', async () => {
    let finish = () => {};
    class Slow extends PlainWorker {
      override executeModel(scheduled: SchedulerOutput): Promise<StepOutput> {
        const output = super.executeModel(scheduled);
        return new Promise((resolve) => (finish = () => resolve(output)));
      }
    }
    const executor = await createExecutor(PlainWorker, Slow);
    const future = executor.executeModel(step('a'), { nonBlock: true });
    await new Promise((resolve) => setImmediate(resolve));
    expect(future.done()).toBe(false);
    finish();
    expect(await future).toEqual(outputOf('a'));
  });

  it('awaits sampleTokens if all workers do', async () => {
    const executor = await createExecutor(TwoPhase, TwoPhase);
    expect(await executor.executeModel(structuredStep('a'))).toBeNull();
    await expect(executor.executeModel(step('b'))).rejects.toBeInstanceOf(InvalidStateError);
    expect(await executor.sampleTokens(null)).toEqual(outputOf('sampled'));
  });

  it('that only some workers leave unsampled is refused, naming a worker', async () => {
    const executor = await createExecutor(PlainWorker, TwoPhase);
    await expect(executor.executeModel(structuredStep('a'))).rejects.toThrow(
      'executeModel: worker 1 of 2 awaits sampleTokens, but worker 0 returned an output',
    );
  });

  it('of an executor without workers is refused, naming the method', async () => {
    const executor = await createExecutor();
    await expect(executor.executeModel(step('a'))).rejects.toThrow(
      'executeModel: the executor has no workers',
    );
  });
});

describe('sleep', () => {
  class Sleeper extends PlainWorker {
    sleep(_level: number): void | Promise<void> {
      this.calls.push('sleep');
    }
    wakeUp(tags: SleepTag[]): void {
      this.calls.push(`wakeUp ${tags.join()}`);
    }
  }
  class Sleepless extends Sleeper {
    override sleep(): void | Promise<void> {
      throw new Error('requests unfinished');
    }
  }
  class LateSleepless extends Sleeper {
    override async sleep(): Promise<void> {
      await new Promise((resolve) => setImmediate(resolve));
      throw new Error('no memory');
    }
  }

  it('is asleep once all workers are', async () => {
    const executor = await createExecutor(Sleeper, Sleeper);
    await executor.sleep();
    expect(executor.isSleeping).toBe(true);
    await executor.wakeUp();
    expect(executor.isSleeping).toBe(false);
  });

  it.each<[string, WorkerClass, WorkerClass]>([
    ['first, at once', Sleepless, Sleeper],
    ['last, at once', Sleeper, Sleepless],
    ['last, later', Sleeper, LateSleepless],
  ])('leaves none asleep when one refuses: the %s', async (_, first, last) => {
    const executor = await createExecutor(first, last);
    await expect(executor.sleep()).rejects.toThrow(/requests unfinished|no memory/);
    expect(executor.isSleeping).toBe(false);
    const sleeper = executor.workers.find(({ calls }) => calls.includes('sleep'));
    expect(sleeper?.calls.at(-1)).toBe('wakeUp weights,kv_cache');
    expect(await executor.executeModel(step('a'))).toEqual(outputOf('a'));
  });

  it("makes the engine drop a worker's cached blocks", async () => {
    const executor = await createExecutor(Sleeper, LateSleepless);
    await executor.sleep().catch(() => {});
    expect(executor.numSleeps).toBe(1);
  });
});

it('warm-up takes as long as the slowest worker, and tasks are common to all', async () => {
  const workerOf = (seconds: number, tasks: string[]) =>
    class extends PlainWorker {
      override compileOrWarmUpModel(): number {
        return seconds;
      }
      supportedTasks(): string[] {
        return tasks;
      }
    };
  const executor = await createExecutor(
    workerOf(1, ['embed', 'generate']),
    workerOf(3, ['generate']),
    workerOf(2, ['generate', 'score']),
  );
  expect(await executor.compileOrWarmUpModel()).toBe(3);
  expect(await executor.supportedTasks()).toEqual(['generate']);
});
