/**
 * How the ranks of a group find each other (PyTorch's `env://` and `tcp://`): through a TCPStore rank
 * 0 tells the others where it listens, and they come there.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { connect, createServer, type AddressInfo, type Server } from 'node:net';
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
import { TCPStore } from './tcpStore';
import { TCPStoreServer } from './tcpStoreServer';

/** Milliseconds that a connection may take to say who it is, and how many may be about to. */
const HELLO_TIMEOUT = 10_000;
const MAX_STRANGERS = 256;

/** One rank's place in the world. */
export interface RankPlace {
  rank: number;
  worldSize: number;
}

/** Where a group meets. */
export interface MeetingPlace {
  /** The store's. */
  host: string;
  port: number;
  /** Rank 0 serves the store, unless somebody does already; else it is there. */
  hostsStore: boolean;
  /** Of the group's keys in the store. */
  prefix: string;
}

/** RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE. Throws ConfigError that names the variable. */
export function rankFromEnvironment(): RankPlace & { localRank: number; localWorldSize: number } {
  const worldSize = integerVariable('WORLD_SIZE', 1);
  return {
    rank: integerVariable('RANK', 0, worldSize - 1),
    localRank: integerVariable('LOCAL_RANK', 0),
    worldSize,
    // PyTorch does without it, and so may a wrapper.
    localWorldSize: process.env.LOCAL_WORLD_SIZE
      ? integerVariable('LOCAL_WORLD_SIZE', 1, worldSize)
      : worldSize,
  };
}

/**
 * The place that `env://` (MASTER_ADDR, MASTER_PORT) or `tcp://host:port` names. With
 * TORCHELASTIC_USE_AGENT_STORE=True the launcher serves the store at the former. Throws ConfigError.
 */
export function meetingPlace(initMethod: string): MeetingPlace {
  if (initMethod === 'env://') {
    const host = variable('MASTER_ADDR');
    const port = integerVariable('MASTER_PORT', 1, 65535);
    const hostsStore = process.env.TORCHELASTIC_USE_AGENT_STORE !== 'True';
    // The launcher's store outlives ranks that it starts again.
    const runId = process.env.TORCHELASTIC_RUN_ID || 'none';
    const restart = process.env.TORCHELASTIC_RESTART_COUNT || '0';
    return { host, port, hostsStore, prefix: `uniproc/${runId}/${restart}` };
  }
  const [, ipv6, name, digits] = /^tcp:\/\/(?:\[([^\]]+)\]|([^:/]+)):(\d+)$/.exec(initMethod) ?? [];
  const port = Number(digits);
  if (!(port >= 1 && port <= 65535)) {
    throw new ConfigError(
      `the init method ${initMethod} must be env:// or tcp://host:port, the port 1 to 65535`,
    );
  }
  return { host: ipv6 || name, port, hostsStore: true, prefix: 'uniproc/none/0' };
}

/**
 * Until all ranks are there. Gives a connection to each of them on rank 0, and one to rank 0 on the
 * others; rank 0 has yet to tell them that they are READY. Rejects on every rank that can be told
 * with RendezvousError, which names those that are missing or do not agree, or with PeerLostError.
 */
export async function rendezvous(
  place: MeetingPlace,
  { rank, worldSize }: RankPlace,
  timeout: number,
): Promise<Map<number, ControlConnection>> {
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

/** Rank 0's side. */
async function receiveRanks(
  { host, port, hostsStore, prefix }: MeetingPlace,
  worldSize: number,
  timeout: number,
  deadline: number,
): Promise<Map<number, ControlConnection>> {
  // What is told to come to this machine alone is not offered to others.
  const listenOn = isLoopback(host) ? host : undefined;
  await using server = hostsStore ? await serveStore(listenOn, port) : null;
  const storeHost = server !== null && listenOn === undefined ? '127.0.0.1' : host;
  await using store = await connectStore(storeHost, port, timeout, deadline - performance.now());
  await using gate = await Gate.open(listenOn, worldSize);
  const key = `${prefix}/rank0`;
  const there = await store.compareSet(key, '', gate.address);
  if (there.toString() !== gate.address) {
    throw new RendezvousError(
      `another process is rank 0 at ${store.address} already; give each group a port of its own`,
    );
  }
  const outcome = await gate.allRanks(timeout, deadline);
  // Whoever is told the outcome may form another group, and is not to be sent here again.
  await store.deleteKey(key).catch(() => {});
  if (outcome instanceof Map) return outcome;
  gate.refuseAll(outcome);
  throw outcome;
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

/** Where rank 0 lets the other ranks in, and nobody else. */
class Gate {
  /** What ranks are told through the store: the port, and the token that they must know. */
  readonly address: string;
  readonly #server: Server;
  readonly #token = randomBytes(TOKEN_BYTES);
  readonly #worldSize: number;
  readonly #ranks = new Map<number, ControlConnection>();
  readonly #strangers = new Set<ControlConnection>();
  #settle!: (failure: UniprocError | null) => void;
  readonly #settled: Promise<UniprocError | null>;

  private constructor(server: Server, worldSize: number) {
    const { port } = server.address() as AddressInfo;
    this.address = `${port} ${this.#token.toString('hex')}`;
    this.#server = server;
    this.#worldSize = worldSize;
    this.#settled = new Promise((resolve) => (this.#settle = resolve));
    // One that cannot be accepted, for want of file descriptors say, comes again or is missed.
    server.on('error', () => {});
    server.on('connection', (socket) => this.#receive(new ControlConnection(socket)));
  }

  /** On any free port. */
  static open(host: string | undefined, worldSize: number): Promise<Gate> {
    return new Promise((resolve, reject) => {
      const server = createServer({ noDelay: true, keepAlive: true });
      const refused = (cause: NodeJS.ErrnoException) =>
        reject(new RendezvousError(`rank 0 cannot listen: ${cause.message}`, { cause }));
      server.once('error', refused);
      server.listen({ host, port: 0, backlog: 2048 }, () => {
        server.off('error', refused);
        resolve(new Gate(server, worldSize));
      });
    });
  }

  /** Connections by rank, or why there are not all. */
  async allRanks(
    timeout: number,
    deadline: number,
  ): Promise<Map<number, ControlConnection> | UniprocError> {
    const expired = () => this.#settle(notAllThere(this.#missing(), timeout));
    const stopTimer = startTimer(Math.max(deadline - performance.now(), 0), expired);
    const failure = await this.#settled;
    stopTimer();
    return failure ?? this.#ranks;
  }

  refuseAll(error: UniprocError): void {
    for (const connection of this.#ranks.values()) refuse(connection, error);
  }

  /** Nobody else is let in; those who are stay. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
    for (const stranger of this.#strangers) stranger.destroy();
    return Promise.resolve();
  }

  #missing(): number[] {
    return Array.from({ length: this.#worldSize }, (_, rank) => rank).filter(
      (rank) => rank !== 0 && !this.#ranks.has(rank),
    );
  }

  /** Whoever does not say who it is goes, and nobody else is disturbed. */
  #receive(connection: ControlConnection): void {
    this.#strangers.add(connection);
    if (this.#strangers.size > MAX_STRANGERS) {
      const [oldest] = this.#strangers;
      oldest.destroy();
    }
    const stopTimer = startTimer(HELLO_TIMEOUT, () => connection.destroy(), { ref: false });
    connection.receiver = ({ kind, payload }) => {
      stopTimer();
      this.#strangers.delete(connection);
      connection.receiver = null;
      if (kind === Kind.HELLO && this.#isOurs(payload)) this.#admit(connection, payload);
      else connection.destroy();
    };
  }

  #isOurs(hello: Buffer): boolean {
    return (
      hello.length === TOKEN_BYTES + 8 &&
      timingSafeEqual(hello.subarray(0, TOKEN_BYTES), this.#token)
    );
  }

  #admit(connection: ControlConnection, hello: Buffer): void {
    const rank = hello.readUInt32LE(TOKEN_BYTES);
    const worldSize = hello.readUInt32LE(TOKEN_BYTES + 4);
    const wrong =
      worldSize !== this.#worldSize
        ? `rank ${rank} is of ${worldSize} ranks (WORLD_SIZE), but rank 0 of ${this.#worldSize}`
        : rank === 0 || this.#ranks.has(rank)
          ? `two processes are rank ${rank} (RANK)`
          : null;
    if (wrong !== null) {
      const error = new RendezvousError(`${wrong}; the ranks of a group must agree`);
      refuse(connection, error);
      this.#settle(error);
      return;
    }
    connection.trust();
    this.#ranks.set(rank, connection);
    connection.receiver = ({ kind, payload }) => {
      connection.receiver = null;
      const told = kind === Kind.FAIL ? failureOf(payload) : null;
      this.#settle(told ?? new PeerLostError(rank, payload.toString()));
    };
    const missing = this.#missing();
    for (const each of this.#ranks.values()) {
      each.send(Kind.MISSING, Buffer.from(JSON.stringify(missing)));
    }
    if (missing.length > 0) return;
    for (const each of this.#ranks.values()) each.receiver = null;
    this.#settle(null);
  }
}

function refuse(connection: ControlConnection, error: UniprocError): void {
  connection.send(Kind.FAIL, failureToJson(error));
  void connection.close();
}

function notAllThere(missing: readonly number[], timeout: number): RendezvousError {
  const ranks = `rank${missing.length > 1 ? 's' : ''} ${missing.join(', ')}`;
  return new RendezvousError(
    `${ranks} did not come within ${timeout} ms; has each rank been started, with the same ` +
      'MASTER_ADDR and MASTER_PORT, and is none of them still loading?',
  );
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

/** A variable that the launcher sets. Throws ConfigError when it is not there. */
export function variable(name: string): string {
  const value = process.env[name];
  if (value === undefined || value === '') {
    throw new ConfigError(`${name} is not set; start this program with torchrun or set it`);
  }
  return value;
}

/** One that is a whole number. Throws ConfigError for anything else. */
export function integerVariable(
  name: string,
  least: number,
  most = Number.MAX_SAFE_INTEGER,
): number {
  const value = variable(name);
  const number = Number(value);
  if (!/^\d+$/.test(value) || number < least || number > most) {
    const range = most === Number.MAX_SAFE_INTEGER ? `${least} or more` : `${least} to ${most}`;
    throw new ConfigError(`${name} is ${value}; it must be a whole number, ${range}`);
  }
  return number;
}
