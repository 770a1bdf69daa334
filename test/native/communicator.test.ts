/** Collectives between CPU ranks over TCP, in one process with a device per rank, and in several. */
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { connect as dial, type Socket } from 'node:net';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { PeerLostError } from '../../lib/errors';
import { type CommType, native, type NativeCommunicator, type ReduceOp } from '../../lib/native';
import { encode, firstDifference, reduced, repeated, someValues, type Values } from './collectives';
import { until } from '../executor/support';
import { connect, startProcesses, startRanks } from './ranks';

const TYPES: CommType[] = ['int64', 'float32', 'float16', 'bfloat16'];
const OPS: ReduceOp[] = ['sum', 'min', 'max'];

const WAIT_MS = 3_600_000; // longer than any test

const float32 = (...values: number[]) => encode(values, 'float32');
// Period of long messages, chosen so that no two parts of a message have the same beginning.
const PERIOD = 4099;
const valuesOfRanks = (worldSize: number, count: number, type: CommType) =>
  Array.from({ length: worldSize }, (_, rank) => someValues(Math.min(count, PERIOD), type, rank));
const message = (values: Values, count: number, type: CommType) => {
  const bytes = encode(values, type);
  return count <= PERIOD ? bytes : repeated(bytes, count * (bytes.length / PERIOD));
};
const messages = (worldSize: number, count: number, type: CommType) =>
  valuesOfRanks(worldSize, count, type).map((values) => message(values, count, type));

/** Runs a collective on every rank and compares bits with the reference. */
async function checkAllReduce(
  ranks: NativeCommunicator[],
  count: number,
  type: CommType,
  op: ReduceOp,
): Promise<void> {
  const values = valuesOfRanks(ranks.length, count, type);
  const results = await Promise.all(
    ranks.map((rank, i) => rank.allReduce(message(values[i], count, type), type, op)),
  );
  const expected = message(reduced(values, type, op), count, type);
  expect(firstDifference(results[0], expected, type)).toBe(-1);
  for (const result of results) expect(Buffer.compare(result, results[0])).toBe(0);
}

async function checkAllGather(ranks: NativeCommunicator[], count: number): Promise<void> {
  const all = messages(ranks.length, count, 'float32');
  const results = await Promise.all(ranks.map((rank, i) => rank.allGather(all[i], 'float32')));
  for (const result of results) expect(Buffer.compare(result, Buffer.concat(all))).toBe(0);
}

async function checkBroadcast(ranks: NativeCommunicator[], count: number): Promise<void> {
  const all = messages(ranks.length, count, 'int64');
  for (let root = 0; root < ranks.length; root++) {
    const results = await Promise.all(
      ranks.map((rank, i) => rank.broadcast(all[i], 'int64', root)),
    );
    for (const result of results) expect(Buffer.compare(result, all[root])).toBe(0);
  }
}

/** The error of a call that must reject within `milliseconds`. */
async function errorOf(call: Promise<unknown>, milliseconds = 100_000): Promise<unknown> {
  const rejection = call.then(
    () => Promise.reject(new Error('the call was carried out')),
    (error: unknown) => error,
  );
  const late = sleep(milliseconds, null, { ref: false }).then(() => {
    throw new Error(`the call was not over within ${milliseconds} ms`);
  });
  return Promise.race([rejection, late]);
}

const lost = (rank: number | null, reason = '') =>
  expect.objectContaining({
    code: 'PEER_LOST',
    rank,
    message: expect.stringContaining(reason) as string,
  }) as unknown;

describe.each([2, 3, 4, 5])('a group of %i', (worldSize) => {
  const group = async () => connect(await startRanks(worldSize));

  it.each(TYPES.flatMap((type) => OPS.map((op) => [type, op] as const)))(
    'allReduce of %s gives every rank the same bits: the %s, in rank order',
    async (type, op) => {
      const ranks = await group();
      // Sizes that each rank sums alone, that the ranks share, and beyond the slices of the latter.
      for (const count of [1, 2, 1023, 8193, 16_385, 65_537, 530_001]) {
        await checkAllReduce(ranks, count, type, op);
      }
    },
  );

  it('allGather orders by rank, broadcast works from any root, for all sizes', async () => {
    const ranks = await group();
    for (const count of [1, 1023, 300_001]) {
      await checkAllGather(ranks, count);
      await checkBroadcast(ranks, count);
    }
  });

  it('barrier resolves after all ranks have entered it', async () => {
    const [last, ...others] = await group();
    let numPassed = 0;
    const passing = others.map((rank) => rank.barrier().then(() => numPassed++));
    await sleep(50);
    expect(numPassed).toBe(0);
    await Promise.all([...passing, last.barrier()]);
  });
});

describe('collectives', () => {
  it('of empty buffers give empty buffers', async () => {
    const ranks = await connect(await startRanks(3));
    const nothing = new Uint8Array();
    for (const rank of ranks) {
      expect(await rank.allReduce(nothing, 'float16', 'sum')).toHaveLength(0);
    }
    await checkAllGather(ranks, 0);
    await checkBroadcast(ranks, 0);
  });

  it('of 8 MiB and more do not deadlock on full socket buffers', async () => {
    const ranks = await connect(await startRanks(3));
    await checkAllReduce(ranks, 2 ** 21 + 5, 'float32', 'sum');
    await checkAllGather(ranks, 2 ** 21 + 5);
    await checkBroadcast(ranks, 2 ** 20 + 5);
  });

  it('propagate NaN from one rank', async () => {
    const ranks = await connect(await startRanks(2));
    for (const op of OPS) {
      const [result] = await Promise.all([
        ranks[0].allReduce(float32(NaN, 1, 2), 'float32', op),
        ranks[1].allReduce(float32(3, NaN, 2), 'float32', op),
      ]);
      const values = new Float32Array(result.buffer);
      expect([...values]).toEqual([NaN, NaN, op === 'sum' ? 4 : 2]);
    }
  });

  it('run in the order enqueued, even if a rank is far ahead', async () => {
    const ranks = await connect(await startRanks(3));
    const results = ranks.map(async (rank, i) => {
      await sleep(20 * i);
      return Promise.all(
        Array.from({ length: 50 }, (_, k) => rank.allReduce(float32(k, i), 'float32', 'sum')),
      );
    });
    for (const ofRank of await Promise.all(results)) {
      ofRank.forEach((sum, k) => expect(sum).toEqual(float32(3 * k, 3)));
    }
  });

  it('give the same results between processes', async () => {
    const ranks = await connect(startProcesses(4));
    for (const type of TYPES) {
      for (const count of [1, 1023, 40_001]) await checkAllReduce(ranks, count, type, 'sum');
    }
    await checkAllGather(ranks, 40_001);
    await checkBroadcast(ranks, 40_001);
    await Promise.all(ranks.map((rank) => rank.barrier()));
  });

  it('work in a world of one rank', async () => {
    const [rank] = await connect(await startRanks(1));
    await checkAllReduce([rank], 1023, 'bfloat16', 'sum');
    await checkAllGather([rank], 7);
    await checkBroadcast([rank], 7);
    await rank.barrier();
  });

  it('that differ between ranks fail with an error that names both', async () => {
    const ranks = await connect(await startRanks(2));
    const errors = await Promise.all([
      errorOf(ranks[0].allReduce(float32(1, 2, 3), 'float32', 'sum')),
      errorOf(ranks[1].broadcast(float32(1, 2), 'float32', 0)),
    ]);
    // Rank 1 waits for the root and receives its call; rank 0 may first receive rank 1's failure.
    expect(errors[1]).toMatchObject({
      code: 'COMMUNICATOR_FAILED',
      message: expect.stringMatching(
        /rank 0 calls allReduce \(sum\) of 3 float32 .*calls broadcast from rank 0 of 2 float32/,
      ) as unknown,
    });
  });

  it.each<[string, (rank: NativeCommunicator, i: number) => Promise<unknown>]>([
    ['counts', (rank, i) => rank.allReduce(float32(...Array<number>(1 + i)), 'float32', 'sum')],
    ['types', (rank, i) => rank.allGather(new Uint8Array(8), i === 0 ? 'int64' : 'float32')],
    ['ops', (rank, i) => rank.allReduce(new Uint8Array(8), 'int64', OPS[i])],
    [
      'numbers',
      (rank, i) => (i === 0 ? rank.barrier() : Promise.all([rank.barrier(), rank.barrier()])),
    ],
  ])('that differ in their %s do not hang', async (_what, call) => {
    const ranks = await connect(await startRanks(2, { timeout: 4000 }));
    const outcomes = await Promise.allSettled(ranks.map(call));
    expect(outcomes.map(({ status }) => status)).toContain('rejected');
  });
});

describe('a communicator', () => {
  it('rejects collectives before it is connected, and stays usable', async () => {
    const ranks = await startRanks(2);
    for (const call of [ranks[0].barrier(), ranks[0].connect([])]) {
      await expect(call).rejects.toMatchObject({ code: 'INVALID_STATE' });
    }
    await connect(ranks);
    await expect(ranks[0].connect([])).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await expect(ranks[0].address()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await checkAllGather(ranks, 3);
  });

  it('returns the same address every time', async () => {
    const [rank] = await startRanks(1);
    expect(await rank.address()).toEqual(await rank.address());
  });

  it('has an idempotent shutdown, and rejects later calls', async () => {
    const [rank] = await connect(await startRanks(1));
    await Promise.all([rank.shutdown(), rank.shutdown()]);
    await rank.shutdown();
    await expect(rank.barrier()).rejects.toMatchObject({ code: 'SHUT_DOWN' });
    rank.abort('too late');
  });

  it('rejects invalid arguments', async () => {
    const [rank] = await startRanks(1);
    const bytes = new Uint8Array(8);
    expect(() => rank.allReduce(new Uint8Array(6), 'float32', 'sum')).toThrow('a multiple of 4');
    expect(() => rank.allReduce(bytes, 'int8' as CommType, 'sum')).toThrow("unknown type 'int8'");
    expect(() => rank.allReduce(bytes, 'int64', 'mean' as ReduceOp)).toThrow("unknown op 'mean'");
    expect(() => rank.allGather([1] as never, 'int64')).toThrow('data must be a Uint8Array');
    expect(() => rank.broadcast(bytes, 'int64', 1)).toThrow('root must be a rank');
    expect(() => rank.connect([3 as never])).toThrow('addresses must be a Uint8Array');
  });

  it('requires an open device, and a rank within the world size', async () => {
    const { Communicator, DeviceThread } = native();
    const options = { rank: 0, worldSize: 1, timeout: 1000, customAllReduce: false };
    const device = new DeviceThread('cpu', 0, 1);
    expect(() => new Communicator(device, options)).toThrow('the device is not open');
    await device.open();
    for (const wrong of [{ rank: 1 }, { rank: -1 }, { worldSize: 0 }, { timeout: 0 }]) {
      expect(() => new Communicator(device, { ...options, ...wrong })).toThrow(
        expect.objectContaining({ code: 'CONFIG_INVALID' }) as Error,
      );
    }
    await device.shutdown();
  });

  it.each<[string, (own: Uint8Array) => Uint8Array[]]>([
    ['list of the wrong length', (own) => [own]],
    ['list with an invalid address', (own) => [own, new Uint8Array(3)]],
    ['of another communicator type', (own) => [own, own.map((byte) => byte ^ 1)]],
    ["list that has another rank's address as its own", (own) => [own.with(10, own[10] ^ 1), own]],
  ])('cannot connect with an address %s', async (_what, addressesFrom) => {
    const [rank] = await startRanks(2);
    const own = await rank.address();
    for (let i = 0; i < 2; i++) {
      await expect(rank.connect(addressesFrom(own))).rejects.toMatchObject({
        code: 'COMMUNICATOR_FAILED',
      });
    }
  });
});

describe('a lost peer', () => {
  it('by kill -9 fails waiting ranks immediately, and their later calls', async () => {
    const ranks = await connect(startProcesses(3, { timeout: WAIT_MS }));
    const waiting = ranks.slice(0, 2).map((rank) => errorOf(rank.barrier()));
    await sleep(50);
    await ranks[2].end('SIGKILL');
    for (const error of await Promise.all(waiting)) expect(error).toEqual(lost(2));
    for (const rank of ranks.slice(0, 2)) {
      for (const call of [rank.barrier(), rank.address(), rank.connect([])]) {
        expect(await errorOf(call)).toEqual(lost(2));
      }
    }
  });

  it('in the middle of a message is named, not those that reported it lost', async () => {
    for (let round = 0; round < 5; round++) {
      const ranks = await connect(startProcesses(4, { timeout: WAIT_MS }));
      const [first, victim, ...others] = ranks;
      const reducing = [first, ...others].map((rank) => errorOf(rank.reduceForever(8 << 20)));
      victim.reduceForever(8 << 20).catch(() => {}); // It never settles.
      await sleep(100 + 37 * round);
      await victim.end('SIGKILL');
      for (const error of await Promise.all(reducing)) expect(error).toEqual(lost(1));
      await Promise.all(ranks.map((rank) => rank.end('SIGKILL')));
    }
  });

  it('is detected although its child process lives on', async () => {
    const ranks = await connect(startProcesses(2, { timeout: WAIT_MS }));
    const child = await ranks[1].startChild();
    const waiting = errorOf(ranks[0].barrier());
    await ranks[1].end('SIGKILL');
    expect(await waiting).toEqual(lost(1));
    process.kill(child, 'SIGKILL');
  });

  it('by shutdown of its device is detected', async () => {
    const [rank, other] = await connect(await startRanks(2, { timeout: WAIT_MS }));
    const waiting = errorOf(rank.barrier());
    await other.shutdown();
    const error = await waiting;
    expect(error).toBeInstanceOf(PeerLostError);
    expect(error).toEqual(lost(1, 'rank 1 is lost: its connection'));
  });

  it('that does not join a collective is dropped after the timeout, and receives the error', async () => {
    const [first, second] = await connect(await startRanks(2, { timeout: 4000 }));
    const start = performance.now();
    expect(await errorOf(first.allReduce(float32(1), 'float32', 'sum'))).toEqual(
      lost(1, 'it did not call allReduce (sum) of 1 float32 within 4000 ms'),
    );
    expect(performance.now() - start).toBeGreaterThan(3990);
    // Data that the first rank had sent is still there; the later error is not.
    await second.allReduce(float32(1), 'float32', 'sum');
    expect(await errorOf(second.barrier())).toEqual(lost(1, 'rank 0 reported it lost'));
  });

  it('that stopped silently is dropped after the timeout', async () => {
    const ranks = await connect(startProcesses(2, { timeout: 10_000 }));
    ranks[1].child.kill('SIGSTOP');
    expect(await errorOf(ranks[0].barrier())).toEqual(lost(1, 'within 10000 ms'));
  });

  it.each([0, 1])('that never connects, rank %i, is dropped after the timeout', async (i) => {
    const ranks = await startRanks(2, { timeout: 4000 });
    const addresses = await Promise.all(ranks.map((rank) => rank.address()));
    await ranks[i].shutdown();
    expect(await errorOf(ranks[1 - i].connect(addresses))).toEqual(
      lost(i, 'it did not connect within 4000 ms'),
    );
  });
});

/** Unread bytes in this process's TCP receive buffers. */
function unreadBytes(): number {
  const sockets = new Set(
    readdirSync('/proc/self/fd').map((fd) => {
      try {
        return /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/self/fd/${fd}`))?.[1];
      } catch {
        return undefined; // Closed meanwhile.
      }
    }),
  );
  const connections = ['tcp', 'tcp6'].flatMap((file) =>
    readFileSync(`/proc/self/net/${file}`, 'utf8').trim().split('\n').slice(1),
  );
  return connections
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => sockets.has(fields[9]))
    .reduce((sum, fields) => sum + parseInt(fields[4].split(':')[1], 16), 0);
}

describe('abort', () => {
  it('fails a waiting collective immediately with its reason, and all later ones', async () => {
    const [rank] = await connect(await startRanks(2, { timeout: WAIT_MS }));
    const waiting = errorOf(rank.barrier());
    await sleep(50);
    rank.abort('rank 1 has left');
    rank.abort('another reason');
    expect(await waiting).toEqual(lost(null, 'rank 1 has left'));
    expect(await errorOf(rank.barrier())).toEqual(lost(null, 'rank 1 has left'));
  });

  it('fails a pending connect', async () => {
    const ranks = await startRanks(2, { timeout: WAIT_MS });
    const addresses = await Promise.all(ranks.map((rank) => rank.address()));
    const waiting = errorOf(ranks[0].connect(addresses));
    await sleep(50);
    ranks[0].abort('rank 1 has left');
    expect(await waiting).toEqual(lost(null, 'rank 1 has left'));
  });

  it('is reported to ranks that wait for this rank in a collective', async () => {
    const ranks = await connect(await startRanks(3, { timeout: WAIT_MS }));
    const waiting = errorOf(ranks[0].barrier());
    ranks[1].abort('enough');
    expect(await errorOf(ranks[1].barrier())).toEqual(lost(null, 'enough'));
    expect(await waiting).toEqual(lost(1, 'it failed'));
  });

  it('in the middle of a message closes the connection, so that no rank waits for the rest', async () => {
    const [first, second] = await connect(await startRanks(2, { timeout: WAIT_MS }));
    const data = new Uint8Array(64 << 20); // more than the connection holds
    const sending = errorOf(first.allGather(data, 'float32'));
    await until(() => unreadBytes() > 4096); // longer than the header of a collective
    first.abort('enough');
    expect(await sending).toEqual(lost(null, 'enough'));
    expect(await errorOf(second.allGather(data, 'float32'))).toEqual(lost(0, 'its connection'));
  });

  it('before connect takes effect', async () => {
    const [rank] = await startRanks(2);
    rank.abort('enough');
    expect(await errorOf(rank.address())).toEqual(lost(null, 'enough'));
  });
});

describe('the listening port', () => {
  // The layout of TcpHandshake: an address is magic[8], token[16], port, number of hosts and the
  // hosts, 16 bytes each; a greeting is magic[8], rank and the token of the listening rank.
  const portOf = (address: Uint8Array) => Buffer.from(address).readUInt16LE(24);
  const greeting = (address: Uint8Array, rank: number) => {
    const bytes = Buffer.alloc(28);
    bytes.set(address.subarray(0, 8));
    bytes.writeInt32LE(rank, 8);
    bytes.set(address.subarray(8, 24), 12);
    return bytes;
  };
  const callers: Socket[] = [];
  const call = async (port: number, ...bytes: Uint8Array[]): Promise<Socket> => {
    const socket = dial(port, '127.0.0.1').on('error', () => {});
    callers.push(socket);
    await once(socket, 'connect');
    for (const part of bytes) socket.write(part);
    return socket;
  };

  afterEach(() => {
    for (const socket of callers.splice(0)) socket.destroy();
  });

  it('rejects a connection with a wrong token', async () => {
    const ranks = await startRanks(3);
    const addresses = await Promise.all(ranks.map((rank) => rank.address()));
    const { length } = greeting(addresses[0], 1);
    for (const address of addresses) {
      const port = portOf(address);
      const guess = address.with(8, address[8] ^ 1);
      await call(port, Buffer.alloc(1 << 16, 'GET / HTTP/1.1\r\n\r\n'));
      await call(port, Buffer.alloc(length, 0xff));
      for (let rank = -1; rank <= 3; rank++) await call(port, greeting(guess, rank));
    }
    await Promise.all(ranks.map((rank) => rank.connect(addresses)));
    await checkAllGather(ranks, 1023);
  });

  it('rejects a connection with a rank that is invalid or must not connect', async () => {
    const ranks = await startRanks(2);
    const addresses = await Promise.all(ranks.map((rank) => rank.address()));
    for (const address of addresses) {
      // Rank 0 opens no connection, and no rank connects to itself.
      for (const rank of [-1, 0, 2, 2 ** 31 - 1]) {
        await call(portOf(address), greeting(address, rank));
      }
    }
    await Promise.all(ranks.map((rank) => rank.connect(addresses)));
    await checkAllGather(ranks, 1023);
  });

  it('does not wait for connections that send nothing, part of a greeting, or have closed', async () => {
    const ranks = await startRanks(2);
    const addresses = await Promise.all(ranks.map((rank) => rank.address()));
    const port = portOf(addresses[0]);
    const connecting = ranks[0].connect(addresses);
    for (let i = 0; i < 300; i++) {
      const caller = await call(port, greeting(addresses[0], 1).subarray(0, i % 28));
      if (i % 3 === 0) caller.destroy();
    }
    const openFiles = readdirSync('/proc/self/fd').length;
    expect(openFiles).toBeLessThan(300 + 100); // ours, but not all of the others
    await Promise.all([connecting, ranks[1].connect(addresses)]);
    await checkAllGather(ranks, 1023);
  });

  it('is closed once the group is connected', async () => {
    const ranks = await startRanks(2);
    const addresses = await Promise.all(ranks.map((rank) => rank.address()));
    const port = portOf(addresses[0]);
    await call(port);
    await Promise.all(ranks.map((rank) => rank.connect(addresses)));
    await expect(call(port)).rejects.toMatchObject({ code: 'ECONNREFUSED' });
  });

  it("is found at any reachable one of the host's addresses", async () => {
    const ranks = await startRanks(2);
    const addresses = await Promise.all(ranks.map((rank) => rank.address()));
    const patched = Buffer.from(addresses[0]);
    patched.writeUInt16LE(2, 26);
    patched.copy(patched, 44, 28, 44); // the loopback address, second to
    patched.set([192, 0, 2, 1], 40); // an unassigned address (RFC 5737)
    await Promise.all(ranks.map((rank) => rank.connect([patched, addresses[1]])));
    await checkAllGather(ranks, 3);
  });
});

/** Runs a program in a separate Node process; resolves to its output. */
function runProgram(program: string, ...nodeOptions: string[]) {
  const addon = path.resolve(__dirname, '../../build/Release/uniproc.node');
  const prelude = `
    const addon = require(${JSON.stringify(addon)});
    const files = () => require('node:fs').readdirSync('/proc/self/fd').length;
    const threads = () => require('node:fs').readdirSync('/proc/self/task').length;
    const sleep = require('node:timers/promises').setTimeout;
    async function start(rank, worldSize) {
      const device = new addon.DeviceThread('cpu', 0, 1);
      await device.open();
      const options = { rank, worldSize, timeout: 3600000, customAllReduce: false };
      return { device, communicator: new addon.Communicator(device, options) };
    }
    async function group(worldSize) {
      const ranks = await Promise.all(Array.from({ length: worldSize }, (_, i) => start(i, worldSize)));
      const addresses = await Promise.all(ranks.map(({ communicator }) => communicator.address()));
      await Promise.all(ranks.map(({ communicator }) => communicator.connect(addresses)));
      return ranks;
    }`;
  const { status, signal, stdout, stderr } = spawnSync(
    process.execPath,
    [...nodeOptions, '-e', `${prelude}\n(async () => {${program}})();`],
    { encoding: 'utf8', timeout: 240_000 },
  );
  return { status, signal, stdout: stdout.trim(), stderr };
}

describe('the process', () => {
  it('has no socket, file or thread left of groups that were shut down', () => {
    const { stdout, stderr } = runProgram(`
      const before = [files(), threads()];
      for (let i = 0; i < 20; i++) {
        const ranks = await group(3);
        await Promise.all(ranks.map(({ communicator }) => communicator.barrier()));
        if (i % 2 === 0) await Promise.all(ranks.map(({ communicator }) => communicator.shutdown()));
        await Promise.all(ranks.map(({ device }) => device.shutdown()));
      }
      console.log(files() - before[0], threads() - before[1]);`);
    expect({ stdout, stderr }).toEqual({ stdout: '0 0', stderr: '' });
  });

  it('has none left of groups that failed or never connected', () => {
    const { stdout, stderr } = runProgram(`
      const before = [files(), threads()];
      for (let i = 0; i < 20; i++) {
        const [first, second] = await (i % 2 === 0 ? group(2) : Promise.all([start(0, 2), start(1, 2)]));
        const addresses = i % 2 === 0 ? [] : [await first.communicator.address(), await second.communicator.address()];
        const waiting = i % 2 === 0 ? first.communicator.barrier() : first.communicator.connect(addresses);
        first.communicator.abort('enough');
        await waiting.catch(() => {});
        await Promise.all([first.device.shutdown(), second.device.shutdown()]);
      }
      console.log(files() - before[0], threads() - before[1]);`);
    expect({ stdout, stderr }).toEqual({ stdout: '0 0', stderr: '' });
  });

  it('has none left of communicators dropped without shutdown', () => {
    const { stdout } = runProgram(
      `const device = new addon.DeviceThread('cpu', 0, 1);
      await device.open();
      const before = files();
      const options = { rank: 0, worldSize: 2, timeout: 3600000, customAllReduce: false };
      for (let i = 0; i < 20; i++) await new addon.Communicator(device, options).address();
      const most = files();
      while (files() > before) {
        gc();
        await sleep(10);
      }
      console.log(most > before, files() - before);
      await device.shutdown();`,
      '--expose-gc',
    );
    expect(stdout).toBe('true 0');
  });

  it('exits by itself with a group that was not shut down', () => {
    const { status, stdout } = runProgram(`await group(2); console.log('connected');`);
    expect({ status, stdout }).toEqual({ status: 0, stdout: 'connected' });
  });

  it('can terminate a worker that waits for a peer, and the peer fails', () => {
    const worker = `
      const { parentPort } = require('node:worker_threads');
      const addon = require(ADDON);
      const device = new addon.DeviceThread('cpu', 0, 1);
      const options = { rank: 1, worldSize: 2, timeout: 3600000, customAllReduce: false };
      let communicator;
      parentPort.on('message', async (addresses) => {
        await communicator.connect(addresses);
        communicator.barrier();
        parentPort.postMessage('waits');
      });
      device.open().then(async () => {
        communicator = new addon.Communicator(device, options);
        parentPort.postMessage(await communicator.address());
      });`;
    const { status, signal, stdout, stderr } = runProgram(`
      const { once } = require('node:events');
      const { Worker } = require('node:worker_threads');
      const addonFile = Object.keys(require.cache).find((file) => file.endsWith('uniproc.node'));
      const program = ${JSON.stringify(worker)}.replace('ADDON', JSON.stringify(addonFile));
      for (let i = 0; i < 10; i++) {
        const worker = new Worker(program, { eval: true });
        const [address] = await once(worker, 'message');
        const { device, communicator } = await start(0, 2);
        const addresses = [await communicator.address(), address];
        worker.postMessage(addresses);
        await communicator.connect(addresses);
        await once(worker, 'message');
        await sleep(i);
        await worker.terminate();
        // The worker may have reached the first.
        const barriers = communicator.barrier().then(() => communicator.barrier());
        await barriers.catch(({ code }) => console.log(code));
        await device.shutdown();
      }`);
    expect({ status, signal, stdout, stderr }).toEqual({
      status: 0,
      signal: null,
      stdout: Array(10).fill('PEER_LOST').join('\n'),
      stderr: '',
    });
  });
});
