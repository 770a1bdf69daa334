/** Overrides that await something before they call `super`. */
import fc from 'fast-check';
import { createHook } from 'node:async_hooks';
import { runInThisContext } from 'node:vm';
import ts from 'typescript';
import type { GrammarOutput } from '../../lib/contract/grammarOutput';
import { emptySchedulerOutput, type SchedulerOutput } from '../../lib/contract/schedulerOutput';
import { DeviceError, ExecutorFailedError, ShutdownError } from '../../lib/errors';
import { LLM } from '../../lib/llm';
import { SamplingParams } from '../../lib/config/samplingParams';
import { Worker } from '../../lib/worker/worker';
import type { StepOutput } from '../../lib/worker/workerBase';
import { stories } from '../support/stories';
import {
  AsyncWorker,
  createExecutor,
  deferred,
  outputOf,
  PlainWorker,
  settle,
  shutdownAll,
  step,
  structuredStep,
} from './support';

afterEach(shutdownAll);

const turns = async (count: number) => {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
};
const idOf = (schedulerOutput: SchedulerOutput) =>
  [...schedulerOutput.numScheduledTokens.keys()][0];

/** Records the steps as they reach the device; two-phase where the step asks for it. */
class Launching extends PlainWorker {
  readonly launched: string[] = [];

  override executeModel(schedulerOutput: SchedulerOutput): StepOutput | Promise<StepOutput> {
    this.launched.push(`execute ${idOf(schedulerOutput)}`);
    return schedulerOutput.hasStructuredOutputRequests ? null : outputOf(idOf(schedulerOutput));
  }
  override sampleTokens(): StepOutput | Promise<StepOutput> {
    this.launched.push('sample');
    return outputOf('sampled');
  }
  executeDummyBatch(): void | Promise<void> {
    this.launched.push('dummy');
  }
  note(what: string): void {
    this.launched.push(what);
  }
}

/** A call of the property test: how it is made, and how its override behaves. */
const calls = fc.record({
  kind: fc.constantFrom('step', 'structured', 'dummy', 'note'),
  turns: fc.nat(3),
  /** Turns of the event loop before the next call is made. */
  pause: fc.nat(1),
  fails: fc.boolean(),
});

it('launches start in call order for any delays and failures before super', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(calls, { minLength: 2, maxLength: 8 }), async (script) => {
      let next = 0;
      const before = async () => {
        const { turns: count, fails } = script[next];
        await turns(count);
        if (fails) throw new Error('before super');
      };
      class Delayed extends Launching {
        override async executeModel(schedulerOutput: SchedulerOutput): Promise<StepOutput> {
          next = Number(idOf(schedulerOutput));
          await before();
          return super.executeModel(schedulerOutput);
        }
        override async sampleTokens(): Promise<StepOutput> {
          await before().catch(() => {});
          return super.sampleTokens();
        }
        override async executeDummyBatch(): Promise<void> {
          await turns(2);
          await super.executeDummyBatch();
        }
      }
      const executor = await createExecutor(Delayed, { asyncScheduling: true });
      const expected: string[] = [];
      const futures: PromiseLike<unknown>[] = [];
      for (const [i, { kind, pause, fails }] of script.entries()) {
        await turns(pause);
        const id = String(i);
        if (kind === 'dummy') {
          expected.push('dummy');
          futures.push(executor.executeDummyBatch());
        } else if (kind === 'note') {
          futures.push(executor.collectiveRpc('note', { args: [`note ${id}`] }));
        } else {
          const made = kind === 'step' ? step(id) : structuredStep(id);
          if (!fails) expected.push(`execute ${id}`);
          futures.push(executor.executeModel(made, { nonBlock: true }));
          if (kind === 'structured') {
            futures.push(executor.sampleTokens(null, { nonBlock: true }));
            // It may already be known that the forward pass failed.
            if (!fails) expected.push('sample');
          }
        }
      }
      await Promise.allSettled(futures);
      const { launched } = executor.driverWorker.worker;
      const launches = launched.filter((call) => !call.startsWith('note'));
      const sampledAfterFailure = script.some(({ kind, fails }) => kind === 'structured' && fails);
      if (sampledAfterFailure) {
        const order = (list: string[]) => list.filter((call) => call.startsWith('execute'));
        expect(order(launches)).toEqual(order(expected));
      } else expect(launches).toEqual(expected);
      const notes = script.flatMap(({ kind }, i) => (kind === 'note' ? [`note ${i}`] : []));
      expect(launched.filter((call) => call.startsWith('note'))).toEqual(notes);
      await executor.shutdown();
    }),
    { numRuns: 60 },
  );
});

/** Steps wait at a gate before they are launched. */
class Gated extends Launching {
  readonly gates: ReturnType<typeof deferred<undefined>>[] = [];

  override async executeModel(schedulerOutput: SchedulerOutput): Promise<StepOutput> {
    const gate = deferred<undefined>();
    this.gates.push(gate);
    await gate.promise;
    return super.executeModel(schedulerOutput);
  }
}

it.each([
  [
    'a chain of promises',
    class extends Launching {
      override executeModel(schedulerOutput: SchedulerOutput): Promise<StepOutput> {
        const before = idOf(schedulerOutput) === 'a' ? turns(2) : turns(0);
        return before.then(() => super.executeModel(schedulerOutput));
      }
    },
  ],
  ['an async method compiled to ES2015', compiledTo2015()],
  [
    'an async function set on the instance',
    class extends Launching {
      override executeModel = async (schedulerOutput: SchedulerOutput): Promise<StepOutput> => {
        if (idOf(schedulerOutput) === 'a') await turns(2);
        return super.executeModel(schedulerOutput);
      };
    },
  ],
] as const)('%s is not overtaken on a worker in JavaScript', async (_, workerCls) => {
  const executor = await createExecutor(workerCls, { asyncScheduling: true });
  const finishing = { ...emptySchedulerOutput(), finishedReqIds: ['a'] };
  const steps = [step('a'), step('b'), finishing];
  await Promise.all(steps.map((made) => executor.executeModel(made, { nonBlock: true })));
  expect(executor.driverWorker.worker.launched).toEqual([
    'execute a',
    'execute b',
    'execute undefined',
  ]);
});

/** A Launching with an async override, as compilers write it where there is no `async`. */
function compiledTo2015(): typeof Launching {
  const { outputText } = ts.transpileModule(
    `class Compiled extends Launching {
       count = 0;
       async executeModel(schedulerOutput: unknown) {
         if (this.count++ === 0) await turns(2);
         return super.executeModel(schedulerOutput);
       }
     }`,
    { compilerOptions: { target: ts.ScriptTarget.ES2015 } },
  );
  type Define = (...names: unknown[]) => typeof Launching;
  const define = `(Launching, turns) => { ${outputText}; return Compiled; }`;
  return (runInThisContext(define) as Define)(Launching, turns);
}

it('a call of another method does not wait, unless a launch waits before it', async () => {
  const executor = await createExecutor(Gated, { asyncScheduling: true });
  const { worker } = executor.driverWorker;
  const first = executor.executeModel(step('a'), { nonBlock: true });
  await executor.collectiveRpc('note', { args: ['at once'] });
  const second = executor.executeModel(step('b'), { nonBlock: true });
  const note = executor.collectiveRpc('note', { args: ['in order'] });
  await settle();
  expect(worker.launched).toEqual(['at once']);
  expect(worker.gates).toHaveLength(1);
  worker.gates[0].resolve(undefined);
  await first;
  await note;
  expect(worker.launched).toEqual(['at once', 'execute a', 'in order']);
  worker.gates[1].resolve(undefined);
  expect(await second).toEqual(outputOf('b'));
});

it('a step of a worker that returns no promise makes none', async () => {
  const executor = await createExecutor(AsyncWorker, { asyncScheduling: true });
  await settle();
  let numPromises = 0;
  const hook = createHook({
    init(_id, type) {
      if (type === 'PROMISE') numPromises++;
    },
  }).enable();
  const future = executor.executeModel(step('a'), { nonBlock: true });
  const numLaunched = executor.driverWorker.worker.launched.length;
  hook.disable();
  executor.driverWorker.worker.launched[0].finish();
  await future;
  expect([numLaunched, numPromises]).toEqual([1, 0]);
});

it('sleep waits for the step before it', async () => {
  class Sleeping extends Gated {
    sleep(): void {
      this.launched.push('sleep');
    }
    wakeUp(): void {
      this.launched.push('wakeUp');
    }
  }
  const executor = await createExecutor(Sleeping, { asyncScheduling: true });
  const { worker } = executor.driverWorker;
  const stepping = executor.executeModel(step('a'), { nonBlock: true });
  const sleeping = executor.sleep(1);
  await settle();
  expect(worker.launched).toEqual([]);
  worker.gates[0].resolve(undefined);
  await Promise.all([stepping, sleeping]);
  expect(worker.launched).toEqual(['execute a', 'sleep']);
  await executor.wakeUp();
});

it('steps that wait are not launched once the executor has failed', async () => {
  const executor = await createExecutor(Gated, { asyncScheduling: true });
  const { worker } = executor.driverWorker;
  const futures = ['a', 'b', 'c'].map((id) => executor.executeModel(step(id), { nonBlock: true }));
  const error = new DeviceError('illegal address');
  worker.gates[0].reject(error);
  expect(await futures[0].exception()).toBe(error);
  for (const future of futures.slice(1)) {
    expect(await future.exception()).toBeInstanceOf(ExecutorFailedError);
  }
  await settle();
  expect([worker.gates.length, worker.launched]).toEqual([1, []]);
});

it('steps that wait are not launched once the executor is shut down', async () => {
  const executor = await createExecutor(Gated, { asyncScheduling: true });
  const { worker } = executor.driverWorker;
  const futures = ['a', 'b'].map((id) => executor.executeModel(step(id), { nonBlock: true }));
  await executor.shutdown();
  worker.gates[0].resolve(undefined);
  for (const future of futures) expect(await future.exception()).toBeInstanceOf(ShutdownError);
  await settle();
  expect(worker.gates).toHaveLength(1);
});

it('a cancelled step is launched all the same, before the next', async () => {
  const executor = await createExecutor(Gated, { asyncScheduling: true });
  const { worker } = executor.driverWorker;
  const [first, second] = ['a', 'b'].map((id) =>
    executor.executeModel(step(id), { nonBlock: true }),
  );
  first.cancel();
  second.cancel();
  const third = executor.executeModel(step('c'), { nonBlock: true });
  for (let i = 0; i < 3; i++) {
    worker.gates[i].resolve(undefined);
    await settle();
  }
  await third;
  expect(worker.launched).toEqual(['execute a', 'execute b', 'execute c']);
});

it('a worker that launches before it returns a promise may have several steps in flight', async () => {
  class Remote extends PlainWorker {
    readonly answers: ReturnType<typeof deferred<StepOutput>>[] = [];
    override executeModel(): Promise<StepOutput> {
      const answer = deferred<StepOutput>();
      this.answers.push(answer);
      return answer.promise;
    }
  }
  const executor = await createExecutor(Remote, { asyncScheduling: true });
  const futures = ['a', 'b'].map((id) => executor.executeModel(step(id), { nonBlock: true }));
  const { answers } = executor.driverWorker.worker;
  expect(answers).toHaveLength(2);
  answers[1].resolve(outputOf('b'));
  answers[0].resolve(outputOf('a'));
  expect(await Promise.all(futures)).toEqual([outputOf('a'), outputOf('b')]);
});

it('an async override keeps two steps in flight once they are launched', async () => {
  class Delayed extends AsyncWorker {
    override async executeModel(schedulerOutput: SchedulerOutput): Promise<StepOutput> {
      await turns(1);
      return super.executeModel(schedulerOutput);
    }
  }
  const executor = await createExecutor(Delayed, { asyncScheduling: true });
  const futures = ['a', 'b'].map((id) => executor.executeModel(step(id), { nonBlock: true }));
  const { launched } = executor.driverWorker.worker;
  while (launched.length < 2) await turns(1);
  expect(futures.map((future) => future.done())).toEqual([false, false]);
  for (const output of launched) output.finish();
  expect(await Promise.all(futures)).toEqual([outputOf('a'), outputOf('b')]);
});

describe('over the real worker', () => {
  /** Delays that make later steps the faster ones. */
  const delayOf = (numSteps: number) => (numSteps % 3 === 0 ? 4 : numSteps % 2);

  class Awaiting extends Worker {
    numCalls = 0;
    override async executeModel(schedulerOutput: SchedulerOutput): Promise<StepOutput> {
      await turns(delayOf(this.numCalls++));
      return super.executeModel(schedulerOutput);
    }
    override async sampleTokens(grammarOutput: GrammarOutput | null): Promise<StepOutput> {
      await turns(1);
      return super.sampleTokens(grammarOutput);
    }
  }
  /** Without the word `async`. */
  class Chaining extends Worker {
    numCalls = 0;
    override executeModel(schedulerOutput: SchedulerOutput): Promise<StepOutput> {
      const before = turns(delayOf(this.numCalls++));
      return before.then(() => super.executeModel(schedulerOutput));
    }
  }

  it.each([Awaiting, Chaining])("%p gives transformers' tokens", async (workerCls) => {
    const llm = await LLM.create({ device: 'cpu', workerCls, maxNumSeqs: 2 });
    try {
      const [first] = stories.prompts;
      const params = new SamplingParams({ temperature: 0, maxTokens: 24 });
      const prompts = stories.prompts.map(({ promptTokenIds }) => ({ promptTokenIds }));
      // One leaves in the middle, so that a step frees its request.
      const leaving = (async () => {
        for await (const delta of llm.stream(prompts[0], params)) if (delta.text) break;
      })();
      const outputs = await llm.generate(prompts, params);
      await leaving;
      expect(outputs.map(({ outputs: [{ tokenIds }] }) => tokenIds)).toEqual(
        stories.prompts.map(({ tokenIds }) => tokenIds.slice(0, 24)),
      );
      expect(first.tokenIds.length).toBeGreaterThanOrEqual(24);
      await llm.engine.executor.sleep();
      await llm.engine.executor.wakeUp();
      const [again] = await llm.generate(prompts[0], params);
      expect(again.outputs[0].tokenIds).toEqual(first.tokenIds.slice(0, 24));
    } finally {
      await llm.shutdown();
    }
  });
});
