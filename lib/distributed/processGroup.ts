/** The ranks of a world, as torch.distributed has them: who is there, and who is gone. */
import {
  InvalidStateError,
  PeerLostError,
  ScheduleMismatchError,
  ShutdownError,
  type UniprocError,
} from '../errors';
import { codeOf, log } from '../log';
import { checkTimeout, MAX_TIMER, startTimer } from '../timer';
import { type ControlConnection, Fields, type Frame, Kind } from './controlConnection';
import { failureOf, failureToJson } from './failure';
import { type MeetingPlace, meetingPlace, type RankPlace, rendezvous } from './rendezvous';
import { Message } from './tcpStoreProtocol';

/** Signs of life within a timeout, and the most milliseconds between two of them. */
const HEARTBEATS = 8;
const MAX_HEARTBEAT_INTERVAL = 5000;

/** Steps that a rank may be ahead of another in what they `verify`. */
const MAX_STEPS_AHEAD = 1024;

export interface JoinOptions extends RankPlace {
  /** `env://` (MASTER_ADDR and MASTER_PORT) or `tcp://host:port`. */
  initMethod: string;
  /** Milliseconds: for all ranks to come, to a gather too, and for a rank's silence to be noticed. */
  timeout: number;
}

/** A gather under way: on rank 0 also one that this rank has not come to yet. */
interface Gather {
  readonly values: (Uint8Array | undefined)[];
  /** Null until this rank has come. */
  caller: { resolve: (values: Uint8Array[]) => void; reject: (error: Error) => void } | null;
  readonly stopTimer: () => void;
}

/** A step that some ranks have verified, the first of them first, and some have not. */
interface Step {
  readonly ranks: Set<number>;
  readonly digest: Buffer;
}

/**
 * The ranks of a world and the connections by which each notices when another is gone.
 *
 * Each rank has a connection to rank 0, which passes on what all need to know. A connection that
 * ends without a goodbye is a death, and so is silence for most of `timeout`; the group then fails
 * on every rank, as it does when a rank calls `abort`, does not come to a gather in time, or has
 * another schedule. Once rank 0 has left, the deaths of others are noticed by whoever needs them.
 *
 * The group does not keep a process from ending, unless it waits in a `gather` or `leave`.
 */
export class ProcessGroup {
  readonly rank: number;
  readonly worldSize: number;
  /** Milliseconds. */
  readonly timeout: number;
  /** By rank: all others on rank 0, rank 0 on the others; those that have left are not there. */
  readonly #peers: Map<number, ControlConnection>;
  readonly #gathers = new Map<string, Gather>();
  readonly #steps = new Map<number, Step>();
  #callbacks: ((error: UniprocError) => void)[] = [];
  #failure: UniprocError | null = null;
  #leaveCallbacks: ((rank: number, progress: number) => void)[] = [];
  /** The first that said goodbye. */
  #leaver: { rank: number; progress: number } | null = null;
  #leaving: Promise<void> | null = null;
  readonly #endings: Promise<void>[] = [];
  #stopHeartbeat = () => {};

  private constructor(
    { rank, worldSize }: RankPlace,
    timeout: number,
    peers: Map<number, ControlConnection>,
  ) {
    this.rank = rank;
    this.worldSize = worldSize;
    this.timeout = timeout;
    this.#peers = peers;
    for (const [peer, connection] of peers) {
      if (rank === 0) connection.send(Kind.READY);
      connection.heardAt = performance.now();
      connection.keepProcess(false);
      connection.receiver = (frame) => this.#receive(peer, frame);
    }
    if (peers.size > 0) this.#startHeartbeat();
  }

  /**
   * Until every rank of the world has joined. Rejects with ConfigError for a variable or an option
   * that cannot be, with RendezvousError that says which ranks did not come in time or do not
   * agree, and with PeerLostError when one has come and died. A world of one opens no connection.
   */
  static async join({ initMethod, timeout, ...place }: JoinOptions): Promise<ProcessGroup> {
    return ProcessGroup.meet(meetingPlace(initMethod), place, timeout);
  }

  /** As `join`, where others than a model's ranks meet: the launchers of several nodes. */
  static async meet(
    place: MeetingPlace,
    { rank, worldSize }: RankPlace,
    timeout: number,
  ): Promise<ProcessGroup> {
    log('rank %d of %d: joins at %s, port %d', rank, worldSize, place.host, place.port);
    const peers = await rendezvous(place, { rank, worldSize }, timeout);
    log('rank %d of %d: all have joined', rank, worldSize);
    return new ProcessGroup({ rank, worldSize }, timeout, peers);
  }

  /** Why the group has failed; null while it has not. */
  get failure(): UniprocError | null {
    return this.#failure;
  }

  /**
   * Every rank's value, at most 8 MiB, by rank. All must call it with the same name; calls with
   * different names may overlap. Rejects with what the group failed with (PeerLostError when a rank
   * does not come within the `timeout` of the one that came first), with PeerLostError when a rank
   * has left, with ShutdownError after `leave`, and with StoreRequestError for a value too long.
   */
  async gather(name: string, value: Uint8Array, timeout = this.timeout): Promise<Uint8Array[]> {
    if (this.#leaving !== null) throw new ShutdownError('this process has left the group');
    if (this.#failure !== null) throw this.#failure;
    if (this.#leaver !== null) throw hasLeft(this.#leaver.rank);
    if (this.#gathers.get(name)?.caller) {
      throw new InvalidStateError(`a gather of ${name} is under way already`);
    }
    checkTimeout(timeout);
    const milliseconds = Math.min(Math.ceil(timeout), MAX_TIMER);
    const own = new Message().string(Buffer.from(name)).i64(milliseconds).value(value).bytes();
    const gathering = new Promise<Uint8Array[]>((resolve, reject) => {
      this.#gather(name, timeout).caller = { resolve, reject };
    });
    for (const connection of this.#peers.values()) connection.keepProcess(true);
    if (this.rank === 0) this.#contribute(0, new Fields(own));
    else this.#peers.get(0)?.send(Kind.VALUE, own);
    return gathering;
  }

  /**
   * Compares the digest of a step's schedule between ranks, without waiting; steps are numbered by
   * the caller, each once. When two ranks differ the group fails on every rank, with
   * ScheduleMismatchError.
   */
  verify(step: number, digest: Uint8Array): void {
    if (this.#failure !== null || this.#leaving !== null || this.worldSize === 1) return;
    const bytes = Buffer.from(digest);
    if (this.rank === 0) this.#compare(0, step, bytes);
    else this.#peers.get(0)?.send(Kind.DIGEST, new Message().i64(step).string(bytes).bytes());
  }

  /** Calls back once, when the group fails; at once if it has. Not after `leave`. */
  onFailure(callback: (error: UniprocError) => void): void {
    if (this.#failure !== null) callback(this.#failure);
    else if (this.#leaving === null) this.#callbacks.push(callback);
  }

  /**
   * Calls back when another rank has left, with the progress that it said goodbye with; at once, for
   * the first of them, if one has. Not after `leave`.
   */
  onLeave(callback: (rank: number, progress: number) => void): void {
    if (this.#leaver !== null) callback(this.#leaver.rank, this.#leaver.progress);
    else if (this.#leaving === null) this.#leaveCallbacks.push(callback);
  }

  /**
   * Fails the group on every rank: this one cannot go on, and no other is to wait for it. `cause` is
   * the error that the others' PeerLostError has as its cause.
   */
  abort(reason: string, cause?: unknown): void {
    this.#fail(new PeerLostError(this.rank, reason, { cause }));
  }

  /**
   * Says goodbye, so that the others do not take it for a death, and closes all connections. May
   * come more than once, and after a failure. `progress` is a number that means something to the
   * other ranks.
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
      connection.send(Kind.GOODBYE, new Message().i64(progress).bytes());
      this.#close(peer, connection);
    }
    this.#stopHeartbeat();
    await Promise.all(this.#endings);
  }

  /** What a peer says. One that sends what no rank sends is lost. */
  #receive(peer: number, frame: Frame): void {
    if (!this.#peers.has(peer)) return;
    try {
      this.#read(peer, frame);
    } catch (error) {
      const reason = `it sent a message that cannot be read: ${(error as Error).message}`;
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
      case Kind.GOODBYE:
        this.#left(peer, fields.i64());
        return;
      case Kind.LEFT:
        this.#someoneLeft(fields.rank(this.worldSize), fields.i64());
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
    // Rank 0 knows who does not come, and hears of it first when one of the others dies.
    const expired = () => {
      const missing = values.findIndex((value) => value === undefined);
      const reason = `it did not come to the gather of ${name} within ${timeout} ms`;
      this.#fail(new PeerLostError(missing, reason));
    };
    const stopTimer = this.rank === 0 ? startTimer(timeout, expired, { ref: false }) : () => {};
    const gather: Gather = { values, caller: null, stopTimer };
    this.#gathers.set(name, gather);
    return gather;
  }

  /** On rank 0: a rank's value has come. */
  #contribute(rank: number, fields: Fields): void {
    // Sent before its rank had heard of it: nobody will complete this one.
    if (this.#leaver !== null) return;
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
    this.#letProcessEnd();
  }

  #rejectGathers(error: Error): void {
    for (const { caller, stopTimer } of this.#gathers.values()) {
      stopTimer();
      caller?.reject(error);
    }
    this.#gathers.clear();
    this.#letProcessEnd();
  }

  #letProcessEnd(): void {
    if ([...this.#gathers.values()].some(({ caller }) => caller !== null)) return;
    for (const connection of this.#peers.values()) connection.keepProcess(false);
  }

  /** On rank 0: a rank's digest has come. */
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

  /** A peer has said goodbye. */
  #left(peer: number, progress: number): void {
    const connection = this.#peers.get(peer);
    if (connection !== undefined) this.#close(peer, connection);
    this.#someoneLeft(peer, progress);
    const leaver = new Message().i64(peer).i64(progress).bytes();
    for (const other of this.#peers.values()) other.send(Kind.LEFT, leaver);
    if (this.#peers.size === 0) this.#stopHeartbeat();
  }

  #someoneLeft(rank: number, progress: number): void {
    log('rank %d of %d: rank %d has left', this.rank, this.worldSize, rank);
    this.#leaver ??= { rank, progress };
    this.#rejectGathers(hasLeft(rank));
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
    this.#endings.push(connection.close());
  }

  /** Says that this rank is alive, and notices when another has not said so. */
  #startHeartbeat(): void {
    const interval = Math.min(this.timeout / HEARTBEATS, MAX_HEARTBEAT_INTERVAL);
    let last = performance.now();
    const beat = () => {
      const now = performance.now();
      for (const [peer, connection] of this.#peers) {
        connection.send(Kind.HEARTBEAT);
        // After a pause of this process's own, what came meanwhile has yet to be read.
        if (now - last > 2 * interval) connection.heardAt = now;
        if (now - connection.heardAt <= this.timeout - 2 * interval) continue;
        const silence = Math.round(now - connection.heardAt);
        this.#fail(new PeerLostError(peer, `nothing was heard of it for ${silence} ms`));
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

function hasLeft(rank: number): PeerLostError {
  return new PeerLostError(rank, 'it has left the group');
}
