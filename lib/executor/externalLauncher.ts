/** One rank of several processes that a launcher started (vLLM V1's ExecutorWithExternalLauncher). */
import { inspect, isDeepStrictEqual } from 'node:util';
import type { UniprocConfig } from '../config/uniprocConfig';
import { rendezvousEndpoint, rankFromEnvironment } from '../distributed/rendezvous';
import { startAmongRanks } from '../distributed/startFailure';
import { ConfigError, InvalidStateError } from '../errors';
import { startTimer } from '../timer';
import type { ModelRunnerOutput } from '../worker/outputs';
import type { GrammarOutput, SchedulerOutput } from '../worker/schedulerOutput';
import type { Worker } from '../worker/worker';
import {
  type ReconfigureDistributedRequest,
  ReconfigureRankType,
} from '../config/reconfigureRequest';
import type { CreateOptions, RpcMethod, RpcOptions, StepOptions } from './executor';
import type { Future } from './future';
import { ScheduleDigest } from './scheduleDigest';
import { type DistributedArgs, UniProcExecutor } from './uniProcExecutor';

/** Milliseconds by which what a group knows may come later than the end of a connection. */
const NEWS_DELAY = 500;

/** Of the worker: they wait for other ranks, and take no longer than a step by themselves. */
const BOUNDED_METHODS = new Set([
  'executeModel',
  'sampleTokens',
  'executeDummyBatch',
  'checkHealth',
]);

/**
 * For programs started by torchrun or a launcher that sets the same variables: each process makes
 * one executor with one worker, and all work on the same prompts. The schedule is deterministic, so
 * they make the same outputs without telling each other.
 *
 * A step that fails, or that the other ranks do not come to within `distributedTimeout`, fails the
 * executor, and so does the loss of a rank; the others are told at once.
 */
export class ExecutorWithExternalLauncher<W extends Worker = Worker> extends UniProcExecutor<W> {
  #worldSize = this.config.parallel.tensorParallelSize;
  /** Once there is one. */
  #worker: W | null = null;
  /** With UNIPROC_CHECK_SCHEDULE=1. */
  #scheduleDigest: ScheduleDigest | null = null;
  /** A collective has failed, and the executor is about to. */
  #awaitsNews = false;

  /** Rejects with ConfigError where the environment, or another rank's configuration, does not fit. */
  protected override initExecutor(options: CreateOptions): Promise<void> {
    return startAmongRanks(async () => {
      if (process.env.UNIPROC_ENABLE_MULTIPROCESSING === '1') {
        throw new ConfigError(
          'UNIPROC_ENABLE_MULTIPROCESSING is 1, but ranks stay in step only when each schedules in ' +
            'its own process; set it to 0',
        );
      }
      await super.initExecutor(options);
    });
  }

  /** From RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. */
  protected override distributedArgs(): Promise<DistributedArgs> {
    const distributedInitMethod = 'env://';
    const { rank, localRank, worldSize } = rankFromEnvironment();
    rendezvousEndpoint(distributedInitMethod);
    const { tensorParallelSize } = this.config.parallel;
    if (worldSize !== tensorParallelSize) {
      throw new ConfigError(
        `WORLD_SIZE is ${worldSize}, but tensorParallelSize is ${tensorParallelSize}; they must be equal`,
      );
    }
    return Promise.resolve({ distributedInitMethod, rank, localRank });
  }

  protected override async initDevice(): Promise<void> {
    this.#worker = this.driverWorker.worker;
    await super.initDevice();
    await this.#joined();
  }

  /** The worker is among its ranks: hears of their failure, and whether they were given the same. */
  async #joined(): Promise<void> {
    const group = this.#worker?.processGroup;
    if (!group) return;
    group.onFailure((error) => this.fail(error));
    const checks = process.env.UNIPROC_CHECK_SCHEDULE === '1';
    this.#scheduleDigest = checks ? new ScheduleDigest(this.maxConcurrentBatches) : null;
    const options = Buffer.from(JSON.stringify(sharedOptions(this.config)));
    requireSame((await group.gather('options', options)).map((bytes) => bytes.toString()));
  }

  /** Whether there is another rank. */
  override get inLockstep(): boolean {
    return this.#worldSize > 1;
  }

  override gather(name: string, value: Uint8Array): Promise<Uint8Array[]> {
    return this.#worker?.processGroup?.gather(name, value) ?? super.gather(name, value);
  }

  override async broadcast(value: Uint8Array | null): Promise<Uint8Array | null> {
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

  /** The least that any rank has, so that all make the same KV cache. */
  override async determineAvailableMemory(): Promise<number[]> {
    const [bytes] = await super.determineAvailableMemory();
    const communicator = this.#worker?.communicator;
    if (!communicator) return [bytes];
    const [least] = await this.collectiveRpc<Uint8Array>(() =>
      communicator.allReduce(integer(bytes), 'int64', 'min'),
    );
    return toIntegers(least);
  }

  override executeModel(
    schedulerOutput: SchedulerOutput,
    options: StepOptions & { nonBlock: true },
  ): Future<ModelRunnerOutput | null>;
  override executeModel(
    schedulerOutput: SchedulerOutput,
    options?: StepOptions & { nonBlock?: false },
  ): Promise<ModelRunnerOutput | null>;
  override executeModel(
    schedulerOutput: SchedulerOutput,
    options: StepOptions & { nonBlock?: boolean } = {},
  ): Future<ModelRunnerOutput | null> | Promise<ModelRunnerOutput | null> {
    const output = this.inLockstep
      ? this.#launch(schedulerOutput, options.timeout)
      : super.executeModel(schedulerOutput, { ...options, nonBlock: true });
    return options.nonBlock ? output : output.result();
  }

  #launch(
    schedulerOutput: SchedulerOutput,
    timeout = this.config.parallel.distributedTimeout,
  ): Future<ModelRunnerOutput | null> {
    const output = super.executeModel(schedulerOutput, { timeout, nonBlock: true });
    if (!this.#failWith(output)) return output;
    if (schedulerOutput.totalNumScheduledTokens > 0) {
      const checked = this.#scheduleDigest?.next(schedulerOutput, output);
      if (checked) this.#worker?.processGroup?.verify(checked.step, checked.digest);
    }
    return output;
  }

  override sampleTokens(
    grammarOutput: GrammarOutput | null,
    options: StepOptions & { nonBlock: true },
  ): Future<ModelRunnerOutput | null>;
  override sampleTokens(
    grammarOutput: GrammarOutput | null,
    options?: StepOptions & { nonBlock?: false },
  ): Promise<ModelRunnerOutput | null>;
  override sampleTokens(
    grammarOutput: GrammarOutput | null,
    options: StepOptions & { nonBlock?: boolean } = {},
  ): Future<ModelRunnerOutput | null> | Promise<ModelRunnerOutput | null> {
    const { timeout = this.#stepTimeout } = options;
    const output = super.sampleTokens(grammarOutput, { timeout, nonBlock: true });
    if (this.inLockstep) this.#failWith(output);
    return options.nonBlock ? output : output.result();
  }

  /** A step that fails is this executor's end. False where it was refused, as on every rank. */
  #failWith(output: Future<ModelRunnerOutput | null>): boolean {
    // Before the worker had it.
    const refusal = output.peek();
    if (refusal?.status === 'rejected' && refusal.reason instanceof InvalidStateError) return false;
    // This rank alone has not done the step, or no rank has: either way they cannot go on.
    output.addDoneCallback(() => {
      const outcome = output.peek();
      if (outcome?.status === 'rejected') this.fail(outcome.reason);
    });
    return true;
  }

  /** Milliseconds within which the ranks do what each does in the same order; none for one alone. */
  get #stepTimeout(): number | undefined {
    return this.inLockstep ? this.config.parallel.distributedTimeout : undefined;
  }

  /** So is that of a rank that waited for the others. */
  protected override isFatalWhenLate(method: RpcMethod): boolean {
    const waits = this.inLockstep && typeof method === 'string' && BOUNDED_METHODS.has(method);
    return waits || super.isFatalWhenLate(method);
  }

  /** Calls that wait for what the ranks do together, and for nothing that takes long by itself. */
  override collectiveRpc<T = unknown>(
    method: RpcMethod,
    options: RpcOptions & { nonBlock: true },
  ): Future<T>[];
  override collectiveRpc<T = unknown>(
    method: RpcMethod,
    options?: RpcOptions & { nonBlock?: false },
  ): Promise<T[]>;
  override collectiveRpc<T>(
    method: RpcMethod,
    options: RpcOptions & { nonBlock?: boolean } = {},
  ): Future<T>[] | Promise<T[]> {
    const isBounded = typeof method === 'string' && BOUNDED_METHODS.has(method);
    const { timeout = isBounded ? this.#stepTimeout : undefined } = options;
    const [future] = super.collectiveRpc<T>(method, { ...options, timeout, nonBlock: true });
    return options.nonBlock ? [future] : future.result().then((result) => [result]);
  }

  /**
   * Of a collective that failed the group may know more than the connection that broke: which rank is
   * lost, and why, or that they do different things. It is given a moment to fail the executor, and with it this call and those that fail
   * because this one did.
   */
  protected override reject(future: Future<unknown>, error: unknown): void {
    if (this.#awaitsNews) return;
    const { code } = (error ?? {}) as { code?: unknown };
    const isOfGroup = code === 'PEER_LOST' || code === 'COMMUNICATOR_FAILED';
    if (!isOfGroup || future.done()) {
      super.reject(future, error);
      return;
    }
    this.#awaitsNews = true;
    future.addDoneCallback(startTimer(NEWS_DELAY, () => super.reject(future, error)));
  }

  protected override fail(cause: unknown): void {
    this.#awaitsNews = false;
    super.fail(cause);
    this.#tellOthers(cause);
  }

  #tellOthers(cause: unknown): void {
    // A worker of the user's own may have no others, and no such method.
    const worker: Partial<Pick<Worker, 'abort'>> | null = this.#worker;
    worker?.abort?.(messageOf(cause), cause);
  }

  /** To the worker, which then is among the request's ranks; or, if it leaves, is shut down. */
  override async reinitializeDistributed(request: ReconfigureDistributedRequest): Promise<void> {
    await super.reinitializeDistributed(request);
    if (request.newDataParallelRank === ReconfigureRankType.SHUTDOWN_CURRENT_RANK) return;
    this.#worldSize = request.newDataParallelSize;
    await this.#joined();
  }

  /** With a cause, steps that are launched fail on every rank; else all complete those they share. */
  override shutdown(cause?: unknown): Promise<void> {
    if (cause !== undefined) this.#tellOthers(cause);
    return super.shutdown();
  }
}

/** What ranks must have alike, lest they schedule or sample differently. */
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

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
