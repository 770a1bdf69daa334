/** A group of ranks as in torch.distributed: gathers, failure detection and leaving. */
import {
  InvalidStateError,
  PeerLostError,
  ScheduleMismatchError,
  ShutdownError,
  type UniprocError,
} from '../errors';
import { aliasField } from '../deprecation';
import { codeOf, log } from '../log';
import { checkTimeout, MAX_TIMER, startTimer } from '../timer';
import { type ControlConnection, Fields, type Frame, Kind } from './controlConnection';
import { failureOf, failureToJson } from './failure';
import {
  type RankPlace,
  rendezvous,
  type RendezvousEndpoint,
  rendezvousEndpoint,
} from './rendezvous';
import { Message } from './tcpStoreProtocol';

/** Heartbeats within a timeout, and the maximum milliseconds between two heartbeats. */
const HEARTBEATS_PER_TIMEOUT = 8;
const MAX_HEARTBEAT_INTERVAL = 5000;

/** Steps by which the fastest rank may be ahead of the slowest in `verify`. */
const MAX_STEPS_AHEAD = 1024;

export interface JoinOptions extends RankPlace {
  /** `env://` (MASTER_ADDR and MASTER_PORT) or `tcp://host:port`. */
  initMethod: string;
  /** Milliseconds for all ranks to join or to enter a gather, and to detect a silent rank. */
  timeout: number;
}

/** A gather in progress; rank 0 also tracks gathers that only other ranks have entered. */
interface Gather {
  readonly values: (Uint8Array | undefined)[];
  /** Null until this rank has entered. */
  caller: { resolve: (values: Uint8Array[]) => void; reject: (error: Error) => void } | null;
  readonly stopTimer: () => void;
}

/** A step that some ranks have verified, in that order, and others have not. */
interface Step {
  readonly ranks: Set<number>;
  readonly digest: Buffer;
}

/**
 * The ranks of a world and their connections.
 *
 * Each rank has a connection to rank 0, which relays messages. The group fails on every rank when a
 * connection closes without a LEAVE frame, when a rank is silent for most of `timeoutMs`, calls
 * `abort`, misses a gather's timeout or has a different schedule. After rank 0 has left, a failure of
 * one of the others is not reported to the rest.
 *
 * The group keeps the process alive only during `gather` and `leave`.
 */
export class ProcessGroup {
  readonly rank: number;
  readonly worldSize: number;
  readonly timeoutMs: number;
  /** @deprecated Use `timeoutMs`. */
  declare readonly timeout: number;
  /** Connections by rank: to all others on rank 0, to rank 0 elsewhere; without ranks that left. */
  readonly #peers: Map<number, ControlConnection>;
  readonly #gathers = new Map<string, Gather>();
  readonly #steps = new Map<number, Step>();
  #callbacks: ((error: UniprocError) => void)[] = [];
  #failure: UniprocError | null = null;
  #leaveCallbacks: ((rank: number, progress: number) => void)[] = [];
  /** The first rank that left. */
  #firstLeaver: { rank: number; progress: number } | null = null;
  #leaving: Promise<void> | null = null;
  readonly #closings: Promise<void>[] = [];
  #stopHeartbeat = () => {};

  private constructor(
    { rank, worldSize }: RankPlace,
    timeout: number,
    peers: Map<number, ControlConnection>,
  ) {
    this.rank = rank;
    this.worldSize = worldSize;
    this.timeoutMs = timeout;
    aliasField(this, 'timeout', 'timeoutMs');
    this.#peers = peers;
    for (const [peer, connection] of peers) {
      if (rank === 0) connection.send(Kind.READY);
      connection.lastReceivedAt = performance.now();
      connection.setRef(false);
      connection.receiver = (frame) => this.#receive(peer, frame);
    }
    if (peers.size > 0) this.#startHeartbeat();
  }

  /**
   * Resolves when every rank has joined. Rejects with ConfigError for an invalid variable or option,
   * with RendezvousError naming the ranks that did not join in time or disagree, and with
   * PeerLostError when a rank joined and died. A world of one opens no connection.
   * @internal
   */
  static async join({ initMethod, timeout, ...own }: JoinOptions): Promise<ProcessGroup> {
    return ProcessGroup.joinAt(rendezvousEndpoint(initMethod), own, timeout);
  }

  /**
   * As `join`, at a given endpoint; also used by the launchers of several nodes.
   * @internal
   */
  static async joinAt(
    endpoint: RendezvousEndpoint,
    { rank, worldSize }: RankPlace,
    timeout: number,
  ): Promise<ProcessGroup> {
    log('rank %d of %d: joins at %s, port %d', rank, worldSize, endpoint.host, endpoint.port);
    const peers = await rendezvous(endpoint, { rank, worldSize }, timeout);
    log('rank %d of %d: all have joined', rank, worldSize);
    return new ProcessGroup({ rank, worldSize }, timeout, peers);
  }

  /** The error that the group failed with, or null. */
  get failure(): UniprocError | null {
    return this.#failure;
  }

  /**
   * Gathers every rank's value, at most 8 MiB, by rank. All ranks must call it with the same name;
   * calls with different names may overlap. Rejects with the group's failure (PeerLostError when a
   * rank does not enter within `timeoutMs` of the first one), with PeerLostError when a rank has left,
   * with ShutdownError after `leave`, and with StoreRequestError for a longer value.
   */
  async gather(name: string, value: Uint8Array, timeoutMs = this.timeoutMs): Promise<Uint8Array[]> {
    if (this.#leaving !== null) throw new ShutdownError('this process has left the group');
    if (this.#failure !== null) throw this.#failure;
    if (this.#firstLeaver !== null) throw leftError(this.#firstLeaver.rank);
    if (this.#gathers.get(name)?.caller) {
      throw new InvalidStateError(`a gather named ${name} is already in progress`);
    }
    checkTimeout(timeoutMs);
    const milliseconds = Math.min(Math.ceil(timeoutMs), MAX_TIMER);
    const own = new Message().string(Buffer.from(name)).i64(milliseconds).value(value).bytes();
    const gathering = new Promise<Uint8Array[]>((resolve, reject) => {
      this.#gather(name, timeoutMs).caller = { resolve, reject };
    });
    for (const connection of this.#peers.values()) connection.setRef(true);
    if (this.rank === 0) this.#contribute(0, new Fields(own));
    else this.#peers.get(0)?.send(Kind.VALUE, own);
    return gathering;
  }

  /**
   * Compares the digest of a step's schedule between ranks, without waiting; the caller numbers the
   * steps, each once. A difference fails the group on every rank, with ScheduleMismatchError.
   */
  verify(step: number, digest: Uint8Array): void {
    if (this.#failure !== null || this.#leaving !== null || this.worldSize === 1) return;
    const bytes = Buffer.from(digest);
    if (this.rank === 0) this.#compare(0, step, bytes);
    else this.#peers.get(0)?.send(Kind.DIGEST, new Message().i64(step).string(bytes).bytes());
  }

  /** Calls back once when the group fails, immediately if it has failed; not after `leave`. */
  onFailure(callback: (error: UniprocError) => void): void {
    if (this.#failure !== null) callback(this.#failure);
    else if (this.#leaving === null) this.#callbacks.push(callback);
  }

  /**
   * Calls back when another rank leaves, with the progress that it passed to `leave`; immediately,
   * for the first that left, if one has. Not after `leave`.
   */
  onLeave(callback: (rank: number, progress: number) => void): void {
    if (this.#firstLeaver !== null) callback(this.#firstLeaver.rank, this.#firstLeaver.progress);
    else if (this.#leaving === null) this.#leaveCallbacks.push(callback);
  }

  /**
   * Fails the group on every rank, because this one cannot continue. `cause` becomes the cause of the
   * other ranks' PeerLostError.
   */
  abort(reason: string, cause?: unknown): void {
    this.#fail(new PeerLostError(this.rank, reason, { cause }));
  }

  /**
   * Sends a LEAVE frame, so that the others do not treat the close as a failure, and closes all
   * connections. Idempotent; allowed after a failure. `progress` is an application-defined number for
   * the other ranks' `onLeave`.
   */
  leave(progress = 0): Promise<void> {
    return (this.#leaving ??= this.#leave(progress));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.leave();
  }

  async #leave(progress: number): Promise<void> {
    log('rank %d of %d: leaves', this.rank, this.worldSize);
    this.#callbacks = [];
    this.#leaveCallbacks = [];
    this.#rejectGathers(new ShutdownError('this process has left the group'));
    for (const [peer, connection] of this.#peers) {
      connection.send(Kind.LEAVE, new Message().i64(progress).bytes());
      this.#close(peer, connection);
    }
    this.#stopHeartbeat();
    await Promise.all(this.#closings);
  }

  /** Handles a peer's frame; a malformed one fails the group. */
  #receive(peer: number, frame: Frame): void {
    if (!this.#peers.has(peer)) return;
    try {
      this.#read(peer, frame);
    } catch (error) {
      const reason = `it sent a malformed message: ${(error as Error).message}`;
      this.#fail(new PeerLostError(peer, reason, { cause: error }));
    }
  }

  #read(peer: number, { kind, payload }: Frame): void {
    const fields = new Fields(payload);
    switch (kind) {
      case Kind.VALUE:
        this.#contribute(peer, fields);
        return;
      case Kind.VALUES: {
        const name = fields.string().toString();
        this.#complete(
          name,
          Array.from({ length: this.worldSize }, () => fields.string()),
        );
        return;
      }
      case Kind.DIGEST:
        this.#compare(peer, fields.i64(), fields.string());
        return;
      case Kind.FAIL:
        this.#fail(failureOf(payload));
        return;
      case Kind.LEAVE:
        this.#peerLeft(peer, fields.i64());
        return;
      case Kind.LEFT:
        this.#rankLeft(fields.rank(this.worldSize), fields.i64());
        return;
      case Kind.END:
        this.#fail(new PeerLostError(peer, payload.toString()));
        return;
    }
  }

  #gather(name: string, timeout: number): Gather {
    const known = this.#gathers.get(name);
    if (known !== undefined) return known;
    const values = new Array<Uint8Array | undefined>(this.worldSize).fill(undefined);
    // Rank 0 alone times out: it knows which ranks are missing and detects their failures first.
    const expired = () => {
      const missing = values.findIndex((value) => value === undefined);
      const reason = `it did not enter the gather named ${name} within ${timeout} ms`;
      this.#fail(new PeerLostError(missing, reason));
    };
    const stopTimer = this.rank === 0 ? startTimer(timeout, expired, { ref: false }) : () => {};
    const gather: Gather = { values, caller: null, stopTimer };
    this.#gathers.set(name, gather);
    return gather;
  }

  /** On rank 0: records a rank's value and completes the gather when it was the last. */
  #contribute(rank: number, fields: Fields): void {
    // Sent before the rank learned that another had left: this gather cannot complete.
    if (this.#firstLeaver !== null) return;
    const name = fields.string().toString();
    const { values } = this.#gather(name, fields.i64());
    values[rank] = fields.string();
    if (values.includes(undefined)) return;
    const all = values as Buffer[];
    const message = new Message().string(Buffer.from(name));
    for (const each of all) message.string(each);
    for (const connection of this.#peers.values()) connection.send(Kind.VALUES, message.bytes());
    this.#complete(name, all);
  }

  #complete(name: string, values: Uint8Array[]): void {
    const gather = this.#gathers.get(name);
    this.#gathers.delete(name);
    gather?.stopTimer();
    gather?.caller?.resolve(values);
    this.#unrefConnections();
  }

  #rejectGathers(error: Error): void {
    for (const { caller, stopTimer } of this.#gathers.values()) {
      stopTimer();
      caller?.reject(error);
    }
    this.#gathers.clear();
    this.#unrefConnections();
  }

  #unrefConnections(): void {
    if ([...this.#gathers.values()].some(({ caller }) => caller !== null)) return;
    for (const connection of this.#peers.values()) connection.setRef(false);
  }

  /** On rank 0: compares a rank's digest with that of the first rank. */
  #compare(rank: number, number: number, digest: Buffer): void {
    const step = this.#steps.get(number) ?? { ranks: new Set(), digest };
    const [first = rank] = step.ranks;
    if (!step.digest.equals(digest)) {
      this.#fail(mismatch(number, [first, step.digest], [rank, digest]));
      return;
    }
    this.#steps.set(number, step);
    step.ranks.add(rank);
    if (step.ranks.size === this.worldSize) this.#steps.delete(number);
    if (this.#steps.size <= MAX_STEPS_AHEAD) return;
    const [[oldest, { ranks, digest: known }]] = this.#steps;
    const behind = Array.from({ length: this.worldSize }).findIndex((_, each) => !ranks.has(each));
    const [ahead] = ranks;
    this.#fail(mismatch(oldest, [ahead, known], [behind, null]));
  }

  /** Handles a LEAVE frame; rank 0 relays it. */
  #peerLeft(peer: number, progress: number): void {
    const connection = this.#peers.get(peer);
    if (connection !== undefined) this.#close(peer, connection);
    this.#rankLeft(peer, progress);
    const leaver = new Message().i64(peer).i64(progress).bytes();
    for (const other of this.#peers.values()) other.send(Kind.LEFT, leaver);
    if (this.#peers.size === 0) this.#stopHeartbeat();
  }

  #rankLeft(rank: number, progress: number): void {
    log('rank %d of %d: rank %d has left', this.rank, this.worldSize, rank);
    this.#firstLeaver ??= { rank, progress };
    this.#rejectGathers(leftError(rank));
    for (const callback of this.#leaveCallbacks) queueMicrotask(() => callback(rank, progress));
  }

  #fail(error: UniprocError): void {
    if (this.#failure !== null || this.#leaving !== null) return;
    this.#failure = error;
    log('rank %d of %d: the group fails: %s', this.rank, this.worldSize, codeOf(error));
    const json = failureToJson(error);
    for (const [peer, connection] of this.#peers) {
      connection.send(Kind.FAIL, json);
      this.#close(peer, connection);
    }
    this.#stopHeartbeat();
    this.#rejectGathers(error);
    for (const callback of this.#callbacks.splice(0)) queueMicrotask(() => callback(error));
  }

  #close(peer: number, connection: ControlConnection): void {
    this.#peers.delete(peer);
    this.#closings.push(connection.close());
  }

  /** Sends heartbeats and fails the group when a peer has been silent too long. */
  #startHeartbeat(): void {
    const interval = Math.min(this.timeoutMs / HEARTBEATS_PER_TIMEOUT, MAX_HEARTBEAT_INTERVAL);
    let last = performance.now();
    const beat = () => {
      const now = performance.now();
      for (const [peer, connection] of this.#peers) {
        connection.send(Kind.HEARTBEAT);
        // After this process was suspended, data that arrived meanwhile has not been read yet.
        if (now - last > 2 * interval) connection.lastReceivedAt = now;
        if (now - connection.lastReceivedAt <= this.timeoutMs - 2 * interval) continue;
        const silence = Math.round(now - connection.lastReceivedAt);
        this.#fail(new PeerLostError(peer, `it sent no heartbeat for ${silence} ms`));
        return;
      }
      last = now;
      this.#stopHeartbeat = startTimer(interval, beat, { ref: false });
    };
    this.#stopHeartbeat = startTimer(interval, beat, { ref: false });
  }
}

function mismatch(
  step: number,
  [first, digest]: [number, Buffer],
  [second, other]: [number, Buffer | null],
): ScheduleMismatchError {
  const digests = [digest.toString('hex'), other?.toString('hex') ?? null] as const;
  return new ScheduleMismatchError(step, [first, second], digests);
}

function leftError(rank: number): PeerLostError {
  return new PeerLostError(rank, 'it has left the group');
}
