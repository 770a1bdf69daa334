/** Old names of options and fields still count, and warn once in a process. */
/* eslint-disable @typescript-eslint/no-deprecated -- they are what this file tests */
import { createUniprocConfig, type EngineArgs } from '../lib/config/engineArgs';
import { RpcTimeoutError, StoreTimeoutError } from '../lib/errors';
import type { RpcOptions, StepOptions } from '../lib/executor/executor';
import { UniProcExecutor } from '../lib/executor/uniProcExecutor';
import { runNode } from './executor/support';

const emitWarning = jest.spyOn(process, 'emitWarning').mockImplementation(() => undefined);
afterAll(() => emitWarning.mockRestore());

const parallel = (args: EngineArgs) => createUniprocConfig(args);

describe('distributedTimeout', () => {
  test('is distributedTimeoutMs', async () => {
    expect((await parallel({ distributedTimeout: 1234 })).parallel.distributedTimeoutMs).toBe(1234);
    expect((await parallel({ distributedTimeoutMs: 77 })).parallel.distributedTimeoutMs).toBe(77);
  });

  test('may be given beside it, with the same value', async () => {
    const both = { distributedTimeout: 5, distributedTimeoutMs: 5 };
    expect((await parallel(both)).parallel.distributedTimeoutMs).toBe(5);
    await expect(parallel({ ...both, distributedTimeoutMs: 6 })).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
      message:
        'engine arguments: distributedTimeoutMs is 6, but distributedTimeout, its old name, is 5',
    });
  });

  test('is checked as it', async () => {
    await expect(parallel({ distributedTimeout: 0 })).rejects.toThrow(
      'distributedTimeoutMs is 0; it must be an integer from 1',
    );
  });

  test('is also a field of the configuration, for executors of users', async () => {
    const config = (await parallel({ distributedTimeoutMs: 77 })).parallel;
    expect((config as unknown as { distributedTimeout: number }).distributedTimeout).toBe(77);
    expect(Object.keys(config)).not.toContain('distributedTimeout');
  });
});

describe("an executor's timeout", () => {
  const calls: RpcOptions[] = [];
  class Recording extends UniProcExecutor {
    override collectiveRpc = ((_: string, options: RpcOptions) => {
      calls.push(options);
      return [{ then: () => undefined }];
    }) as never;
  }
  const step = { hasStructuredOutputRequests: false } as never;

  test.each<[string, StepOptions]>([
    ['timeoutMs', { timeoutMs: 5 }],
    ['its old name', { timeout: 5 }],
    ['both names', { timeout: 5, timeoutMs: 5 }],
  ])('by %s', async (_, options) => {
    const executor = new Recording(await createUniprocConfig());
    try {
      void executor.executeModel(step, { ...options, nonBlock: true });
    } catch {
      // The recording returns no real future.
    }
    expect(calls.pop()).toMatchObject({ timeoutMs: 5 });
  });

  test('by both names, which differ, is refused', async () => {
    const executor = new UniProcExecutor(await createUniprocConfig());
    await expect(executor.collectiveRpc('f', { timeout: 5, timeoutMs: 6 })).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
      message: 'timeoutMs is 6, but timeout, its old name, is 5',
    });
  });
});

test.each([
  ['RpcTimeoutError', new RpcTimeoutError('f', 5)],
  ['StoreTimeoutError', new StoreTimeoutError('a:1', 'get', ['x'], 5)],
])('%s has its timeout by both names', (_, error) => {
  expect(error.timeoutMs).toBe(5);
  expect(error.timeout).toBe(5);
  expect(Object.keys(error)).not.toContain('timeout');
});

test('a warning is given once for each name, with its code', () => {
  emitWarning.mockClear();
  jest.isolateModules(() => {
    type Module = typeof import('../lib/deprecation');
    const fresh = jest.requireActual<Module>('../lib/deprecation');
    for (let i = 0; i < 3; i++) {
      fresh.deprecate('timeout', 'timeoutMs');
      fresh.deprecate('distributedTimeout', 'distributedTimeoutMs');
    }
  });
  expect(emitWarning.mock.calls).toEqual([
    [
      'timeout is deprecated; use timeoutMs',
      { type: 'DeprecationWarning', code: 'UNIPROC_DEP0002' },
    ],
    [
      'distributedTimeout is deprecated; use distributedTimeoutMs',
      { type: 'DeprecationWarning', code: 'UNIPROC_DEP0001' },
    ],
  ]);
});

test('in a program: stats by their old names, and one warning for each on stderr', async () => {
  const { code, stdout, stderr } = await runNode(`
    const { LLM } = require('uniproc');
    async function main() {
      const llm = await LLM.create({ device: 'cpu', distributedTimeout: 5000 });
      await llm.generate('Once', { maxTokens: 2, ignoreEos: true });
      const stats = llm.stats();
      console.log(JSON.stringify([stats, stats.timeToFirstToken.count, stats.interTokenLatency.count]));
      llm.stats().timeToFirstToken;
      await llm.shutdown();
    }
    main();
  `);
  expect(code).toBe(0);
  const [stats, numFirst, numNext] = JSON.parse(stdout) as [Record<string, object>, number, number];
  expect([numFirst, numNext]).toEqual([1, 1]);
  expect(stats.timeToFirstTokenMs).toMatchObject({ count: 1 });
  expect(Object.keys(stats).filter((name) => /^(timeToFirst|interToken)/.test(name))).toEqual([
    'timeToFirstTokenMs',
    'interTokenLatencyMs',
  ]);
  const warnings = [...stderr.matchAll(/\[(UNIPROC_DEP\d+)\] DeprecationWarning: (\w+) is/g)];
  expect(warnings.map(([, id, name]) => `${id} ${name}`).sort()).toEqual([
    'UNIPROC_DEP0001 distributedTimeout',
    'UNIPROC_DEP0003 timeToFirstToken',
    'UNIPROC_DEP0004 interTokenLatency',
  ]);
});
