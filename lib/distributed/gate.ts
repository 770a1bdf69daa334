/** Where rank 0 lets the other ranks in. */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { createServer, type AddressInfo, type Server } from 'node:net';
import { PeerLostError, RendezvousError, type UniprocError } from '../errors';
import { startTimer } from '../timer';
import { ControlConnection, Kind, TOKEN_BYTES } from './controlConnection';
import { failureOf, failureToJson } from './failure';

/** Milliseconds that a connection may take to say who it is, and how many may be about to. */
const HELLO_TIMEOUT = 10_000;
const MAX_STRANGERS = 256;

/** Lets the other ranks in, and nobody else. */
export class Gate {
  /** What ranks are told through the store: the port, and the token that they must know. */
  readonly address: string;
  /** Some ranks did not come in time. */
  isExpired = false;
  readonly #server: Server;
  readonly #token = randomBytes(TOKEN_BYTES);
  readonly #worldSize: number;
  readonly #ranks = new Map<number, ControlConnection>();
  readonly #strangers = new Set<ControlConnection>();
  /** Why no group will be formed. */
  #refusal: { error: UniprocError; beforeLast: () => Promise<void> } | null = null;
  /** The rank that has said that it cannot start. */
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
    const expired = () => {
      this.isExpired = true;
      this.#settle(notAllThere(this.#missing(), timeout));
    };
    const stopTimer = startTimer(Math.max(deadline - performance.now(), 0), expired);
    const failure = await this.#settled;
    stopTimer();
    return failure ?? this.#ranks;
  }

  /** Whether each other rank is there, but for one that has said that it cannot start. */
  get isComplete(): boolean {
    return this.#missing().every((rank) => rank === this.#failedRank || this.#refused.has(rank));
  }

  /**
   * Tells each rank that is there, and each that comes until `close`, why there will be no group;
   * the last of them once `beforeLast` is done. Resolves when all have been told.
   */
  async refuse(error: UniprocError, beforeLast: () => Promise<void>): Promise<void> {
    this.#refusal = { error, beforeLast };
    if (this.isComplete) await beforeLast();
    for (const [rank, connection] of this.#ranks) this.#tell(rank, connection, error);
    if (!this.isComplete) await new Promise<void>((resolve) => (this.#allRefused = resolve));
  }

  /** One that came after the refusal. */
  async #refuseLate(rank: number, connection: ControlConnection): Promise<void> {
    if (this.#refusal === null) return;
    this.#refused.add(rank);
    const { error, beforeLast } = this.#refusal;
    if (this.isComplete) await beforeLast();
    this.#tell(rank, connection, error);
    if (this.isComplete) this.#allRefused();
  }

  #tell(rank: number, connection: ControlConnection, error: UniprocError): void {
    this.#refused.add(rank);
    refuse(connection, error);
  }

  /** Nobody else is let in; those who are stay. */
  close(): void {
    this.#server.close();
    for (const stranger of this.#strangers) stranger.destroy();
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
    if (this.#refusal !== null) {
      void this.#refuseLate(rank, connection);
      return;
    }
    const wrong =
      worldSize !== this.#worldSize
        ? `rank ${rank} is of ${worldSize} ranks (WORLD_SIZE), but rank 0 of ${this.#worldSize}`
        : rank === 0 || this.#ranks.has(rank)
          ? `two processes are rank ${rank} (RANK)`
          : null;
    if (wrong !== null) {
      const error = new RendezvousError(`${wrong}; the ranks of a group must agree`);
      this.#tell(rank, connection, error);
      this.#settle(error);
      return;
    }
    connection.trust();
    this.#ranks.set(rank, connection);
    connection.receiver = ({ kind, payload }) => {
      connection.receiver = null;
      const told = kind === Kind.FAIL ? failureOf(payload) : null;
      this.#failedRank = rank;
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

export function notAllThere(missing: readonly number[], timeout: number): RendezvousError {
  const ranks = `rank${missing.length > 1 ? 's' : ''} ${missing.join(', ')}`;
  return new RendezvousError(
    `${ranks} did not come within ${timeout} ms; has each rank been started, with the same ` +
      'MASTER_ADDR and MASTER_PORT, and is none of them still loading?',
  );
}
