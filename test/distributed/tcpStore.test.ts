/** TCPStore against TCPStoreServer. */
import { TCPStore } from '../../lib/distributed/tcpStore';
import { Message, Query } from '../../lib/distributed/tcpStoreProtocol';
import { TCPStoreServer } from '../../lib/distributed/tcpStoreServer';
import {
  ConfigError,
  ShutdownError,
  StoreConnectionError,
  StoreListenError,
  StoreRequestError,
  StoreTimeoutError,
} from '../../lib/errors';
import { freePort } from '../support/freePort';
import { ROOT, runNode } from '../executor/support';
import {
  clientOf,
  closing,
  eventually,
  HOST,
  RawClient,
  serve,
  serveAfterHandshake,
  serveRaw,
} from './support';

/** The error that a promise rejects with. */
const errorOf = (promise: Promise<unknown>) =>
  promise.then(
    () => {
      throw new Error('it was fulfilled');
    },
    (error: unknown) => error,
  );

const text = (value: Buffer) => value.toString();

/** The value of a key as it is on the wire, without our client's prefix; empty if there is none. */
async function rawGet(key: string): Promise<string> {
  const client = await RawClient.welcome(server);
  client.send(new Message(Query.GET).key(key).bytes());
  const value = await client.reader.bytes(await client.reader.length(100));
  client.socket.destroy();
  return value.toString();
}

let server: TCPStoreServer;
let store: TCPStore;
let other: TCPStore;
beforeEach(async () => {
  server = await serve();
  [store, other] = [await clientOf(server), await clientOf(server)];
});

describe('operations', () => {
  it('get returns a value that any client set', async () => {
    await store.set('key', 'value');
    expect(text(await other.get('key'))).toBe('value');
  });

  it('set replaces', async () => {
    await store.set('key', 'first');
    await store.set('key', 'second');
    expect(text(await store.get('key'))).toBe('second');
  });

  it.each([
    ['no bytes', Buffer.alloc(0)],
    ['every byte', Buffer.from(Array.from({ length: 256 }, (_, byte) => byte))],
    ['8 MiB, the most there may be', Buffer.alloc(8 * 2 ** 20, 'a long value ')],
  ])('values may have %s', async (_, value) => {
    await store.set('key', value);
    expect((await other.get('key')).equals(value)).toBe(true);
  });

  it('keys may be empty, and any text', async () => {
    await store.set('', 'of the empty key');
    await store.set('Schlüssel 鍵\0', 'of another');
    expect(text(await other.get(''))).toBe('of the empty key');
    expect(text(await other.get('Schlüssel 鍵\0'))).toBe('of another');
  });

  it('set copies the value when it is called', async () => {
    const value = Buffer.from('before');
    const setting = store.set('key', value);
    value.write('after!');
    await setting;
    expect(text(await store.get('key'))).toBe('before');
  });

  it('get waits for the key', async () => {
    const getting = store.get('key');
    await eventually(() => expect(server.usage().numAwaited).toBe(1));
    await other.set('key', 'late');
    expect(text(await getting)).toBe('late');
  });

  it('add starts at 0, takes negative amounts and returns the sum', async () => {
    expect(await store.add('count', 5)).toBe(5);
    expect(await other.add('count', -7)).toBe(-2);
    expect(await store.add('count', 0)).toBe(-2);
  });

  it('add stores decimal text, and adds to existing decimal text', async () => {
    await store.add('count', 12);
    expect(text(await store.get('count'))).toBe('12');
    await store.set('count', '-3');
    expect(await store.add('count', 1)).toBe(-2);
  });

  it('add rejects a sum that is not a safe integer', async () => {
    expect(await store.add('count', Number.MAX_SAFE_INTEGER)).toBe(Number.MAX_SAFE_INTEGER);
    const error = await errorOf(store.add('count', 1));
    expect(error).toBeInstanceOf(StoreRequestError);
    expect((error as Error).message).toContain('add to count: the sum is now 9007199254740992');
  });

  it('compareSet sets when the value is as expected', async () => {
    await store.set('key', 'old');
    expect(text(await store.compareSet('key', 'old', 'new'))).toBe('new');
    expect(text(await other.get('key'))).toBe('new');
  });

  it('compareSet keeps and returns a different value', async () => {
    await store.set('key', 'old');
    expect(text(await store.compareSet('key', 'older', 'new'))).toBe('old');
    expect(text(await other.get('key'))).toBe('old');
  });

  it('compareSet sets an unset key when the expected value is empty', async () => {
    expect(text(await store.compareSet('key', '', 'new'))).toBe('new');
    expect(text(await other.get('key'))).toBe('new');
  });

  it('compareSet returns the expected value for an unset key, and sets nothing', async () => {
    expect(text(await store.compareSet('key', 'old', 'new'))).toBe('old');
    expect(await other.check(['key'])).toBe(false);
  });

  it('check returns whether all keys are set', async () => {
    await store.set('a', '');
    expect(await store.check(['a'])).toBe(true);
    expect(await store.check(['a', 'b'])).toBe(false);
    expect(await store.check([])).toBe(true);
  });

  it('append extends a value, and creates an unset key', async () => {
    await store.append('key', 'one');
    await store.append('key', '');
    await store.append('key', ' two');
    expect(text(await store.get('key'))).toBe('one two');
  });

  it('multiSet sets each key, and multiGet returns the values in order', async () => {
    await store.multiSet([
      ['a', '1'],
      ['b', Buffer.alloc(0)],
      ['c', '3'],
    ]);
    expect((await other.multiGet(['c', 'b', 'a', 'c'])).map(text)).toEqual(['3', '', '1', '3']);
  });

  it('multiSet and multiGet of no keys complete immediately', async () => {
    await store.multiSet([]);
    expect(await store.multiGet([])).toEqual([]);
    expect(await store.numKeys()).toBe(0);
  });

  it('multiGet waits for every key', async () => {
    const getting = store.multiGet(['a', 'b']);
    await other.set('b', '2');
    await other.set('a', '1');
    expect((await getting).map(text)).toEqual(['1', '2']);
  });

  it('numKeys counts keys, not values', async () => {
    expect(await store.numKeys()).toBe(0);
    await store.set('a', '1');
    await store.set('a', '2');
    await store.add('b', 1);
    expect(await store.numKeys()).toBe(2);
  });

  it('deleteKey returns whether the key was set', async () => {
    await store.set('key', 'value');
    expect(await other.deleteKey('key')).toBe(true);
    expect(await store.check(['key'])).toBe(false);
    expect(await other.deleteKey('key')).toBe(false);
  });

  it('waitForWorkers resolves for each client when all have called it', async () => {
    let done = 0;
    const waiting = [store, other].map(async (each) => {
      await each.waitForWorkers(3);
      done++;
    });
    await eventually(async () => expect(await rawGet('init/')).toBe('2'));
    expect(done).toBe(0);
    await (await clientOf(server)).waitForWorkers(3);
    await Promise.all(waiting);
  });

  it('run in the order of the calls', async () => {
    const called = [store.set('key', '1'), store.append('key', '2'), store.get('key')] as const;
    expect(text(await called[2])).toBe('12');
    await Promise.all(called);
  });

  it('of many clients each run once', async () => {
    const clients = await Promise.all(Array.from({ length: 40 }, () => clientOf(server)));
    const sums = await Promise.all(
      clients.flatMap((client) => Array.from({ length: 5 }, () => client.add('count', 1))),
    );
    expect(sums.sort((a, b) => a - b)).toEqual(Array.from({ length: 200 }, (_, i) => i + 1));
  });

  it.each<[string, () => Promise<unknown>, string]>([
    ['a key above 8 KiB', () => store.set('k'.repeat(8192), ''), 'has 8193 bytes'],
    ['a value above 8 MiB', () => store.set('k', Buffer.alloc(2 ** 23 + 1)), 'has 8388609 bytes'],
    ['half an amount', () => store.add('count', 0.5), 'add to count: the amount is 0.5'],
    ['131,073 keys', () => store.wait(Array<string>(131073).fill('k')), '131073 keys'],
  ])('reject %s, and the client stays usable', async (_, call, message) => {
    const error = await errorOf(call());
    expect(error).toBeInstanceOf(StoreRequestError);
    expect((error as Error).message).toContain(message);
    expect(await store.numKeys()).toBe(0);
  });
});

describe('wait', () => {
  it.each<[string, () => Promise<unknown>]>([
    ['set', () => other.set('key', '')],
    ['add', () => other.add('key', 0)],
    ['compareSet', () => other.compareSet('key', '', 'value')],
    ['append', () => other.append('key', '')],
    ['multiSet', () => other.multiSet([['key', '']])],
  ])('ends when %s sets the key', async (_, come) => {
    const waiting = store.wait(['key']);
    await eventually(() => expect(server.usage().numAwaited).toBe(1));
    await come();
    await waiting;
  });

  it('ends immediately when all keys are set', async () => {
    await other.multiSet([
      ['a', ''],
      ['b', ''],
    ]);
    await other.numKeys();
    await store.wait(['a', 'b', 'a']);
    await store.wait([]);
  });

  it('ends when the last of several keys is set, in any order', async () => {
    let done = false;
    const waiting = store.wait(['a', 'b', 'c', 'b']).then(() => (done = true));
    await eventually(() => expect(server.usage().numAwaited).toBe(3));
    await other.set('c', '');
    await other.set('a', '');
    await eventually(() => expect(server.usage().numAwaited).toBe(1));
    expect(done).toBe(false);
    await other.set('b', '');
    await waiting;
  });

  it('ends for all clients that wait for the same key', async () => {
    const waiting = [store, await clientOf(server), await clientOf(server)].map((client) =>
      client.wait(['key']),
    );
    await other.set('key', '');
    await Promise.all(waiting);
    expect(server.usage().numAwaited).toBe(0);
  });
});

describe('timeouts', () => {
  it.each<[string, string[], () => Promise<unknown>]>([
    ['wait', ['there', 'missing'], () => store.wait(['there', 'missing'], 30)],
    ['get', ['missing'], () => store.get('missing', 30)],
    ['multiGet', ['there', 'missing'], () => store.multiGet(['there', 'missing'], 30)],
  ])('of %s name the keys and the milliseconds', async (operation, keys, call) => {
    await store.set('there', '');
    const error = (await errorOf(call())) as StoreTimeoutError;
    expect(error).toBeInstanceOf(StoreTimeoutError);
    expect(error).toMatchObject({ code: 'STORE_TIMEOUT', operation, keys, timeout: 30 });
    expect(error.message).toContain(`${operation}(${keys.join(', ')}) was not done within 30 ms`);
  });

  it('cancel the wait on the server, and the client stays usable', async () => {
    await errorOf(store.wait(['a', 'b'], 20));
    expect(await store.add('count', 1)).toBe(1);
    expect(server.usage().numAwaited).toBe(0);
    await other.set('a', 'late');
    expect(text(await store.get('a'))).toBe('late');
  });

  it('may race with the key being set', async () => {
    for (let round = 0; round < 50; round++) {
      const waiting = store.wait([`key ${round}`], 5).catch((error: unknown) => error);
      await new Promise((resolve) => setTimeout(resolve, 5));
      await other.set(`key ${round}`, String(round));
      const error = await waiting;
      if (error !== undefined) expect(error).toBeInstanceOf(StoreTimeoutError);
      expect(text(await store.get(`key ${round}`))).toBe(String(round));
    }
  });

  it('start at the call, also behind a waiting call', async () => {
    const waiting = store.wait(['missing']);
    const behind = (await errorOf(store.get('there', 20))) as StoreTimeoutError;
    expect(behind).toMatchObject({ operation: 'get', keys: ['there'], timeout: 20 });
    await other.set('missing', '');
    await waiting;
  });

  it('prevent a queued call from running', async () => {
    const impatient = await clientOf(server, 4000);
    const waiting = impatient.wait(['missing'], 20_000);
    expect(await errorOf(impatient.set('behind', ''))).toBeInstanceOf(StoreTimeoutError);
    await other.set('missing', '');
    await waiting;
    expect(await impatient.check(['behind'])).toBe(false);
  });

  it('may cross the reply', async () => {
    const crossing = await serveAfterHandshake((socket, reader) => {
      void (async () => {
        await reader.bytes(1 + 8 + 8 + 4);
        expect(await reader.u8()).toBe(Query.CANCEL_WAIT);
        socket.write(Buffer.of(0, 1));
        expect(await reader.u8()).toBe(Query.GETNUMKEYS);
        socket.write(Buffer.of(42, 0, 0, 0, 0, 0, 0, 0));
      })();
    });
    const client = await clientOf(crossing);
    expect(await errorOf(client.wait(['key'], 20))).toBeInstanceOf(StoreTimeoutError);
    expect(await client.numKeys()).toBe(42);
  });

  it("default to the client's own", async () => {
    const impatient = await clientOf(server, 5000);
    expect(impatient.timeout).toBe(5000);
    const silent = await serveAfterHandshake(() => {});
    const client = await clientOf(silent, 4000);
    expect(await errorOf(client.add('count', 1))).toMatchObject({
      operation: 'add',
      keys: ['count'],
      timeout: 4000,
    });
  });

  it('drop a late reply', async () => {
    let expire = () => {};
    const expired = new Promise<void>((resolve) => (expire = resolve));
    const late = await serveAfterHandshake((socket, reader) => {
      void (async () => {
        // A get: answer the wait, send the value after the client's timeout.
        await reader.bytes(1 + 8 + 8 + 4);
        socket.write(Buffer.of(0));
        await reader.bytes(1 + 8 + 4);
        await expired;
        socket.write(new Message().string(Buffer.from('late')).bytes());
        expect(await reader.u8()).toBe(Query.GETNUMKEYS);
        socket.write(Buffer.of(42, 0, 0, 0, 0, 0, 0, 0));
      })();
    });
    const client = await clientOf(late);
    expect(await errorOf(client.get('key', 4000))).toBeInstanceOf(StoreTimeoutError);
    expire();
    expect(await client.numKeys()).toBe(42);
  });

  it('may exceed the limit of setTimeout', async () => {
    const waiting = [store.wait(['key'], Infinity), other.wait(['key'], 2 ** 40)];
    await eventually(() => expect(server.usage().numClients).toBe(2));
    await (await clientOf(server)).set('key', '');
    await Promise.all(waiting);
  });

  it.each([-1, NaN, '5' as unknown as number])('cannot be %p', async (timeout) => {
    expect(await errorOf(store.wait(['key'], timeout))).toBeInstanceOf(ConfigError);
    const connecting = TCPStore.connect({ host: HOST, port: server.port, timeout });
    expect(await errorOf(connecting)).toBeInstanceOf(ConfigError);
  });
});

describe('connect', () => {
  it('retries until the server starts', async () => {
    const port = await freePort();
    const connecting = TCPStore.connect({ host: HOST, port, timeout: 200_000 });
    await new Promise((resolve) => setTimeout(resolve, 100));
    closing(await TCPStoreServer.listen({ host: HOST, port }));
    await closing(await connecting).set('key', 'value');
  });

  it('retries when the server closes the first connections', async () => {
    let attempts = 0;
    const closesTwice = await serveRaw((socket) => {
      if (++attempts < 3) socket.destroy();
      else {
        socket.once('data', (bytes: Buffer) => socket.write(bytes.subarray(-4)));
      }
    });
    await clientOf(closesTwice);
    expect(attempts).toBe(3);
  });

  // The server has seconds to answer, also on a busy machine.
  it.each<[string, () => Promise<{ port: number }>, string]>([
    ['no server listens', async () => ({ port: await freePort() }), 'ECONNREFUSED'],
    ['the server does not answer', () => serveRaw(() => {}), 'the handshake timed out'],
    [
      'a different server answers',
      () => serveRaw((socket) => socket.write('220 mail.example')),
      'not a TCPStore',
    ],
  ])('rejects after its timeout when %s', async (_, listen, reason) => {
    const { port } = await listen();
    const error = await errorOf(TCPStore.connect({ host: HOST, port, timeout: 4000 }));
    expect(error).toBeInstanceOf(StoreConnectionError);
    expect(error).toMatchObject({ code: 'STORE_CONNECTION', address: `${HOST}:${port}` });
    expect((error as Error).message).toContain('no answer within 4000 ms');
    expect((error as Error).message).toContain(reason);
  });

  it.each([0, 65536, 1.5])('refuses the port %p', async (port) => {
    expect(await errorOf(TCPStore.connect({ host: HOST, port }))).toBeInstanceOf(ConfigError);
  });
});

describe('the end of a connection', () => {
  it('rejects pending and later calls when the server closes', async () => {
    const waiting = errorOf(store.wait(['key']));
    const behind = errorOf(store.get('other'));
    await eventually(() => expect(server.usage().numAwaited).toBe(1));
    await server.close();
    for (const error of [await waiting, await behind, await errorOf(store.set('key', ''))]) {
      expect(error).toBeInstanceOf(StoreConnectionError);
      expect(error).toMatchObject({ address: `${HOST}:${server.port}` });
    }
  });

  it('rejects calls when the server violates the protocol', async () => {
    const hostile = await serveAfterHandshake((socket) => {
      socket.write(Buffer.concat([Buffer.of(0), Buffer.alloc(8, 255)]));
    });
    const client = await clientOf(hostile);
    const error = await errorOf(client.get('key'));
    expect(error).toBeInstanceOf(StoreConnectionError);
    expect((error as Error).message).toContain('a length of 18446744073709551615');
    expect(await errorOf(client.numKeys())).toBeInstanceOf(StoreConnectionError);
  });

  it("removes a waiting client's state from the server", async () => {
    const { numBytes, numClients } = server.usage();
    const client = await clientOf(server);
    const waiting = errorOf(client.wait(['a', 'b']));
    await eventually(() => expect(server.usage().numAwaited).toBe(2));
    await client.close();
    expect(await waiting).toBeInstanceOf(ShutdownError);
    await eventually(() =>
      expect(server.usage()).toEqual({ numClients, numKeys: 0, numAwaited: 0, numBytes }),
    );
  });

  it("keeps other clients' waits for the same key", async () => {
    const leaving = await clientOf(server);
    const left = errorOf(leaving.wait(['key']));
    const waiting = other.wait(['key']);
    await eventually(() => expect(server.usage().numAwaited).toBe(1));
    await leaving.close();
    await left;
    await eventually(() => expect(server.usage().numClients).toBe(2));
    await store.set('key', '');
    await waiting;
  });

  it('flushes completed sets', async () => {
    const value = Buffer.alloc(4 * 2 ** 20, 1);
    const client = await clientOf(server);
    await client.set('key', value);
    await client.close();
    expect((await store.get('key')).equals(value)).toBe(true);
  });

  it('by close rejects later calls, and is idempotent', async () => {
    await store.close();
    await store.close();
    expect(await errorOf(store.numKeys())).toBeInstanceOf(ShutdownError);
  });
});

describe('the server', () => {
  it('exposes its address', () => {
    expect(server.host).toBe(HOST);
    expect(server.port).toBeGreaterThan(0);
  });

  it('listens on every address by default', async () => {
    const everywhere = closing(await TCPStoreServer.listen({ port: 0 }));
    expect(['::', '0.0.0.0']).toContain(everywhere.host);
    await (await clientOf(everywhere)).set('key', 'value');
  });

  it('rejects when the port is in use', async () => {
    const error = await errorOf(TCPStoreServer.listen({ host: HOST, port: server.port }));
    expect(error).toBeInstanceOf(StoreListenError);
    expect(error).toMatchObject({ address: `${HOST}:${server.port}`, reason: 'EADDRINUSE' });
  });

  it('frees the port when it closes, and may be closed twice', async () => {
    await server.close();
    await server.close();
    closing(await TCPStoreServer.listen({ host: HOST, port: server.port }));
  });

  it("counts its keys' memory, and releases it when they are deleted", async () => {
    const { numBytes } = server.usage();
    await store.set('a', Buffer.alloc(2_000_000));
    await store.set('a', Buffer.alloc(3_000_000));
    await store.append('a', 'more');
    await store.add('b', 1);
    await store.numKeys();
    expect(server.usage().numBytes - numBytes).toBeGreaterThan(3_000_000);
    expect(server.usage().numBytes - numBytes).toBeLessThan(3_500_000);
    await store.deleteKey('a');
    await store.deleteKey('b');
    await store.close();
    await other.close();
    await eventually(() =>
      expect(server.usage()).toEqual({ numClients: 0, numKeys: 0, numAwaited: 0, numBytes: 0 }),
    );
  });

  it('and its clients, once closed, do not keep the process alive', async () => {
    const program = `
      const { TCPStore } = require('${ROOT}/lib/distributed/tcpStore');
      const { TCPStoreServer } = require('${ROOT}/lib/distributed/tcpStoreServer');
      (async () => {
        const server = await TCPStoreServer.listen({ port: 0 });
        const stores = [];
        for (let i = 0; i < 3; i++) {
          stores.push(await TCPStore.connect({ host: 'localhost', port: server.port }));
        }
        const waiting = stores[0].get('missing').catch((error) => console.log(error.code));
        await stores[1].close();
        await server.close();
        await waiting;
        // The event loop drops closed handles in its next turns.
        for (let turn = 0; turn < 10; turn++) await new Promise(setImmediate);
        console.log(process.getActiveResourcesInfo().filter((name) => name !== 'PipeWrap').join());
      })();
    `;
    const { code, stdout, stderr } = await runNode(program);
    expect({ code, stdout, stderr }).toEqual({
      code: 0,
      stdout: 'STORE_CONNECTION\n\n',
      stderr: '',
    });
  });
});
