/** Malformed frames of an admitted rank fail the group with an error that says so. */
import { connect, createServer, type AddressInfo } from 'node:net';
import { ControlConnection, Kind } from '../../lib/distributed/controlConnection';
import { failureOf } from '../../lib/distributed/failure';
import { ProcessGroup } from '../../lib/distributed/processGroup';
import { Message } from '../../lib/distributed/tcpStoreProtocol';
import { TCPStoreServer } from '../../lib/distributed/tcpStoreServer';
import { PeerLostError, RendezvousError } from '../../lib/errors';
import { freePort } from '../support/freePort';
import { clientOf, closing, HOST } from './support';

const TIMEOUT = 200_000;
const KEY = 'uniproc/none/0/rank0';

let port: number;
let initMethod: string;
beforeEach(async () => {
  port = await freePort();
  initMethod = `tcp://${HOST}:${port}`;
});

const json = (value: unknown) => Buffer.from(JSON.stringify(value));
const named = (name: string) => new Message().string(Buffer.from(name));
const rejection = (promise: Promise<unknown>) =>
  promise.then(
    () => {
      throw new Error('it was fulfilled');
    },
    (error: unknown) => error,
  );

/** Rank 0 of two, with a gather in progress, and a connection admitted as rank 1. */
async function withRankOne() {
  const joining = ProcessGroup.join({ initMethod, rank: 0, worldSize: 2, timeout: TIMEOUT });
  const store = await clientOf({ port });
  const [gate, token] = (await store.get(KEY)).toString().split(' ');
  const other = new ControlConnection(connect({ host: HOST, port: Number(gate) }));
  closing({ close: () => other.close() });
  const hello = new Message().u32(1).u32(2).bytes();
  other.send(Kind.HELLO, Buffer.concat([Buffer.from(token, 'hex'), hello]));
  const group = await joining;
  closing({ close: () => group.leave() });
  return { other, group, gathering: rejection(group.gather('g', Buffer.from('own'))) };
}

describe('rank 0 loses a rank that sends', () => {
  it.each<[string, number, Buffer]>([
    ['a value with a name longer than the frame', Kind.VALUE, new Message().i64(100).bytes()],
    ['a value with a negative length', Kind.VALUE, named('g').i64(TIMEOUT).i64(-1).bytes()],
    ['a value without a name', Kind.VALUE, Buffer.alloc(0)],
    ['a gather with a negative timeout', Kind.VALUE, named('h').i64(-1).value('x').bytes()],
    ['a digest of a step beyond safe integers', Kind.DIGEST, new Message().i64(2n ** 62n).bytes()],
    ['LEFT of a rank outside the world', Kind.LEFT, new Message().i64(2).bytes()],
  ])('%s', async (_, kind, payload) => {
    const { other, group, gathering } = await withRankOne();
    other.send(kind, payload);
    const error = await gathering;
    expect(error).toBeInstanceOf(PeerLostError);
    expect(error).toMatchObject({ rank: 1 });
    expect((error as Error).message).toContain('it sent a malformed message');
    expect(group.failure).toBe(error);
  });
});

describe('a malformed FAIL frame is still a failure', () => {
  it.each([
    ['no JSON', Buffer.from('{')],
    ['null', json(null)],
    ['an object without a code', json({ message: 'x' })],
    ['a code that is not a string', json({ code: 7, message: 'x' })],
    ['an invalid rank', json({ code: 'PEER_LOST', message: 'x', rank: 0.5 })],
    ['invalid ranks', json({ code: 'SCHEDULE_MISMATCH', message: 'x', ranks: null })],
    ['one digest', json({ code: 'SCHEDULE_MISMATCH', message: 'x', digests: ['a'] })],
  ])('%s', (_, payload) => {
    const error = failureOf(payload);
    expect(error).toBeInstanceOf(PeerLostError);
    expect(error.message).toContain('a rank failed, and the message with the reason is malformed');
  });
});

describe('a rank that connects to rank 0', () => {
  /** Serves in place of rank 0 and answers each HELLO with these frames. */
  async function impostor(...frames: [kind: number, payload: Buffer][]): Promise<void> {
    const server = createServer((socket) => {
      const connection = new ControlConnection(socket);
      connection.receiver = ({ kind }) => {
        if (kind !== Kind.HELLO) return;
        for (const [each, payload] of frames) connection.send(each, payload);
        void connection.close();
      };
    });
    await new Promise<void>((resolve) => server.listen(0, HOST, resolve));
    closing({ close: () => new Promise((resolve) => server.close(resolve)) });
    await store(`${(server.address() as AddressInfo).port} ${'0'.repeat(32)}`);
  }

  /** A launcher's store with the given address of rank 0. */
  async function store(address: string): Promise<void> {
    closing(await TCPStoreServer.listen({ host: HOST, port }));
    await (await clientOf({ port })).set(KEY, address);
  }

  const come = () =>
    rejection(ProcessGroup.join({ initMethod, rank: 1, worldSize: 2, timeout: TIMEOUT }));

  it('rejects a port above 65535 with RendezvousError', async () => {
    await store(`70000 ${'0'.repeat(32)}`);
    const error = await come();
    expect(error).toBeInstanceOf(RendezvousError);
    expect((error as Error).message).toContain('70000');
  });

  it('ignores a malformed list of missing ranks, and rejects when the connection closes', async () => {
    await impostor([Kind.MISSING, json({})], [Kind.MISSING, Buffer.from('{')]);
    const error = await come();
    expect(error).toBeInstanceOf(RendezvousError);
    expect((error as Error).message).toContain('rank 0 cannot be reached');
  });

  it('rejects with PeerLostError after a malformed FAIL frame', async () => {
    await impostor([Kind.FAIL, Buffer.from('{')]);
    expect(await come()).toBeInstanceOf(PeerLostError);
  });
});
