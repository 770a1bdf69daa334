/** How an engine runs steps on workers, wherever those are (vLLM V1's abstract Executor). */
import { inspect } from 'node:util';
import type { LoadProgress, UniprocConfig } from '../config/uniprocConfig';
import { NotSupportedError, type ExecutorFailedError } from '../errors';
import type { NativeModel } from '../native';
import type { KVCacheConfig, KVCacheSpec } from '../contract/kvCache';
import { loadClass } from '../worker/loadClass';
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { GrammarOutput } from '../contract/grammarOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';
import type { ReconfigureDistributedRequest } from '../config/reconfigureRequest';
import type { SleepTag } from '../worker/workerBase';
import type { RpcMethod } from '../worker/workerWrapper';
import { Future } from './future';
import { NO_PEERS, type Peers } from './peerGroup';
import { SleepState } from './sleepState';
import { TwoPhaseStep } from './twoPhaseStep';
import { joinOutputs, requireAnswers } from './workerResults';

export type { RpcMethod };

export interface RpcOptions {
  /** Milliseconds; after that RpcTimeoutError, and a late result is dropped. */
  timeout?: number;
  args?: readonly unknown[];
  /** Passed after `args`, as the last argument. */
  kwargs?: object;
}

export interface StepOptions {
  /** Milliseconds; after that RpcTimeoutError, and the executor has failed. */
  timeout?: number;
}

export interface CreateOptions {
  /** Told how far the load of the weights is. */
  onProgress?: (progress: LoadProgress) => void;
}

export type ExecutorClass<T extends Executor = Executor> = (new (config: UniprocConfig) => T) &
  Pick<typeof Executor, 'create' | 'supportsAsyncScheduling'>;

const classesByName = new Map<unknown, ExecutorClass>();

/**
 * Gives a class the name by which a config asks for it. Each class's file does so for its own, since
 * this one cannot import them: they extend what it defines.
 */
export function registerExecutorClass(name: string, executorClass: ExecutorClass): void {
  classesByName.set(name, executorClass);
}

/**
 * What the engine has of the workers. A subclass says how they are made and called (`initExecutor`,
 * `collectiveRpc`), how they fail and how they end; the rest of the interface is built on that.
 *
 * Order of start: `create`, `registerFailureCallback`, `getKvCacheSpecs`,
 * `determineAvailableMemory`, `initializeFromConfig`, `compileOrWarmUpModel`; then steps.
 */
export abstract class Executor {
  /** The ranks that its worker computes with, in other processes: none. */
  protected readonly peers: Peers = NO_PEERS;
  readonly #step = new TwoPhaseStep();
  readonly #sleep = new SleepState((method, args) => [
    ...requireAnswers(method, this.collectiveRpc(method, { args, nonBlock: true })),
  ]);

  /** Use `create`. */
  constructor(readonly config: UniprocConfig) {}

  /**
   * The class that `config.parallel.distributedExecutorBackend` names: 'uni', 'external_launcher', a
   * subclass of Executor, or the module and export where one is. Rejects with TypeError otherwise.
   */
  static async getClass(config: UniprocConfig): Promise<ExecutorClass> {
    const backend = config.parallel.distributedExecutorBackend;
    const found = classesByName.get(backend) ?? (await loadClass(backend));
    if (found?.prototype instanceof Executor) return found as unknown as ExecutorClass;
    throw new TypeError(
      "distributedExecutorBackend must be 'uni', 'external_launcher', a subclass of Executor or " +
        `{ module, export } of one, not ${inspect(backend)}`,
    );
  }

  /** Makes an executor and its workers. On failure what was made is shut down before the error is thrown. */
  static async create<T extends Executor>(
    this: new (config: UniprocConfig) => T,
    config: UniprocConfig,
    options: CreateOptions = {},
  ): Promise<T> {
    const executor = new this(config);
    try {
      await executor.initExecutor(options);
    } catch (error) {
      // The first error is the one to report, whatever the clearing up meets.
      await executor.shutdown(error).catch(() => {});
      throw error;
    }
    return executor;
  }

  /** Whether steps may be launched before the one before is read. */
  static supportsAsyncScheduling(): boolean {
    return false;
  }

  /** Makes the workers, opens their devices, loads the model. */
  protected abstract initExecutor(options: CreateOptions): Promise<void>;

  /**
   * Calls a method on every worker, in the order of the calls. Resolves with a result for each
   * worker or rejects with the worker's own error: UnknownMethodError, RpcTimeoutError,
   * ExecutorFailedError and ShutdownError are this side's. With `nonBlock` the futures come back at
   * once and hold the errors.
   */
  abstract collectiveRpc<T = unknown>(
    method: RpcMethod,
    options: RpcOptions & { nonBlock: true },
  ): Future<T>[];
  abstract collectiveRpc<T = unknown>(
    method: RpcMethod,
    options?: RpcOptions & { nonBlock?: false },
  ): Promise<T[]>;

  /** Calls back once, when the executor fails for good; at once if it has failed. */
  abstract registerFailureCallback(callback: (error: ExecutorFailedError) => void): void;

  /** Resolves while the workers can run; rejects with ExecutorFailedError and its cause when not. */
  abstract checkHealth(): Promise<void>;

  /**
   * Steps that are launched complete, other calls reject with ShutdownError; then the workers free
   * what they have. Idempotent. `cause`, if any, is why others in other processes must not wait for
   * this executor any more.
   */
  abstract shutdown(cause?: unknown): Promise<void>;

  [Symbol.asyncDispose](): Promise<void> {
    return this.shutdown();
  }

  /** Steps that may be in flight at once. */
  get maxConcurrentBatches(): number {
    return 1;
  }

  /**
   * Other processes' engines must schedule what this one schedules: then it is given whole calls, the
   * same in each, and nothing that is decided here alone.
   */
  get inLockstep(): boolean {
    return this.peers.inLockstep;
  }

  /**
   * Every process's value, by rank. Each must ask under the same name, one that was not used before.
   * Does not wait for steps.
   */
  gather(name: string, value: Uint8Array): Promise<Uint8Array[]> {
    return this.peers.gather(name, value);
  }

  /** The value of the first rank that has one, on every rank; null when none has. Waits for steps. */
  broadcast(value: Uint8Array | null): Promise<Uint8Array | null> {
    return this.peers.broadcast(value);
  }

  /** For each worker its layers' KV caches by name. */
  getKvCacheSpecs(): Promise<Map<string, KVCacheSpec>[]> {
    return this.collectiveRpc('getKvCacheSpec');
  }

  /** Bytes for the KV cache, of each worker. */
  determineAvailableMemory(): Promise<number[]> {
    return this.collectiveRpc('determineAvailableMemory');
  }

  /** Allocates the KV caches; one config for each worker, by its rank. */
  async initializeFromConfig(kvCacheConfigs: readonly KVCacheConfig[]): Promise<void> {
    await this.collectiveRpc('initializeFromConfig', { args: [kvCacheConfigs] });
  }

  /** Seconds it took, of the slowest worker. Leaves sampling untouched. */
  async compileOrWarmUpModel(): Promise<number> {
    const method = 'compileOrWarmUpModel';
    return Math.max(...requireAnswers(method, await this.collectiveRpc<number>(method)));
  }

  /**
   * Runs a step: its output, or null when it holds requests whose mask is computed while the forward
   * runs. After null `sampleTokens` must follow; executing again first is InvalidStateError, as is
   * executing while asleep.
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
    const future = this.#launch(schedulerOutput, options.timeout);
    return options.nonBlock ? future : future.result();
  }

  /**
   * Samples the step whose `executeModel` gave null. Resolves null when that step failed: the error
   * is in its own future. Without such a step it is InvalidStateError.
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
      this.#callStep('sampleTokens', grammarOutput, options.timeout, false),
    );
    return options.nonBlock ? future : future.result();
  }

  #launch(
    schedulerOutput: SchedulerOutput,
    timeout: number | undefined,
  ): Future<ModelRunnerOutput | null> {
    const refusal = this.#sleep.refusalOf('executeModel');
    if (refusal !== null) return Future.failed(refusal);
    const mayWait = schedulerOutput.hasStructuredOutputRequests;
    return this.#step.launch(mayWait, () =>
      this.#callStep('executeModel', schedulerOutput, timeout, mayWait),
    );
  }

  #callStep(
    method: 'executeModel' | 'sampleTokens',
    arg: unknown,
    timeout: number | undefined,
    mayWait: boolean,
  ): Future<ModelRunnerOutput | null> {
    const options = { args: [arg], timeout, nonBlock: true } as const;
    const workers = this.collectiveRpc<ModelRunnerOutput | null>(method, options);
    return joinOutputs(method, workers, mayWait);
  }

  /** Keeps workers that must step together in step: a batch of nothing. */
  async executeDummyBatch(): Promise<void> {
    const refusal = this.#sleep.refusalOf('executeDummyBatch');
    if (refusal !== null) throw refusal;
    await this.collectiveRpc('executeDummyBatch');
  }

  get isSleeping(): boolean {
    return this.#sleep.isSleeping;
  }

  /** Times it fell asleep, each of which dropped what the KV cache held. */
  get numSleeps(): number {
    return this.#sleep.numSleeps;
  }

  /**
   * Gives device memory back. Level 1 moves the weights to host memory, 2 drops them; the KV cache
   * is dropped. Another level is InvalidStateError; a repeated call warns.
   */
  sleep(level: 1 | 2 = 1): Promise<void> {
    return this.#sleep.sleep(level);
  }

  /**
   * Takes memory again, all of it or that of `tags`; awake once no tag is asleep. A tag that is not
   * asleep, or a call while awake, warns and changes nothing.
   */
  wakeUp(tags?: readonly SleepTag[]): Promise<void> {
    return this.#sleep.wakeUp(tags);
  }

  /** Starts or stops the device's profiler. NotSupportedError where there is none. */
  async profile(isStart = true): Promise<void> {
    await this.collectiveRpc('profile', { args: [isStart] });
  }

  /** What every worker's model is for: 'generate'. */
  async supportedTasks(): Promise<string[]> {
    const answers = await this.collectiveRpc<string[]>('supportedTasks');
    const [first, ...others] = requireAnswers('supportedTasks', answers);
    return first.filter((task) => others.every((tasks) => tasks.includes(task)));
  }

  /** Calls `apply` with each worker's model. */
  applyModel<T>(apply: (model: NativeModel) => T | Promise<T>): Promise<T[]> {
    return this.collectiveRpc('applyModel', { args: [apply] });
  }

  /** Forms the group of workers again. */
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
