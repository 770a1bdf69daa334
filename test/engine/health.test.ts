/** checkHealth and the failure callbacks, after each way in which an engine can stop. */
import {
  DeviceError,
  ExecutorFailedError,
  InvalidStateError,
  ShutdownError,
} from '../../lib/errors';
import { EMPTY_MODEL_RUNNER_OUTPUT } from '../../lib/contract/modelRunnerOutput';
import type { SchedulerOutput } from '../../lib/contract/schedulerOutput';
import { OutputProcessor } from '../../lib/engine/outputProcessor';
import { Scheduler } from '../../lib/engine/scheduler';
import { Executor, type RpcMethod, type RpcOptions } from '../../lib/executor/executor';
import { Future } from '../../lib/executor/future';
import type { StepOutput } from '../../lib/worker/workerBase';
import { Lock, runMethod, WorkerWrapper } from '../../lib/worker/workerWrapper';
import { PagedWorker, shutdownEngines, TestEngine } from './pagedWorker';
import { promptOf } from './schedulerDriver';

afterEach(async () => {
  jest.restoreAllMocks();
  await shutdownEngines();
});

const bug = new Error('a bug');

class FailingStep extends PagedWorker {
  override executeModel(): StepOutput {
    throw bug;
  }
}

class FailingFree extends PagedWorker {
  override executeModel(step: SchedulerOutput): StepOutput | Promise<StepOutput> {
    if (step.finishedReqIds.length > 0) throw bug;
    return super.executeModel(step);
  }
}

class FailingDevice extends PagedWorker {
  override executeModel(): StepOutput {
    throw new DeviceError('illegal address');
  }
}

class NoRequests extends PagedWorker {
  override executeModel(): StepOutput {
    return EMPTY_MODEL_RUNNER_OUTPUT;
  }
}

class Null extends PagedWorker {
  override executeModel(): StepOutput {
    return null;
  }
}

/** An executor of its own, with one worker and without any handling of failures. */
class PlainExecutor extends Executor {
  readonly wrapper = new WorkerWrapper<PagedWorker>();
  get driverWorker(): WorkerWrapper<PagedWorker> {
    return this.wrapper;
  }

  protected async initExecutor(): Promise<void> {
    const kwargs = {
      config: this.config,
      localRank: 0,
      rank: 0,
      distributedInitMethod: 'tcp://127.0.0.1:1',
      isDriverWorker: true,
      sharedWorkerLock: new Lock(),
    };
    await this.wrapper.initWorker([kwargs]);
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
    const future = new Future<T>();
    try {
      future.setResult(runMethod(this.wrapper, method, args, kwargs) as T);
    } catch (error) {
      future.setException(error);
    }
    return nonBlock ? [future] : future.result().then((result) => [result]);
  }

  override async shutdown(): Promise<void> {
    await this.wrapper.shutdown();
  }
}

async function errorOf(call: Promise<unknown>): Promise<unknown> {
  return call.then(
    () => null,
    (error: unknown) => error,
  );
}

describe.each([
  ['its step fails', FailingStep, bug],
  ['a step that only frees requests fails', FailingFree, bug],
  ['the device fails', FailingDevice, expect.any(DeviceError)],
  ['a step leaves a request out', NoRequests, expect.any(Error)],
  ['a step awaits sampling for no reason', Null, expect.any(InvalidStateError)],
  ['the scheduler fails while scheduling', PagedWorker, bug, [Scheduler, 'schedule']],
  ['the scheduler fails with an output', PagedWorker, bug, [Scheduler, 'updateFromOutput']],
  ['the outputs fail', PagedWorker, bug, [OutputProcessor, 'processOutputs']],
] as [string, typeof PagedWorker, unknown, [{ prototype: object }, string]?][])(
  'after %s',
  (_, workerCls, cause, broken) => {
    test.each([
      ['uni', true],
      ['uni', false],
      [PlainExecutor, false],
    ] as const)('the engine and its executor (%p) are ill', async (backend, asyncScheduling) => {
      const test = await TestEngine.create(workerCls, {
        asyncScheduling,
        distributedExecutorBackend: backend,
      });
      const { engine } = test;
      const callback = jest.fn();
      engine.executor.registerFailureCallback(callback);
      await engine.checkHealth();
      await engine.executor.checkHealth();
      if (broken) {
        jest
          .spyOn(broken[0].prototype as Record<string, () => never>, broken[1])
          .mockImplementation(() => {
            throw bug;
          });
      }
      await errorOf(test.generate(promptOf(3), { maxTokens: 2 }));
      // A step that only frees a request follows the call's output.
      await errorOf(test.generate(promptOf(3), { maxTokens: 2 }));

      const failure = await errorOf(engine.checkHealth());
      expect(failure).toBeInstanceOf(ExecutorFailedError);
      expect(failure).toMatchObject({ code: 'EXECUTOR_FAILED', cause });
      expect(await errorOf(engine.executor.checkHealth())).toBe(failure);
      expect(callback.mock.calls).toEqual([[failure]]);
      const late = jest.fn();
      engine.executor.registerFailureCallback(late);
      expect(late.mock.calls).toEqual([[failure]]);
      await engine.shutdown();
      expect(await errorOf(engine.checkHealth())).toBe(failure);
    });
  },
);

test('a shut down engine and its executor are ill, but have not failed', async () => {
  const { engine } = await TestEngine.create(PagedWorker);
  const callback = jest.fn();
  engine.executor.registerFailureCallback(callback);
  const shutdown = engine.shutdown();
  expect(await errorOf(engine.checkHealth())).toBeInstanceOf(ShutdownError);
  await shutdown;
  expect(await errorOf(engine.checkHealth())).toBeInstanceOf(ShutdownError);
  expect(await errorOf(engine.executor.checkHealth())).toBeInstanceOf(ShutdownError);
  expect(callback).not.toHaveBeenCalled();
});

test('an idle engine is ill once its executor is shut down by itself', async () => {
  const { engine } = await TestEngine.create(PagedWorker);
  await engine.executor.shutdown();
  expect(await errorOf(engine.checkHealth())).toBeInstanceOf(ShutdownError);
});

test('an idle engine is ill once the device has failed', async () => {
  class Ill extends PagedWorker {
    override checkHealth(): void {
      throw new DeviceError('fell off the bus');
    }
  }
  const test = await TestEngine.create(Ill);
  const { engine } = test;
  const failure = await errorOf(engine.checkHealth());
  expect(failure).toMatchObject({ code: 'EXECUTOR_FAILED', cause: { code: 'DEVICE_FAILED' } });
  expect(await errorOf(test.generate(promptOf(3)))).toBe(failure);
});

test('a shutdown made by a failure callback ends after every call', async () => {
  const test = await TestEngine.create(FailingStep);
  const { engine } = test;
  let numFailed = 0;
  const shutdown = new Promise<number>((resolve, reject) => {
    engine.executor.registerFailureCallback(() => {
      engine.shutdown().then(() => resolve(numFailed), reject);
    });
  });
  const calls = Array.from({ length: 5000 }, () =>
    test.generate(promptOf(3)).catch(() => numFailed++),
  );
  expect(await shutdown).toBe(calls.length);
  await Promise.all(calls);
});
