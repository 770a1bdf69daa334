/**
 * Calls, aborts, sleeps, resets and shutdowns in any order on the real engine with the small model:
 * each call ends correctly, with the same tokens as alone, and nothing leaks.
 */
import { setImmediate, setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { LLM, type RequestOutput, SamplingParams } from '../../lib';
import { UniprocError } from '../../lib/errors';
import { type Campaign, type CampaignOptions, expect, type StructuredTarget } from '../campaign';
import { ask, essence, INVALID, MESSAGES, PARAMS, PROMPTS } from './engineCalls';

/** Few blocks, steps smaller than a prompt, a short queue. */
const ENGINE = {
  limits: { maxListMemoryBytes: 13 * 1024 },
  dtype: 'float32',
  maxModelLen: 96,
  maxNumSeqs: 4,
  maxNumBatchedTokens: 24,
  blockSize: 8,
  // 20 blocks: keys and values of 5 layers, 4 heads of 32 float32 each.
  kvCacheMemoryBytes: 20 * 8 * (2 * 5 * 4 * 32 * 4),
  maxQueuedRequests: 12,
  schedulingPolicy: 'priority',
} as const;

/** Maximum milliseconds for a case's work to end. */
const PATIENCE = 60_000;

const nat = (max: number) => fc.nat(max - 1);
const request = {
  prompt: nat(PROMPTS.length + 1),
  params: nat(PARAMS.length),
  priority: fc.integer({ min: -1, max: 1 }),
  cacheSalt: fc.option(fc.constantFrom('a', 'b'), { nil: undefined }),
};
const step = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('generate' as const), ...request }) },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant('abort' as const),
      ...request,
      afterTurns: fc.nat(40),
      isTimeout: fc.boolean(),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant('stream' as const),
      ...request,
      /** Reads before the reader leaves; 0: leaves without reading. */
      reads: fc.option(fc.nat(8)),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({ kind: fc.constant('invalid' as const), which: nat(INVALID.length) }),
  },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('turns' as const), turns: fc.nat(60) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('reset' as const) }) },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant('sleep' as const), level: fc.constantFrom(1, 2) }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('wake' as const) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('drain' as const) }) },
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

interface EngineCase {
  steps: Step[];
  /** Shut the engine down at the end, with calls in progress, and create another. */
  isLast: boolean;
}

const cases: fc.Arbitrary<EngineCase> = fc.record({
  steps: fc.array(step, { minLength: 1, maxLength: 24 }),
  isLast: fc.integer({ min: 0, max: 19 }).map((n) => n === 0),
});

const codeOf = (error: unknown) => (error instanceof UniprocError ? error.code : null);

class EngineTarget implements StructuredTarget<EngineCase> {
  readonly kind = 'structured';
  readonly arbitrary = cases;
  readonly counts = { calls: 0, 'calls with their tokens': 0, engines: 1 };
  /** Results of each prompt and parameters alone. */
  readonly #alone = new Map<string, Promise<string>>();

  private constructor(
    private llm: LLM,
    private readonly reference: LLM,
    private readonly device: string,
  ) {}

  static async open({ device }: CampaignOptions): Promise<EngineTarget> {
    const [llm, reference] = await Promise.all([
      LLM.create({ ...ENGINE, device }),
      LLM.create({ dtype: 'float32', maxModelLen: ENGINE.maxModelLen, device, maxNumSeqs: 4 }),
    ]);
    return new EngineTarget(llm, reference, device);
  }

  async check({ steps, isLast }: EngineCase): Promise<void> {
    const run = new CaseRun(this.llm, (prompt, params) => this.#expected(prompt, params));
    try {
      for (const each of steps) await run.step(each);
      if (isLast) {
        run.isShutDown = true;
        await within(this.llm.shutdown(), 'shutdown');
      }
      await run.end();
    } catch (error) {
      // The next case gets a new engine.
      await this.#renew();
      throw error;
    }
    this.counts.calls += run.numCalls;
    this.counts['calls with their tokens'] += run.numCompared;
    if (isLast) await this.#renew();
  }

  async close(): Promise<void> {
    await Promise.all([this.llm.shutdown(), this.reference.shutdown()]);
  }

  async #renew(): Promise<void> {
    await within(this.llm.shutdown(), 'shutdown');
    this.llm = await LLM.create({ ...ENGINE, device: this.device });
    this.counts.engines++;
  }

  #expected(prompt: number, params: number): Promise<string> {
    const key = `${prompt} ${params}`;
    const known = this.#alone.get(key);
    if (known !== undefined) return known;
    // Sequentially, so that each runs alone.
    const before = Promise.all(this.#alone.values());
    const expected = before.then(async () => {
      const [output] = await ask(this.reference, prompt, params, {});
      return essence(output);
    });
    this.#alone.set(key, expected);
    return expected;
  }
}

/** One case: its calls, and the events that allow them to fail. */
class CaseRun {
  isShutDown = false;
  numCalls = 0;
  numCompared = 0;
  #hasSlept = false;
  readonly #calls: Promise<void>[] = [];
  /** Faults of ended calls. */
  readonly #faults: unknown[] = [];

  constructor(
    private readonly llm: LLM,
    private readonly expected: (prompt: number, params: number) => Promise<string>,
  ) {}

  async step(given: Step): Promise<void> {
    const { llm } = this;
    switch (given.kind) {
      case 'generate': {
        this.#call(this.#generate(given));
        return;
      }
      case 'abort': {
        this.#call(this.#giveUp(given));
        return;
      }
      case 'stream': {
        this.#call(this.#stream(given));
        return;
      }
      case 'invalid': {
        this.#call(this.#invalid(given.which));
        return;
      }
      case 'turns':
        for (let turn = 0; turn < given.turns; turn++) await setImmediate();
        return;
      case 'reset':
        llm.resetPrefixCache();
        return;
      case 'sleep':
        this.#hasSlept = true;
        await within(mayReject(llm.engine.executor.sleep(given.level)), 'sleep');
        return;
      case 'wake':
        if (llm.engine.executor.isSleeping) await within(llm.engine.executor.wakeUp(), 'wakeUp');
        return;
      case 'drain':
        await within(Promise.all(this.#calls), 'a call');
    }
  }

  /** After every call has ended, no state is left. */
  async end(): Promise<void> {
    await within(Promise.all(this.#calls), 'a call');
    if (this.#faults.length > 0) throw this.#faults[0] as Error;
    const { engine } = this.llm;
    if (this.isShutDown) return;
    if (engine.executor.isSleeping) await within(engine.executor.wakeUp(), 'wakeUp');
    const end = performance.now() + PATIENCE;
    while (!this.#isEmpty() && performance.now() < end) await setImmediate();
    const { numRunningReqs, numWaitingReqs, kvCacheUsage } = this.llm.stats();
    expect(
      this.#isEmpty(),
      () =>
        `${numRunningReqs} requests run, ${numWaitingReqs} wait and ${kvCacheUsage} of the cache is ` +
        `held when all calls have ended; ${this.#numInWorker} are in the worker`,
    );
  }

  #isEmpty(): boolean {
    const { numRunningReqs, numWaitingReqs, kvCacheUsage } = this.llm.stats();
    const numOpen = this.llm.engine.numUnfinishedRequests + this.#numInWorker;
    return numRunningReqs + numWaitingReqs + kvCacheUsage + numOpen === 0;
  }

  get #numInWorker(): number {
    const executor = this.llm.engine.executor as unknown as {
      driverWorker: { worker: { modelRunner: { inputBatch: { size: number } } } };
    };
    return executor.driverWorker.worker.modelRunner.inputBatch.size;
  }

  #call(work: Promise<void>): void {
    this.numCalls++;
    this.#calls.push(work.catch((error: unknown) => void this.#faults.push(error)));
  }

  /** Throws unless a call may end with this error in this case. */
  #mayEnd(error: unknown, ...codes: string[]): void {
    const allowed = ['QUEUE_FULL', ...codes];
    if (this.#hasSlept) allowed.push('INVALID_STATE');
    if (this.isShutDown) allowed.push('SHUT_DOWN');
    if (!allowed.includes(codeOf(error) ?? '')) throw error;
  }

  async #compare({ prompt, params }: { prompt: number; params: number }, output: RequestOutput) {
    const [found, expected] = [essence(output), await this.expected(prompt, params)];
    expect(
      found === expected,
      () => `prompt ${prompt} with parameters ${params} gets ${found}; alone it gets ${expected}`,
    );
    this.numCompared++;
  }

  async #generate(given: Extract<Step, { kind: 'generate' }>): Promise<void> {
    const { prompt, params, priority, cacheSalt } = given;
    let outputs: RequestOutput[];
    try {
      outputs = await ask(this.llm, prompt, params, { priority, ...(cacheSalt && { cacheSalt }) });
    } catch (error) {
      this.#mayEnd(error);
      return;
    }
    await this.#compare(given, outputs[0]);
  }

  async #giveUp(given: Extract<Step, { kind: 'abort' }>): Promise<void> {
    const { prompt, params, priority, afterTurns, isTimeout } = given;
    const controller = new AbortController();
    const reason = new Error('the client went away');
    const options = isTimeout ? { timeoutMs: 1 + afterTurns } : { signal: controller.signal };
    if (!isTimeout) {
      void (async () => {
        for (let turn = 0; turn < afterTurns; turn++) await setImmediate();
        controller.abort(reason);
      })();
    }
    let outputs: RequestOutput[];
    try {
      outputs = await ask(this.llm, prompt, params, { priority, ...options });
    } catch (error) {
      this.#mayEnd(error, isTimeout ? 'REQUEST_TIMEOUT' : 'ABORT_ERR');
      if (codeOf(error) === 'ABORT_ERR') {
        expect((error as Error).cause === reason, "an aborted call's cause is not the reason");
      }
      return;
    }
    await this.#compare(given, outputs[0]);
  }

  async #stream(given: Extract<Step, { kind: 'stream' }>): Promise<void> {
    const { llm } = this;
    const { prompt, params, priority, reads } = given;
    const sampling = new SamplingParams(PARAMS[params]);
    const stream =
      prompt === PROMPTS.length
        ? llm.chatStream(MESSAGES, sampling, { priority })
        : llm.stream(PROMPTS[prompt], sampling, { priority });
    const tokenIds: number[][] = Array.from({ length: sampling.n }, () => []);
    try {
      for (let left = reads ?? Infinity; left > 0; left--) {
        const { done, value } = await stream.next();
        if (done === true) {
          const [, outputs] = JSON.parse(await this.expected(prompt, params)) as [
            unknown,
            [number[]][],
          ];
          expect(
            outputs.every(([expected], i) => expected.join() === tokenIds[i].join()),
            () =>
              `a stream of prompt ${prompt} with parameters ${params} gets ${tokenIds.join('; ')}`,
          );
          this.numCompared++;
          return;
        }
        tokenIds[value.index].push(...value.tokenIds);
      }
      await stream.return();
    } catch (error) {
      this.#mayEnd(error);
    }
  }

  async #invalid(which: number): Promise<void> {
    try {
      await INVALID[which](this.llm);
    } catch (error) {
      this.#mayEnd(error, 'REQUEST_INVALID');
      return;
    }
    throw new Error(`the invalid call ${which} was accepted`);
  }
}

/** A sleep is refused while requests run. */
async function mayReject(work: Promise<void>): Promise<void> {
  try {
    await work;
  } catch (error) {
    if (codeOf(error) !== 'INVALID_STATE') throw error;
  }
}

async function within<T>(work: Promise<T>, what: string): Promise<T> {
  const controller = new AbortController();
  const late = sleep(PATIENCE, undefined, { signal: controller.signal }).then(() => {
    throw new Error(`${what} has not ended after ${PATIENCE} ms`);
  });
  late.catch(() => undefined);
  return Promise.race([work, late]).finally(() => controller.abort());
}

export const engine: Campaign = {
  name: 'engine',
  about:
    'calls, aborts, sleeps, resets, shutdowns in any order: all end, with the tokens they get alone',
  open: async (options) => await EngineTarget.open(options),
};
