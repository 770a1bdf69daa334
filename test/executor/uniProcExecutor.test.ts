/** UniProcExecutor's contract, with JavaScript workers. */
import { createServer } from 'node:net';
import {
  ConfigError,
  DeviceError,
  ExecutorFailedError,
  InvalidStateError,
  NotSupportedError,
  RpcTimeoutError,
  ShutdownError,
  UnknownMethodError,
} from '../../lib/errors';
import type { Executor } from '../../lib/executor/executor';
import { Future } from '../../lib/executor/future';
import { UniProcExecutor } from '../../lib/executor/uniProcExecutor';
import { native } from '../../lib/native';
import type { ModelRunnerOutput } from '../../lib/contract/modelRunnerOutput';
import { ReconfigureRankType } from '../../lib/config/reconfigureRequest';
import type { StepOutput, WorkerArgs } from '../../lib/worker/workerBase';
import { WorkerWrapper } from '../../lib/worker/workerWrapper';
import { watchThreads } from '../support/threads';
import {
  AsyncWorker,
  createExecutor,
  deferred,
  HostOutput,
  outputOf,
  PlainWorker,
  runNode,
  settle,
  until,
  shutdownAll,
  step,
  testConfig,
} from './support';

afterEach(shutdownAll);

describe('create', () => {
  it('creates the worker, opens its device and loads its model, in that order', async () => {
    const { driverWorker } = await createExecutor(PlainWorker);
    expect(driverWorker).toBeInstanceOf(WorkerWrapper);
    expect([driverWorker.rpcRank, driverWorker.globalRank]).toEqual([0, 0]);
    expect(driverWorker.worker.calls).toEqual(['initDevice', 'loadModel']);
  });

  it('waits for each before the next', async () => {
    class Slow extends PlainWorker {
      override async initDevice(): Promise<void> {
        await settle();
        this.calls.push('device is open');
      }
      override async loadModel(): Promise<void> {
        this.calls.push('loadModel');
        await settle();
        this.calls.push('model is loaded');
      }
    }
    const { driverWorker } = await createExecutor(Slow);
    expect(driverWorker.worker.calls).toEqual(['device is open', 'loadModel', 'model is loaded']);
  });

  it('reports load progress', async () => {
    const progress = { bytes: 1, totalBytes: 2, tensors: 1, totalTensors: 2 };
    class Loading extends PlainWorker {
      override loadModel(onProgress?: (progress: unknown) => void): void {
        onProgress?.(progress);
      }
    }
    const onProgress = jest.fn();
    await createExecutor(Loading, { onProgress });
    expect(onProgress.mock.calls).toEqual([[progress]]);
  });

  it('gives the worker its own rendezvous at a free port, and rank 0', async () => {
    const { driverWorker, config } = await createExecutor(PlainWorker);
    const { distributedInitMethod, ...args } = driverWorker.worker.args;
    expect(args).toEqual({ config, rank: 0, localRank: 0, isDriverWorker: true });

    const { protocol, hostname, port } = new URL(distributedInitMethod);
    expect(protocol).toBe('tcp:');
    // Both the address and the port are local.
    const server = createServer();
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(Number(port), hostname.replace(/[[\]]/g, ''), resolve);
    });
    server.close();
  });

  it("takes the local rank from the device's index", async () => {
    const { driverWorker } = await createExecutor(PlainWorker, { deviceIndex: 3 });
    expect(driverWorker.worker.args).toMatchObject({ localRank: 3, rank: 0 });
  });

  it.each(['initDevice', 'loadModel'] as const)(
    "shuts down what was made when %s fails, then throws the worker's own error",
    async (failing) => {
      const error = new Error(`${failing} of the worker`);
      const shutdown = jest.fn();
      class Failing extends PlainWorker {
        override initDevice(): void {
          if (failing === 'initDevice') throw error;
        }
        override loadModel(): Promise<void> {
          return Promise.reject(error);
        }
        override async shutdown(): Promise<void> {
          await settle();
          shutdown();
        }
      }
      const started = watchThreads();
      await expect(createExecutor(Failing, { asyncScheduling: true })).rejects.toBe(error);
      expect(shutdown).toHaveBeenCalledTimes(1);
      expect(started()).toEqual([]);
    },
  );

  it("throws the first error even if the worker's constructor or shutdown fails", async () => {
    const error = new Error('of the constructor');
    class Stillborn extends PlainWorker {
      constructor(args: WorkerArgs) {
        super(args);
        throw error;
      }
    }
    await expect(createExecutor(Stillborn)).rejects.toBe(error);

    class Unclosable extends PlainWorker {
      override initDevice(): void {
        throw error;
      }
      override shutdown(): void {
        throw new Error('of the shutdown');
      }
    }
    await expect(createExecutor(Unclosable)).rejects.toBe(error);
  });
});

describe('maxConcurrentBatches', () => {
  it.each([
    [true, 2],
    [false, 1],
  ])('with async scheduling %p is %d', async (asyncScheduling, batches) => {
    const executor = await createExecutor(PlainWorker, { asyncScheduling });
    expect(executor.maxConcurrentBatches).toBe(batches);
  });

  it('is computed once', async () => {
    const executor = await createExecutor(PlainWorker);
    (executor.config.scheduler as { asyncScheduling: boolean }).asyncScheduling = true;
    expect(executor.maxConcurrentBatches).toBe(1);
  });
});

describe('the output thread', () => {
  it('is one native thread named WorkerAsyncOutp, from create to shutdown', async () => {
    const started = watchThreads();
    const executor = await createExecutor(PlainWorker, { asyncScheduling: true });
    await until(() => started().includes('WorkerAsyncOutp')); // A thread names itself.
    expect(started()).toEqual(['WorkerAsyncOutp']);
    await executor.shutdown();
    expect(started()).toEqual([]);
  });

  it('is not created if only one batch may be in flight', async () => {
    const started = watchThreads();
    await createExecutor(PlainWorker, { asyncScheduling: false });
    await settle();
    expect(started()).toEqual([]);
  });
});

describe('collectiveRpc', () => {
  class Caller extends PlainWorker {
    add(...numbers: unknown[]): unknown {
      return numbers;
    }
    throws(): never {
      throw new Error('thrown');
    }
    rejects(): Promise<never> {
      return Promise.reject(new Error('rejected'));
    }
    async later(value: string): Promise<string> {
      this.calls.push(`${value} starts`);
      await settle();
      return value;
    }
    never(): Promise<never> {
      this.calls.push('never starts');
      return new Promise(() => {});
    }
  }

  it('calls the worker with args, and kwargs last; resolves with a list of one', async () => {
    const executor = await createExecutor(Caller);
    expect(await executor.collectiveRpc('add')).toEqual([[]]);
    expect(await executor.collectiveRpc('add', { args: [1, 2] })).toEqual([[1, 2]]);
    expect(await executor.collectiveRpc('add', { args: [1], kwargs: { b: 2 } })).toEqual([
      [1, { b: 2 }],
    ]);
    expect(await executor.collectiveRpc('later', { args: ['x'] })).toEqual(['x']);
  });

  it('calls a function with the wrapper', async () => {
    const executor = await createExecutor(Caller);
    const args = await executor.collectiveRpc((wrapper, factor: number) => [wrapper, factor], {
      args: [3],
    });
    expect(args).toEqual([[executor.driverWorker, 3]]);
  });

  it('lists the method names if the name is unknown', async () => {
    const executor = await createExecutor(Caller);
    const calling = executor.collectiveRpc('ad');
    await expect(calling).rejects.toBeInstanceOf(UnknownMethodError);
    await expect(calling).rejects.toThrow(/no method ad; it has add, checkHealth, .*throws$/);
  });

  it('calls synchronously, so calls start in the order made', async () => {
    const executor = await createExecutor(Caller);
    const { calls } = executor.driverWorker.worker;
    calls.length = 0;
    const first = executor.collectiveRpc('later', { args: ['first'] });
    const [second] = executor.collectiveRpc('later', { args: ['second'], nonBlock: true });
    expect(calls).toEqual(['first starts', 'second starts']);
    expect(await Promise.all([first, second])).toEqual([['first'], 'second']);
  });

  it("rejects with the worker's own error, thrown or rejected", async () => {
    const executor = await createExecutor(Caller);
    await expect(executor.collectiveRpc('throws')).rejects.toThrow('thrown');
    await expect(executor.collectiveRpc('rejects')).rejects.toThrow('rejected');
  });

  describe('with nonBlock', () => {
    it('returns a list of one Future at once', async () => {
      const executor = await createExecutor(Caller);
      const futures = executor.collectiveRpc('later', { args: ['x'], nonBlock: true });
      expect(futures).toEqual([expect.any(Future)]);
      expect(futures[0].done()).toBe(false);
      expect(await futures[0]).toBe('x');
      const [done] = executor.collectiveRpc('add', { args: [1], nonBlock: true });
      expect([done.done(), await done]).toEqual([true, [1]]);
    });

    it('never throws: any error is in the future', async () => {
      const executor = await createExecutor(Caller);
      const error = async (method: string, timeout?: number) => {
        const [future] = executor.collectiveRpc(method, { nonBlock: true, timeoutMs: timeout });
        return String(await future.exception());
      };
      expect(await error('throws')).toBe('Error: thrown');
      expect(await error('rejects')).toBe('Error: rejected');
      expect(await error('missing')).toContain('UnknownMethodError');
      expect(await error('add', -1)).toContain('ConfigError');
      await executor.shutdown();
      expect(await error('add')).toContain('ShutdownError');
    });
  });

  describe('with a timeout', () => {
    it('rejects with RpcTimeoutError, and the executor continues', async () => {
      const executor = await createExecutor(Caller);
      const calling = executor.collectiveRpc('never', { timeoutMs: 20 });
      await expect(calling).rejects.toBeInstanceOf(RpcTimeoutError);
      await expect(calling).rejects.toThrow('never did not return within 20 ms');
      await executor.checkHealth();
      expect(await executor.collectiveRpc('add')).toEqual([[]]);
    });

    it('drops a late result or error', async () => {
      const late = deferred<string>();
      class Late extends PlainWorker {
        answer(): Promise<string> {
          return late.promise;
        }
      }
      const executor = await createExecutor(Late);
      const futures = [1, 2].map(
        () => executor.collectiveRpc('answer', { timeoutMs: 5, nonBlock: true })[0],
      );
      await settle();
      late.resolve('late');
      await settle();
      for (const future of futures) {
        expect(await future.exception()).toBeInstanceOf(RpcTimeoutError);
      }
    });

    it.each([true, false])(
      'reads a late output all the same, so that its buffers are free again (thread: %p)',
      async (asyncScheduling) => {
        const output = new HostOutput(outputOf());
        class Late extends PlainWorker {
          outputs(): HostOutput {
            return output;
          }
        }
        const executor = await createExecutor(Late, { asyncScheduling });
        const calling = executor.collectiveRpc('outputs', { timeoutMs: 5 });
        await expect(calling).rejects.toBeInstanceOf(RpcTimeoutError);
        expect(output.reads).toBe(0);
        output.finish();
        await until(() => output.reads > 0);
        expect(output.reads).toBe(1);
      },
    );

    it('refuses an invalid number of milliseconds', async () => {
      const executor = await createExecutor(Caller);
      const calls = executor.driverWorker.worker.calls.length;
      await expect(executor.collectiveRpc('never', { timeoutMs: NaN })).rejects.toBeInstanceOf(
        ConfigError,
      );
      expect(executor.driverWorker.worker.calls.length).toBe(calls);
    });
  });
});

describe.each([
  ['with an output thread', true],
  ['with no output thread', false],
])('an output that is still computed, %s', (_, asyncScheduling) => {
  it('completes the future once ready, read once', async () => {
    const executor = await createExecutor(AsyncWorker, { asyncScheduling });
    const future = executor.executeModel(step('a'), { nonBlock: true });
    await settle();
    expect(future.done()).toBe(false);
    const [output] = executor.driverWorker.worker.launched;
    expect(output.reads).toBe(0);
    output.finish();
    expect(await future).toEqual(outputOf('a'));
    expect(output.reads).toBe(1);
  });

  it('is unwrapped for a blocking call of any method', async () => {
    class Other extends PlainWorker {
      outputs(): HostOutput {
        const output = new HostOutput(outputOf('x'));
        setImmediate(() => output.finish());
        return output;
      }
    }
    const executor = await createExecutor(Other, { asyncScheduling });
    expect(await executor.collectiveRpc('outputs')).toEqual([outputOf('x')]);
  });

  it('may be of any class with ready and getOutput', async () => {
    class Shaped extends PlainWorker {
      outputs(): object {
        const ready = new (native().Event)();
        ready.signal();
        return { ready, getOutput: () => 'shaped' };
      }
    }
    const executor = await createExecutor(Shaped, { asyncScheduling });
    expect(await executor.collectiveRpc('outputs')).toEqual(['shaped']);
  });

  it('completes in the order of submission, whichever is ready first', async () => {
    const executor = await createExecutor(AsyncWorker, { asyncScheduling });
    const order: string[] = [];
    const futures = ['a', 'b', 'c'].map((reqId) => {
      const future = executor.executeModel(step(reqId), { nonBlock: true });
      future.addDoneCallback(() => order.push(reqId));
      return future;
    });
    const [a, b, c] = executor.driverWorker.worker.launched;
    c.finish();
    b.finish();
    await settle();
    expect(order).toEqual([]);
    a.finish();
    await Promise.all(futures);
    expect(order).toEqual(['a', 'b', 'c']);
  });

  it('fails only its own future when getOutput throws', async () => {
    const error = new Error('of getOutput');
    class Failing extends AsyncWorker {
      override executeModel(): StepOutput {
        const output = new HostOutput(this.launched.length === 0 ? error : outputOf('b'));
        this.launched.push(output);
        return output;
      }
    }
    const executor = await createExecutor(Failing, { asyncScheduling });
    const futures = ['a', 'b'].map((reqId) =>
      executor.executeModel(step(reqId), { nonBlock: true }),
    );
    for (const output of executor.driverWorker.worker.launched) output.finish();
    expect(await futures[0].exception()).toBe(error);
    expect(await futures[1]).toEqual(outputOf('b'));
  });

  it("may be returned by a promise, and keeps its call's order", async () => {
    const answers = ['a', 'b', 'c'].map(() => deferred<StepOutput>());
    const outputs = ['a', 'b', 'c'].map((reqId) => new HostOutput(outputOf(reqId)));
    class Promising extends PlainWorker {
      private next = 0;
      override executeModel(): StepOutput | Promise<StepOutput> {
        const index = this.next++;
        // The last returns synchronously.
        return index === 2 ? outputs[2] : answers[index].promise;
      }
    }
    const executor = await createExecutor(Promising, { asyncScheduling });
    const order: string[] = [];
    const futures = ['a', 'b', 'c'].map((reqId) => {
      const future = executor.executeModel(step(reqId), { nonBlock: true });
      future.addDoneCallback(() => order.push(reqId));
      return future;
    });
    for (const output of outputs) output.finish();
    answers[1].resolve(outputs[1]);
    await settle();
    expect(order).toEqual([]);
    answers[0].resolve(outputs[0]);
    expect(await Promise.all(futures)).toEqual(['a', 'b', 'c'].map((reqId) => outputOf(reqId)));
    expect(order).toEqual(['a', 'b', 'c']);
  });

  it('is not delayed by a cancelled call', async () => {
    const output = new HostOutput(outputOf('b'));
    output.finish();
    class Hanging extends PlainWorker {
      outputs(hangs: boolean): HostOutput | Promise<never> {
        return hangs ? new Promise(() => {}) : output;
      }
    }
    const executor = await createExecutor(Hanging, { asyncScheduling });
    const hanging = executor.collectiveRpc('outputs', { args: [true], timeoutMs: 5 });
    const following = executor.collectiveRpc('outputs', { args: [false] });
    await expect(hanging).rejects.toBeInstanceOf(RpcTimeoutError);
    expect(await following).toEqual([outputOf('b')]);
  });

  it('fails the call if its event is invalid', async () => {
    class Wrong extends PlainWorker {
      outputs(): object {
        return { ready: 'yes', getOutput: () => 1 };
      }
    }
    const executor = await createExecutor(Wrong, { asyncScheduling });
    await expect(executor.collectiveRpc('outputs')).rejects.toMatchObject({ name: 'TypeError' });
  });

  it('is read but dropped if its future is cancelled', async () => {
    const executor = await createExecutor(AsyncWorker, { asyncScheduling });
    const future = executor.executeModel(step('a'), { nonBlock: true });
    const [output] = executor.driverWorker.worker.launched;
    future.cancel();
    output.finish();
    await until(() => output.reads > 0);
    expect([future.cancelled(), output.reads]).toEqual([true, 1]);
  });
});

describe('a future that failed', () => {
  it('is not an unhandledRejection if never observed', async () => {
    const { code, stderr } = await runNode(`
      const { UniProcExecutor } = require('./lib/executor/uniProcExecutor.ts');
      const { PlainWorker, testConfig } = require('./test/executor/support.ts');
      class Failing extends PlainWorker {
        executeModel() { return Promise.reject(new Error('rejected')); }
        fails() { throw new Error('thrown'); }
      }
      UniProcExecutor.create(testConfig({ workerCls: Failing })).then(async (executor) => {
        executor.executeModel({}, { nonBlock: true });
        executor.collectiveRpc('fails', { nonBlock: true });
        executor.collectiveRpc('missing', { nonBlock: true });
        await new Promise((resolve) => setTimeout(resolve, 20));
        await executor.shutdown();
      });
    `);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  });
});

describe('a step that takes longer than its timeout', () => {
  it.each(['executeModel', 'sampleTokens'] as const)(
    'fails the executor when it is %s, since the state of the device has moved on',
    async (method) => {
      class Hanging extends PlainWorker {
        override executeModel(): StepOutput | Promise<StepOutput> {
          return method === 'executeModel' ? new Promise(() => {}) : null;
        }
        override sampleTokens(): Promise<StepOutput> {
          return new Promise(() => {});
        }
      }
      const executor = await createExecutor(Hanging);
      const failures: ExecutorFailedError[] = [];
      executor.registerFailureCallback((failure) => failures.push(failure));
      const stepping =
        method === 'executeModel'
          ? executor.executeModel(step('a'), { timeoutMs: 10 })
          : executor
              .executeModel(step('a'))
              .then(() => executor.sampleTokens(null, { timeoutMs: 10 }));
      const error: unknown = await stepping.catch((error: unknown) => error);
      expect(error).toBeInstanceOf(RpcTimeoutError);
      expect(failures.map(({ cause }) => cause)).toEqual([error]);
      await expect(executor.executeModel(step('a'))).rejects.toBeInstanceOf(ExecutorFailedError);
    },
  );

  it('completes with the worker if in time', async () => {
    const executor = await createExecutor(PlainWorker);
    expect(await executor.executeModel(step('a'), { timeoutMs: 60_000 })).toEqual(outputOf('a'));
  });
});

describe('checkHealth', () => {
  it('resolves while the worker can run', async () => {
    const executor = await createExecutor(PlainWorker);
    await expect(executor.checkHealth()).resolves.toBeUndefined();
  });

  it('calls the worker and rejects with its error', async () => {
    class Ill extends PlainWorker {
      override checkHealth(): Promise<void> {
        return Promise.reject(new Error('not today'));
      }
    }
    await expect((await createExecutor(Ill)).checkHealth()).rejects.toThrow('not today');
  });

  it('rejects with ExecutorFailedError and its cause after a sticky device error', async () => {
    const error = new DeviceError('illegal address');
    class Broken extends PlainWorker {
      override checkHealth(): Promise<void> {
        return Promise.reject(error);
      }
    }
    const executor = await createExecutor(Broken);
    for (let i = 0; i < 2; i++) {
      const failure: unknown = await executor.checkHealth().catch((failure: unknown) => failure);
      expect(failure).toBeInstanceOf(ExecutorFailedError);
      expect(failure).toMatchObject({ code: 'EXECUTOR_FAILED', cause: error });
    }
  });
});

describe('a device error', () => {
  const error = new DeviceError('illegal address in paged_attention');

  class Broken extends AsyncWorker {
    forever(): Promise<never> {
      return new Promise(() => {});
    }
    breaks(how: 'throws' | 'rejects' | 'outputs'): Promise<never> | HostOutput {
      if (how === 'throws') throw error;
      if (how === 'rejects') return Promise.reject(error);
      const output = new HostOutput(error);
      output.finish();
      return output;
    }
  }

  it.each(['throws', 'rejects', 'outputs'])(
    'that a call %s is its own error, and fails every pending call and all later ones',
    async (how) => {
      const executor = await createExecutor(Broken);
      const pending = [
        executor.collectiveRpc('forever'),
        executor.collectiveRpc('forever', { nonBlock: true })[0].result(),
        executor.collectiveRpc('forever', { timeoutMs: 1e6 }),
      ].map((call) => call.catch((failure: unknown) => failure));
      await expect(executor.collectiveRpc('breaks', { args: [how] })).rejects.toBe(error);

      const failures = await Promise.all(pending);
      failures.push(await executor.executeModel(step('a')).catch((failure: unknown) => failure));
      failures.push(await executor.collectiveRpc('forever').catch((failure: unknown) => failure));
      for (const failure of failures) {
        expect(failure).toBeInstanceOf(ExecutorFailedError);
        expect(failure).toMatchObject({ cause: error });
        expect(String(failure)).toContain('paged_attention');
      }
    },
  );

  it('after another does not replace the cause', async () => {
    const answers = [deferred<never>(), deferred<never>()];
    class Twice extends PlainWorker {
      answer(index: number): Promise<never> {
        return answers[index].promise;
      }
    }
    const executor = await createExecutor(Twice);
    const calls = [0, 1].map((index) => executor.collectiveRpc('answer', { args: [index] }));
    answers[0].reject(error);
    await expect(calls[0]).rejects.toBe(error);
    await expect(calls[1]).rejects.toMatchObject({ cause: error });
    answers[1].reject(new DeviceError('and another'));
    await settle();
    await expect(executor.checkHealth()).rejects.toMatchObject({ cause: error });
  });

  it("still allows shutdown, whatever the worker's shutdown does", async () => {
    class Unclosable extends Broken {
      override shutdown(): Promise<void> {
        return Promise.reject(error);
      }
    }
    for (const workerCls of [Broken, Unclosable]) {
      const started = watchThreads();
      const executor = await createExecutor(workerCls, { asyncScheduling: true });
      const stepping = executor.executeModel(step('a'), { nonBlock: true });
      await executor.collectiveRpc('breaks', { args: ['throws'] }).catch(() => {});
      await executor.shutdown();
      expect(await stepping.exception()).toBeInstanceOf(ExecutorFailedError);
      expect(started()).toEqual([]);
    }
  });

  it('is the only kind that fails the executor', async () => {
    class Failing extends PlainWorker {
      fails(): never {
        throw new InvalidStateError('not now');
      }
    }
    const executor = await createExecutor(Failing);
    await expect(executor.collectiveRpc('fails')).rejects.toThrow('not now');
    await executor.checkHealth();
    expect(await executor.executeModel(step('a'))).toEqual(outputOf('a'));
  });
});

describe('reinitializeDistributed', () => {
  const request = (newDataParallelRank: number) => ({
    newDataParallelSize: 1,
    newDataParallelRank,
    newDataParallelRankLocal: ReconfigureRankType.KEEP_CURRENT_RANK,
    newDataParallelMasterIp: '127.0.0.1',
    newDataParallelMasterPort: 29500,
  });

  it('has the constants for keeping and leaving a rank', () => {
    expect(ReconfigureRankType).toEqual({ KEEP_CURRENT_RANK: -1, SHUTDOWN_CURRENT_RANK: -2 });
  });

  it.each([
    ['goes on with a rank', 0, false],
    ['goes on with KEEP_CURRENT_RANK', ReconfigureRankType.KEEP_CURRENT_RANK, false],
    ['shuts down with SHUTDOWN_CURRENT_RANK', ReconfigureRankType.SHUTDOWN_CURRENT_RANK, true],
  ])('is passed to the worker, and then %s', async (_, rank, shutsDown) => {
    const requests: unknown[] = [];
    class Elastic extends PlainWorker {
      reinitializeDistributed(request: unknown): void {
        requests.push(request, [...this.calls].pop());
      }
    }
    const executor = await createExecutor(Elastic);
    await executor.reinitializeDistributed(request(rank));
    expect(requests).toEqual([request(rank), 'loadModel']);
    expect(executor.driverWorker.worker.calls.includes('shutdown')).toBe(shutsDown);
  });

  it("rejects with the worker's error, but a leaving rank needs no support", async () => {
    class Rigid extends PlainWorker {
      reinitializeDistributed(): never {
        throw new NotSupportedError('reinitializeDistributed');
      }
    }
    for (const [workerCls, errorClass] of [
      [Rigid, NotSupportedError],
      [PlainWorker, UnknownMethodError],
    ] as const) {
      const executor = await createExecutor(workerCls);
      const { calls } = executor.driverWorker.worker;
      await expect(executor.reinitializeDistributed(request(0))).rejects.toBeInstanceOf(errorClass);
      expect(calls).not.toContain('shutdown');
      await executor.reinitializeDistributed(request(ReconfigureRankType.SHUTDOWN_CURRENT_RANK));
      expect(calls).toContain('shutdown');
    }
  });
});

describe('shutdown', () => {
  it('shuts the worker down once for repeated calls, and waits for it', async () => {
    class Slow extends PlainWorker {
      override async shutdown(): Promise<void> {
        await settle();
        this.calls.push('shut down');
      }
    }
    const executor = await createExecutor(Slow);
    const first = executor.shutdown();
    expect(executor.shutdown()).toBe(first);
    await first;
    await executor.shutdown();
    const { calls } = executor.driverWorker.worker;
    expect(calls.filter((call) => call === 'shut down')).toHaveLength(1);
  });

  it('is called by `await using`', async () => {
    const executor = await createExecutor(PlainWorker);
    await executor[Symbol.asyncDispose]();
    expect(executor.driverWorker.worker.calls).toContain('shutdown');
  });

  it('refuses later calls with ShutdownError at once', async () => {
    const executor = await createExecutor(PlainWorker);
    const shuttingDown = executor.shutdown();
    await expect(executor.executeModel(step('a'))).rejects.toBeInstanceOf(ShutdownError);
    await expect(executor.checkHealth()).rejects.toBeInstanceOf(ShutdownError);
    await shuttingDown;
    await expect(executor.getKvCacheSpecs()).rejects.toBeInstanceOf(ShutdownError);
  });

  it.each([true, false])(
    'with steps in flight completes those that are ready and rejects the rest (thread: %p)',
    async (asyncScheduling) => {
      class Mixed extends AsyncWorker {
        forever(): Promise<never> {
          return new Promise(() => {});
        }
      }
      const executor = await createExecutor(Mixed, { asyncScheduling });
      const steps = ['a', 'b'].map((reqId) =>
        executor.executeModel(step(reqId), { nonBlock: true }),
      );
      const [call] = executor.collectiveRpc('forever', { nonBlock: true, timeoutMs: 1e6 });
      executor.driverWorker.worker.launched[0].finish();
      await executor.shutdown();
      expect(await steps[0]).toEqual(outputOf('a'));
      expect(await steps[1].exception()).toBeInstanceOf(ShutdownError);
      expect(await call.exception()).toBeInstanceOf(ShutdownError);
    },
  );

  it('reads outputs in flight before the worker frees its buffers', async () => {
    const events: string[] = [];
    class Tidy extends AsyncWorker {
      override executeModel(): StepOutput {
        const output = new HostOutput(outputOf('a'));
        const getOutput = output.getOutput.bind(output);
        output.getOutput = () => {
          events.push('read');
          return getOutput();
        };
        output.finish();
        return output;
      }
      override shutdown(): void {
        events.push('shutdown');
      }
    }
    for (const asyncScheduling of [true, false]) {
      const executor = await createExecutor(Tidy, { asyncScheduling });
      const future = executor.executeModel(step('a'), { nonBlock: true });
      await executor.shutdown();
      expect(await future).toEqual(outputOf('a'));
    }
    expect(events).toEqual(['read', 'shutdown', 'read', 'shutdown']);
  });

  it('lets a worker settle its promises in its own shutdown', async () => {
    class Draining extends PlainWorker {
      private readonly answer = deferred<StepOutput>();
      override executeModel(): Promise<StepOutput> {
        return this.answer.promise;
      }
      override shutdown(): void {
        this.answer.resolve(outputOf('a'));
      }
    }
    const executor = await createExecutor(Draining);
    const future = executor.executeModel(step('a'), { nonBlock: true });
    await executor.shutdown();
    expect(await future).toEqual(outputOf('a'));
  });

  it.each([true, false])(
    'rejects an output that only then comes (thread: %p)',
    async (asyncScheduling) => {
      const output = new HostOutput(outputOf('a'));
      class Late extends PlainWorker {
        private readonly answer = deferred<StepOutput>();
        override executeModel(): Promise<StepOutput> {
          return this.answer.promise;
        }
        override async shutdown(): Promise<void> {
          this.answer.resolve(output);
          await settle();
          output.finish();
          await settle();
        }
      }
      const executor = await createExecutor(Late, { asyncScheduling });
      const future = executor.executeModel(step('a'), { nonBlock: true });
      await executor.shutdown();
      expect(await future.exception()).toBeInstanceOf(ShutdownError);
      expect(output.reads).toBe(0);
    },
  );

  it("rejects with the worker's error after rejecting pending calls", async () => {
    class Unclosable extends PlainWorker {
      forever(): Promise<never> {
        return new Promise(() => {});
      }
      override shutdown(): void {
        throw new Error('will not');
      }
    }
    const executor = await createExecutor(Unclosable);
    const [call] = executor.collectiveRpc('forever', { nonBlock: true });
    await expect(executor.shutdown()).rejects.toThrow('will not');
    expect(await call.exception()).toBeInstanceOf(ShutdownError);
  });

  it('lets the process exit with calls, steps and timers pending', async () => {
    const { code, stdout, stderr } = await runNode(`
      const { UniProcExecutor } = require('./lib/executor/uniProcExecutor.ts');
      const { native } = require('./lib/native/index.ts');
      const { PlainWorker, testConfig } = require('./test/executor/support.ts');
      class Hanging extends PlainWorker {
        executeModel() { return { ready: new (native().Event)(), getOutput() {} }; }
        forever() { return new Promise(() => {}); }
      }
      const config = testConfig({ workerCls: Hanging, asyncScheduling: true });
      UniProcExecutor.create(config).then(async (executor) => {
        const futures = [
          executor.executeModel({}, { nonBlock: true, timeoutMs: 1e8 }),
          executor.collectiveRpc('forever', { nonBlock: true, timeoutMs: 1e8 })[0],
        ];
        const waiting = futures.map((future) => future.exception(1e8));
        await executor.shutdown();
        for (const error of await Promise.all(waiting)) console.log(error.code);
      });
    `);
    expect({ code, stdout, stderr }).toEqual({
      code: 0,
      stdout: 'SHUT_DOWN\nSHUT_DOWN\n',
      stderr: '',
    });
  });
});

describe('driverWorker', () => {
  it('exposes the worker, typed by its class', async () => {
    class WithModel extends PlainWorker {
      readonly modelRunner = { model: { layers: 2 } };
    }
    const executor = await createExecutor(WithModel);
    const layers: number = executor.driverWorker.worker.modelRunner.model.layers;
    expect(layers).toBe(2);
  });
});

it('is an Executor of its own class', async () => {
  class Mine extends UniProcExecutor {
    readonly mine = true;
  }
  const executor = await Mine.create(testConfig());
  const asExecutor: Executor = executor;
  expect([executor.mine, asExecutor instanceof UniProcExecutor]).toEqual([true, true]);
  const output: ModelRunnerOutput | null = await executor.executeModel(step('a'));
  expect(output).toEqual(outputOf('a'));
  await executor.shutdown();
});
