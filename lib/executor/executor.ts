/** Runs steps on workers (vLLM V1's abstract Executor). */
import { inspect } from 'node:util';
import type { UniprocConfig } from '../config/uniprocConfig';
import { NotSupportedError, type ExecutorFailedError } from '../errors';
import type { NativeModelRunner } from '../native';
import type { KVCacheConfig, KVCacheSpec } from '../contract/kvCache';
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { GrammarOutput } from '../contract/grammarOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';
import type { ReconfigureDistributedRequest } from '../config/reconfigureRequest';
import type { Worker } from '../worker/worker';
import type { SleepTag, WorkerBase } from '../worker/workerBase';
import type { RpcMethod } from '../worker/workerWrapper';
import { type CreateOptions, type RpcOptions, type StepOptions, timeoutOf } from './callOptions';
import {
  configFrom,
  type ConfigOrArgs,
  type CreatedExecutor,
  type ExecutorConstructor,
} from './createConfig';
import { Failure } from './failure';
import { Future } from './future';
import { findExecutorClass } from './namedClasses';
import { NO_PEERS, type Peers } from './peerGroup';
import { SleepState } from './sleepState';
import { TwoPhaseStep } from './twoPhaseStep';
import { joinOutputs, requireResults } from './workerResults';

export type { CreateOptions, RpcMethod, RpcOptions, StepOptions };

export interface ExecutorClass<T extends Executor = Executor> {
  new (config: UniprocConfig): T;
  create(given?: ConfigOrArgs<WorkerBase>, options?: CreateOptions): Promise<T>;
  supportsAsyncScheduling(): boolean;
}

/**
 * The engine's interface to the workers. A subclass creates and calls them (`initExecutor`,
 * `collectiveRpc`) and shuts them down; all else builds on that.
 *
 * Start-up order: `create`, `registerFailureCallback`, `getKvCacheSpecs`,
 * `determineAvailableMemory`, `initializeFromConfig`, `compileOrWarmUpModel`; then steps.
 */
export abstract class Executor {
  /**
   * Other ranks of its worker; none by default.
   * @internal
   */
  protected readonly peers: Peers = NO_PEERS;
  readonly #failure = new Failure();
  readonly #step = new TwoPhaseStep();
  readonly #sleep = new SleepState((method, args) => [
    ...requireResults(method, this.collectiveRpc(method, { args, nonBlock: true })),
  ]);

  /** Use `create`. */
  constructor(readonly config: UniprocConfig) {}

  /**
   * The class named by `config.parallel.distributedExecutorBackend`: 'uni', 'external_launcher', a
   * subclass of Executor, or its module and export. Otherwise rejects with TypeError.
   */
  static async getClass(config: UniprocConfig): Promise<ExecutorClass> {
    const backend = config.parallel.distributedExecutorBackend;
    const found = await findExecutorClass(backend);
    if (found?.prototype instanceof Executor) return found as unknown as ExecutorClass;
    throw new TypeError(
      "distributedExecutorBackend must be 'uni', 'external_launcher', a subclass of Executor or " +
        `{ module, export } of one, not ${inspect(backend)}`,
    );
  }

  /**
   * Creates an executor and its workers from a configuration or the engine's options; on failure
   * shuts down what was created and rethrows.
   */
  static async create<
    W extends WorkerBase = Worker,
    C extends ExecutorConstructor = ExecutorConstructor,
  >(
    this: C,
    given: ConfigOrArgs<W> = {},
    options: CreateOptions = {},
  ): Promise<CreatedExecutor<C, W>> {
    const executor = new this(await configFrom(given, this));
    try {
      await executor.initExecutor(options);
    } catch (error) {
      // Report the first error, even if the shutdown fails too.
      await executor.shutdown(error).catch(() => {});
      throw error;
    }
    return executor as CreatedExecutor<C, W>;
  }

  /** Whether a step may be launched before the previous output is read. */
  static supportsAsyncScheduling(): boolean {
    return false;
  }

  /** Creates the workers, opens their devices, loads the model. */
  protected abstract initExecutor(options: CreateOptions): Promise<void>;

  /**
   * Calls a method on every worker, in call order. Resolves with one result per worker or rejects
   * with the worker's own error; UnknownMethodError, RpcTimeoutError, ExecutorFailedError and
   * ShutdownError are the executor's. With `nonBlock`, returns futures at once, which hold any
   * error.
   */
  abstract collectiveRpc<T = unknown>(
    method: RpcMethod<WorkerBase, T>,
    options: RpcOptions & { nonBlock: true },
  ): Future<T>[];
  abstract collectiveRpc<T = unknown>(
    method: RpcMethod<WorkerBase, T>,
    options?: RpcOptions & { nonBlock?: false },
  ): Promise<T[]>;

  /** The permanent failure; null while the executor works. */
  get failure(): ExecutorFailedError | null {
    return this.#failure.error;
  }

  /**
   * Fails permanently: pending and later calls reject with ExecutorFailedError and this cause, and
   * the failure callbacks run. Later causes are ignored. The engine calls it for its own faults.
   */
  fail(cause: unknown): void {
    this.#failure.set(cause, (failure) => this.onFailure(failure));
  }

  /** Ends pending calls, before the failure callbacks run. */
  protected onFailure(_failure: ExecutorFailedError): void {}

  /** Calls back once when the executor fails permanently; immediately if it already has. */
  registerFailureCallback(callback: (error: ExecutorFailedError) => void): void {
    this.#failure.register(callback);
  }

  /**
   * Resolves if the workers can run. Rejects with ExecutorFailedError and its cause after a
   * failure, with ShutdownError after `shutdown`, else with a worker's error.
   */
  async checkHealth(): Promise<void> {
    try {
      if (this.failure === null) await this.collectiveRpc('checkHealth');
    } catch (error) {
      throw this.failure ?? error;
    }
    if (this.failure !== null) throw this.failure;
  }

  /**
   * Completes launched steps, rejects other calls with ShutdownError, then frees the workers.
   * Idempotent. `cause`, if given, is sent to other ranks, which must not wait for this one.
   */
  abstract shutdown(cause?: unknown): Promise<void>;

  [Symbol.asyncDispose](): Promise<void> {
    return this.shutdown();
  }

  /** Most steps in flight. */
  get maxConcurrentBatches(): number {
    return 1;
  }

  /**
   * Whether other ranks' engines must make the same schedule. Then only whole calls, the same on
   * every rank, are accepted, and nothing rank-local may end them.
   */
  get inLockstep(): boolean {
    return this.peers.inLockstep;
  }

  /**
   * Gathers every rank's value, by rank. All must use the same, unused `name`. Does not wait for
   * steps.
   */
  gather(name: string, value: Uint8Array): Promise<Uint8Array[]> {
    return this.peers.gather(name, value);
  }

  /** Broadcasts the value of the first rank that has one; null if none has. Waits for steps. */
  broadcast(value: Uint8Array | null): Promise<Uint8Array | null> {
    return this.peers.broadcast(value);
  }

  /** KV cache specs by layer name, for each worker. */
  getKvCacheSpecs(): Promise<Map<string, KVCacheSpec>[]> {
    return this.collectiveRpc('getKvCacheSpec');
  }

  /** Available KV cache bytes of each worker. */
  determineAvailableMemory(): Promise<number[]> {
    return this.collectiveRpc('determineAvailableMemory');
  }

  /** Allocates the KV caches; one config per worker, by rank. */
  async initializeFromConfig(kvCacheConfigs: readonly KVCacheConfig[]): Promise<void> {
    await this.collectiveRpc('initializeFromConfig', { args: [kvCacheConfigs] });
  }

  /** Resolves to the slowest worker's seconds. Does not affect sampling. */
  async compileOrWarmUpModel(): Promise<number> {
    const method = 'compileOrWarmUpModel';
    return Math.max(...requireResults(method, await this.collectiveRpc<number>(method)));
  }

  /**
   * Runs a step. Returns its output, or null for a step with structured-output requests: then
   * `sampleTokens` must follow. Executing before that, or while asleep, is InvalidStateError.
   */
  executeModel(
    schedulerOutput: SchedulerOutput,
    options: StepOptions & { nonBlock: true },
  ): Future<ModelRunnerOutput | null>;
  executeModel(
    schedulerOutput: SchedulerOutput,
    options?: StepOptions & { nonBlock?: false },
  ): Promise<ModelRunnerOutput | null>;
  executeModel(
    schedulerOutput: SchedulerOutput,
    options: StepOptions & { nonBlock?: boolean } = {},
  ): Future<ModelRunnerOutput | null> | Promise<ModelRunnerOutput | null> {
    const future = this.#launch(schedulerOutput, timeoutOf(options));
    return options.nonBlock ? future : future.result();
  }

  /**
   * Samples the step for which `executeModel` returned null. Returns null if that step failed; its
   * own future has the error. Without such a step it is InvalidStateError.
   */
  sampleTokens(
    grammarOutput: GrammarOutput | null,
    options: StepOptions & { nonBlock: true },
  ): Future<ModelRunnerOutput | null>;
  sampleTokens(
    grammarOutput: GrammarOutput | null,
    options?: StepOptions & { nonBlock?: false },
  ): Promise<ModelRunnerOutput | null>;
  sampleTokens(
    grammarOutput: GrammarOutput | null,
    options: StepOptions & { nonBlock?: boolean } = {},
  ): Future<ModelRunnerOutput | null> | Promise<ModelRunnerOutput | null> {
    const future = this.#step.sample(() =>
      this.#callStep('sampleTokens', grammarOutput, timeoutOf(options), false),
    );
    return options.nonBlock ? future : future.result();
  }

  #launch(
    schedulerOutput: SchedulerOutput,
    timeoutMs: number | undefined,
  ): Future<ModelRunnerOutput | null> {
    const refusal = this.#sleep.refusalOf('executeModel');
    if (refusal !== null) return Future.failed(refusal);
    const mayWait = schedulerOutput.hasStructuredOutputRequests;
    return this.#step.launch(mayWait, () =>
      this.#callStep('executeModel', schedulerOutput, timeoutMs, mayWait),
    );
  }

  #callStep(
    method: 'executeModel' | 'sampleTokens',
    arg: unknown,
    timeoutMs: number | undefined,
    mayWait: boolean,
  ): Future<ModelRunnerOutput | null> {
    const options = { args: [arg], timeoutMs, nonBlock: true } as const;
    const workers = this.collectiveRpc<ModelRunnerOutput | null>(method, options);
    return joinOutputs(method, workers, mayWait);
  }

  /** Runs an empty batch, to keep workers in lockstep. */
  async executeDummyBatch(): Promise<void> {
    const refusal = this.#sleep.refusalOf('executeDummyBatch');
    if (refusal !== null) throw refusal;
    await this.collectiveRpc('executeDummyBatch');
  }

  get isSleeping(): boolean {
    return this.#sleep.isSleeping;
  }

  /** Number of sleeps; each drops the KV cache's content. */
  get numSleeps(): number {
    return this.#sleep.numSleeps;
  }

  /**
   * Frees device memory. Level 1 moves the weights to host memory, level 2 discards them; both
   * discard the KV cache. Another level is InvalidStateError; a repeated call warns.
   */
  sleep(level: 1 | 2 = 1): Promise<void> {
    return this.#sleep.sleep(level);
  }

  /**
   * Restores all memory, or that of `tags`; awake once no tag is asleep. A tag that is not asleep,
   * or a call while awake, only warns.
   */
  wakeUp(tags?: readonly SleepTag[]): Promise<void> {
    return this.#sleep.wakeUp(tags);
  }

  /** Starts or stops the device's profiler. NotSupportedError without one. */
  async profile(isStart = true): Promise<void> {
    await this.collectiveRpc('profile', { args: [isStart] });
  }

  /** Tasks that every worker's model supports: 'generate', or 'embed' of an embedding model. */
  async supportedTasks(): Promise<string[]> {
    const answers = await this.collectiveRpc<string[]>('supportedTasks');
    const [first, ...others] = requireResults('supportedTasks', answers);
    return first.filter((task) => others.every((tasks) => tasks.includes(task)));
  }

  /** Calls `apply` with each worker's model. */
  applyModel<T>(apply: (model: NativeModelRunner) => T | Promise<T>): Promise<T[]> {
    return this.collectiveRpc('applyModel', { args: [apply] });
  }

  /** Re-forms the workers' distributed group. */
  async reinitializeDistributed(request: ReconfigureDistributedRequest): Promise<void> {
    await this.collectiveRpc('reinitializeDistributed', { args: [request] });
  }

  /** NotSupportedError: there is no speculative decoding. */
  takeDraftTokenIds(): Promise<never> {
    return notSupported('takeDraftTokenIds');
  }

  /** NotSupportedError. */
  saveShardedState(): Promise<never> {
    return notSupported('saveShardedState');
  }

  /** NotSupportedError. */
  addLora(): Promise<never> {
    return notSupported('addLora');
  }

  /** NotSupportedError. */
  removeLora(): Promise<never> {
    return notSupported('removeLora');
  }

  /** NotSupportedError. */
  pinLora(): Promise<never> {
    return notSupported('pinLora');
  }

  /** NotSupportedError. */
  listLoras(): Promise<never> {
    return notSupported('listLoras');
  }
}

function notSupported(call: string): Promise<never> {
  return Promise.reject(new NotSupportedError(call));
}
