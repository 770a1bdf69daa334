/** The addon's runtime: events, the device's thread, the output thread, and their shutdown. */
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { native, type NativeDeviceThread, type NativeEvent } from '../../lib/native';
import { settle, until } from '../executor/support';
import { watchThreads } from '../support/threads';

const ADDON = path.resolve(__dirname, '../../build/Release/uniproc.node');

/** Runs a program with `addon` in a separate Node process; resolves to its output. */
function runProgram(program: string, ...nodeOptions: string[]) {
  const prelude = `
    const addon = require(${JSON.stringify(ADDON)});
    addon.setErrorFactory((code, message) => Object.assign(new Error(message), { code }));
    const threads = () => require('node:fs').readdirSync('/proc/self/task').length;
    const sleep = require('node:timers/promises').setTimeout;`;
  const { status, signal, stdout, stderr } = spawnSync(
    process.execPath,
    [...nodeOptions, '-e', `${prelude}\n${program}`],
    { encoding: 'utf8', timeout: 240_000 },
  );
  return { status, signal, stdout: stdout.trim(), stderr };
}

async function openDevice(): Promise<NativeDeviceThread> {
  const device = new (native().DeviceThread)('cpu', 0, 1);
  await device.open();
  return device;
}

const hostEvent = (): NativeEvent => new (native().Event)();

describe('Event', () => {
  it('is done after signal', () => {
    const event = hostEvent();
    expect(event.done).toBe(false);
    event.signal();
    expect(event.done).toBe(true);
  });

  it('cannot be signalled twice', () => {
    const event = hostEvent();
    event.signal();
    expect(() => event.signal()).toThrow(
      expect.objectContaining({ code: 'INVALID_STATE' }) as Error,
    );
  });

  it('calls back asynchronously with null after it is done', async () => {
    const event = hostEvent();
    const calls: unknown[] = [];
    event.onReady((error) => calls.push(error));
    await settle();
    expect(calls).toEqual([]);
    event.signal();
    expect(calls).toEqual([]);
    await until(() => calls.length > 0);
    await settle();
    expect(calls).toEqual([null]);
  });

  it('calls back asynchronously if it was done before onReady', async () => {
    const event = hostEvent();
    event.signal();
    const calls: unknown[] = [];
    event.onReady((error) => calls.push(error));
    expect(calls).toEqual([]);
    await until(() => calls.length > 0);
    await settle();
    expect(calls).toEqual([null]);
  });

  it("reports a callback's exception as uncaught", () => {
    const { stdout } = runProgram(`
      process.on('uncaughtException', (error) => console.log(error.message));
      const event = new addon.Event();
      event.onReady(() => { throw new Error('thrown in a callback'); });
      event.signal();`);
    expect(stdout).toBe('thrown in a callback');
  });
});

describe('DeviceThread', () => {
  it('describes itself', async () => {
    const device = new (native().DeviceThread)('cpu', 0, 2);
    const properties = await device.open();
    expect(properties.numThreads).toBe(2);
    expect(properties.totalMemory).toBeGreaterThan(2 ** 20);
    expect(['avx512bf16', 'avx512', 'avx2', 'plain']).toContain(properties.capability);
    expect(await device.memory()).toMatchObject({ allocated: 0, total: properties.totalMemory });
    await device.shutdown();
  });

  it('has a thread named Worker from open to shutdown', async () => {
    const started = watchThreads();
    const device = new (native().DeviceThread)('cpu', 0, 1);
    expect(started()).toEqual([]);
    await device.open();
    expect(started()).toEqual(['Worker']);
    await device.shutdown();
    await until(() => started().length === 0);
  });

  it('rejects calls before open', async () => {
    const device = new (native().DeviceThread)('cpu', 0, 1);
    await expect(device.synchronize()).rejects.toMatchObject({ code: 'INVALID_STATE' });
  });

  it('can be opened only once', async () => {
    const device = await openDevice();
    await expect(device.open()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await device.shutdown();
  });

  it('runs calls enqueued before shutdown, and rejects later ones', async () => {
    const device = new (native().DeviceThread)('cpu', 0, 1);
    const order: string[] = [];
    const note = (what: string) => () => void order.push(what);
    const all = [
      device.open().then(note('opened')),
      device.memory().then(note('memory')),
      device.synchronize().then(note('synchronized')),
      device.shutdown().then(note('shut down')),
    ];
    await expect(device.memory()).rejects.toMatchObject({ code: 'SHUT_DOWN' });
    await Promise.all(all);
    expect(order).toEqual(['opened', 'memory', 'synchronized', 'shut down']);
    await expect(device.synchronize()).rejects.toMatchObject({ code: 'SHUT_DOWN' });
    await expect(device.open()).rejects.toMatchObject({ code: 'SHUT_DOWN' });
  });

  it('has an idempotent shutdown, open or not', async () => {
    const device = await openDevice();
    await Promise.all([device.shutdown(), device.shutdown()]);
    await device.shutdown();
    await new (native().DeviceThread)('cpu', 0, 1).shutdown();
  });

  it('fails every call with the error of open', async () => {
    const started = watchThreads();
    const device = new (native().DeviceThread)('abacus', 0, 1);
    await expect(device.open()).rejects.toMatchObject({
      code: 'NOT_SUPPORTED',
      message: expect.stringContaining('abacus') as string,
    });
    await expect(device.memory()).rejects.toMatchObject({ code: 'NOT_SUPPORTED' });
    await device.shutdown();
    await until(() => started().length === 0);
  });
});

describe('OutputThread', () => {
  const outputThread = () => new (native().OutputThread)('WorkerAsyncOutput');

  it('has its name, truncated by Linux to 15 characters, until shutdown', async () => {
    const started = watchThreads();
    const thread = outputThread();
    await until(() => started().includes('WorkerAsyncOutp')); // The thread sets its name after it starts.
    expect(started()).toEqual(['WorkerAsyncOutp']);
    await thread.shutdown();
    await until(() => started().length === 0); // Linux lists a thread until it is reaped.
  });

  it('calls back in submission order, independent of the order of events', async () => {
    const thread = outputThread();
    const events = [hostEvent(), hostEvent(), hostEvent()];
    const order: number[] = [];
    events.forEach((event, i) => thread.submit(event, () => order.push(i)));
    events[2].signal();
    events[1].signal();
    await settle();
    expect(order).toEqual([]);
    events[0].signal();
    await until(() => order.length === 3);
    expect(order).toEqual([0, 1, 2]);
    await thread.shutdown();
  });

  it('shutdown calls back signalled events and fails the others, in order', async () => {
    const thread = outputThread();
    const [signalled, waiting, alsoSignalled] = [hostEvent(), hostEvent(), hostEvent()];
    const outcomes: unknown[] = [];
    for (const event of [signalled, waiting, alsoSignalled]) {
      thread.submit(event, (error) => outcomes.push(error && (error as { code?: string }).code));
    }
    signalled.signal();
    alsoSignalled.signal();
    await thread.shutdown();
    expect(outcomes).toEqual([null, 'SHUT_DOWN', null]);
    await thread.shutdown();
    waiting.signal(); // no error, although it is after shutdown
  });

  it('fails events submitted after shutdown', async () => {
    const thread = outputThread();
    await thread.shutdown();
    const error = await new Promise((resolve) => thread.submit(hostEvent(), resolve));
    expect(error).toMatchObject({ code: 'SHUT_DOWN' });
  });

  it('rejects arguments other than events', async () => {
    const thread = outputThread();
    expect(() => thread.submit({} as NativeEvent, () => {})).toThrow('must be a NativeEvent');
    await thread.shutdown();
  });
});

describe('the process', () => {
  it('exits by itself with an unused device, output thread and event', () => {
    const { status, stdout } = runProgram(`
      const device = new addon.DeviceThread('cpu', 0, 1);
      device.open().then(() => {
        const event = new addon.Event();
        new addon.OutputThread('WorkerAsyncOutput').submit(event, () => console.log('called'));
        event.onReady(() => console.log('called'));
        console.log('open');
      });`);
    expect({ status, stdout }).toEqual({ status: 0, stdout: 'open' });
  });

  it('stays alive while a promise or a callback of a signalled event is pending', () => {
    const { stdout } = runProgram(`
      const device = new addon.DeviceThread('cpu', 0, 1);
      device.open().then(() => console.log('open'));
      const event = new addon.Event();
      new addon.OutputThread('WorkerAsyncOutput').submit(event, () => console.log('called'));
      event.signal();`);
    expect(stdout.split('\n').sort()).toEqual(['called', 'open']);
  });

  it('has no thread left of a device or output thread dropped without shutdown', () => {
    const { stdout } = runProgram(
      `(async () => {
        const before = threads();
        for (let i = 0; i < 20; i++) {
          await new addon.DeviceThread('cpu', 0, 1).open();
          new addon.OutputThread('WorkerAsyncOutput');
        }
        console.log(threads() > before);
        while (threads() > before) {
          gc();
          await sleep(10);
        }
        console.log(threads() - before);
      })();`,
      '--expose-gc',
    );
    expect(stdout).toBe('true\n0');
  });

  it('survives terminating workers at any moment, and has none of their threads left', () => {
    const worker = `
      const device = new addon.DeviceThread('cpu', 0, 1);
      device.open();
      const thread = new addon.OutputThread('WorkerAsyncOutput');
      require('node:worker_threads').parentPort.postMessage('up');
      thread.submit(new addon.Event(), () => {});
      (async () => {
        for (;;) {
          const event = new addon.Event();
          event.onReady(() => {});
          event.signal();
          await Promise.all([device.memory(), device.memory(), device.synchronize()]);
        }
      })();`;
    const { status, signal, stdout, stderr } = runProgram(`
      const { Worker } = require('node:worker_threads');
      const { once } = require('node:events');
      (async () => {
        const before = threads();
        for (let i = 0; i < 40; i++) {
          const worker = new Worker(${JSON.stringify(
            `const addon = require(${JSON.stringify(ADDON)});${worker}`,
          )}, { eval: true });
          await once(worker, 'message');
          await sleep(i / 4);
          await worker.terminate();
        }
        // Node's own threads may take a moment more to end.
        while (threads() > before) await sleep(10);
        console.log(threads() - before);
      })();`);
    expect({ status, signal, stdout, stderr }).toEqual({
      status: 0,
      signal: null,
      stdout: '0',
      stderr: '',
    });
  });
});
