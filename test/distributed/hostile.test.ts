/** Hostile input to a store's port closes the sender's connection and affects no other client. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { createInterface } from 'node:readline';
import fc from 'fast-check';
import { MAX_MEMORY_BYTES } from '../../lib/distributed/keyTable';
import { Message, Query, VALIDATION } from '../../lib/distributed/tcpStoreProtocol';
import type { TCPStoreServer } from '../../lib/distributed/tcpStoreServer';
import type { TCPStore } from '../../lib/distributed/tcpStore';
import { clientOf, closing, eventually, RawClient, serve } from './support';

const MIB = 2 ** 20;

/** A length without its bytes. */
const length = (value: number | bigint) => new Message().i64(BigInt.asIntN(64, BigInt(value)));
const join = (...messages: Message[]) => Buffer.concat(messages.map((message) => message.bytes()));
const request = (query: number) => new Message(query);
/** Sets a value of the maximum length. */
const setLong = () =>
  join(
    request(Query.SET)
      .key('/long')
      .value(Buffer.alloc(8 * MIB)),
  );
const HELLO = request(Query.VALIDATE).u32(VALIDATION);

/** A well-behaved client. */
let bystander: TCPStore;
let server: TCPStoreServer;
let atFirst: ReturnType<TCPStoreServer['usage']>;
beforeEach(async () => {
  server = await serve();
  bystander = await clientOf(server);
  await bystander.set('kept', 'value');
  await bystander.numKeys();
  atFirst = server.usage();
});

/** The server holds no state of other clients and still answers. */
async function expectUnharmed(): Promise<void> {
  expect((await bystander.get('kept')).toString()).toBe('value');
  await eventually(() => expect(server.usage()).toEqual(atFirst));
}

describe('only the offending client is disconnected for', () => {
  it.each<[string, Buffer]>([
    ['a different protocol', Buffer.from('GET / HTTP/1.1\r\nHost: store\r\n\r\n')],
    ['a query before the handshake', join(request(Query.GETNUMKEYS))],
    ['a wrong validation', join(request(Query.VALIDATE).u32(0x3c85f7cf))],
    ['an unknown query', join(HELLO, request(99))],
    ['the handshake in mid-session', join(HELLO, HELLO)],
    ['a key of 2^64 - 1 bytes', join(HELLO, request(Query.GET), length(-1))],
    ['a key of 2^63 bytes', join(HELLO, request(Query.GET), length(2n ** 63n))],
    ['a key of 8193 bytes', join(HELLO, request(Query.SET), length(8193))],
    ['a value above 8 MiB', join(HELLO, request(Query.SET).key('k'), length(8 * MIB + 1))],
    ['an expected value above 8 MiB', join(HELLO, request(Query.COMPARE_SET).key('k'), length(-1))],
    ['131,073 keys', join(HELLO, request(Query.WAIT), length(131073))],
    ['2^64 - 1 keys', join(HELLO, request(Query.MULTI_GET), length(-1))],
    ['2^40 keys to set', join(HELLO, request(Query.MULTI_SET), length(2n ** 40n))],
    ['an add to a value that is not a number', join(HELLO, request(Query.ADD).key('/kept').i64(1))],
    [
      'a wait within a wait',
      join(HELLO, request(Query.WAIT).keys(['a', 'b']), request(Query.WAIT).keys(['c'])),
    ],
  ])('%s', async (_, bytes) => {
    const client = await RawClient.connect(server);
    client.send(bytes);
    await client.ended;
    await expectUnharmed();
  });

  it('an append that makes a value longer than 8 MiB', async () => {
    const client = await RawClient.welcome(server);
    client.send(setLong());
    client.send(join(request(Query.APPEND).key('/long').value('!')));
    await client.ended;
    expect(await bystander.get('long')).toHaveLength(8 * MIB);
    await bystander.deleteKey('long');
    await expectUnharmed();
  });

  it('silence within a handshake, a request or a reply, but not between', async () => {
    const impatient = await serve({ stallTimeout: 4000 });
    const idle = await clientOf(impatient);
    const waiting = idle.wait(['key'], 60_000);
    const silent = await RawClient.connect(impatient);
    const half = await RawClient.welcome(impatient);
    half.send(join(request(Query.SET).key('key'), length(5)));
    const deaf = await RawClient.welcome(impatient);
    deaf.send(setLong());
    await deaf.ping();
    deaf.socket.pause();
    for (let i = 0; i < 4; i++) deaf.send(join(request(Query.GET).key('/long')));
    await Promise.all([silent.ended, half.ended]);
    await eventually(() => expect(impatient.usage().numClients).toBe(1));
    await (await clientOf(impatient)).set('key', '');
    await waiting;
  });
});

/** Requests of every kind, which together leave no key. */
const SESSION = [
  HELLO,
  request(Query.PING).u32(12345),
  request(Query.SET).key('/a').value('one'),
  request(Query.GET).key('/a'),
  request(Query.COMPARE_SET).key('/a').value('one').value('two'),
  request(Query.ADD).key('/n').i64(41),
  request(Query.CHECK).keys(['/a', '/n', '/z']),
  request(Query.WAIT).keys(['/a', '/n']),
  request(Query.CANCEL_WAIT),
  request(Query.GETNUMKEYS),
  request(Query.APPEND).key('/a').value(Buffer.alloc(70_000, 'x')),
  request(Query.MULTI_GET).keys(['/a', '/z', '/n']),
  request(Query.MULTI_SET).count(2).key('/b').value('').key('/c').value('3'),
  request(Query.DELETE_KEY).key('/a'),
  request(Query.DELETE_KEY).key('/b'),
  request(Query.DELETE_KEY).key('/c'),
  request(Query.DELETE_KEY).key('/n'),
  request(Query.DELETE_KEY).key('/z'),
];

/** Reads each request's reply. */
async function answers(client: RawClient): Promise<string> {
  const expected = [
    new Message().u32(12345),
    new Message().string(Buffer.from('one')),
    new Message().string(Buffer.from('two')),
    new Message().i64(41),
    new Message().u8(1),
    new Message().u8(0),
    new Message().u8(1),
    // The third connection is the well-behaved client.
    new Message().i64(3),
    new Message().string(Buffer.concat([Buffer.from('two'), Buffer.alloc(70_000, 'x')])),
    new Message().string(Buffer.alloc(0)).string(Buffer.from('41')),
    ...[1, 1, 1, 1, 0].map((count) => new Message().i64(count)),
  ];
  const bytes = join(...expected);
  const answer = await client.reader.bytes(bytes.length);
  return answer.equals(bytes) ? 'as expected' : answer.toString('hex');
}

describe('requests', () => {
  it('may arrive in chunks of any size', async () => {
    const bytes = join(...SESSION);
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(fc.nat(bytes.length), { maxLength: 30 }),
        async (positions) => {
          const client = await RawClient.connect(server);
          let start = 0;
          for (const end of [...positions.sort((a, b) => a - b), bytes.length]) {
            client.send(bytes.subarray(start, end));
            start = end;
            await new Promise(setImmediate);
          }
          expect(await answers(client)).toBe('as expected');
          client.socket.destroy();
        },
      ),
      { seed: 5, numRuns: 40 },
    );
    await expectUnharmed();
  });

  it('may be truncated anywhere: an incomplete one has no effect', async () => {
    const bytes = join(HELLO, request(Query.MULTI_SET).count(2).key('/a').value('1'));
    const rest = join(new Message().key('/b').value('2'));
    for (let cut = 0; cut < rest.length; cut++) {
      const client = await RawClient.connect(server);
      client.send(Buffer.concat([bytes, rest.subarray(0, cut)]));
      client.socket.end();
      await client.ended;
    }
    expect(await bystander.check(['a'])).toBe(false);
    await expectUnharmed();
  });
});

describe('random bytes', () => {
  const SHORT = SESSION.slice(1).filter((message) => message.bytes().length < 100);
  const field = fc.oneof(
    fc.uint8Array({ maxLength: 40 }),
    fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map((value) => length(value).bytes()),
    fc.nat(20).map((value) => length(value).bytes()),
    fc.constantFrom('/a', '/n', '/kept2', '').map((key) => new Message().key(key).bytes()),
  );
  const anyRequest = fc
    .tuple(
      fc.oneof(fc.integer({ min: 1, max: 13 }), fc.nat(255)),
      fc.array(field, { maxLength: 4 }),
    )
    .map(([query, fields]) => Buffer.concat([Buffer.of(query), ...fields]));
  const mangled = fc
    .record({
      chosen: fc.array(fc.constantFrom(...SHORT), { minLength: 1, maxLength: 6 }),
      at: fc.nat(200),
      byte: fc.nat(255),
    })
    .map(({ chosen, at, byte }) => {
      const bytes = join(...chosen);
      bytes[at % bytes.length] = byte;
      return bytes;
    });

  it.each<[string, number, fc.Arbitrary<Uint8Array>]>([
    ['random bytes', 1, fc.uint8Array({ maxLength: 300 })],
    ['a handshake and random bytes', 2, fc.uint8Array({ maxLength: 300 })],
    [
      'requests of random fields',
      3,
      fc.array(anyRequest, { maxLength: 8 }).map((all) => Buffer.concat(all)),
    ],
    ['requests with a byte changed', 4, mangled],
  ])('%s: the server stays usable, and keeps no state of the sender', async (_, seed, sent) => {
    // They may change keys; the server must still work as a store.
    const scenario = fc.array(fc.record({ bytes: sent, leaves: fc.boolean() }), {
      minLength: 1,
      maxLength: 6,
    });
    await fc.assert(
      fc.asyncProperty(scenario, async (senders) => {
        const clients = await Promise.all(senders.map(() => RawClient.connect(server)));
        clients.forEach((client, i) => {
          if (seed !== 1) client.send(join(HELLO));
          client.send(senders[i].bytes);
          if (senders[i].leaves) client.socket.end();
        });
        await bystander.set('mine', String(seed));
        expect((await bystander.get('mine')).toString()).toBe(String(seed));
        for (const client of clients) client.socket.destroy();
      }),
      { seed, numRuns: 60 },
    );
    await eventually(() => {
      expect(server.usage()).toMatchObject({ numClients: 1, numAwaited: 0 });
    });
    await bystander.close();
    const { numKeys } = server.usage();
    await eventually(() => {
      const { numClients, numBytes } = server.usage();
      expect(numClients).toBe(0);
      // Only entries remain, 512 bytes each plus a few: no requests, replies or waits.
      expect(numBytes).toBeGreaterThanOrEqual(numKeys * 512);
      expect(numBytes).toBeLessThanOrEqual(numKeys * 600 + 10_000);
    });
  });
});

/** A server in a process of its own with at most `numFiles` open files. */
async function serveApart(numFiles = 1024) {
  const script = path.join(__dirname, 'serve.js');
  const command = `ulimit -n ${numFiles} && exec "$0" "$1"`;
  const child = spawn('sh', ['-c', command, process.execPath, script], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  closing({ close: () => child.kill() });
  const lines = createInterface(child.stdout);
  const nextLine = async () => ((await once(lines, 'line')) as [string])[0];
  const port = Number(await nextLine());
  const usage = async () => {
    child.stdin.write('\n');
    return JSON.parse(await nextLine()) as {
      numClients: number;
      numBytes: number;
      peakBytes: number;
    };
  };
  return { child, port, usage };
}

it('connections beyond the limit of open files are closed', async () => {
  const { port, usage } = await serveApart(64);
  const store = await clientOf({ port });
  const late = await Promise.all(Array.from({ length: 100 }, () => RawClient.connect({ port })));
  await eventually(() => {
    expect(late.filter(({ socket }) => socket.destroyed).length).toBeGreaterThan(0);
  });
  expect(await store.add('count', 1)).toBe(1);
  for (const client of late) client.socket.destroy();
  await eventually(async () => expect((await usage()).numClients).toBe(1));
  expect(await (await clientOf({ port })).add('count', 1)).toBe(2);
});

describe('memory', () => {
  it('is allocated for received bytes, not for announced lengths', async () => {
    const clients = await Promise.all(Array.from({ length: 50 }, () => RawClient.welcome(server)));
    for (const client of clients) {
      client.send(join(request(Query.SET).key('/long'), length(8 * MIB)));
      client.send(Buffer.alloc(1000));
    }
    await eventually(() => {
      const { numBytes } = server.usage();
      expect(numBytes - atFirst.numBytes).toBeGreaterThan(50 * 8192);
    });
    expect(server.usage().numBytes - atFirst.numBytes).toBeLessThan(2 * MIB);
    for (const client of clients) client.socket.destroy();
    await expectUnharmed();
  });

  it('is at most twice the received bytes, for chunks of any size', async () => {
    const client = await RawClient.welcome(server);
    client.send(join(request(Query.SET).key('/long'), length(8 * MIB)));
    for (let i = 0; i < 3000; i++) {
      client.send(Buffer.alloc(100));
      if (i % 10 === 0) await new Promise(setImmediate);
    }
    await eventually(() => {
      expect(server.usage().numBytes - atFirst.numBytes).toBeGreaterThan(300_000);
    });
    expect(server.usage().numBytes - atFirst.numBytes).toBeLessThan(650_000);
    client.socket.destroy();
    await expectUnharmed();
  });

  it('of unread replies is bounded by one reply', async () => {
    const client = await RawClient.welcome(server);
    client.send(setLong());
    await client.ping();
    client.socket.pause();
    // 11 MiB of requests, of which the server reads ahead a little.
    const get = join(request(Query.GET).key('/long'));
    client.send(Buffer.alloc(800_000 * get.length, get));
    await eventually(() => {
      expect(server.usage().numBytes - atFirst.numBytes).toBeGreaterThan(16 * MIB);
    });
    for (let i = 0; i < 200; i++) await bystander.numKeys();
    expect(server.usage().numBytes - atFirst.numBytes).toBeLessThan(17 * MIB);
    client.socket.destroy();
    await bystander.deleteKey('long');
    await expectUnharmed();
  });

  it('of a wait is released when it ends or the client disconnects', async () => {
    const keys = Array.from({ length: 1000 }, (_, i) => `/${i}`);
    const client = await RawClient.welcome(server);
    const { numBytes } = server.usage();
    client.send(join(request(Query.WAIT).keys(keys)));
    await client.ping();
    expect(server.usage()).toMatchObject({ numAwaited: 1000 });
    expect(server.usage().numBytes - numBytes).toBeGreaterThan(1000 * 512);
    client.send(join(request(Query.CANCEL_WAIT)));
    expect(await client.reader.u8()).toBe(1);
    expect(server.usage().numAwaited).toBe(0);
    client.send(join(request(Query.WAIT).keys(keys)));
    await client.ping();
    client.socket.destroy();
    await expectUnharmed();
  });

  it('is limited to 256 MiB in total', async () => {
    const { child, port, usage } = await serveApart();
    const store = await clientOf({ port });
    await store.set('kept', 'value');
    const before = await usage();

    const value = Buffer.alloc(8 * MIB, 1);
    const flood = async (name: string, query: number) => {
      const client = await RawClient.welcome({ port });
      for (let i = 0; i < 20 && !client.socket.destroyed; i++) {
        client.send(join(request(query).key(`/${name} ${i}`).value(value)));
        await new Promise(setImmediate);
        if (client.socket.writableNeedDrain) {
          const drained = new Promise((resolve) => client.socket.once('drain', resolve));
          await Promise.race([drained, client.ended]);
        }
      }
      return client;
    };
    // 640 MiB of values and incomplete requests.
    const clients = await Promise.all(
      ['a', 'b', 'c', 'd'].map((name) => flood(name, name < 'c' ? Query.SET : Query.APPEND)),
    );
    for (const client of clients) client.send(join(request(Query.MULTI_SET).count(100)));
    await eventually(() => {
      expect(clients.filter(({ socket }) => socket.destroyed).length).toBeGreaterThan(0);
    });
    const after = await usage();
    expect(after.numBytes).toBeGreaterThan(200 * MIB);
    expect(after.numBytes).toBeLessThanOrEqual(MAX_MEMORY_BYTES);
    // Released memory awaits garbage collection.
    expect(after.peakBytes - before.peakBytes).toBeLessThan(2 * MAX_MEMORY_BYTES);
    expect((await store.get('kept')).toString()).toBe('value');

    const closed = once(child, 'exit');
    child.stdin.end();
    expect(await closed).toEqual([0, null]);
  });
});
