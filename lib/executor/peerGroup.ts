/**
 * The ranks that an executor's worker computes with. An executor of one process has none (`NO_PEERS`);
 * ranks of a launcher, which make one executor each, have a PeerGroup.
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

/** Milliseconds for which a collective that failed waits for the group's own report of the reason. */
const FAILURE_REPORT_DELAY = 500;

/** Worker methods that wait for the other ranks, and take no longer than a step by themselves. */
const BOUNDED_METHODS = new Set<RpcMethod>([
  'executeModel',
  'sampleTokens',
  'executeDummyBatch',
  'checkHealth',
]);

/** What an executor asks of the ranks that its worker computes with. */
export interface Peers {
  /** Whether there is another rank. */
  readonly inLockstep: boolean;
  /** The worker is made, and about to meet the others. */
  meet(worker: Worker): void;
  /** The worker is among its ranks: `worldSize`, or as many as were configured. */
  joined(worldSize?: number): Promise<void>;
  gather(name: string, value: Uint8Array): Promise<Uint8Array[]>;
  broadcast(value: Uint8Array | null): Promise<Uint8Array | null>;
  /** The least of the ranks' values. */
  minimum(value: number): Promise<number>;
  /** Milliseconds within which all ranks make this call; a later one is fatal. Undefined: no limit. */
  timeoutOf(method: RpcMethod): number | undefined;
  /** The worker was called. */
  called(method: RpcMethod, args: readonly unknown[], result: Future<unknown>): void;
  /** Whether the peers will end the call, or `reject` later, with more than this error says. */
  holdsBack(result: Future<unknown>, error: unknown, reject: () => void): boolean;
  /** The executor cannot go on, and the other ranks must not wait for it. */
  abort(cause: unknown): void;
}

export const NO_PEERS: Peers = {
  inLockstep: false,
  meet() {},
  joined: () => Promise.resolve(),
  gather: (_name, value) => Promise.resolve([value]),
  broadcast: (value) => Promise.resolve(value),
  minimum: (value) => Promise.resolve(value),
  timeoutOf: () => undefined,
  called() {},
  holdsBack: () => false,
  abort() {},
};

/**
 * Ranks that a launcher started. A step that fails, or that the other ranks do not come to within
 * `distributedTimeout`, fails the executor, and so does the loss of a rank; the others are told at once.
 */
export class PeerGroup implements Peers {
  #worldSize: number;
  #worker: Worker | null = null;
  /** With UNIPROC_CHECK_SCHEDULE=1. */
  #scheduleDigest: ScheduleDigest | null = null;
  /** A collective has failed, and the group's report of the reason is about to fail the executor. */
  #awaitsReport = false;

  constructor(
    private readonly config: UniprocConfig,
    /** Steps that may be in flight at once. */
    private readonly maxConcurrentBatches: number,
    /** Ends the executor. */
    private readonly fail: (cause: unknown) => void,
  ) {
    this.#worldSize = config.parallel.tensorParallelSize;
  }

  get inLockstep(): boolean {
    return this.#worldSize > 1;
  }

  meet(worker: Worker): void {
    this.#worker = worker;
  }

  /** Has the group's failure be the executor's. Rejects with ConfigError where ranks' options differ. */
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
    return isBounded ? this.config.parallel.distributedTimeout : undefined;
  }

  called(method: RpcMethod, args: readonly unknown[], result: Future<unknown>): void {
    if (!this.inLockstep || (method !== 'executeModel' && method !== 'sampleTokens')) return;
    // A step that the worker refused at once was refused on every rank.
    const refusal = result.peek();
    if (refusal?.status === 'rejected' && refusal.reason instanceof InvalidStateError) return;
    // This rank alone has not done the step, or no rank has: either way they cannot go on.
    result.addDoneCallback(() => {
      const outcome = result.peek();
      if (outcome?.status === 'rejected') this.fail(outcome.reason);
    });
    if (method === 'executeModel') {
      this.#verify(args[0] as SchedulerOutput, result as Future<ModelRunnerOutput | null>);
    }
  }

  /** Compares the step's schedule with the other ranks', where that is asked for. */
  #verify(step: SchedulerOutput, output: Future<ModelRunnerOutput | null>): void {
    if (step.totalNumScheduledTokens === 0) return;
    const checked = this.#scheduleDigest?.next(step, output);
    if (checked) this.#worker?.processGroup?.verify(checked.step, checked.digest);
  }

  /**
   * When a collective fails, the group may know more than the connection that broke: which rank is
   * lost, and why, or that the ranks do different things. It is given a moment to fail the executor,
   * and with it this call and those that fail because this one did.
   */
  holdsBack(result: Future<unknown>, error: unknown, reject: () => void): boolean {
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
    // A worker of the user's own may have no other ranks, and no such method.
    const worker: Partial<Pick<Worker, 'abort'>> | null = this.#worker;
    worker?.abort?.(cause instanceof Error ? cause.message : String(cause), cause);
  }
}

/** Options that must be the same on every rank, so that all schedule and sample the same. */
function sharedOptions(config: UniprocConfig) {
  const { model, load, cache, scheduler, parallel, device, limits } = config;
  const { blockSize, enablePrefixCaching } = cache;
  return {
    ...model,
    path: undefined,
    ...load,
    ...scheduler,
    // A call that one rank refuses would be waited for on the others; and long lists have places.
    ...limits,
    blockSize,
    enablePrefixCaching,
    disableCustomAllReduce: parallel.disableCustomAllReduce,
    UNIPROC_CHECK_SCHEDULE: process.env.UNIPROC_CHECK_SCHEDULE === '1',
    device: device.kind,
  };
}

/** Throws ConfigError that names the first option in which a rank's differ from rank 0's. */
function requireSame(json: readonly string[]): void {
  const [first, ...others] = json.map((text) => JSON.parse(text) as Record<string, unknown>);
  for (const [i, options] of others.entries()) {
    for (const name of Object.keys(first)) {
      if (isDeepStrictEqual(options[name], first[name])) continue;
      throw new ConfigError(
        `rank ${i + 1} has the ${name} ${inspect(options[name])}, but rank 0 has ` +
          `${inspect(first[name])}; every rank must be given the same`,
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
