/** The external launcher with one rank, and its errors (more in tensorParallel.test.ts). */
import { ConfigError, PeerLostError } from '../../lib/errors';
import { ExecutorWithExternalLauncher } from '../../lib/executor/externalLauncher';
import { UniProcExecutor } from '../../lib/executor/uniProcExecutor';
import type { KVCacheConfig } from '../../lib/contract/kvCache';
import { type ExecutorOf, PlainWorker, outputOf, step, testConfig } from './support';

const WORLD_OF_ONE = {
  RANK: '0',
  LOCAL_RANK: '2',
  WORLD_SIZE: '1',
  MASTER_ADDR: '127.0.0.1',
  MASTER_PORT: '29500',
  UNIPROC_ENABLE_MULTIPROCESSING: '0',
};

const environment = process.env;
beforeEach(() => (process.env = { ...environment, ...WORLD_OF_ONE }));
afterEach(() => (process.env = environment));

/** Undefined: unset. */
function setEnv(name: string, value: string | undefined): void {
  process.env = { ...process.env, [name]: value };
}

const create = (parallel: Parameters<typeof testConfig>[0] = {}) =>
  ExecutorWithExternalLauncher.create(testConfig(parallel)) as unknown as Promise<
    ExecutorOf<PlainWorker>
  >;

describe('ExecutorWithExternalLauncher', () => {
  it("takes the worker's ranks from the launcher's variables", async () => {
    const executor = await create({ deviceIndex: 1 });
    expect(executor).toBeInstanceOf(UniProcExecutor);
    expect(executor.driverWorker.worker.args).toMatchObject({
      distributedInitMethod: 'env://',
      rank: 0,
      localRank: 2,
      isDriverWorker: true,
    });
    expect(await executor.executeModel(step('a'))).toEqual(outputOf('a'));
    await executor.shutdown();
  });

  it('uses the minimum memory of all ranks and the first KV cache config', async () => {
    const configs: KVCacheConfig[] = [];
    class Sized extends PlainWorker {
      override initializeFromConfig(kvCacheConfig?: KVCacheConfig): void {
        if (kvCacheConfig) configs.push(kvCacheConfig);
      }
    }
    const executor = await create({ workerCls: Sized });
    expect(await executor.determineAvailableMemory()).toEqual([4096]);
    const config: KVCacheConfig = { numBlocks: 1 };
    await executor.initializeFromConfig([config]);
    expect(configs).toEqual([config]);
    await executor.shutdown();
  });

  it('refuses engine multiprocessing', async () => {
    setEnv('UNIPROC_ENABLE_MULTIPROCESSING', '1');
    const creating = create();
    await expect(creating).rejects.toBeInstanceOf(ConfigError);
    await expect(creating).rejects.toThrow('UNIPROC_ENABLE_MULTIPROCESSING is 1');
  });

  it.each(['RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'])(
    'names %s when it is missing or empty',
    async (name) => {
      for (const value of [undefined, '']) {
        setEnv(name, value);
        const creating = create();
        await expect(creating).rejects.toBeInstanceOf(ConfigError);
        await expect(creating).rejects.toThrow(`${name} is not set`);
      }
    },
  );

  it.each([
    ['RANK', 'zero', 'RANK is zero; it must be an integer from 0 to 0'],
    ['RANK', '1', 'RANK is 1; it must be an integer from 0 to 0'],
    ['LOCAL_RANK', '-1', 'LOCAL_RANK is -1; it must be an integer of at least 0'],
    ['LOCAL_RANK', '0x1', 'LOCAL_RANK is 0x1'],
    ['WORLD_SIZE', '0', 'WORLD_SIZE is 0; it must be an integer of at least 1'],
    ['WORLD_SIZE', '1.5', 'WORLD_SIZE is 1.5'],
    ['MASTER_PORT', '65536', 'MASTER_PORT is 65536; it must be an integer from 1 to 65535'],
    ['MASTER_PORT', ' 80', 'MASTER_PORT is  80'],
  ])('refuses %s=%p', async (name, value, message) => {
    setEnv(name, value);
    const creating = create();
    await expect(creating).rejects.toBeInstanceOf(ConfigError);
    await expect(creating).rejects.toThrow(message);
  });

  it('requires WORLD_SIZE to equal the configured parallel size, and names both', async () => {
    for (const [worldSize, tensorParallelSize] of [
      ['2', 1],
      ['1', 2],
    ] as const) {
      setEnv('WORLD_SIZE', worldSize);
      const creating = create({ tensorParallelSize });
      await expect(creating).rejects.toBeInstanceOf(ConfigError);
      await expect(creating).rejects.toThrow(
        `WORLD_SIZE is ${worldSize}, but tensorParallelSize is ${tensorParallelSize}`,
      );
    }
  });
});

it('ends a call that fails while the lost peer is being reported', async () => {
  class Bereaved extends PlainWorker {
    loseRank(): Promise<never> {
      return Promise.reject(new PeerLostError(1, 'of a test'));
    }
    refuse(): never {
      throw new Error('refused at once');
    }
  }
  const executor = await create({ workerCls: Bereaved });
  const [lost] = executor.collectiveRpc('loseRank', { nonBlock: true });
  await new Promise((resolve) => setTimeout(resolve, 50));
  const calls = ['refuse', 'noSuchMethod'].map((method) => executor.collectiveRpc(method));
  for (const call of calls) await expect(call).rejects.toMatchObject({ code: 'EXECUTOR_FAILED' });
  expect(await lost.exception()).toMatchObject({ code: 'PEER_LOST' });
  await executor.shutdown();
});
