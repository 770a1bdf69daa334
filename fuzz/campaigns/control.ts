/** Frames between ranks: the group works or fails with a typed error. */
import { setImmediate } from 'node:timers/promises';
import { ControlConnection, Kind } from '../../lib/distributed/controlConnection';
import { failureToJson } from '../../lib/distributed/failure';
import { ProcessGroup } from '../../lib/distributed/processGroup';
import { Message } from '../../lib/distributed/tcpStoreProtocol';
import {
  PeerLostError,
  RendezvousError,
  ScheduleMismatchError,
  UniprocError,
} from '../../lib/errors';
import { type BytesTarget, type Campaign, expect } from '../campaign';
import { fakeSocket, inPieces } from './fakeSocket';

/** Milliseconds; long enough that no case reaches it. */
const TIMEOUT = 600_000;
/** Event loop turns after which all effects have occurred. */
const TURNS = 20;

type GroupConstructor = new (
  place: { rank: number; worldSize: number },
  timeout: number,
  peers: Map<number, ControlConnection>,
) => ProcessGroup;

function checkError(error: unknown): void {
  expect(error instanceof UniprocError, () => `an untyped error: ${String(error)}`);
  expect(typeof error.code === 'string' && error.code !== '', 'its code is no text');
  expect(typeof error.message === 'string', 'its message is no text');
  if (error instanceof PeerLostError) {
    const isRank = error.rank === null || Number.isSafeInteger(error.rank);
    expect(isRank, `the rank that was lost is ${String(error.rank)}`);
    expect(typeof error.reason === 'string', 'its reason is no text');
  }
  if (error instanceof ScheduleMismatchError) {
    expect(Number.isSafeInteger(error.step), `its step is ${String(error.step)}`);
    expect(
      Array.from(error.ranks).length === 2 &&
        error.ranks.every((rank) => Number.isSafeInteger(rank)),
      () => `its ranks are ${String(error.ranks)}`,
    );
    expect(
      Array.from(error.digests).length === 2 &&
        error.digests.every((d) => d === null || typeof d === 'string'),
      'its digests are no text',
    );
  }
}

/** Frames in a stream, by the lengths in it. */
function numFrames(stream: Buffer): number {
  let count = 0;
  for (let at = 0; at + 9 <= stream.length; count++) {
    const end = BigInt(at + 9) + stream.readBigUInt64LE(at + 1);
    if (end > BigInt(stream.length)) break;
    at = Number(end);
  }
  return count;
}

const frame = (kind: number, payload: Buffer = Buffer.alloc(0)) =>
  new Message().u8(kind).string(payload).bytes();
const named = (name: string) => new Message().string(Buffer.from(name));
const value = (name: string, text: string) =>
  frame(Kind.VALUE, named(name).i64(TIMEOUT).value(text).bytes());
const digest = (step: number, text: string) =>
  frame(Kind.DIGEST, new Message().i64(step).value(text).bytes());

/** The chunk pattern, the reading rank (0 of 3, or 1 of 2), and its input. */
const stream = (rank: number, ...frames: Buffer[]) =>
  Buffer.concat([Buffer.of(0, rank), ...frames]);

const FAILURES = [
  new PeerLostError(1, 'it died'),
  new PeerLostError(null, 'the group was aborted'),
  new ScheduleMismatchError(7, [0, 1], ['ab', null]),
  new RendezvousError('too late'),
  new UniprocError('DEVICE_FAILED', 'no more'),
].map((error) => frame(Kind.FAIL, failureToJson(error)));

const SEEDS = [
  stream(0, frame(Kind.HEARTBEAT), value('g', 'one'), frame(Kind.HEARTBEAT)),
  stream(0, value('other', 'two'), value('g', 'one')),
  stream(0, digest(1, 'abc'), digest(2, 'd')),
  stream(0, digest(1, 'same')),
  stream(0, frame(Kind.LEAVE, new Message().i64(3).bytes())),
  stream(0, frame(Kind.HELLO, Buffer.alloc(24)), frame(Kind.MISSING, Buffer.from('[1]'))),
  stream(1, frame(Kind.VALUES, named('g').value('a').value('b').bytes())),
  stream(1, frame(Kind.LEAVE, new Message().i64(0).bytes())),
  stream(1, frame(Kind.LEFT, new Message().i64(0).i64(3).bytes())),
  stream(1, frame(Kind.READY), frame(Kind.HEARTBEAT)),
  ...FAILURES.flatMap((failure) => [stream(0, failure), stream(1, failure)]),
];

async function checkStream(bytes: Buffer): Promise<void> {
  const rank = bytes[1] % 2;
  const worldSize = rank === 0 ? 3 : 2;
  const sockets = new Map(
    [rank === 0 ? 1 : 0, ...(rank === 0 ? [2] : [])].map((peer) => [peer, fakeSocket()]),
  );
  const connections = new Map(
    [...sockets].map(([peer, { socket }]) => {
      const connection = new ControlConnection(socket);
      connection.acceptLongFrames();
      return [peer, connection];
    }),
  );
  const speaker = [...sockets.values()][0].fake;
  const send = async (pieces: Buffer[]) => {
    for (const piece of pieces) {
      speaker.receive(Buffer.from(piece));
      if (bytes[0] % 8 >= 4) await Promise.resolve();
    }
  };
  const pieces = inPieces(bytes.subarray(2), bytes[0]);
  // Frames that arrive before the group takes the connection over are queued.
  const numEarly = bytes[1] % 4 >= 2 ? pieces.length : 0;
  await send(pieces.slice(0, numEarly));
  if (numEarly > 0) await setImmediate();

  const Group = ProcessGroup as unknown as GroupConstructor;
  const group = new Group({ rank, worldSize }, TIMEOUT, connections);
  const reported: UniprocError[] = [];
  group.onFailure((error) => reported.push(error));
  const gather = { isSettled: false };
  const gathered = group.gather('g', Buffer.from('own')).then(
    (values) => {
      gather.isSettled = true;
      expect(values.length === worldSize, `${values.length} values of ${worldSize} ranks`);
      for (const each of values) expect(each instanceof Uint8Array, 'a value that is no bytes');
    },
    (error: unknown) => {
      gather.isSettled = true;
      checkError(error);
    },
  );
  group.verify(1, Buffer.from('same'));
  await send(pieces.slice(numEarly));
  speaker.close();
  for (let turn = 0; turn < TURNS && !gather.isSettled; turn++) await setImmediate();
  expect(gather.isSettled, 'a gather is still pending after a rank failed');
  await gathered;
  if (group.failure !== null) {
    checkError(group.failure);
    await Promise.resolve();
    expect(reported[0] === group.failure, 'a failure without its callback');
  }
  await group.leave();
}

export const control: Campaign = {
  name: 'control',
  about: 'frames between ranks in any pieces: every gather ends, with values or a typed error',
  open() {
    const counts = { frames: 0 };
    const target: BytesTarget = {
      kind: 'bytes',
      counts,
      seeds: SEEDS,
      prefix: 2,
      words: [
        ...SEEDS.map((seed) => seed.subarray(2)),
        ...Object.values(Kind).map((kind) => Buffer.of(kind)),
        named('g').bytes(),
        new Message().i64(-1).bytes(),
        new Message().i64(1).bytes(),
        new Message().i64(2n ** 62n).bytes(),
        'PEER_LOST', 'SCHEDULE_MISMATCH', 'RENDEZVOUS', '"code"', '"rank"', '"reason"', '"step"',
        '"ranks"', '"digests"', '"message"', 'null', '{}', '[]', '1e999', '"a"',
      ], // prettier-ignore
      async check(bytes) {
        if (bytes.length < 2) return;
        counts.frames += numFrames(bytes.subarray(2));
        await checkStream(bytes);
      },
    };
    return Promise.resolve(target);
  },
};
