/** Rank 0's listening socket, which accepts the other ranks' connections. */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { createServer, type AddressInfo, type Server } from 'node:net';
import { PeerLostError, RendezvousError, type UniprocError } from '../errors';
import { startTimer } from '../timer';
import { ControlConnection, Kind, TOKEN_BYTES } from './controlConnection';
import { failureOf, failureToJson } from './failure';

/** Milliseconds that a connection may take to send HELLO. */
const HELLO_TIMEOUT = 10_000;
/** Connections that may be waiting to send HELLO. */
const MAX_PENDING = 256;

/** Accepts connections that present the group's token and rejects all others. */
export class RankListener {
  /** Published in the store: the port, and the token that a HELLO must carry. */
  readonly address: string;
  /** The deadline passed before all ranks had connected. */
  isExpired = false;
  readonly #server: Server;
  readonly #token = randomBytes(TOKEN_BYTES);
  readonly #worldSize: number;
  readonly #ranks = new Map<number, ControlConnection>();
  /** Connections that have not sent HELLO yet. */
  readonly #pending = new Set<ControlConnection>();
  /** Why no group will form. */
  #refusal: { error: UniprocError; beforeLast: () => Promise<void> } | null = null;
  /** The rank that reported that it cannot start. */
  #failedRank: number | null = null;
  readonly #refused = new Set<number>();
  #allRefused = () => {};
  #settle!: (failure: UniprocError | null) => void;
  readonly #settled: Promise<UniprocError | null>;

  private constructor(server: Server, worldSize: number) {
    const { port } = server.address() as AddressInfo;
    this.address = `${port} ${this.#token.toString('hex')}`;
    this.#server = server;
    this.#worldSize = worldSize;
    this.#settled = new Promise((resolve) => (this.#settle = resolve));
    // A connection that cannot be accepted (no file descriptors, say) is retried or reported missing.
    server.on('error', () => {});
    server.on('connection', (socket) => this.#receive(new ControlConnection(socket)));
  }

  /** Listens on any free port. */
  static open(host: string | undefined, worldSize: number): Promise<RankListener> {
    return new Promise((resolve, reject) => {
      const server = createServer({ noDelay: true, keepAlive: true });
      const refused = (cause: NodeJS.ErrnoException) =>
        reject(new RendezvousError(`rank 0 cannot listen: ${cause.message}`, { cause }));
      server.once('error', refused);
      server.listen({ host, port: 0, backlog: 2048 }, () => {
        server.off('error', refused);
        resolve(new RankListener(server, worldSize));
      });
    });
  }

  /** Connections by rank, or why some ranks are missing. */
  async allRanks(
    timeout: number,
    deadline: number,
  ): Promise<Map<number, ControlConnection> | UniprocError> {
    const expired = () => {
      this.isExpired = true;
      this.#settle(missingRanksError(this.#missing(), timeout));
    };
    const stopTimer = startTimer(Math.max(deadline - performance.now(), 0), expired);
    const failure = await this.#settled;
    stopTimer();
    return failure ?? this.#ranks;
  }

  /** Whether every other rank has connected, was refused or reported that it cannot start. */
  get isComplete(): boolean {
    return this.#missing().every((rank) => rank === this.#failedRank || this.#refused.has(rank));
  }

  /**
   * Sends `error` to each connected rank, and to each that connects before `close`; to the last one
   * after `beforeLast` has resolved. Resolves when all ranks have been refused.
   */
  async refuse(error: UniprocError, beforeLast: () => Promise<void>): Promise<void> {
    this.#refusal = { error, beforeLast };
    if (this.isComplete) await beforeLast();
    for (const [rank, connection] of this.#ranks) this.#refuseRank(rank, connection, error);
    if (!this.isComplete) await new Promise<void>((resolve) => (this.#allRefused = resolve));
  }

  /** Refuses a rank that connects after `refuse` was called. */
  async #refuseLate(rank: number, connection: ControlConnection): Promise<void> {
    if (this.#refusal === null) return;
    this.#refused.add(rank);
    const { error, beforeLast } = this.#refusal;
    if (this.isComplete) await beforeLast();
    this.#refuseRank(rank, connection, error);
    if (this.isComplete) this.#allRefused();
  }

  #refuseRank(rank: number, connection: ControlConnection, error: UniprocError): void {
    this.#refused.add(rank);
    refuse(connection, error);
  }

  /** Accepts no further connections; accepted ones stay open. */
  close(): void {
    this.#server.close();
    for (const connection of this.#pending) connection.destroy();
  }

  #missing(): number[] {
    return Array.from({ length: this.#worldSize }, (_, rank) => rank).filter(
      (rank) => rank !== 0 && !this.#ranks.has(rank),
    );
  }

  /** Destroys a connection that sends no valid HELLO in time; others are unaffected. */
  #receive(connection: ControlConnection): void {
    this.#pending.add(connection);
    if (this.#pending.size > MAX_PENDING) {
      const [oldest] = this.#pending;
      oldest.destroy();
    }
    const stopTimer = startTimer(HELLO_TIMEOUT, () => connection.destroy(), { ref: false });
    connection.receiver = ({ kind, payload }) => {
      stopTimer();
      this.#pending.delete(connection);
      connection.receiver = null;
      if (kind === Kind.HELLO && this.#hasToken(payload)) this.#admit(connection, payload);
      else connection.destroy();
    };
  }

  #hasToken(hello: Buffer): boolean {
    return (
      hello.length === TOKEN_BYTES + 8 &&
      timingSafeEqual(hello.subarray(0, TOKEN_BYTES), this.#token)
    );
  }

  #admit(connection: ControlConnection, hello: Buffer): void {
    const rank = hello.readUInt32LE(TOKEN_BYTES);
    const worldSize = hello.readUInt32LE(TOKEN_BYTES + 4);
    if (this.#refusal !== null) {
      void this.#refuseLate(rank, connection);
      return;
    }
    const wrong =
      worldSize !== this.#worldSize
        ? `rank ${rank} has WORLD_SIZE ${worldSize}, but rank 0 has ${this.#worldSize}`
        : rank === 0 || this.#ranks.has(rank)
          ? `two processes have RANK ${rank}`
          : null;
    if (wrong !== null) {
      const error = new RendezvousError(
        `${wrong}; give all processes the same WORLD_SIZE and each its own RANK`,
      );
      this.#refuseRank(rank, connection, error);
      this.#settle(error);
      return;
    }
    connection.acceptLongFrames();
    this.#ranks.set(rank, connection);
    connection.receiver = ({ kind, payload }) => {
      connection.receiver = null;
      const reported = kind === Kind.FAIL ? failureOf(payload) : null;
      this.#failedRank = rank;
      this.#settle(reported ?? new PeerLostError(rank, payload.toString()));
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

export function missingRanksError(missing: readonly number[], timeout: number): RendezvousError {
  const ranks = `rank${missing.length > 1 ? 's' : ''} ${missing.join(', ')}`;
  return new RendezvousError(
    `${ranks} did not join within ${timeout} ms; check that each rank was started with the same ` +
      'MASTER_ADDR and MASTER_PORT and is not still loading',
  );
}
