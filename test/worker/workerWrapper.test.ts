import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { UniprocConfig } from '../../lib/config/uniprocConfig';
import { ConfigError, InvalidStateError, UnknownMethodError } from '../../lib/errors';
import type { KVCacheConfig } from '../../lib/contract/kvCache';
import { Worker } from '../../lib/worker/worker';
import type { WorkerArgs } from '../../lib/worker/workerBase';
import { Lock, runMethod, type WorkerKwargs, WorkerWrapper } from '../../lib/worker/workerWrapper';
import { PlainWorker, runNode, testConfig } from '../executor/support';

function kwargsFor(parallel: Parameters<typeof testConfig>[0] = {}, rank = 0): WorkerKwargs {
  return {
    config: testConfig(parallel),
    localRank: rank,
    rank,
    distributedInitMethod: 'tcp://127.0.0.1:1',
    isDriverWorker: true,
    sharedWorkerLock: new Lock(),
  };
}

async function wrapperOf<W extends object>(
  workerCls: new (args: WorkerArgs) => W,
  workerExtensionCls: UniprocConfig['parallel']['workerExtensionCls'] = null,
): Promise<WorkerWrapper<W>> {
  const wrapper = new WorkerWrapper<W>();
  await wrapper.initWorker([kwargsFor({ workerCls, workerExtensionCls })]);
  return wrapper;
}

describe('WorkerWrapper', () => {
  it('has rpcRank 0 and globalRank equal to rpcRank by default', () => {
    const ranks = (wrapper: WorkerWrapper) => [wrapper.rpcRank, wrapper.globalRank];
    expect(ranks(new WorkerWrapper())).toEqual([0, 0]);
    expect(ranks(new WorkerWrapper({ rpcRank: 2 }))).toEqual([2, 2]);
    expect(ranks(new WorkerWrapper({ rpcRank: 0, globalRank: 3 }))).toEqual([0, 3]);
  });

  it('has no worker before initWorker, and creates only one', async () => {
    const wrapper = new WorkerWrapper();
    expect(() => wrapper.worker).toThrow(InvalidStateError);
    expect(() => runMethod(wrapper, 'executeModel', [])).toThrow(InvalidStateError);
    await wrapper.shutdown();
    await wrapper.initWorker([kwargsFor()]);
    await expect(wrapper.initWorker([kwargsFor()])).rejects.toBeInstanceOf(InvalidStateError);
  });

  it("creates the worker from its own rank's arguments, keeping the shared lock", async () => {
    const wrapper = new WorkerWrapper<PlainWorker>({ rpcRank: 1 });
    const allKwargs = [kwargsFor({}, 0), kwargsFor({}, 1)];
    await wrapper.initWorker(allKwargs);
    const { sharedWorkerLock, ...args } = allKwargs[1];
    expect(wrapper.worker.args).toEqual(args);
    expect(wrapper.worker.args).not.toHaveProperty('sharedWorkerLock');
    expect(wrapper.sharedWorkerLock).toBe(sharedWorkerLock);
  });

  it('is not thenable, even if the worker has a method then', async () => {
    class Thenable extends PlainWorker {
      then(): string {
        return "the worker's";
      }
    }
    const wrapper = await wrapperOf(Thenable);
    expect('then' in wrapper).toBe(false);
    expect(await Promise.resolve(wrapper)).toBe(wrapper);
    expect(runMethod(wrapper, 'then', [])).toBe("the worker's");
  });

  describe('initializeFromConfig', () => {
    const configs = [10, 20].map((numBlocks) => ({ numBlocks }));
    class Sized extends PlainWorker {
      numBlocks = 0;
      override initializeFromConfig(kvCacheConfig?: KVCacheConfig): void {
        this.numBlocks = kvCacheConfig?.numBlocks ?? -1;
      }
    }

    it("passes the global rank's config, regardless of the worker's rank", async () => {
      for (const [globalRank, numBlocks] of [
        [0, 10],
        [1, 20],
      ]) {
        const wrapper = new WorkerWrapper<Sized>({ rpcRank: 0, globalRank });
        await wrapper.initWorker([kwargsFor({ workerCls: Sized }, 7)]);
        runMethod(wrapper, 'initializeFromConfig', [configs]);
        expect(wrapper.worker.numBlocks).toBe(numBlocks);
      }
    });

    it('refuses a list without its config', async () => {
      const wrapper = new WorkerWrapper<Sized>({ globalRank: 2 });
      await wrapper.initWorker([kwargsFor({ workerCls: Sized })]);
      expect(() => wrapper.initializeFromConfig(configs)).toThrow(
        '2 KV cache configs and none for rank 2',
      );
    });
  });

  describe("the worker's class", () => {
    let folder: string;
    beforeAll(() => {
      folder = mkdtempSync(path.join(tmpdir(), 'uniproc-worker-'));
      writeFileSync(
        path.join(folder, 'worker.js'),
        'exports.MyWorker = class MyWorker { constructor(args) { this.args = args; } };\n' +
          'exports.notAClass = 5;\n',
      );
      writeFileSync(path.join(folder, 'worker.mjs'), 'export class MyWorker {}\n');
      writeFileSync(path.join(folder, 'broken.js'), 'throw new Error("broken inside");\n');
    });
    afterAll(() => rmSync(folder, { recursive: true }));

    it('is Worker by default', async () => {
      const wrapper = new WorkerWrapper();
      await wrapper.initWorker([kwargsFor({ workerCls: null })]);
      expect(wrapper.worker).toBeInstanceOf(Worker);
    });

    it('may be any class with the methods', async () => {
      class Own {
        constructor(readonly args: WorkerArgs) {}
      }
      const wrapper = await wrapperOf(Own);
      expect(wrapper.worker).toBeInstanceOf(Own);
      expect(wrapper.worker.args.rank).toBe(0);
    });

    it('may be given by module and export', async () => {
      const wrapper = new WorkerWrapper<{ args: WorkerArgs }>();
      const workerCls = { module: path.join(folder, 'worker.js'), export: 'MyWorker' };
      await wrapper.initWorker([kwargsFor({ workerCls })]);
      expect(wrapper.worker.constructor.name).toBe('MyWorker');
      expect(wrapper.worker.args.isDriverWorker).toBe(true);
    });

    it('may be in an ES module, and a path is relative to the working directory', async () => {
      const { stdout, stderr } = await runNode(`
        const { WorkerWrapper } = require('./lib/worker/workerWrapper.ts');
        process.chdir(${JSON.stringify(folder)});
        const parallel = {
          workerCls: { module: './worker.mjs', export: 'MyWorker' },
          workerExtensionCls: null,
        };
        const wrapper = new WorkerWrapper();
        wrapper.initWorker([{ config: { parallel } }]).then(() => {
          console.log(wrapper.worker.constructor.name);
        });
      `);
      expect({ stdout, stderr }).toMatchObject({ stdout: 'MyWorker\n' });
    });

    it.each([
      ['worker.js', 'Missing', 'exports no class Missing'],
      ['worker.js', 'notAClass', 'exports no class notAClass'],
      ['broken.js', 'MyWorker', 'broken inside'],
      ['nowhere.js', 'MyWorker', 'nowhere.js cannot be loaded'],
    ])('in %s as %s is refused: %s', async (file, name, message) => {
      const workerCls = { module: path.join(folder, file), export: name };
      const making = new WorkerWrapper().initWorker([kwargsFor({ workerCls })]);
      await expect(making).rejects.toThrow(message);
      await expect(making).rejects.toBeInstanceOf(ConfigError);
    });

    it.each(['workerCls', 'workerExtensionCls'])('%s must be a class', async (option) => {
      const making = new WorkerWrapper().initWorker([kwargsFor({ [option]: 'some.module' })]);
      await expect(making).rejects.toThrow(
        `${option} must be a class or { module, export }, not 'some.module'`,
      );
      await expect(making).rejects.toBeInstanceOf(ConfigError);
    });
  });

  describe('workerExtensionCls', () => {
    class Extension {
      declare calls: string[];
      report(this: PlainWorker, greeting: string): string {
        return `${greeting}, ${this.calls.join()}`;
      }
    }

    it('adds its methods to the worker, which keeps its class', async () => {
      const wrapper = await wrapperOf(PlainWorker, Extension);
      void wrapper.worker.initDevice();
      expect(runMethod(wrapper, 'report', ['hello'])).toBe('hello, initDevice');
      expect(wrapper.worker).toBeInstanceOf(PlainWorker);
      expect('report' in PlainWorker.prototype).toBe(false);
    });

    it('adds inherited methods too', async () => {
      const wrapper = await wrapperOf(PlainWorker, class extends Extension {});
      expect(runMethod(wrapper, 'report', ['hi'])).toBe('hi, ');
    });

    it.each([
      ['of the worker', 'executeModel'],
      ['of the wrapper', 'initWorker'],
    ])('is refused if a method name is %s', async (_, name) => {
      class Taken {}
      Object.defineProperty(Taken.prototype, name, { value: () => {} });
      const making = wrapperOf(PlainWorker, Taken);
      await expect(making).rejects.toBeInstanceOf(ConfigError);
      await expect(making).rejects.toThrow(`Taken has a method ${name}`);
    });

    it("is refused if the worker's constructor sets a method name", async () => {
      class WithField extends PlainWorker {
        report = () => 'own';
      }
      await expect(wrapperOf(WithField, Extension)).rejects.toThrow('a method report');
    });
  });
});

describe('runMethod', () => {
  class Calls extends PlainWorker {
    name = 'not a method';
    field = (...args: unknown[]) => ['field', ...args];
    method(...args: unknown[]): unknown[] {
      return [this.constructor.name, ...args];
    }
    get getter(): never {
      throw new Error('looked at');
    }
    // The wrapper has its own.
    initWorker(): never {
      throw new Error("the worker's");
    }
  }

  it("calls the worker's method with the arguments, then kwargs if given", async () => {
    const wrapper = await wrapperOf(Calls);
    expect(runMethod(wrapper, 'method', [1, 2])).toEqual(['Calls', 1, 2]);
    expect(runMethod(wrapper, 'method', [1], { two: 2 })).toEqual(['Calls', 1, { two: 2 }]);
    expect(runMethod(wrapper, 'field', [1])).toEqual(['field', 1]);
  });

  it("prefers the wrapper's own method", async () => {
    const wrapper = await wrapperOf(Calls);
    await expect(runMethod(wrapper, 'initWorker', [[]])).rejects.toBeInstanceOf(InvalidStateError);
  });

  it('calls a function with the wrapper before the arguments', async () => {
    const wrapper = await wrapperOf(Calls);
    const method = (...args: unknown[]) => args;
    expect(runMethod(wrapper, method, [1], { two: 2 })).toEqual([wrapper, 1, { two: 2 }]);
  });

  it.each(['missing', 'name', 'getter', 'constructor', 'toString', 'rpcRank', 'worker'])(
    'knows no method %s, and says which there are',
    async (method) => {
      const wrapper = await wrapperOf(Calls);
      const call = () => runMethod(wrapper, method, []);
      expect(call).toThrow(UnknownMethodError);
      expect(call).toThrow(
        `the worker has no method ${method}; it has checkHealth, compileOrWarmUpModel, ` +
          'determineAvailableMemory, executeModel, field, getKvCacheSpec, initDevice, initWorker, ' +
          'initializeFromConfig, loadModel, method, sampleTokens, shutdown',
      );
    },
  );
});

describe('Lock', () => {
  it('has one owner at a time, in FIFO order', async () => {
    const lock = new Lock();
    const order: string[] = [];
    const use = async (name: string) => {
      const release = await lock.acquire();
      order.push(`${name} in`);
      await new Promise(setImmediate);
      order.push(`${name} out`);
      release();
    };
    await Promise.all([use('a'), use('b'), use('c')]);
    expect(order).toEqual(['a in', 'a out', 'b in', 'b out', 'c in', 'c out']);
  });
});
