/** Effects on other ranks when one dies, hangs, cannot start or diverges. */
import { randomUUID } from 'node:crypto';
import { cp, truncate } from 'node:fs/promises';
import path from 'node:path';
import { folderWith } from './support/folder';
import { processesWith, type RankOptions } from './support/ranks';
import { type DescribedError, expectGoodEnds, runLLMs, startLLMs } from './support/tensorParallel';

/** The timeout in milliseconds of tests that wait for it, and the slack for a busy machine. */
const TIMEOUT = 12_000;
const SLACK = 100_000;

/** The timeout of ranks that do not wait for it: far more than a report takes on a busy machine. */
const LONG_TIMEOUT = 200_000;

/** Starts a group of ranks, which must leave no process behind. */
async function startGroup(body: string, numRanks: number, options: RankOptions = {}) {
  const group = randomUUID();
  const ranks = await startLLMs(body, numRanks, { ...options, env: { UNIPROC_TEST_GROUP: group } });
  return { ranks, left: () => processesWith('UNIPROC_TEST_GROUP', group) };
}

/** Matches the executor's error caused by a peer. */
function expectPeerLost({ code, cause, message }: DescribedError, rank: number): void {
  expect({ code, cause, message }).toEqual({
    code: 'EXECUTOR_FAILED',
    cause: 'PEER_LOST',
    message: expect.stringContaining(`rank ${rank} is lost`) as string,
  });
}

describe('a killed rank', () => {
  /** Generates until failure; then everything must fail, and the program exits by itself. */
  const program = (timeoutMs: number) => `
    const llm = await createLLM({ distributedTimeoutMs: ${timeoutMs}, maxModelLen: 1024, kvCacheMemoryBytes: 2 ** 24 });
    const { executor } = llm.engine;
    let failures = 0;
    executor.registerFailureCallback(() => failures++);
    const params = new SamplingParams({ maxTokens: 1000, ignoreEos: true });
    const calls = [llm.generate(['Once', 'The dog'], params), llm.generate('One day', params)];
    await tokensGenerated(llm, 20);
    console.log('"generating"');
    const start = performance.now();
    const errors = await Promise.all(calls.map((call) => errorOf(call, start)));
    errors.push(await errorOf(llm.generate('Once', params), start));
    errors.push(await errorOf(executor.checkHealth(), start));
    await llm.shutdown();
    say({ errors, failures });`;

  test.each([
    [2, 1],
    [2, 0],
    [4, 2],
  ])(
    'of %i, rank %i: every other has a typed error at once, and ends',
    async (numRanks, victim) => {
      const { ranks, left } = await startGroup(program(LONG_TIMEOUT), numRanks);
      await Promise.all(ranks.map((rank) => rank.said('generating')));
      ranks[victim].kill('SIGKILL');
      const killed = performance.now();
      const others = ranks.filter((rank) => rank !== ranks[victim]);
      await expectGoodEnds(others);
      expect(performance.now() - killed).toBeLessThan(LONG_TIMEOUT / 2);
      for (const rank of others) {
        const [, { errors, failures }] = rank.lines<{
          errors: DescribedError[];
          failures: number;
        }>();
        expect(errors).toHaveLength(4);
        for (const error of errors) expectPeerLost(error, victim);
        expect(failures).toBe(1);
      }
      await ranks[victim].ended;
      expect(left()).toEqual([]);
    },
  );

  test('while stopped, like a dead machine: fails the others within the timeout', async () => {
    const { ranks, left } = await startGroup(program(TIMEOUT), 2);
    await Promise.all(ranks.map((rank) => rank.said('generating')));
    ranks[1].kill('SIGSTOP');
    const stopped = performance.now();
    await expectGoodEnds([ranks[0]]);
    expect(performance.now() - stopped).toBeLessThan(TIMEOUT + SLACK);
    const [, { errors }] = ranks[0].lines<{ errors: DescribedError[] }>();
    for (const { code, cause } of errors) {
      expect(code).toBe('EXECUTOR_FAILED');
      expect(['PEER_LOST', 'RPC_TIMEOUT']).toContain(cause);
    }
    ranks[1].kill('SIGKILL');
    await ranks[1].ended;
    expect(left()).toEqual([]);
  });

  test('while the others are idle: fails the others', async () => {
    const body = `
      const llm = await createLLM({ distributedTimeoutMs: ${LONG_TIMEOUT} });
      await llm.generate('Once');
      console.log('"idle"');
      await failed(llm);
      say(await errorOf(llm.generate('Once')));
      await llm.shutdown();`;
    const { ranks } = await startGroup(body, 2);
    await Promise.all(ranks.map((rank) => rank.said('idle')));
    ranks[0].kill('SIGKILL');
    await expectGoodEnds([ranks[1]]);
    expectPeerLost(ranks[1].lines<DescribedError>()[1], 0);
  });
});

describe('a rank that cannot start fails the others at once', () => {
  /** The others' errors, and their delay after the first rank's. */
  async function startErrors(args: string, env = {}): Promise<DescribedError[]> {
    const said = await runLLMs<DescribedError>(
      `say(await errorOf(createLLM({
        distributedTimeoutMs: ${LONG_TIMEOUT}, ...(rank === 1 ? ${args} : {}),
      })));`,
      2,
      { env },
    );
    return said.map(([error]) => error);
  }

  /** Checks that the other's error is rank 1's own, with that code. */
  function expectTold(error: DescribedError, own: DescribedError): void {
    const { message } = own;
    const code = own.code as string | undefined;
    if (code === undefined) {
      expect([error.code, error.cause]).toContain('PEER_LOST');
      expect(error.message).toContain(`rank 1 is lost: ${message}`);
    } else {
      const told = `${message} (rank 1 could not start)`;
      expect(error).toMatchObject({ code, message: told, cause: 'PEER_LOST' });
    }
    expect(error.elapsed).toBeLessThan(LONG_TIMEOUT / 2);
  }

  test('for a damaged checkpoint', async () => {
    const folder = path.join(await folderWith({}), 'stories');
    await cp(path.join(__dirname, '..', 'models', 'stories'), folder, { recursive: true });
    await truncate(path.join(folder, 'model.safetensors'), 100_000);
    const [other, own] = await startErrors(`{ model: ${JSON.stringify(folder)} }`);
    expect(own.code).toBe('CHECKPOINT_INVALID');
    expect(own.message).toContain('model.safetensors');
    expectTold(other, own);
  });

  test('for lack of memory before the load', async () => {
    const [other, own] = await startErrors(
      '{ kvCacheMemoryBytes: undefined, memoryUtilization: 1 }',
      { LOCAL_WORLD_SIZE: '1' }, // All of the machine's memory, not half.
    );
    expect(own.code).toBe('OUT_OF_MEMORY');
    expect(own.message).toContain('memoryUtilization');
    expectTold(other, own);
  });

  test('for lack of memory after the load', async () => {
    const [other, own] = await startErrors(
      '{ kvCacheMemoryBytes: undefined, memoryUtilization: 1e-9 }',
    );
    expect(own.code).toBe('OUT_OF_MEMORY');
    expect(own.message).toContain('memoryUtilization');
    expectTold(other, own);
  });

  test('for a worker that throws when it warms up', async () => {
    const [other, own] = await startErrors(`{
      workerCls: class extends Worker {
        compileOrWarmUpModel() {
          throw new Error('no warmth');
        }
      },
    }`);
    expect(own.message).toBe('no warmth');
    expectTold(other, own);
  });

  describe('before the rendezvous', () => {
    test.each([
      ['an option that cannot be', '{ maxNumSeqs: -1 }', 'CONFIG_INVALID'],
      ['a checkpoint that is not there', "{ model: '/nowhere' }", 'CHECKPOINT_INVALID'],
      [
        'a worker that cannot be made',
        "{ workerCls: { module: '/nowhere', export: 'None' } }",
        'CONFIG_INVALID',
      ],
      ['a number of ranks that is another', '{ tensorParallelSize: 4 }', 'CONFIG_INVALID'],
    ])('for %s', async (_, args, code) => {
      const [other, own] = await startErrors(args);
      expect(own.code).toBe(code);
      expectTold(other, own);
    });

    test('for an addon that cannot be loaded', async () => {
      const body = `if (rank === 1) require('./lib/native').native = () => {
          throw new uniproc.AddonUnavailableError('no addon here');
        };
        say(await errorOf(createLLM({ distributedTimeoutMs: ${LONG_TIMEOUT} })));`;
      const [[other], [own]] = await runLLMs<DescribedError>(body, 2);
      expect(own.code).toBe('ADDON_UNAVAILABLE');
      expectTold(other, own);
    });

    test('fails all ranks, also a late one and rank 0', async () => {
      for (const failing of [0, 1]) {
        const body = `
          if (rank === 3) await pause(3000);
          const args = rank === ${failing} ? { maxNumSeqs: -1 } : {};
          say(await errorOf(createLLM({ distributedTimeoutMs: ${LONG_TIMEOUT}, ...args })));`;
        const said = await runLLMs<DescribedError>(body, 4);
        const own = said[failing][0];
        for (const [rank, [error]] of said.entries()) {
          if (rank === failing) continue;
          expect(error).toMatchObject({
            code: 'CONFIG_INVALID',
            message: `${own.message} (rank ${failing} could not start)`,
            cause: 'PEER_LOST',
          });
          expect(error.elapsed).toBeLessThan(LONG_TIMEOUT / 2);
        }
      }
    });
  });

  test('fails within the timeout if a rank never joins', async () => {
    const body = `say(await errorOf(createLLM({ distributedTimeoutMs: ${TIMEOUT} })));`;
    const ranks = await startLLMs(body, 2, { ranks: [0] });
    await expectGoodEnds(ranks);
    const [error] = ranks[0].lines<DescribedError>();
    expect(error.code).toBe('RENDEZVOUS');
    expect(error.message).toContain(`rank 1 did not join within ${TIMEOUT} ms`);
    expect(error.elapsed).toBeLessThan(TIMEOUT + SLACK);
  });
});

describe('ranks that diverge', () => {
  test('a call not made by the others fails within the timeout', async () => {
    const said = await runLLMs<DescribedError>(
      `
      const llm = await createLLM({ distributedTimeoutMs: ${TIMEOUT} });
      if (rank === 0) say(await errorOf(llm.generate('Once upon a time')));
      else await failed(llm);
      if (rank === 1) say(await errorOf(llm.generate('Once upon a time')));
      await llm.shutdown();`,
      2,
    );
    const [[caller], [other]] = said;
    expect(caller.code).toBe('EXECUTOR_FAILED');
    expect(['PEER_LOST', 'RPC_TIMEOUT']).toContain(caller.cause);
    expect(caller.elapsed).toBeLessThan(TIMEOUT + SLACK);
    expectPeerLost(other, 0);
  });

  test.each([
    ['another prompt', 'llm.generate({ promptTokenIds: [0, 5 + rank] })'],
    ['a longer prompt', 'llm.generate({ promptTokenIds: Array(4 + rank).fill(9) })'],
    ['another seed', "llm.generate('The dog', new SamplingParams({ seed: rank }))"],
    ['another order', "Promise.all((rank ? ['A', 'B'] : ['B', 'A']).map((p) => llm.generate(p)))"],
  ])('%s is noticed where schedules are compared', async (_, call) => {
    const said = await runLLMs<DescribedError>(
      `
      const llm = await createLLM();
      say(await errorOf(${call}));
      await llm.shutdown();`,
      2,
    );
    for (const [error] of said) {
      expect(error).toMatchObject({ code: 'EXECUTOR_FAILED', cause: 'SCHEDULE_MISMATCH' });
      expect(error.message).toContain('the schedules of step 0 differ: rank ');
    }
  });

  test('different sampled tokens are detected too', async () => {
    const said = await runLLMs<DescribedError>(
      `
      class Forger extends Worker {
        executeModel(step) {
          const output = super.executeModel(step);
          const { getOutput } = output;
          if (rank === 1 && getOutput) {
            output.getOutput = () => {
              const { sampledTokenIds, ...rest } = getOutput.call(output);
              sampledTokenIds.tokenIds.fill(5);
              return { ...rest, sampledTokenIds };
            };
          }
          return output;
        }
      }
      const llm = await createLLM({ workerCls: Forger });
      say(await errorOf(llm.generate('The dog', new SamplingParams({ maxTokens: 50, ignoreEos: true }))));
      await llm.shutdown();`,
      2,
    );
    for (const [error] of said) expect(error.cause).toBe('SCHEDULE_MISMATCH');
  });
});

test('a step refused by every rank is no failure', async () => {
  const said = await runLLMs<string | string[]>(
    `
    const { emptySchedulerOutput } = require('./lib/contract/schedulerOutput');
    const llm = await createLLM();
    const { executor } = llm.engine;
    await executor.sleep();
    const error = await errorOf(executor.executeModel(emptySchedulerOutput()));
    await executor.wakeUp();
    say([error.code, (await llm.generate('Once upon a time'))[0].outputs[0].text]);
    await llm.shutdown();`,
    2,
  );
  expect(said[0][0]).toEqual(['INVALID_STATE', expect.stringMatching(/\w+/)]);
  expect(said[1]).toEqual(said[0]);
});

test.each(['sampleTokens', 'executeDummyBatch', 'checkHealth'])(
  '%s that a worker does not end fails within the timeout',
  async (method) => {
    const [[error]] = await runLLMs<DescribedError>(
      `
      const { emptySchedulerOutput } = require('./lib/contract/schedulerOutput');
      class Silent extends Worker {
        executeModel() { return null; }
        ${method}() { return new Promise(() => {}); }
      }
      const llm = await createLLM({ workerCls: Silent, distributedTimeoutMs: ${TIMEOUT} });
      const { executor } = llm.engine;
      const alive = setInterval(() => {}, 1000);
      await executor.executeModel({ ...emptySchedulerOutput(), hasStructuredOutputRequests: true });
      const late = await errorOf(executor.${method}(null));
      await errorOf(executor.checkHealth());
      clearInterval(alive);
      say(late);
      await llm.shutdown();`,
      2,
    );
    expect(['RPC_TIMEOUT', 'EXECUTOR_FAILED']).toContain(error.code);
    expect(error.elapsed).toBeLessThan(TIMEOUT + SLACK);
  },
);

test('a step without a timeout of its own has that of the ranks', async () => {
  const [[error]] = await runLLMs<DescribedError>(
    `
    class Silent extends Worker {
      executeModel() { return new Promise(() => {}); }
    }
    const llm = await createLLM({ workerCls: Silent, distributedTimeoutMs: ${TIMEOUT} });
    const alive = setInterval(() => {}, 1000);
    const error = await errorOf(llm.generate('Once upon a time'));
    await errorOf(llm.engine.checkHealth());
    clearInterval(alive);
    say(error);
    await llm.shutdown();`,
    2,
  );
  expect(error.code).toBe('EXECUTOR_FAILED');
  expect(['RPC_TIMEOUT', 'PEER_LOST']).toContain(error.cause);
  expect(error.elapsed).toBeLessThan(TIMEOUT + SLACK);
});

test('a step that fails on one rank fails the others, which wait for it, at once', async () => {
  const said = await runLLMs<DescribedError>(
    `
    class Failing extends Worker {
      executeModel(step) {
        if (rank === 1 && step.totalNumScheduledTokens > 0) throw new Error('of rank 1');
        return super.executeModel(step);
      }
    }
    const llm = await createLLM({ workerCls: Failing, distributedTimeoutMs: ${LONG_TIMEOUT} });
    say(await errorOf(llm.generate('Once upon a time')));
    say(await errorOf(llm.engine.checkHealth()));
    await llm.shutdown();`,
    2,
  );
  const [[waiting, waitingIll], [failing, failingIll]] = said;
  expectPeerLost(waiting, 1);
  expect(waiting.message).toContain('of rank 1');
  expect(waiting.elapsed).toBeLessThan(LONG_TIMEOUT / 2);
  expect(failing).toMatchObject({
    code: 'EXECUTOR_FAILED',
    message: expect.stringContaining('of rank 1') as string,
  });
  for (const ill of [waitingIll, failingIll]) expect(ill.code).toBe('EXECUTOR_FAILED');
});

test('the memory baseline is taken once the communicator is connected', async () => {
  const said = await runLLMs<boolean>(
    `
    const { MemoryBudget } = require('./lib/worker/memory');
    const { measureBaseline } = MemoryBudget.prototype;
    let worker;
    MemoryBudget.prototype.measureBaseline = async function (device) {
      // A collective works only once all ranks have connected.
      await worker.communicator.barrier();
      say(true);
      return measureBaseline.call(this, device);
    };
    class Known extends Worker {
      constructor(args) {
        super(args);
        worker = this;
      }
    }
    const llm = await createLLM({ workerCls: Known });
    await llm.shutdown();`,
    2,
  );
  expect(said).toEqual([[true], [true]]);
});

describe('the end', () => {
  test('a rank that exits during a call fails the others at once', async () => {
    const said = await runLLMs<DescribedError>(
      `
      const llm = await createLLM({
        maxModelLen: 1024, kvCacheMemoryBytes: 2 ** 24, distributedTimeoutMs: ${LONG_TIMEOUT},
      });
      const start = performance.now();
      const call = errorOf(llm.generate('Once', new SamplingParams({ maxTokens: 1000, ignoreEos: true })));
      if (rank === 0) {
        await tokensGenerated(llm, 10);
        await llm.shutdown();
      }
      say(await call);
      await llm.shutdown();`,
      2,
    );
    const [[own], [other]] = said;
    expect(own.code).toBe('SHUT_DOWN');
    expectPeerLost(other, 0);
    expect(other.elapsed).toBeLessThan(LONG_TIMEOUT / 2);
  });

  test("a call after another rank's clean shutdown fails at once", async () => {
    const said = await runLLMs<DescribedError>(
      `
      const llm = await createLLM({ distributedTimeoutMs: ${LONG_TIMEOUT} });
      await llm.generate('Once');
      if (rank === 1) return llm.shutdown();
      // Whether or not it knows of the shutdown: calls before and after behave alike.
      const start = performance.now();
      for (;;) {
        const error = await errorOf(llm.generate('Once'), start);
        if (error === null) continue;
        say(error);
        break;
      }
      await llm.shutdown();`,
      2,
    );
    const [[error]] = said;
    expectPeerLost(error, 1);
    expect(error.elapsed).toBeLessThan(LONG_TIMEOUT / 2);
  });

  test('ranks that exit at different times after the same calls get all outputs', async () => {
    const said = await runLLMs<string[]>(
      `
      const llm = await createLLM();
      // Finishes before its limit, with one more step in flight.
      const params = new SamplingParams({ temperature: 0, maxTokens: 64, stop: 'girl' });
      const [{ outputs }] = await llm.generate('Once upon a time', params);
      say(outputs.map(({ text, finishReason }) => text + finishReason));
      if (rank === 0) await pause(300);
      await llm.shutdown();`,
      4,
    );
    expect(new Set(said.map(([[text]]) => text)).size).toBe(1);
    expect(said[0][0][0]).toMatch(/stop$/);
  });

  test('fifty starts leave no socket, thread, process or shared memory', async () => {
    interface Held {
      sockets: number;
      threads: number;
      handles: string[];
      sharedMemory: string[];
    }
    const group = randomUUID();
    const said = await runLLMs<Held>(
      `
      const { readdirSync, readlinkSync } = require('node:fs');
      const linkOf = (fd) => { try { return readlinkSync('/proc/self/fd/' + fd); } catch { return ''; } };
      const held = () => ({
        sockets: readdirSync('/proc/self/fd').filter((fd) => linkOf(fd).startsWith('socket:')).length,
        threads: readdirSync('/proc/self/task').length,
        handles: process.getActiveResourcesInfo().filter((name) => name.startsWith('TCP')),
        // Other tests may have some of their own.
        sharedMemory: readdirSync('/dev/shm').filter((name) => /uniproc|nccl/.test(name)),
      });
      let before;
      for (let i = 0; i < 51; i++) {
        // Node's own threads exist after the first.
        if (i === 1) {
          await pause(50);
          before = held();
        }
        const llm = await createLLM({ maxNumSeqs: 4, maxNumBatchedTokens: 32, maxModelLen: 32 });
        await llm.generate('Once', new SamplingParams({ maxTokens: 2 }));
        await llm.shutdown();
      }
      await pause(50);
      say(before);
      say(held());`,
      2,
      { env: { UNIPROC_TEST_GROUP: group } },
    );
    for (const [before, after] of said) expect(after).toEqual(before);
    expect(processesWith('UNIPROC_TEST_GROUP', group)).toEqual([]);
  }, 600_000);
});
