/**
 * Rendezvous of a group's ranks (PyTorch's `env://` and `tcp://`): rank 0 publishes its listening
 * address in a TCPStore, and the other ranks connect to it.
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
import { type RankPlace, type RendezvousEndpoint } from './environment';
import { missingRanksError, RankListener } from './rankListener';
import { TCPStore } from './tcpStore';
import { TCPStoreServer } from './tcpStoreServer';

export { rankFromEnvironment, rendezvousEndpoint } from './environment';
export type { RankPlace, RendezvousEndpoint };

/** Milliseconds during which rank 0 keeps refusing late ranks after a failed rendezvous. */
const REFUSAL_TIMEOUT = 10_000;

/**
 * Resolves when all ranks have connected: on rank 0 with a connection to each other rank, elsewhere
 * with one to rank 0. Rank 0 has yet to send READY. Rejects on every reachable rank with
 * RendezvousError naming the missing or disagreeing ranks, with PeerLostError, or with the start
 * failure that another rank reports (`reportFailure`).
 */
export async function rendezvous(
  endpoint: RendezvousEndpoint,
  { rank, worldSize }: RankPlace,
  timeout: number,
): Promise<Map<number, ControlConnection>> {
  numAttempts++;
  checkTimeout(timeout);
  if (!Number.isInteger(worldSize) || !Number.isInteger(rank) || rank < 0 || rank >= worldSize) {
    throw new ConfigError(
      `rank is ${rank} and world size is ${worldSize}; both must be integers, rank from 0 to below the world size`,
    );
  }
  if (worldSize === 1) return new Map();
  const deadline = performance.now() + timeout;
  return rank === 0
    ? hostRendezvous(endpoint, worldSize, timeout, deadline)
    : new Map([[0, await connectToRankZero(endpoint, { rank, worldSize }, timeout, deadline)]]);
}

/** Calls of `rendezvous` and `reportFailure` in this process. */
let numAttempts = 0;
export const numRendezvous = () => numAttempts;

/**
 * Replaces `rendezvous` on a rank that cannot start: the waiting ranks reject with `failure`.
 * Resolves when they have received it, or after `timeout` milliseconds.
 */
export async function reportFailure(
  endpoint: RendezvousEndpoint,
  own: RankPlace,
  failure: UniprocError,
  timeout: number,
): Promise<void> {
  numAttempts++;
  const deadline = performance.now() + timeout;
  try {
    if (own.rank > 0) {
      const connection = await connectToRankZero(endpoint, own, timeout, deadline, failure);
      await connection.close();
      return;
    }
    const host = await RendezvousHost.open(endpoint, own.worldSize, timeout, deadline);
    await host.refuse(failure, timeout);
  } catch {
    // The other ranks did not connect, or have failed too.
  }
}

/** Rank 0's part of `rendezvous`. */
async function hostRendezvous(
  endpoint: RendezvousEndpoint,
  worldSize: number,
  timeout: number,
  deadline: number,
): Promise<Map<number, ControlConnection>> {
  const host = await RendezvousHost.open(endpoint, worldSize, timeout, deadline);
  const outcome = await host.listener.allRanks(timeout, deadline);
  if (!(outcome instanceof Map)) {
    // Late ranks are refused too, unless the deadline has passed.
    const waits = !host.listener.isExpired && !host.listener.isComplete;
    const refusing = host.refuse(outcome, waits ? REFUSAL_TIMEOUT : 0);
    if (!waits) await refusing;
    throw outcome;
  }
  await host.close();
  return outcome;
}

/** Rank 0's listener and its address in the store. */
class RendezvousHost {
  /** Hosts of failed rendezvous that still refuse late ranks. */
  static readonly #refusing = new Set<RendezvousHost>();
  #closing: Promise<void> | null = null;
  #isPublished = false;

  private constructor(
    readonly listener: RankListener,
    private readonly store: TCPStore,
    private readonly server: TCPStoreServer | null,
    private readonly key: string,
  ) {}

  static async open(
    { host, port, hostsStore, prefix }: RendezvousEndpoint,
    worldSize: number,
    timeout: number,
    deadline: number,
  ): Promise<RendezvousHost> {
    await Promise.all([...RendezvousHost.#refusing].map((other) => other.close()));
    // With a loopback address, listen on it alone.
    const listenOn = isLoopback(host) ? host : undefined;
    const server = hostsStore ? await serveStore(listenOn, port) : null;
    let store: TCPStore | null = null;
    let listener: RankListener | null = null;
    try {
      const storeHost = server !== null && listenOn === undefined ? '127.0.0.1' : host;
      store = await connectStore(storeHost, port, timeout, deadline - performance.now());
      listener = await RankListener.open(listenOn, worldSize);
      const opened = new RendezvousHost(listener, store, server, `${prefix}/rank0`);
      await opened.#publish();
      return opened;
    } catch (error) {
      listener?.close();
      await store?.close();
      await server?.close();
      throw error;
    }
  }

  async #publish(): Promise<void> {
    const published = await this.store.compareSet(this.key, '', this.listener.address);
    if (published.toString() !== this.listener.address) {
      throw new RendezvousError(
        `another process is already rank 0 at ${this.store.address}; give each group its own port`,
      );
    }
    this.#isPublished = true;
  }

  /** Removes the address: ranks that look up rank 0 from now on wait for a new one. */
  async #unpublish(): Promise<void> {
    if (!this.#isPublished) return;
    this.#isPublished = false;
    await this.store.deleteKey(this.key).catch(() => {});
  }

  /** Refuses all ranks, also those that connect within `timeout` milliseconds, then closes. */
  async refuse(error: UniprocError, timeout: number): Promise<void> {
    RendezvousHost.#refusing.add(this);
    // A refused rank may form another group and must not find this address again.
    if (timeout === 0) await this.#unpublish();
    const refused = this.listener.refuse(error, () => this.#unpublish());
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
    await this.#unpublish();
    this.listener.close();
    await this.store.close();
    await this.server?.close();
    RendezvousHost.#refusing.delete(this);
  }
}

/** Null when the port is in use: by the store of a launcher that does not announce it. */
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
      `no store was served by rank 0 or the launcher within ${timeout} ms: ${error.message}`,
      { cause: error },
    );
  }
}

/** The other ranks' part of `rendezvous`; with `failure`, reports it to rank 0. */
async function connectToRankZero(
  endpoint: RendezvousEndpoint,
  own: RankPlace,
  timeout: number,
  deadline: number,
  failure: UniprocError | null = null,
): Promise<ControlConnection> {
  const { port, token } = parseAddress(await lookUpRankZero(endpoint, timeout, deadline));
  const socket = connect({ host: endpoint.host, port, noDelay: true, keepAlive: true });
  const connection = new ControlConnection(socket);
  connection.acceptLongFrames();
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
            ? unreachable(endpoint.host, port, `no answer within ${timeout} ms`)
            : missingRanksError(missing, timeout);
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
        else if (missing === null) reject(unreachable(endpoint.host, port, payload.toString()));
        else reject(new PeerLostError(0, payload.toString()));
      };
    });
    return connection;
  } catch (error) {
    void connection.close();
    throw error;
  }
}

/** Waits until rank 0 has published its address; reconnects if the store closes before. */
async function lookUpRankZero(
  { host, port, prefix }: RendezvousEndpoint,
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
        `rank 0 did not join at the store ${store.address} within ${timeout} ms; check that it was ` +
          'started with the same MASTER_ADDR, MASTER_PORT and launcher',
        { cause: error },
      );
    } finally {
      await store.close();
    }
  }
}

function unreachable(host: string, port: number, reason: string): RendezvousError {
  return new RendezvousError(
    `rank 0 cannot be reached at ${host}:${port} (${reason}); check that it is still running and ` +
      'that every machine can connect to any port of that host',
  );
}

/** Parses a JSON list of ranks; null for anything else. */
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
  throw new RendezvousError(`rank 0's address in the store is malformed: ${address.slice(0, 80)}`);
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127(\.\d+){3}$/.test(host);
}
