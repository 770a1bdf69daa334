/** Groups of ranks in this process, over real sockets; groupOfProcesses.test.ts has real processes. */
import { randomBytes } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { ProcessGroup } from '../../lib/distributed/processGroup';
import { TCPStore } from '../../lib/distributed/tcpStore';
import { TCPStoreServer } from '../../lib/distributed/tcpStoreServer';
import {
  ConfigError,
  InvalidStateError,
  PeerLostError,
  RendezvousError,
  ScheduleMismatchError,
  ShutdownError,
  StoreRequestError,
} from '../../lib/errors';
import { freePort } from '../support/freePort';
import * as timers from '../../lib/timer';
import { clientOf, closing, eventually, HOST } from './support';

const TIMEOUT = 200_000;

let port: number;
beforeEach(async () => (port = await freePort()));

const groups: ProcessGroup[] = [];
afterEach(async () => {
  await Promise.all(groups.splice(0).map((group) => group.leave()));
});

async function join(
  rank: number,
  worldSize: number,
  { timeout = TIMEOUT, initMethod = `tcp://${HOST}:${port}` } = {},
): Promise<ProcessGroup> {
  const group = await ProcessGroup.join({ initMethod, rank, worldSize, timeout });
  groups.push(group);
  return group;
}

/** Joins all ranks of a world. */
function world(worldSize: number, options: Parameters<typeof join>[2] = {}) {
  return Promise.all(
    Array.from({ length: worldSize }, (_, rank) => join(rank, worldSize, options)),
  );
}

const errorOf = (promise: Promise<unknown>) =>
  promise.then(
    () => {
      throw new Error('it was fulfilled');
    },
    (error: unknown) => error as Error,
  );

/** Resolves with the error that a group fails with. */
const failureOf = (group: ProcessGroup) =>
  new Promise<Error>((resolve) => group.onFailure(resolve));

const bytes = (text: string) => Buffer.from(text);
const texts = (values: Uint8Array[]) => values.map((value) => Buffer.from(value).toString());
const openFiles = () => readdirSync('/proc/self/fd').length;

/** Runs with these environment variables; undefined unsets one. */
async function withEnvironment<T>(env: NodeJS.ProcessEnv, run: () => Promise<T>): Promise<T> {
  const before = process.env;
  process.env = { ...before };
  for (const [name, value] of Object.entries(env)) {
    if (value === undefined) Reflect.deleteProperty(process.env, name);
    else process.env[name] = value;
  }
  try {
    return await run();
  } finally {
    process.env = before;
  }
}

describe('gather', () => {
  it.each([1, 2, 4])('returns every value by rank on each of %i ranks', async (worldSize) => {
    const ranks = await world(worldSize);
    const all = await Promise.all(ranks.map((group) => group.gather('x', bytes(`${group.rank}`))));
    for (const values of all) {
      expect(texts(values)).toEqual(Array.from({ length: worldSize }, (_, rank) => `${rank}`));
    }
    expect(ranks.map(({ rank }) => rank)).toEqual([...ranks.keys()]);
    expect(ranks.every((group) => group.worldSize === worldSize)).toBe(true);
  });

  it('waits for the last rank', async () => {
    const [first, second, third] = await world(3);
    let done = 0;
    const gathering = [third, second].map(async (group) => {
      await group.gather('x', bytes(''));
      done++;
    });
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(done).toBe(0);
    await first.gather('x', bytes(''));
    await Promise.all(gathering);
  });

  it('transfers every byte value, no bytes, and 8 MiB', async () => {
    const ranks = await world(3);
    const long = randomBytes(8 * 2 ** 20);
    const values = [long, Buffer.alloc(0), Buffer.from([0, 255, 10])];
    for (const all of await Promise.all(ranks.map((group, i) => group.gather('x', values[i])))) {
      expect(all.map((value, i) => values[i].equals(value))).toEqual([true, true, true]);
    }
    const error = await errorOf(ranks[0].gather('x', Buffer.alloc(8 * 2 ** 20 + 1)));
    expect(error).toBeInstanceOf(StoreRequestError);
  });

  it('separates gathers by name in any order, and repeated gathers of one name', async () => {
    const [first, second] = await world(2);
    const mixed = [
      first.gather('a', bytes('a0')),
      first.gather('b', bytes('b0')),
      second.gather('b', bytes('b1')),
      second.gather('a', bytes('a1')),
    ];
    expect((await Promise.all(mixed)).map(texts)).toEqual([
      ['a0', 'a1'],
      ['b0', 'b1'],
      ['b0', 'b1'],
      ['a0', 'a1'],
    ]);
    const again = [first.gather('a', bytes('x')), second.gather('a', bytes('y'))];
    expect((await Promise.all(again)).map(texts)).toEqual([
      ['x', 'y'],
      ['x', 'y'],
    ]);
  });

  it('rejects a second gather under a name in progress', async () => {
    const [first, second] = await world(2);
    const gathering = first.gather('x', bytes(''));
    expect(await errorOf(first.gather('x', bytes('')))).toBeInstanceOf(InvalidStateError);
    await second.gather('x', bytes(''));
    await gathering;
  });

  it.each([0, 1])(
    'times out on every rank, naming rank %i, which did not enter',
    async (absent) => {
      const ranks = await world(3);
      const failures = ranks.map(failureOf);
      const calls = ranks
        .filter(({ rank }) => rank !== absent)
        .map((group) => errorOf(group.gather('x', bytes(''), 100)));
      for (const error of await Promise.all([...calls, ...failures])) {
        expect(error).toBeInstanceOf(PeerLostError);
        expect(error).toMatchObject({ rank: absent });
        expect(error.message).toContain('did not enter the gather named x within 100 ms');
      }
    },
  );
});

describe('leave', () => {
  it('does not fail the group, and frees every connection', async () => {
    const before = openFiles();
    const ranks = await world(4);
    const failed: unknown[] = [];
    for (const group of ranks) group.onFailure((error) => failed.push(error));
    for (const rank of [2, 0, 3, 1]) {
      await ranks[rank].leave();
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    expect(failed).toEqual([]);
    expect(ranks.map(({ failure }) => failure)).toEqual([null, null, null, null]);
    await eventually(() => expect(openFiles()).toBeLessThanOrEqual(before));
  });

  it('is idempotent, and allowed after a failure', async () => {
    const before = openFiles();
    const [first, second] = await world(2);
    const failing = failureOf(second);
    first.abort('of a test');
    await failing;
    await Promise.all([first.leave(), first.leave(), second.leave()]);
    await first.leave();
    await eventually(() => expect(openFiles()).toBeLessThanOrEqual(before));
  });

  it('rejects pending and later calls of this rank', async () => {
    const [first] = await world(2);
    const gathering = errorOf(first.gather('x', bytes('')));
    await first.leave();
    expect(await gathering).toBeInstanceOf(ShutdownError);
    expect(await errorOf(first.gather('y', bytes('')))).toBeInstanceOf(ShutdownError);
  });

  it.each([0, 1])('of rank %i rejects pending and later gathers of the others', async (leaver) => {
    const ranks = await world(3);
    const rest = ranks.filter(({ rank }) => rank !== leaver);
    const waiting = rest.map((group) => errorOf(group.gather('x', bytes(''))));
    await ranks[leaver].leave();
    const later = waiting.map(async (first, i) => {
      await first;
      return errorOf(rest[i].gather('y', bytes('')));
    });
    for (const error of await Promise.all([...waiting, ...later])) {
      expect(error).toBeInstanceOf(PeerLostError);
      expect(error).toMatchObject({ rank: leaver, reason: 'it has left the group' });
    }
  });

  it('does not fail a rank that began a gather before the LEAVE frame arrived', async () => {
    const [first, second, third] = await world(3);
    const leaving = second.leave();
    const error = await errorOf(third.gather('x', bytes(''), 4000));
    expect(error).toMatchObject({ rank: 1, reason: 'it has left the group' });
    await leaving;
    await new Promise((resolve) => setTimeout(resolve, 4500));
    expect([first.failure, third.failure]).toEqual([null, null]);
  });

  it('does not overtake a completed gather', async () => {
    for (let round = 0; round < 20; round++) {
      const ranks = await world(3, { initMethod: `tcp://${HOST}:${await freePort()}` });
      const all = ranks.map(async (group) => {
        const values = await group.gather('x', randomBytes(100_000));
        await group.leave();
        return values.length;
      });
      expect(await Promise.all(all)).toEqual([3, 3, 3]);
    }
  });
});

describe('a failure', () => {
  it.each([0, 1])(
    'of rank %i is reported to every rank once, with its reason',
    async (aborting) => {
      const ranks = await world(3);
      const told: Error[][] = ranks.map((group) => {
        const errors: Error[] = [];
        group.onFailure((error) => errors.push(error));
        return errors;
      });
      ranks[aborting].abort('out of memory');
      ranks[aborting].abort('again');
      await eventually(() => expect(told.map(({ length }) => length)).toEqual([1, 1, 1]));
      for (const [error] of told) {
        expect(error).toBeInstanceOf(PeerLostError);
        expect(error).toMatchObject({ rank: aborting, reason: 'out of memory' });
      }
    },
  );

  it('is reported immediately to a later callback, and rejects every call', async () => {
    const [first, second] = await world(2);
    const gathering = errorOf(second.gather('x', bytes('')));
    first.abort('of a test');
    const error = await gathering;
    expect(error).toMatchObject({ code: 'PEER_LOST', rank: 0 });
    expect(second.failure).toBe(error);
    let told: unknown = null;
    second.onFailure((failure) => (told = failure));
    expect(told).toBe(error);
    expect(await errorOf(second.gather('y', bytes('')))).toBe(error);
  });

  it('is not reported to a rank that has left', async () => {
    const [first, second] = await world(2);
    let told = false;
    first.onFailure(() => (told = true));
    await first.leave();
    second.abort('of a test');
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(told).toBe(false);
  });
});

describe('verify', () => {
  it('accepts equal digests in any order', async () => {
    const ranks = await world(3);
    for (let step = 0; step < 3000; step++) {
      for (const group of ranks) group.verify(step, bytes(`of ${step}`));
      if (step % 100 === 99)
        await Promise.all(ranks.map((group) => group.gather(`${step}`, bytes(''))));
    }
    expect(ranks.map(({ failure }) => failure)).toEqual([null, null, null]);
  });

  it('fails every rank with the step, both ranks and both digests', async () => {
    const ranks = await world(3);
    const failures = Promise.all(ranks.map(failureOf));
    for (const group of ranks) group.verify(1, bytes('same'));
    for (const group of ranks) group.verify(7, Buffer.of(group.rank === 2 ? 0xab : 0xcd));
    for (const error of await failures) {
      if (!(error instanceof ScheduleMismatchError)) throw error;
      const { step, ranks: differing, digests } = error;
      expect(step).toBe(7);
      const byRank = new Map(differing.map((rank, i) => [rank, digests[i]]));
      expect(byRank.size).toBe(2);
      for (const [rank, digest] of byRank) expect(digest).toBe(rank === 2 ? 'ab' : 'cd');
      expect(byRank.has(2)).toBe(true);
      expect(error.message).toMatch(
        /schedules of step 7 differ: rank \d has \w\w, rank \d has \w\w;/,
      );
    }
  });

  it('fails a rank that never verifies', async () => {
    const ranks = await world(3);
    const failures = Promise.all(ranks.map(failureOf));
    for (let step = 0; step < 1025; step++) {
      ranks[0].verify(step, bytes('x'));
      ranks[2].verify(step, bytes('x'));
    }
    for (const error of await failures) {
      expect(error).toBeInstanceOf(ScheduleMismatchError);
      expect(error).toMatchObject({ step: 0 });
      expect(error.message).toContain('rank 1 has none');
    }
  });

  it('does nothing in a world of one', async () => {
    const [group] = await world(1);
    for (let step = 0; step < 3000; step++) group.verify(step, bytes('x'));
    expect(group.failure).toBeNull();
  });
});

it('a rank that leaves sends its progress to the others', async () => {
  const [zero, one, two] = await world(3);
  const heard = [zero, two].map(
    (group) => new Promise((resolve) => group.onLeave((...left) => resolve(left))),
  );
  await one.leave(7);
  expect(await Promise.all(heard)).toEqual([
    [1, 7],
    [1, 7],
  ]);
  const late = await new Promise((resolve) => zero.onLeave((...left) => resolve(left)));
  expect(late).toEqual([1, 7]);
});

describe('join', () => {
  it('opens no connection for a world of one', async () => {
    const before = openFiles();
    const [group] = await world(1);
    expect(openFiles()).toBeLessThanOrEqual(before);
    expect(texts(await group.gather('x', bytes('own')))).toEqual(['own']);
  });

  it('names the missing ranks on each rank that joined', async () => {
    const before = openFiles();
    const start = performance.now();
    const joining = [0, 1, 3].map((rank) => errorOf(join(rank, 5, { timeout: 5000 })));
    for (const error of await Promise.all(joining)) {
      expect(error).toBeInstanceOf(RendezvousError);
      expect(error.message).toContain('ranks 2, 4 did not join within 5000 ms');
    }
    expect(performance.now() - start).toBeLessThan(100_000);
    await eventually(() => expect(openFiles()).toBeLessThanOrEqual(before));
  });

  it('names rank 0 when it is missing', async () => {
    const error = await errorOf(join(1, 2, { timeout: 200 }));
    expect(error).toBeInstanceOf(RendezvousError);
    expect(error.message).toContain('no store was served by rank 0 or the launcher within 200 ms');
  });

  it('fails every rank when world sizes differ', async () => {
    const joining = [join(0, 3), join(1, 3), join(2, 4)].map(errorOf);
    for (const error of await Promise.all(joining)) {
      expect(error).toBeInstanceOf(RendezvousError);
      expect(error.message).toContain('rank 2 has WORLD_SIZE 4, but rank 0 has 3');
    }
  });

  it('fails every rank when two processes have the same rank', async () => {
    const joining = [join(0, 3), join(1, 3), join(1, 3)].map(errorOf);
    for (const error of await Promise.all(joining)) {
      expect(error).toBeInstanceOf(RendezvousError);
      expect(error.message).toContain('two processes have RANK 1');
    }
  });

  it('refuses a second rank 0', async () => {
    const first = join(0, 2);
    first.catch(() => {});
    await clientOf({ port });
    const error = await errorOf(join(0, 2));
    expect(error).toBeInstanceOf(RendezvousError);
    expect(error.message).toContain('another process is already rank 0');
    await join(1, 2);
    await first;
  });

  it('frees its port for the next group', async () => {
    for (let round = 0; round < 3; round++) {
      const ranks = await world(2);
      await closing(await TCPStoreServer.listen({ host: HOST, port })).close();
      await Promise.all(ranks.map((group) => group.leave()));
    }
  });

  it('lets a rank join the next group before another has left the previous one', async () => {
    const [first, second] = await world(2);
    await second.leave();
    const joining = join(1, 2);
    await new Promise((resolve) => setTimeout(resolve, 50));
    await first.leave();
    const again = [await join(0, 2), await joining];
    const values = await Promise.all(again.map((group) => group.gather('x', bytes('new'))));
    expect(values.map(texts)).toEqual([
      ['new', 'new'],
      ['new', 'new'],
    ]);
  });

  it('reconnects to the next store when the current one closes', async () => {
    const last = await TCPStoreServer.listen({ host: HOST, port });
    const joining = join(1, 2);
    await eventually(() => expect(last.usage().numAwaited).toBe(1));
    await last.close();
    await Promise.all([join(0, 2), joining]);
  });

  it.each<[string, { rank?: number; worldSize?: number; initMethod?: string; timeout?: number }]>([
    ['rank is 2 and world size is 2', { rank: 2 }],
    ['rank is -1', { rank: -1 }],
    ['rank is 0.5', { rank: 0.5 }],
    ['the init method is file:///x', { initMethod: 'file:///x' }],
    ['the init method is tcp://host', { initMethod: 'tcp://host' }],
    ['the init method is tcp://host:70000', { initMethod: 'tcp://host:70000' }],
    ['the init method is tcp://a:b:1', { initMethod: 'tcp://a:b:1' }],
    ['timeoutMs is -1', { timeout: -1 }],
  ])('rejects when %s', async (message, { rank = 0, worldSize = 2, ...options }) => {
    const error = await errorOf(join(rank, worldSize, options));
    expect(error).toBeInstanceOf(ConfigError);
    expect(error.message).toContain(message);
  });

  it('accepts an IPv6 address', async () => {
    const ranks = await world(2, { initMethod: `tcp://[::1]:${port}` });
    await Promise.all(ranks.map((group) => group.gather('x', bytes(''))));
  });
});

describe('env://', () => {
  const join2 = (rank: number, timeout = TIMEOUT) =>
    join(rank, 2, { initMethod: 'env://', timeout });
  const variables = (more: NodeJS.ProcessEnv = {}) => ({
    MASTER_ADDR: HOST,
    MASTER_PORT: String(port),
    TORCHELASTIC_USE_AGENT_STORE: undefined,
    TORCHELASTIC_RUN_ID: undefined,
    TORCHELASTIC_RESTART_COUNT: undefined,
    ...more,
  });

  it.each<[string, string | undefined, string]>([
    ['MASTER_ADDR', undefined, 'MASTER_ADDR is not set'],
    ['MASTER_PORT', '', 'MASTER_PORT is not set'],
    ['MASTER_PORT', '0', 'MASTER_PORT is 0; it must be an integer from 1 to 65535'],
  ])('names %s when it is %p', async (name, value, message) => {
    const joining = withEnvironment(variables({ [name]: value }), () => errorOf(join2(0)));
    expect(await joining).toBeInstanceOf(ConfigError);
    expect((await joining).message).toContain(message);
  });

  it('makes rank 0 serve the store', async () => {
    await withEnvironment(variables(), async () => {
      const ranks = await Promise.all([join2(0), join2(1)]);
      expect(ranks).toHaveLength(2);
    });
  });

  it("uses the launcher's announced store, and leaves no key in it", async () => {
    const agent = closing(await TCPStoreServer.listen({ host: HOST, port }));
    const store = await clientOf(agent);
    await store.set('theirs', 'value');
    await withEnvironment(variables({ TORCHELASTIC_USE_AGENT_STORE: 'True' }), async () => {
      for (let round = 0; round < 3; round++) {
        const ranks = await Promise.all([join2(1), join2(0)]);
        await Promise.all(ranks.map((group) => group.gather('x', bytes(''))));
        await Promise.all(ranks.map((group) => group.leave()));
      }
    });
    expect(await store.numKeys()).toBe(1);
  });

  it('serves no store when the launcher announced one', async () => {
    const env = variables({ TORCHELASTIC_USE_AGENT_STORE: 'True' });
    const error = await withEnvironment(env, () => errorOf(join2(0, 200)));
    expect(error).toBeInstanceOf(RendezvousError);
    expect(error.message).toContain('no store was served by rank 0 or the launcher within 200 ms');
  });

  it('uses an unannounced store that already holds the port', async () => {
    closing(await TCPStoreServer.listen({ host: HOST, port }));
    await withEnvironment(variables(), () => Promise.all([join2(0), join2(1)]));
  });

  it.each(['TORCHELASTIC_RESTART_COUNT', 'TORCHELASTIC_RUN_ID'])(
    'keeps ranks with a different %s apart',
    async (name) => {
      closing(await TCPStoreServer.listen({ host: HOST, port }));
      const env = variables({ TORCHELASTIC_USE_AGENT_STORE: 'True' });
      const stale = withEnvironment({ ...env, [name]: '0' }, () => errorOf(join2(0, 1000)));
      const other = withEnvironment({ ...env, [name]: '1' }, () => errorOf(join2(1, 1000)));
      expect((await stale).message).toContain('rank 1 did not join');
      expect((await other).message).toContain('rank 0 did not join');
    },
  );

  it('ignores the key that a killed rank left in the store', async () => {
    closing(await TCPStoreServer.listen({ host: HOST, port }));
    const store = await TCPStore.connect({ host: HOST, port });
    await store.set('uniproc/none/0/rank0', `${await freePort()} ${'0'.repeat(32)}`);
    await store.close();
    await withEnvironment(variables({ TORCHELASTIC_USE_AGENT_STORE: 'True' }), async () => {
      const error = await errorOf(join2(1));
      expect(error).toBeInstanceOf(RendezvousError);
      expect(error.message).toContain('rank 0 cannot be reached');
    });
    await withEnvironment(
      variables({ TORCHELASTIC_USE_AGENT_STORE: 'True', TORCHELASTIC_RESTART_COUNT: '1' }),
      () => Promise.all([join2(0), join2(1)]),
    );
  });
});

describe("rank 0's listener", () => {
  /** Rank 0 of two, waiting, and its port. */
  async function waiting(): Promise<{ port: number; first: Promise<ProcessGroup> }> {
    const first = join(0, 2);
    first.catch(() => {});
    const store = await clientOf({ port });
    const [listenerPort] = (await store.get('uniproc/none/0/rank0')).toString().split(' ');
    return { port: Number(listenerPort), first };
  }

  const unidentified: Socket[] = [];
  afterEach(() => {
    jest.restoreAllMocks();
    for (const socket of unidentified.splice(0)) socket.destroy();
  });
  function connectTo(listenerPort: number, message?: Uint8Array): Socket {
    const socket = connect({ host: HOST, port: listenerPort });
    unidentified.push(socket);
    socket.on('error', () => {});
    if (message) socket.write(message);
    return socket;
  }

  it.each<[string, Uint8Array | undefined]>([
    ['nothing', undefined],
    ['random bytes', randomBytes(100_000)],
    ['a length without an end', Buffer.from('01ffffffffffffff7f', 'hex')],
    ['a truncated HELLO', Buffer.from('011800000000000000aabb', 'hex')],
    [
      'a HELLO with a wrong token',
      Buffer.concat([
        Buffer.from('011800000000000000', 'hex'),
        randomBytes(16),
        Buffer.from('0100000002000000', 'hex'),
      ]),
    ],
    ['a failure', Buffer.from('0802000000000000007b7d', 'hex')],
    ['a request to a web server', Buffer.from('GET / HTTP/1.1\r\n\r\n')],
  ])('ignores a connection that sends %s', async (_, message) => {
    const { port: listenerPort, first } = await waiting();
    for (let i = 0; i < 20; i++) connectTo(listenerPort, message);
    await new Promise((resolve) => setTimeout(resolve, 50));
    const ranks = [await join(1, 2), await first];
    const values = await Promise.all(ranks.map((group) => group.gather('x', bytes('x'))));
    expect(values.map(texts)).toEqual([
      ['x', 'x'],
      ['x', 'x'],
    ]);
  });

  it('bounds the connections without HELLO, and closes them when all ranks have joined', async () => {
    // A silent connection is closed after 10 s; here it is closed because all ranks joined.
    const startTimer = timers.startTimer;
    const patient = jest.spyOn(timers, 'startTimer');
    patient.mockImplementation((timeout, ...rest) =>
      startTimer(timeout === 10_000 ? Infinity : timeout, ...rest),
    );
    const { port: listenerPort, first } = await waiting();
    const before = openFiles();
    for (let i = 0; i < 400; i++) connectTo(listenerPort);
    // Each has two ends here; 256 are kept.
    await eventually(() => expect(unidentified.filter(({ closed }) => closed)).toHaveLength(144));
    await eventually(() => expect(openFiles() - before).toBe(512));
    expect(patient.mock.calls.some(([timeout]) => timeout === 10_000)).toBe(true);
    const ranks = [await join(1, 2), await first];
    await eventually(() => expect(unidentified.every(({ closed }) => closed)).toBe(true));
    expect(ranks.map(({ failure }) => failure)).toEqual([null, null]);
    const late = connectTo(listenerPort);
    await eventually(() => expect(late.closed).toBe(true));
  });
});
