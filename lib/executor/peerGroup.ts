/**
 * Other ranks of an executor's worker: none for a single process (`NO_PEERS`), a PeerGroup under a
 * launcher, where each rank has one executor.
 */
import { inspect, isDeepStrictEqual } from 'node:util';
import type { UniprocConfig } from '../config/uniprocConfig';
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';
import { ConfigError, InvalidStateError } from '../errors';
import { startTimer } from '../timer';
import type { Worker } from '../worker/worker';
import type { RpcMethod } from '../worker/workerWrapper';
import type { Future } from './future';
import { ScheduleDigest } from './scheduleDigest';

/** Milliseconds that a failed collective waits for the process group to report the reason. */
const FAILURE_REPORT_DELAY = 500;

/** Worker methods that involve the other ranks and take no longer than a step. */
const BOUNDED_METHODS = new Set<RpcMethod>([
  'executeModel',
  'sampleTokens',
  'executeDummyBatch',
  'checkHealth',
]);

/** What a group uses of its worker; custom workers may lack all of it. */
export type PeerWorker = Partial<Pick<Worker, 'processGroup' | 'communicator' | 'rank' | 'abort'>>;

/** The executor's interface to the other ranks. */
export interface Peers {
  /** Whether there is more than one rank. */
  readonly inLockstep: boolean;
  /** Sets the worker, before it joins the other ranks. */
  setWorker(worker: PeerWorker): void;
  /** Called once the worker has joined `worldSize` ranks (default: as configured). */
  joined(worldSize?: number): Promise<void>;
  gather(name: string, value: Uint8Array): Promise<Uint8Array[]>;
  broadcast(value: Uint8Array | null): Promise<Uint8Array | null>;
  /** Minimum of the ranks' values. */
  minimum(value: number): Promise<number>;
  /** Timeout in milliseconds for all ranks to make this call; expiry is fatal. Undefined: none. */
  timeoutOf(method: RpcMethod): number | undefined;
  /** Called after each call to the worker. */
  onCall(method: RpcMethod, args: readonly unknown[], result: Future<unknown>): void;
  /**
   * Whether the rejection is deferred: the group ends the call with a more specific error, or
   * `reject` runs later.
   */
  defersRejection(result: Future<unknown>, error: unknown, reject: () => void): boolean;
  /** Tells the other ranks that this executor has failed. */
  abort(cause: unknown): void;
}

export const NO_PEERS: Peers = {
  inLockstep: false,
  setWorker() {},
  joined: () => Promise.resolve(),
  gather: (_name, value) => Promise.resolve([value]),
  broadcast: (value) => Promise.resolve(value),
  minimum: (value) => Promise.resolve(value),
  timeoutOf: () => undefined,
  onCall() {},
  defersRejection: () => false,
  abort() {},
};

/**
 * Ranks started by a launcher. A failed step, a step that other ranks do not reach within
 * `distributedTimeoutMs`, or the loss of a rank fails the executor; other ranks are notified at once.
 */
export class PeerGroup implements Peers {
  #worldSize: number;
  #worker: PeerWorker | null = null;
  /** Set with UNIPROC_CHECK_SCHEDULE=1. */
  #scheduleDigest: ScheduleDigest | null = null;
  /** Whether a collective failed and the group's report is pending. */
  #awaitsReport = false;

  constructor(
    private readonly config: UniprocConfig,
    /** Steps that may be in flight at once. */
    private readonly maxConcurrentBatches: number,
    /** Fails the executor. */
    private readonly fail: (cause: unknown) => void,
  ) {
    this.#worldSize = config.parallel.tensorParallelSize;
  }

  get inLockstep(): boolean {
    return this.#worldSize > 1;
  }

  setWorker(worker: PeerWorker): void {
    this.#worker = worker;
  }

  /**
   * Subscribes to group failures and compares options. Rejects with ConfigError if ranks' options
   * differ.
   */
  async joined(worldSize = this.#worldSize): Promise<void> {
    this.#worldSize = worldSize;
    const group = this.#worker?.processGroup;
    if (!group) return;
    group.onFailure(this.fail);
    const checks = process.env.UNIPROC_CHECK_SCHEDULE === '1';
    this.#scheduleDigest = checks ? new ScheduleDigest(this.maxConcurrentBatches) : null;
    const options = Buffer.from(JSON.stringify(sharedOptions(this.config)));
    requireSame((await group.gather('options', options)).map((bytes) => bytes.toString()));
  }

  gather(name: string, value: Uint8Array): Promise<Uint8Array[]> {
    return this.#worker?.processGroup?.gather(name, value) ?? NO_PEERS.gather(name, value);
  }

  async broadcast(value: Uint8Array | null): Promise<Uint8Array | null> {
    const communicator = this.#worker?.communicator;
    if (!communicator) return value;
    const length = integer(value?.length ?? -1);
    const sizes = toIntegers(await communicator.allGather(length, 'int64'));
    const root = sizes.findIndex((size) => size >= 0);
    if (root < 0) return null;
    const data = new Uint8Array(8 * Math.ceil(sizes[root] / 8));
    if (root === this.#worker?.rank && value !== null) data.set(value);
    return (await communicator.broadcast(data, 'int64', root)).subarray(0, sizes[root]);
  }

  async minimum(value: number): Promise<number> {
    const communicator = this.#worker?.communicator;
    if (!communicator) return value;
    return toIntegers(await communicator.allReduce(integer(value), 'int64', 'min'))[0];
  }

  timeoutOf(method: RpcMethod): number | undefined {
    const isBounded = this.inLockstep && BOUNDED_METHODS.has(method);
    return isBounded ? this.config.parallel.distributedTimeoutMs : undefined;
  }

  onCall(method: RpcMethod, args: readonly unknown[], result: Future<unknown>): void {
    if (!this.inLockstep || (method !== 'executeModel' && method !== 'sampleTokens')) return;
    // A step refused synchronously is refused on every rank.
    const refusal = result.peek();
    if (refusal?.status === 'rejected' && refusal.reason instanceof InvalidStateError) return;
    // Whether this rank alone or all ranks failed the step, they cannot continue.
    result.addDoneCallback(() => {
      const outcome = result.peek();
      if (outcome?.status === 'rejected') this.fail(outcome.reason);
    });
    if (method === 'executeModel') {
      this.#verify(args[0] as SchedulerOutput, result as Future<ModelRunnerOutput | null>);
    }
  }

  /** Compares the step's schedule with other ranks', if enabled. */
  #verify(step: SchedulerOutput, output: Future<ModelRunnerOutput | null>): void {
    if (step.totalNumScheduledTokens === 0) return;
    const checked = this.#scheduleDigest?.next(step, output);
    if (checked) this.#worker?.processGroup?.verify(checked.step, checked.digest);
  }

  /**
   * When a collective fails, the group may know the reason: which rank is lost and why, or that
   * ranks diverged. Waits briefly for the group to fail the executor, which ends this call and
   * those that fail as a consequence.
   */
  defersRejection(result: Future<unknown>, error: unknown, reject: () => void): boolean {
    if (this.#awaitsReport) return true;
    const { code } = (error ?? {}) as { code?: unknown };
    const isOfGroup = code === 'PEER_LOST' || code === 'COMMUNICATOR_FAILED';
    if (!isOfGroup || result.done()) return false;
    this.#awaitsReport = true;
    result.addDoneCallback(startTimer(FAILURE_REPORT_DELAY, reject));
    return true;
  }

  abort(cause: unknown): void {
    this.#awaitsReport = false;
    this.#worker?.abort?.(cause instanceof Error ? cause.message : String(cause), cause);
  }
}

/** Options that must be equal on every rank, so all schedule and sample alike. */
function sharedOptions(config: UniprocConfig) {
  const { model, load, cache, scheduler, parallel, device, limits } = config;
  const { dtype: kvCacheDtype, blockSize, enablePrefixCaching } = cache;
  return {
    ...model,
    // Machines may have the same files in other places.
    path: undefined,
    tokenizer: undefined,
    ...load,
    ...scheduler,
    // Other ranks would wait for a call that one refuses; list memory offsets depend on limits.
    ...limits,
    kvCacheDtype,
    blockSize,
    enablePrefixCaching,
    disableCustomAllReduce: parallel.disableCustomAllReduce,
    UNIPROC_CHECK_SCHEDULE: process.env.UNIPROC_CHECK_SCHEDULE === '1',
    device: device.kind,
  };
}

/** Throws ConfigError naming the first option that differs from rank 0's. */
function requireSame(json: readonly string[]): void {
  const [first, ...others] = json.map((text) => JSON.parse(text) as Record<string, unknown>);
  for (const [i, options] of others.entries()) {
    for (const name of Object.keys(first)) {
      if (isDeepStrictEqual(options[name], first[name])) continue;
      throw new ConfigError(
        `${name} is ${inspect(options[name])} on rank ${i + 1}, but ${inspect(first[name])} on ` +
          'rank 0; pass the same on every rank',
      );
    }
  }
}

function integer(value: number): Uint8Array {
  return new Uint8Array(BigInt64Array.of(BigInt(value)).buffer);
}

function toIntegers(bytes: Uint8Array): number[] {
  const { buffer, byteOffset, byteLength } = bytes;
  return Array.from(new BigInt64Array(buffer, byteOffset, byteLength / 8), Number);
}
