/** The abstract Executor's contract with the engine, on a UniProcExecutor. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import {
  DeviceError,
  ExecutorFailedError,
  InvalidStateError,
  NotSupportedError,
  ShutdownError,
} from '../../lib/errors';
import { Executor } from '../../lib/executor/executor';
import { ExecutorWithExternalLauncher } from '../../lib/executor/externalLauncher';
import { Future } from '../../lib/executor/future';
import { UniProcExecutor } from '../../lib/executor/uniProcExecutor';
import type { NativeModelRunner } from '../../lib/native';
import { KVCacheSpec, type KVCacheConfig } from '../../lib/contract/kvCache';
import { EMPTY_MODEL_RUNNER_OUTPUT, RaggedTokenIds } from '../../lib/contract/modelRunnerOutput';
import type { GrammarOutput } from '../../lib/contract/grammarOutput';
import { emptySchedulerOutput, type SchedulerOutput } from '../../lib/contract/schedulerOutput';
import type { SleepTag, StepOutput } from '../../lib/worker/workerBase';
import {
  AsyncWorker,
  createExecutor,
  deferred,
  type ExecutorOf,
  HostOutput,
  outputOf,
  PlainWorker,
  settle,
  shutdownAll,
  step,
  structuredStep,
  testConfig,
} from './support';

afterEach(shutdownAll);

describe('Executor.getClass', () => {
  const getClass = (distributedExecutorBackend: unknown) =>
    Executor.getClass(
      testConfig({ distributedExecutorBackend: distributedExecutorBackend as 'uni' }),
    );
  class Mine extends UniProcExecutor {}

  it('knows uni and external_launcher', async () => {
    expect(await getClass('uni')).toBe(UniProcExecutor);
    expect(await getClass('external_launcher')).toBe(ExecutorWithExternalLauncher);
  });

  it('takes a subclass of Executor', async () => {
    expect(await getClass(Mine)).toBe(Mine);
  });

  it('takes a module and its export', async () => {
    const folder = mkdtempSync(path.join(tmpdir(), 'uniproc-executor-'));
    const module = path.join(folder, 'executor.js');
    const base = require.resolve('../../lib/executor/uniProcExecutor');
    writeFileSync(
      module,
      `const { UniProcExecutor } = require(${JSON.stringify(base)});
       exports.Theirs = class Theirs extends UniProcExecutor {};
       exports.Other = class Other {};`,
    );
    const theirs = await getClass({ module, export: 'Theirs' });
    expect([theirs.name, theirs.prototype instanceof Executor]).toEqual(['Theirs', true]);
    await expect(getClass({ module, export: 'Other' })).rejects.toThrow(TypeError);
    rmSync(folder, { recursive: true });
  });

  it.each([['ray'], [PlainWorker], [3], [null], [undefined], [{ module: 'm' }]])(
    'refuses %p with a TypeError that says what it may be',
    async (backend) => {
      const getting = getClass(backend);
      await expect(getting).rejects.toThrow(TypeError);
      await expect(getting).rejects.toThrow(
        "must be 'uni', 'external_launcher', a subclass of Executor or { module, export }",
      );
    },
  );

  it('returns a class that creates executors', async () => {
    const executorClass = await getClass('uni');
    const executor = await executorClass.create(testConfig());
    expect(executor).toBeInstanceOf(UniProcExecutor);
    await executor.shutdown();
  });
});

describe('the order of start', () => {
  class Sized extends PlainWorker {
    kvCacheConfig: KVCacheConfig | null = null;
    override initializeFromConfig(kvCacheConfig?: KVCacheConfig): void {
      this.calls.push('initializeFromConfig');
      this.kvCacheConfig = kvCacheConfig ?? null;
    }
    override compileOrWarmUpModel(): number {
      this.calls.push('compileOrWarmUpModel');
      return 0.25;
    }
  }

  it('runs from create to warm-up, each returning a list of one', async () => {
    const executor = await createExecutor(Sized);
    executor.registerFailureCallback(() => {});
    expect(await executor.getKvCacheSpecs()).toEqual([
      new Map([['layer.0', new KVCacheSpec(16, 1, 8, 'float32', null)]]),
    ]);
    expect(await executor.determineAvailableMemory()).toEqual([4096]);
    const configs = [8, 9].map((numBlocks): KVCacheConfig => ({ numBlocks }));
    await executor.initializeFromConfig(configs);
    expect(executor.driverWorker.worker.kvCacheConfig).toBe(configs[0]);
    expect(await executor.compileOrWarmUpModel()).toBe(0.25);
    expect(executor.driverWorker.worker.calls).toEqual([
      'initDevice',
      'loadModel',
      'initializeFromConfig',
      'compileOrWarmUpModel',
    ]);
  });
});

describe('executeModel', () => {
  it('returns one value, not a list', async () => {
    const executor = await createExecutor(PlainWorker);
    expect(await executor.executeModel(step('a'))).toEqual(outputOf('a'));
    const future = executor.executeModel(step('a'), { nonBlock: true });
    expect(future).toBeInstanceOf(Future);
    expect(await future).toEqual(outputOf('a'));
  });

  it('sends a step without tokens, which carries finished requests; its output is empty', async () => {
    const steps: SchedulerOutput[] = [];
    class Recording extends PlainWorker {
      override executeModel(schedulerOutput: SchedulerOutput): StepOutput {
        steps.push(schedulerOutput);
        return EMPTY_MODEL_RUNNER_OUTPUT;
      }
    }
    const executor = await createExecutor(Recording);
    const finishing = { ...emptySchedulerOutput(), finishedReqIds: ['a'] };
    const output = await executor.executeModel(finishing);
    expect(steps).toEqual([finishing]);
    expect(output).toMatchObject({ reqIds: [], logprobs: null });
    expect(output?.sampledTokenIds.length).toBe(0);
  });

  it('returns sampledTokenIds as a list per request, of any length', async () => {
    class Ragged extends PlainWorker {
      override executeModel(): StepOutput {
        return {
          ...outputOf('prefilling', 'decoding', 'speculating'),
          sampledTokenIds: RaggedTokenIds.from([[], [5], [6, 7, 8]]),
        };
      }
    }
    const executor = await createExecutor(Ragged);
    const output = await executor.executeModel(step('prefilling', 'decoding', 'speculating'));
    const lists = output?.reqIds.map((_, i) => [...output.sampledTokenIds.at(i)]);
    expect(lists).toEqual([[], [5], [6, 7, 8]]);
  });
});

describe('a batch queue', () => {
  it('has two steps in flight and polls the oldest with done()', async () => {
    const executor = await createExecutor(AsyncWorker, { asyncScheduling: true });
    const queue = ['a', 'b'].map((reqId) => executor.executeModel(step(reqId), { nonBlock: true }));
    const { launched } = executor.driverWorker.worker;
    expect(launched).toHaveLength(executor.maxConcurrentBatches);
    expect(queue.map((future) => future.done())).toEqual([false, false]);
    launched[0].finish();
    expect(await queue[0]).toEqual(outputOf('a'));
    expect(queue.map((future) => future.done())).toEqual([true, false]);
    queue.push(executor.executeModel(step('c'), { nonBlock: true }));
    launched[1].finish();
    launched[2].finish();
    expect(await Promise.all(queue)).toEqual(['a', 'b', 'c'].map((reqId) => outputOf(reqId)));
  });
});

describe('a two-phase step', () => {
  class TwoPhase extends PlainWorker {
    override executeModel(schedulerOutput: SchedulerOutput): StepOutput | Promise<StepOutput> {
      this.calls.push('executeModel');
      return schedulerOutput.hasStructuredOutputRequests ? null : outputOf('whole');
    }
    override sampleTokens(grammarOutput?: GrammarOutput | null): StepOutput | Promise<StepOutput> {
      this.calls.push('sampleTokens');
      return outputOf('sampled', ...(grammarOutput?.structuredOutputRequestIds ?? []));
    }
  }
  const grammar: GrammarOutput = {
    structuredOutputRequestIds: ['a'],
    grammarBitmask: new Int32Array([-1]),
  };

  it('returns null, then the output from sampleTokens with the bitmask', async () => {
    const executor = await createExecutor(TwoPhase);
    expect(await executor.executeModel(structuredStep('a'))).toBeNull();
    expect(await executor.sampleTokens(grammar)).toEqual(outputOf('sampled', 'a'));
    expect(await executor.executeModel(structuredStep('a'))).toBeNull();
    expect(await executor.sampleTokens(null)).toEqual(outputOf('sampled'));
  });

  it('may be launched without awaiting, several in a row', async () => {
    const executor = await createExecutor(TwoPhase);
    const futures = [1, 2].flatMap(() => [
      executor.executeModel(structuredStep('a'), { nonBlock: true }),
      executor.sampleTokens(grammar, { nonBlock: true }),
    ]);
    futures.push(executor.executeModel(step('b'), { nonBlock: true }));
    expect(executor.driverWorker.worker.calls.slice(2)).toEqual([
      'executeModel',
      'sampleTokens',
      'executeModel',
      'sampleTokens',
      'executeModel',
    ]);
    expect(await Promise.all(futures)).toEqual([
      null,
      outputOf('sampled', 'a'),
      null,
      outputOf('sampled', 'a'),
      outputOf('whole'),
    ]);
  });

  it('samples asynchronously too', async () => {
    const output = new HostOutput(outputOf('sampled'));
    class AsyncSampling extends TwoPhase {
      override sampleTokens(): StepOutput {
        return output;
      }
    }
    const executor = await createExecutor(AsyncSampling, { asyncScheduling: true });
    await executor.executeModel(structuredStep('a'));
    const future = executor.sampleTokens(null, { nonBlock: true });
    expect(future.done()).toBe(false);
    output.finish();
    expect(await future).toEqual(outputOf('sampled'));
  });

  it.each([true, false])(
    'gives its output before the next step does, also when its sampling is promised (thread: %p)',
    async (asyncScheduling) => {
      const answer = deferred<StepOutput>();
      class Promising extends AsyncWorker {
        override executeModel(schedulerOutput: SchedulerOutput): StepOutput | Promise<StepOutput> {
          if (schedulerOutput.hasStructuredOutputRequests) return null;
          return super.executeModel(schedulerOutput);
        }
        override sampleTokens(): Promise<StepOutput> {
          return answer.promise;
        }
      }
      const executor = await createExecutor(Promising, { asyncScheduling });
      await executor.executeModel(structuredStep('a'));
      const first = executor.sampleTokens(null, { nonBlock: true });
      const second = executor.executeModel(step('b'), { nonBlock: true });
      executor.driverWorker.worker.launched[0].finish();
      await settle();
      expect(second.done()).toBe(false);
      const output = new HostOutput(outputOf('a'));
      answer.resolve(output);
      output.finish();
      await second;
      expect(first.peek()).toMatchObject({ value: outputOf('a') });
    },
  );

  it('refuses executeModel before sampleTokens, and can still be sampled', async () => {
    const executor = await createExecutor(TwoPhase);
    await executor.executeModel(structuredStep('a'));
    await expect(executor.executeModel(step('b'))).rejects.toBeInstanceOf(InvalidStateError);
    expect(executor.driverWorker.worker.calls.slice(2)).toEqual(['executeModel']);
    expect(await executor.sampleTokens(null)).toEqual(outputOf('sampled'));
    expect(await executor.executeModel(step('b'))).toEqual(outputOf('whole'));
  });

  it.each<[string, (executor: ExecutorOf<TwoPhase>) => Promise<unknown>]>([
    ['before any step', () => Promise.resolve()],
    ['after a step that had its output', (executor) => executor.executeModel(step('a'))],
    [
      'a second time',
      async (executor) => {
        await executor.executeModel(structuredStep('a'));
        await executor.sampleTokens(null);
      },
    ],
  ])('refuses sampleTokens %s', async (_, before) => {
    const executor = await createExecutor(TwoPhase);
    await before(executor);
    const { calls } = executor.driverWorker.worker;
    const numCalls = calls.length;
    await expect(executor.sampleTokens(null)).rejects.toBeInstanceOf(InvalidStateError);
    expect(calls).toHaveLength(numCalls);
  });

  it('refuses sampleTokens while a one-phase step is in flight', async () => {
    const executor = await createExecutor(AsyncWorker, { asyncScheduling: true });
    const future = executor.executeModel(step('a'), { nonBlock: true });
    await expect(executor.sampleTokens(null)).rejects.toBeInstanceOf(InvalidStateError);
    executor.driverWorker.worker.launched[0].finish();
    expect(await future).toEqual(outputOf('a'));
  });

  it.each(['throws', 'rejects'])(
    'whose execute %s has its error there, and null from sampleTokens',
    async (how) => {
      const error = new Error('of executeModel');
      class Failing extends TwoPhase {
        override executeModel(): Promise<never> {
          if (how === 'throws') throw error;
          return Promise.reject(error);
        }
      }
      const executor = await createExecutor(Failing);
      const future = executor.executeModel(structuredStep('a'), { nonBlock: true });
      const sampled = executor.sampleTokens(grammar, { nonBlock: true });
      expect(await sampled).toBeNull();
      expect(await future.exception()).toBe(error);
      // Also if the engine has seen the error before it samples.
      await executor.executeModel(structuredStep('a')).catch(() => {});
      expect(await executor.sampleTokens(grammar)).toBeNull();
      await expect(executor.sampleTokens(grammar)).rejects.toBeInstanceOf(InvalidStateError);
    },
  );

  it('returns null from sampleTokens if executeModel fails the executor, and does not hang', async () => {
    class Breaking extends TwoPhase {
      override executeModel(): never {
        throw new DeviceError('illegal address');
      }
    }
    class Hanging extends TwoPhase {
      override executeModel(): Promise<never> {
        return new Promise(() => {});
      }
    }
    const broken = await createExecutor(Breaking);
    const breaking = broken.executeModel(structuredStep('a'), { nonBlock: true });
    expect(await broken.sampleTokens(grammar)).toBeNull();
    expect(await breaking.exception()).toBeInstanceOf(DeviceError);

    const hung = await createExecutor(Hanging);
    const hanging = hung.executeModel(structuredStep('a'), { nonBlock: true, timeoutMs: 10 });
    expect(await hung.sampleTokens(grammar)).toBeNull();
    expect(await hanging.exception()).toMatchObject({ code: 'RPC_TIMEOUT' });
  });

  it('returns a sampling error from sampleTokens', async () => {
    class Failing extends TwoPhase {
      override sampleTokens(): never {
        throw new Error('of sampleTokens');
      }
    }
    const executor = await createExecutor(Failing);
    await executor.executeModel(structuredStep('a'));
    await expect(executor.sampleTokens(null)).rejects.toThrow('of sampleTokens');
    expect(await executor.executeModel(step('b'))).toEqual(outputOf('whole'));
  });

  it('works the same with a worker that returns promises', async () => {
    const answer = deferred<StepOutput>();
    class Promising extends TwoPhase {
      override executeModel(): Promise<StepOutput> {
        this.calls.push('executeModel');
        return answer.promise;
      }
    }
    const executor = await createExecutor(Promising);
    const executed = executor.executeModel(structuredStep('a'), { nonBlock: true });
    await expect(executor.executeModel(step('b'))).rejects.toBeInstanceOf(InvalidStateError);
    const sampled = executor.sampleTokens(grammar, { nonBlock: true });
    await settle();
    expect(sampled.done()).toBe(false);
    answer.resolve(null);
    expect(await Promise.all([executed, sampled])).toEqual([null, outputOf('sampled', 'a')]);
  });

  it('of such a worker, if complete after all, refuses sampleTokens', async () => {
    class Whole extends TwoPhase {
      override executeModel(): Promise<StepOutput> {
        return Promise.resolve(outputOf('whole'));
      }
    }
    const executor = await createExecutor(Whole);
    const executed = executor.executeModel(structuredStep('a'), { nonBlock: true });
    await expect(executor.sampleTokens(grammar)).rejects.toBeInstanceOf(InvalidStateError);
    expect(await executed).toEqual(outputOf('whole'));
  });
});

describe('sleep and wakeUp', () => {
  class Sleeper extends PlainWorker {
    sleep(level: number): void {
      this.calls.push(`sleep ${level}`);
    }
    wakeUp(tags: SleepTag[]): void {
      this.calls.push(`wakeUp ${tags.join()}`);
    }
  }
  const made = async () => {
    const executor = await createExecutor(Sleeper);
    const { calls } = executor.driverWorker.worker;
    calls.length = 0;
    return { executor, calls };
  };
  let warnings: jest.SpyInstance;
  beforeEach(() => (warnings = jest.spyOn(process, 'emitWarning').mockImplementation(() => {})));
  afterEach(() => warnings.mockRestore());

  it.each([1, 2] as const)(
    'level %d is passed to the worker; waking restores all',
    async (level) => {
      const { executor, calls } = await made();
      expect(executor.isSleeping).toBe(false);
      await executor.sleep(level);
      expect(executor.isSleeping).toBe(true);
      await executor.wakeUp();
      expect(executor.isSleeping).toBe(false);
      expect(calls).toEqual([`sleep ${level}`, 'wakeUp weights,kv_cache']);
    },
  );

  it('is asleep until all tags are awake', async () => {
    const { executor, calls } = await made();
    await executor.sleep();
    await executor.wakeUp(['weights']);
    expect(executor.isSleeping).toBe(true);
    await expect(executor.executeModel(step('a'))).rejects.toThrow('while kv_cache are asleep');
    await executor.wakeUp(['kv_cache']);
    expect(executor.isSleeping).toBe(false);
    expect(calls).toEqual(['sleep 1', 'wakeUp weights', 'wakeUp kv_cache']);
    expect(await executor.executeModel(step('a'))).toEqual(outputOf('a'));
  });

  it('wakes the remaining tags by default', async () => {
    const { executor, calls } = await made();
    await executor.sleep();
    await executor.wakeUp(['kv_cache']);
    await executor.wakeUp();
    expect(calls.slice(1)).toEqual(['wakeUp kv_cache', 'wakeUp weights']);
  });

  it('refuses steps while asleep', async () => {
    const { executor, calls } = await made();
    await executor.sleep();
    await expect(executor.executeModel(step('a'))).rejects.toBeInstanceOf(InvalidStateError);
    expect(calls).toEqual(['sleep 1']);
  });

  it('refuses a dummy batch while asleep', async () => {
    const { executor, calls } = await made();
    await executor.sleep();
    await expect(executor.executeDummyBatch()).rejects.toThrow(
      'executeDummyBatch was called while weights and kv_cache are asleep',
    );
    expect(calls).toEqual(['sleep 1']);
  });

  it('warns about a repeated call and changes nothing', async () => {
    const { executor, calls } = await made();
    await executor.wakeUp();
    expect(warnings.mock.calls).toEqual([['wakeUp: the executor is not asleep', 'UniprocWarning']]);
    await executor.sleep(1);
    await executor.sleep(2);
    expect(warnings).toHaveBeenLastCalledWith(
      'sleep: the executor is already asleep',
      'UniprocWarning',
    );
    expect(calls).toEqual(['sleep 1']);
  });

  it('sleeps again once some of it is awake', async () => {
    const { executor, calls } = await made();
    await executor.sleep();
    await executor.wakeUp(['weights']);
    await executor.sleep(2);
    await executor.wakeUp();
    expect(calls.slice(1)).toEqual(['wakeUp weights', 'sleep 2', 'wakeUp kv_cache,weights']);
    expect(warnings).not.toHaveBeenCalled();
  });

  it('stays asleep if it cannot sleep again', async () => {
    const { executor, calls } = await made();
    await executor.sleep();
    await executor.wakeUp(['weights']);
    jest.spyOn(Sleeper.prototype, 'sleep').mockImplementationOnce(() => {
      throw new Error('no room');
    });
    await expect(executor.sleep()).rejects.toThrow('no room');
    expect(executor.isSleeping).toBe(true);
    await executor.wakeUp(['kv_cache']);
    expect(executor.isSleeping).toBe(false);
    expect(calls).toEqual(['sleep 1', 'wakeUp weights', 'wakeUp kv_cache']);
  });

  it.each([[['weights', 'activations']], [['constructor']]])(
    'with the unknown tag of %p changes nothing and warns',
    async (tags) => {
      const { executor, calls } = await made();
      await executor.sleep();
      await executor.wakeUp(tags as SleepTag[]);
      expect(calls).toEqual(['sleep 1']);
      expect(executor.isSleeping).toBe(true);
      expect(warnings).toHaveBeenCalledTimes(1);
    },
  );

  it.each([0, 3, 1.5, '1'])('refuses level %p', async (level) => {
    const { executor, calls } = await made();
    await expect(executor.sleep(level as 1)).rejects.toBeInstanceOf(InvalidStateError);
    expect([executor.isSleeping, calls]).toEqual([false, []]);
  });

  it.each(['thrown', 'rejected'])(
    "stays awake, or asleep, with the worker's error when that is %s",
    async (how) => {
      const fail = (message: string): Promise<void> => {
        if (how === 'thrown') throw new Error(message);
        return Promise.reject(new Error(message));
      };
      class Sleepless extends PlainWorker {
        tired = false;
        sleep(): Promise<void> {
          return this.tired ? Promise.resolve() : fail('cannot sleep');
        }
        wakeUp(): Promise<void> {
          return fail('cannot wake');
        }
      }
      const executor = await createExecutor(Sleepless);
      await expect(executor.sleep()).rejects.toThrow('cannot sleep');
      expect(executor.isSleeping).toBe(false);
      executor.driverWorker.worker.tired = true;
      await executor.sleep();
      await expect(executor.wakeUp()).rejects.toThrow('cannot wake');
      expect(executor.isSleeping).toBe(true);
      // It may hold memory.
      await executor.sleep();
      expect(warnings).not.toHaveBeenCalled();
    },
  );
});

describe('registerFailureCallback', () => {
  const error = new DeviceError('illegal address');
  class Breaking extends PlainWorker {
    breaks(): never {
      throw error;
    }
  }

  it('calls back once on permanent failure', async () => {
    const executor = await createExecutor(Breaking);
    const callback = jest.fn();
    executor.registerFailureCallback(callback);
    expect(callback).not.toHaveBeenCalled();
    for (let i = 0; i < 2; i++) await executor.collectiveRpc('breaks').catch(() => {});
    await executor.shutdown();
    expect(callback.mock.calls).toEqual([[expect.any(ExecutorFailedError)]]);
    expect((callback.mock.calls as [[ExecutorFailedError]])[0][0].cause).toBe(error);
  });

  it('calls back at once if the executor has failed', async () => {
    const executor = await createExecutor(Breaking);
    await executor.collectiveRpc('breaks').catch(() => {});
    const callback = jest.fn();
    executor.registerFailureCallback(callback);
    expect(callback.mock.calls).toEqual([[expect.any(ExecutorFailedError)]]);
  });

  it('does not call back when the executor is shut down', async () => {
    const executor = await createExecutor(Breaking);
    const callback = jest.fn();
    executor.registerFailureCallback(callback);
    await executor.shutdown();
    await expect(executor.collectiveRpc('breaks')).rejects.toBeInstanceOf(ShutdownError);
    expect(callback).not.toHaveBeenCalled();
  });

  it('continues after a callback throws', async () => {
    const warnings = jest.spyOn(process, 'emitWarning').mockImplementation(() => {});
    const executor = await createExecutor(Breaking);
    const callback = jest.fn();
    executor.registerFailureCallback(() => {
      throw new Error('of a callback');
    });
    executor.registerFailureCallback(callback);
    await expect(executor.collectiveRpc('breaks')).rejects.toBe(error);
    expect(callback).toHaveBeenCalledTimes(1);
    expect(warnings).toHaveBeenCalledTimes(1);
    warnings.mockRestore();
  });
});

describe('the rest of the interface', () => {
  it('supportsAsyncScheduling', () => {
    expect(UniProcExecutor.supportsAsyncScheduling()).toBe(true);
    expect(Executor.supportsAsyncScheduling()).toBe(false);
  });

  it('supportedTasks, executeDummyBatch, applyModel and profile call the worker', async () => {
    class Able extends PlainWorker {
      readonly model = { numLayers: 3 } as unknown as NativeModelRunner;
      supportedTasks(): string[] {
        return ['generate'];
      }
      executeDummyBatch(): void {
        this.calls.push('executeDummyBatch');
      }
      applyModel<T>(apply: (model: NativeModelRunner) => T): T {
        return apply(this.model);
      }
      profile(isStart: boolean): void {
        this.calls.push(`profile ${isStart}`);
      }
    }
    const executor = await createExecutor(Able);
    const { calls, model } = executor.driverWorker.worker;
    calls.length = 0;
    expect(await executor.supportedTasks()).toEqual(['generate']);
    await executor.executeDummyBatch();
    expect(await executor.applyModel((applied) => applied === model)).toEqual([true]);
    await executor.profile();
    await executor.profile(false);
    expect(calls).toEqual(['executeDummyBatch', 'profile true', 'profile false']);
  });

  it.each([
    'takeDraftTokenIds',
    'saveShardedState',
    'addLora',
    'removeLora',
    'pinLora',
    'listLoras',
  ] as const)('%s rejects with NotSupportedError that names it', async (call) => {
    const executor = await createExecutor(PlainWorker);
    const calling = executor[call]();
    await expect(calling).rejects.toBeInstanceOf(NotSupportedError);
    await expect(calling).rejects.toMatchObject({ call, code: 'NOT_SUPPORTED' });
  });

  it("has no prefix cache reset, which is the engine's", async () => {
    expect('resetPrefixCache' in (await createExecutor(PlainWorker))).toBe(false);
  });
});
