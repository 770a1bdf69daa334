/**
 * Interoperability with PyTorch's TCPStore, as server and as client. Skipped without torch in python3
 * or in the Python that UNIPROC_REFERENCE_PYTHON names.
 */
import { spawn, spawnSync, type ChildProcessWithoutNullStreams } from 'node:child_process';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { TCPStoreServer } from '../../lib/distributed/tcpStoreServer';
import { StoreConnectionError, StoreTimeoutError } from '../../lib/errors';
import { clientOf, eventually, serve } from './support';

const PYTHON = process.env.UNIPROC_REFERENCE_PYTHON ?? 'python3';
const hasPyTorch =
  spawnSync(PYTHON, [
    '-c',
    'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)',
  ]).status === 0;

/** A Python process that executes commands. */
class PyTorch {
  readonly #process: ChildProcessWithoutNullStreams;
  readonly #calls = new Map<number, (reply: { value?: unknown; error?: string }) => void>();
  #numCalls = 0;
  #stderr = '';

  constructor() {
    this.#process = spawn(PYTHON, [path.join(__dirname, 'pytorch.py')]);
    this.#process.stderr.on('data', (text: Buffer) => (this.#stderr += text.toString()));
    createInterface(this.#process.stdout).on('line', (line) => {
      const reply = JSON.parse(line) as { id: number; value?: unknown; error?: string };
      this.#calls.get(reply.id)?.(reply);
    });
    this.#process.on('exit', () => {
      for (const done of this.#calls.values()) done({ error: this.#stderr });
    });
  }

  /** Rejects with Python's error. */
  async do(what: 'open' | 'call' | 'close', ...args: unknown[]): Promise<unknown> {
    const id = this.#numCalls++;
    const reply = await new Promise<{ value?: unknown; error?: string }>((resolve) => {
      this.#calls.set(id, resolve);
      this.#process.stdin.write(`${JSON.stringify({ id, do: what, args })}\n`);
    });
    this.#calls.delete(id);
    if (reply.error !== undefined) throw new Error(reply.error);
    return reply.value;
  }

  async stop(): Promise<void> {
    if (this.#process.exitCode !== null) return;
    const exited = new Promise((resolve) => this.#process.on('exit', resolve));
    this.#process.kill('SIGKILL');
    await exited;
  }
}

const hex = (text: string) => Buffer.from(text).toString('hex');

(hasPyTorch ? describe : describe.skip)("PyTorch's TCPStore", () => {
  let pytorch: PyTorch;
  beforeAll(() => (pytorch = new PyTorch()));
  afterAll(() => pytorch.stop());

  describe.each([
    ['with libuv', true],
    ['without libuv', false],
  ])('as a server %s', (_, useLibuv) => {
    let numServers = 0;
    let name: string;
    let port: number;

    beforeEach(async () => {
      name = `server ${useLibuv} ${numServers++}`;
      port = (await pytorch.do('open', name, 0, true, null, 20_000, useLibuv)) as number;
    });
    afterEach(() => pytorch.do('close', name));

    it('stores what our client sets, and returns its own values', async () => {
      const store = await clientOf({ port });
      await store.set('ours', 'value');
      expect(await pytorch.do('call', name, 'get', 'ours')).toBe(hex('value'));
      await pytorch.do('call', name, 'set', 'theirs', hex('another'));
      expect((await store.get('theirs')).toString()).toBe('another');
    });

    it('stores values of no bytes, of every byte and of 8 MiB', async () => {
      const store = await clientOf({ port });
      const bytes = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
      for (const value of [Buffer.alloc(0), bytes, Buffer.alloc(8 * 2 ** 20, bytes)]) {
        await store.set('key', value);
        expect((await store.get('key')).equals(value)).toBe(true);
      }
    });

    it('adds', async () => {
      const store = await clientOf({ port });
      expect(await store.add('count', 5)).toBe(5);
      expect(await pytorch.do('call', name, 'add', 'count', -7)).toBe(-2);
      expect(await store.add('count', 1)).toBe(-1);
    });

    it('compares and sets', async () => {
      const store = await clientOf({ port });
      const compareSet = async (...args: [string, string, string]) =>
        (await store.compareSet(...args)).toString();
      expect(await compareSet('key', 'old', 'new')).toBe('old');
      expect(await store.check(['key'])).toBe(false);
      expect(await compareSet('key', '', 'new')).toBe('new');
      expect(await compareSet('key', 'old', 'newer')).toBe('new');
      expect(await compareSet('key', 'new', 'newer')).toBe('newer');
    });

    it('appends, counts and deletes', async () => {
      const store = await clientOf({ port });
      const numKeys = await store.numKeys();
      await store.append('key', 'one');
      await store.append('key', ' two');
      expect((await store.get('key')).toString()).toBe('one two');
      expect(await store.numKeys()).toBe(numKeys + 1);
      expect(await store.deleteKey('key')).toBe(true);
      expect(await store.deleteKey('key')).toBe(false);
      expect(await store.numKeys()).toBe(numKeys);
    });

    it('sets and gets several keys', async () => {
      const store = await clientOf({ port });
      await store.multiSet([
        ['a', '1'],
        ['b', ''],
      ]);
      expect(await pytorch.do('call', name, 'multi_get', ['a', 'b'])).toEqual([hex('1'), '']);
      expect((await store.multiGet(['b', 'a'])).map(String)).toEqual(['', '1']);
      expect(await store.check(['a', 'b'])).toBe(true);
    });

    it("ends our client's wait when the last key is set", async () => {
      const store = await clientOf({ port });
      const waiting = store.wait(['a', 'b', 'a']);
      await pytorch.do('call', name, 'set', 'b', '');
      await pytorch.do('call', name, 'add', 'a', 1);
      await waiting;
    });

    it('serves our client after its wait timed out', async () => {
      const store = await clientOf({ port });
      await expect(store.wait(['missing'], 50)).rejects.toBeInstanceOf(StoreTimeoutError);
      await expect(store.get('missing', 50)).rejects.toBeInstanceOf(StoreTimeoutError);
      expect(await store.add('count', 1)).toBe(1);
    });

    it('serves a group that includes our client', async () => {
      const other = `${name} in a group`;
      // PyTorch reports its port only after both workers have joined, so the test chooses it.
      await pytorch.do('close', name);
      const opening = pytorch.do('open', other, port, true, 2, 20_000, useLibuv);
      const store = await clientOf({ port });
      await store.waitForWorkers(2);
      await opening;
      await pytorch.do('open', name, 0, true, null, 20_000, useLibuv);
      await pytorch.do('close', other);
      await expect(store.wait(['key'])).rejects.toBeInstanceOf(StoreConnectionError);
    });
  });

  describe('as a client of our server', () => {
    let numClients = 0;
    let server: TCPStoreServer;
    let name: string;
    const open = (worldSize: number | null = null) =>
      pytorch.do('open', name, server.port, false, worldSize, 20_000);
    const call = (method: string, ...args: unknown[]) => pytorch.do('call', name, method, ...args);

    beforeEach(async () => {
      name = `client ${numClients++}`;
      server = await serve();
    });
    afterEach(() => pytorch.do('close', name));

    it('sets and gets', async () => {
      await open();
      const store = await clientOf(server);
      await call('set', 'theirs', hex('value'));
      expect((await store.get('theirs')).toString()).toBe('value');
      await store.set('ours', Buffer.of(0, 255, 10));
      expect(await call('get', 'ours')).toBe('00ff0a');
    });

    it('sets and gets 8 MiB', async () => {
      await open();
      const value = Buffer.alloc(8 * 2 ** 20, 'a long value ');
      await call('set', 'key', value.toString('hex'));
      expect((await (await clientOf(server)).get('key')).equals(value)).toBe(true);
      expect(await call('get', 'key')).toBe(value.toString('hex'));
    });

    it('adds, compares, appends, counts and deletes', async () => {
      await open();
      expect(await call('add', 'count', 41)).toBe(41);
      expect(await call('add', 'count', -1)).toBe(40);
      expect(await call('compare_set', 'key', hex('old'), hex('new'))).toBe(hex('old'));
      expect(await call('compare_set', 'key', '', hex('new'))).toBe(hex('new'));
      expect(await call('compare_set', 'key', hex('new'), hex('newer'))).toBe(hex('newer'));
      await call('append', 'key', hex('!'));
      expect(await call('get', 'key')).toBe(hex('newer!'));
      expect(await call('check', ['key', 'count'])).toBe(true);
      expect(await call('check', ['key', 'missing'])).toBe(false);
      expect(await call('num_keys')).toBe(2);
      expect(await call('delete_key', 'key')).toBe(true);
      expect(await call('delete_key', 'key')).toBe(false);
    });

    it('sets and gets several keys', async () => {
      await open();
      await call('multi_set', ['a', 'b'], [hex('1'), '']);
      expect(await call('multi_get', ['b', 'a'])).toEqual(['', hex('1')]);
    });

    it('waits for a key that our server sets', async () => {
      await open();
      const waiting = call('wait', ['a', 'b'], 20_000);
      await eventually(() => expect(server.usage().numAwaited).toBe(2));
      const store = await clientOf(server);
      await store.multiSet([
        ['b', ''],
        ['a', ''],
      ]);
      await waiting;
    });

    it('stays usable after a wait that timed out', async () => {
      await open();
      await expect(call('wait', ['missing'], 50)).rejects.toThrow('DistStoreError');
      expect(server.usage().numAwaited).toBe(0);
      expect(await call('add', 'count', 1)).toBe(1);
    });

    it('is counted as a worker when it has a world size', async () => {
      const waiting = (await clientOf(server)).waitForWorkers(2);
      await open(2);
      await waiting;
    });

    it('connects to our server when it starts later', async () => {
      await server.close();
      const opening = open();
      await new Promise((resolve) => setTimeout(resolve, 200));
      const late = await TCPStoreServer.listen({ host: '127.0.0.1', port: server.port });
      await opening;
      expect(await call('num_keys')).toBe(0);
      await late.close();
    });
  });
});
