/**
 * How the ranks of a group find each other (PyTorch's `env://` and `tcp://`): through a TCPStore rank
 * 0 tells the others where it listens, and they come there.
 */
import { connect } from 'node:net';
import {
  ConfigError,
  PeerLostError,
  RendezvousError,
  StoreConnectionError,
  StoreListenError,
  type UniprocError,
} from '../errors';
import { checkTimeout, startTimer } from '../timer';
import { ControlConnection, type Frame, Kind, TOKEN_BYTES } from './controlConnection';
import { failureOf, failureToJson } from './failure';
import { type MeetingPlace, type RankPlace } from './environment';
import { Gate, notAllThere } from './gate';
import { TCPStore } from './tcpStore';
import { TCPStoreServer } from './tcpStoreServer';

export { meetingPlace, rankFromEnvironment } from './environment';
export type { MeetingPlace, RankPlace };

/** Milliseconds for ranks that come late to hear that there will be no group. */
const REFUSAL_TIMEOUT = 10_000;

/**
 * Until all ranks are there. Gives a connection to each of them on rank 0, and one to rank 0 on the
 * others; rank 0 has yet to tell them that they are READY. Rejects on every rank that can be told
 * with RendezvousError, which names those that are missing or do not agree, with PeerLostError, or
 * with the failure that another rank tells (`tellFailedStart`).
 */
export async function rendezvous(
  place: MeetingPlace,
  { rank, worldSize }: RankPlace,
  timeout: number,
): Promise<Map<number, ControlConnection>> {
  numAttempts++;
  checkTimeout(timeout);
  if (!Number.isInteger(worldSize) || !Number.isInteger(rank) || rank < 0 || rank >= worldSize) {
    throw new ConfigError(`rank ${rank} of ${worldSize}: a rank is 0 or more, and below the size`);
  }
  if (worldSize === 1) return new Map();
  const deadline = performance.now() + timeout;
  return rank === 0
    ? receiveRanks(place, worldSize, timeout, deadline)
    : new Map([[0, await comeToRankZero(place, { rank, worldSize }, timeout, deadline)]]);
}

/** How often this process has met others, or tried to, or has told them that it cannot. */
let numAttempts = 0;
export const numRendezvous = () => numAttempts;

/**
 * In place of `rendezvous`, on a rank that cannot start: the others, which wait for it, are told why
 * and reject with that. Resolves when they have been told, or after `timeout` milliseconds.
 */
export async function tellFailure(
  place: MeetingPlace,
  own: RankPlace,
  failure: UniprocError,
  timeout: number,
): Promise<void> {
  numAttempts++;
  const deadline = performance.now() + timeout;
  try {
    if (own.rank > 0) {
      const connection = await comeToRankZero(place, own, timeout, deadline, failure);
      await connection.close();
      return;
    }
    const meeting = await Meeting.open(place, own.worldSize, timeout, deadline);
    await meeting.refuse(failure, timeout);
  } catch {
    // They did not come, or have failed by themselves.
  }
}

/** Rank 0's side. */
async function receiveRanks(
  place: MeetingPlace,
  worldSize: number,
  timeout: number,
  deadline: number,
): Promise<Map<number, ControlConnection>> {
  const meeting = await Meeting.open(place, worldSize, timeout, deadline);
  const outcome = await meeting.gate.allRanks(timeout, deadline);
  if (!(outcome instanceof Map)) {
    // Those that have yet to come are told too, unless the time is up.
    const waits = !meeting.gate.isExpired && !meeting.gate.isComplete;
    const refusing = meeting.refuse(outcome, waits ? REFUSAL_TIMEOUT : 0);
    if (!waits) await refusing;
    throw outcome;
  }
  await meeting.close();
  return outcome;
}

/** What rank 0 opens for the others to find it. */
class Meeting {
  /** Those that refuse who comes. */
  static readonly #refusing = new Set<Meeting>();
  #closing: Promise<void> | null = null;
  #isAnnounced = false;

  private constructor(
    readonly gate: Gate,
    private readonly store: TCPStore,
    private readonly server: TCPStoreServer | null,
    private readonly key: string,
  ) {}

  static async open(
    { host, port, hostsStore, prefix }: MeetingPlace,
    worldSize: number,
    timeout: number,
    deadline: number,
  ): Promise<Meeting> {
    await Promise.all([...Meeting.#refusing].map((meeting) => meeting.close()));
    // What is told to come to this machine alone is not offered to others.
    const listenOn = isLoopback(host) ? host : undefined;
    const server = hostsStore ? await serveStore(listenOn, port) : null;
    let store: TCPStore | null = null;
    let gate: Gate | null = null;
    try {
      const storeHost = server !== null && listenOn === undefined ? '127.0.0.1' : host;
      store = await connectStore(storeHost, port, timeout, deadline - performance.now());
      gate = await Gate.open(listenOn, worldSize);
      const meeting = new Meeting(gate, store, server, `${prefix}/rank0`);
      await meeting.#announce();
      return meeting;
    } catch (error) {
      gate?.close();
      await store?.close();
      await server?.close();
      throw error;
    }
  }

  async #announce(): Promise<void> {
    const there = await this.store.compareSet(this.key, '', this.gate.address);
    if (there.toString() !== this.gate.address) {
      throw new RendezvousError(
        `another process is rank 0 at ${this.store.address} already; give each group a port of its own`,
      );
    }
    this.#isAnnounced = true;
  }

  /** Whoever looks for rank 0 from now on waits for another. */
  async #withdraw(): Promise<void> {
    if (!this.#isAnnounced) return;
    this.#isAnnounced = false;
    await this.store.deleteKey(this.key).catch(() => {});
  }

  /** Tells each rank, those that come within `timeout` too; then it is closed. */
  async refuse(error: UniprocError, timeout: number): Promise<void> {
    Meeting.#refusing.add(this);
    // Whoever is told may form another group, and is not to be sent here again.
    if (timeout === 0) await this.#withdraw();
    const refused = this.gate.refuse(error, () => this.#withdraw());
    let stopTimer = () => {};
    const expired = new Promise<void>((resolve) => (stopTimer = startTimer(timeout, resolve)));
    await Promise.race([refused, expired]);
    stopTimer();
    await this.close();
  }

  close(): Promise<void> {
    return (this.#closing ??= this.#close());
  }

  async #close(): Promise<void> {
    await this.#withdraw();
    this.gate.close();
    await this.store.close();
    await this.server?.close();
    Meeting.#refusing.delete(this);
  }
}

/** Null when somebody serves one there already: a launcher that does not say so. */
async function serveStore(host: string | undefined, port: number): Promise<TCPStoreServer | null> {
  try {
    return await TCPStoreServer.listen({ host, port });
  } catch (error) {
    if (error instanceof StoreListenError && error.reason === 'EADDRINUSE') return null;
    throw error;
  }
}

async function connectStore(
  host: string,
  port: number,
  timeout: number,
  remaining: number,
): Promise<TCPStore> {
  try {
    return await TCPStore.connect({ host, port, timeout: Math.max(remaining, 0) });
  } catch (error) {
    if (!(error instanceof StoreConnectionError)) throw error;
    throw new RendezvousError(
      `rank 0, or the launcher, serves no store within ${timeout} ms: ${error.message}`,
      { cause: error },
    );
  }
}

/** The side of every other rank. */
async function comeToRankZero(
  place: MeetingPlace,
  own: RankPlace,
  timeout: number,
  deadline: number,
  failure: UniprocError | null = null,
): Promise<ControlConnection> {
  const { port, token } = parseAddress(await addressOfRankZero(place, timeout, deadline));
  const socket = connect({ host: place.host, port, noDelay: true, keepAlive: true });
  const connection = new ControlConnection(socket);
  connection.trust();
  const hello = Buffer.alloc(TOKEN_BYTES + 8);
  token.copy(hello);
  hello.writeUInt32LE(own.rank, TOKEN_BYTES);
  hello.writeUInt32LE(own.worldSize, TOKEN_BYTES + 4);
  connection.send(Kind.HELLO, hello);
  if (failure !== null) connection.send(Kind.FAIL, failureToJson(failure));

  let missing: number[] | null = null;
  try {
    await new Promise<void>((resolve, reject) => {
      const expired = () => {
        const error =
          missing === null
            ? unreachable(place.host, port, `no answer within ${timeout} ms`)
            : notAllThere(missing, timeout);
        connection.send(Kind.FAIL, failureToJson(error));
        reject(error);
      };
      const stopTimer = startTimer(Math.max(deadline - performance.now(), 0), expired);
      connection.receiver = ({ kind, payload }: Frame) => {
        if (kind === Kind.MISSING) {
          missing = ranksOf(payload) ?? missing;
          return;
        }
        stopTimer();
        connection.receiver = null;
        if (kind === Kind.READY) resolve();
        else if (kind === Kind.FAIL) reject(failureOf(payload));
        else if (missing === null) reject(unreachable(place.host, port, payload.toString()));
        else reject(new PeerLostError(0, payload.toString()));
      };
    });
    return connection;
  } catch (error) {
    void connection.close();
    throw error;
  }
}

/** Waits for rank 0 to say it; a store that ends before was one that is about to be replaced. */
async function addressOfRankZero(
  { host, port, prefix }: MeetingPlace,
  timeout: number,
  deadline: number,
): Promise<string> {
  for (;;) {
    const store = await connectStore(host, port, timeout, deadline - performance.now());
    try {
      const remaining = Math.max(deadline - performance.now(), 0);
      return (await store.get(`${prefix}/rank0`, remaining)).toString();
    } catch (error) {
      if (performance.now() < deadline && error instanceof StoreConnectionError) continue;
      throw new RendezvousError(
        `rank 0 did not come to the store at ${store.address} within ${timeout} ms; has it been ` +
          'started, and with the same MASTER_ADDR, MASTER_PORT and launcher?',
        { cause: error },
      );
    } finally {
      await store.close();
    }
  }
}

function unreachable(host: string, port: number, reason: string): RendezvousError {
  return new RendezvousError(
    `rank 0 cannot be reached at ${host}:${port} (${reason}); has it ended, and can every machine ` +
      'connect to any port of that host?',
  );
}

/** A list of ranks from JSON; null for anything else. */
function ranksOf(json: Buffer): number[] | null {
  try {
    const ranks = JSON.parse(json.toString()) as unknown;
    return Array.isArray(ranks) && ranks.every((rank) => Number.isInteger(rank)) ? ranks : null;
  } catch {
    return null;
  }
}

function parseAddress(address: string): { port: number; token: Buffer } {
  const [port, token] = address.split(' ');
  if (/^\d{1,5}$/.test(port) && Number(port) < 2 ** 16 && /^[0-9a-f]{32}$/.test(token)) {
    return { port: Number(port), token: Buffer.from(token, 'hex') };
  }
  throw new RendezvousError(`the store has ${address.slice(0, 80)} where rank 0's address belongs`);
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127(\.\d+){3}$/.test(host);
}
