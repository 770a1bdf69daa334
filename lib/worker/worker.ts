/**
 * A worker: opens one device, loads the model, sizes its KV cache and runs steps (vLLM's Worker).
 */
import os from 'node:os';
import {
  type ReconfigureDistributedRequest,
  ReconfigureRankType,
} from '../config/reconfigureRequest';
import type { LoadProgress, UniprocConfig } from '../config/uniprocConfig';
import type { GrammarOutput } from '../contract/grammarOutput';
import { type KVCacheConfig, KVCacheSpec } from '../contract/kvCache';
import type { SchedulerOutput } from '../contract/schedulerOutput';
import type { WorkerSummary } from '../contract/workerSummary';
import { addressOf } from '../distributed/address';
import { ProcessGroup } from '../distributed/processGroup';
import { type RankPlace, rankFromEnvironment } from '../distributed/rendezvous';
import { ConfigError, InvalidStateError, NotSupportedError } from '../errors';
import { log } from '../log';
import {
  type DeviceProperties,
  type ModelLimits,
  type ModelSpec,
  native,
  type NativeCommunicator,
  type NativeDeviceThread,
  type NativeModelRunner,
} from '../native';
import { ModelLoader } from '../model/load';
import { headsOf, layersWithKeys, shareOf } from '../model/division';
import { groupsByLayer, layerName, requireGroups } from './kvCacheGroups';
import { MemoryBudget } from './memory';
import { ModelRunner } from './modelRunner';
import { chooseProductAlgorithms } from './productAlgorithms';
import { ReleasedMemory } from './sleep';
import { type SleepTag, type StepOutput, type WorkerArgs, WorkerBase } from './workerBase';

export class Worker extends WorkerBase {
  /** The open device; null before `initDevice` and after `shutdown`. */
  device: NativeDeviceThread | null = null;
  deviceProperties: DeviceProperties | null = null;
  /**
   * The ranks that share the model, with failure detection. Null with one rank, before `initDevice`
   * and after `shutdown`.
   */
  processGroup: ProcessGroup | null = null;
  /** Collectives of those ranks; all must call the same ones in the same order. Null as above. */
  communicator: NativeCommunicator | null = null;
  /** This worker's rank, and the rendezvous address. */
  #place: RankPlace & { localRank: number; initMethod: string };
  /** Steps launched in this rank group; identical on every rank after the same calls. */
  #numSteps = 0;
  /** Set by `initDevice`. */
  #memory: MemoryBudget | null = null;
  readonly #loader: ModelLoader;
  #runner: ModelRunner | null = null;
  #kvCacheConfig: KVCacheConfig | null = null;
  readonly #released: ReleasedMemory;

  constructor(args: WorkerArgs) {
    super(args);
    this.#loader = new ModelLoader(args.config, (...model) => native().declareParameters(...model));
    this.#released = new ReleasedMemory(args.config.device.kind === 'cuda');
    const { rank, localRank, distributedInitMethod: initMethod } = args;
    const worldSize = args.config.parallel.tensorParallelSize;
    this.#place = { rank, worldSize, localRank, initMethod };
  }

  /** Rank among those that share the model; updated by reinitializeDistributed. */
  get rank(): number {
    return this.#place.rank;
  }

  /** Number of ranks that share the model. */
  get worldSize(): number {
    return this.#place.worldSize;
  }

  get #config(): UniprocConfig {
    return this.args.config;
  }

  get #openDevice(): NativeDeviceThread {
    if (!this.device) throw new InvalidStateError('the device is not open; call initDevice first');
    return this.device;
  }

  /**
   * Reachable as `executor.driverWorker.worker.modelRunner`. Throws INVALID_STATE before loadModel.
   */
  get modelRunner(): ModelRunner {
    if (!this.#runner) throw new InvalidStateError('the model is not loaded; call loadModel first');
    return this.#runner;
  }

  get model(): NativeModelRunner {
    return this.modelRunner.model;
  }

  /** Dimensions of this rank's share of the model. */
  get modelSpec(): ModelSpec {
    return shareOf(this.#loader.spec, this.worldSize);
  }

  /** Ranks on this machine, which divide its CPU. */
  get #localWorldSize(): number {
    if (this.worldSize === 1) return 1;
    return Math.min(this.worldSize, rankFromEnvironment().localWorldSize);
  }

  /**
   * Joins the other ranks and opens the device. Rejects with CUDA_UNAVAILABLE if the GPU cannot be
   * used, OUT_OF_MEMORY if less memory is free than memoryUtilization requests, and RENDEZVOUS or
   * PEER_LOST if another rank does not join or is lost.
   */
  async initDevice(): Promise<void> {
    const { kind } = this.#config.device;
    // Join first, so other ranks learn of a device failure.
    if (this.worldSize > 1) await this.#joinGroup();
    this.device = new (native().DeviceThread)(kind, this.#place.localRank, this.#cpuThreads());
    this.deviceProperties = await this.device.open();
    const { name, capability, numThreads } = this.deviceProperties;
    log('start: device %s is open: %s, %d threads', name, capability, numThreads);
    if (this.processGroup) await this.#connect(this.processGroup, this.device);
    this.#memory = new MemoryBudget(this.#config, this.#localWorldSize);
    await this.#memory.measureBaseline(this.device);
  }

  async #joinGroup(): Promise<void> {
    const { distributedTimeoutMs: timeout } = this.#config.parallel;
    const group = await ProcessGroup.join({ ...this.#place, timeout });
    this.processGroup = group;
    this.#numSteps = 0;
    // A device waiting for a lost rank would wait forever.
    group.onFailure((error) => this.communicator?.abort(error.message));
    group.onLeave((rank, numSteps) => void this.#onRankLeft(group, rank, numSteps));
  }

  /**
   * A rank has left after launching and completing `numSteps` steps: steps that both ranks launched
   * complete here; later ones never will.
   */
  async #onRankLeft(group: ProcessGroup, rank: number, numSteps: number): Promise<void> {
    if (this.#numSteps <= numSteps) await this.device?.synchronize().catch(() => {});
    if (this.processGroup !== group) return; // This rank has left too.
    this.communicator?.abort(`rank ${rank} is lost: it has left the group`);
  }

  async #connect(group: ProcessGroup, device: NativeDeviceThread): Promise<void> {
    const { distributedTimeoutMs, disableCustomAllReduce } = this.#config.parallel;
    this.communicator = new (native().Communicator)(device, {
      rank: this.rank,
      worldSize: this.worldSize,
      timeout: distributedTimeoutMs,
      customAllReduce: !disableCustomAllReduce,
    });
    const address = await this.communicator.address();
    await this.communicator.connect(await group.gather('communicator', address));
  }

  /** Compute threads: UNIPROC_CPU_THREADS, or this rank's share of the cores. */
  #cpuThreads(): number {
    const value = process.env.UNIPROC_CPU_THREADS;
    if (value === undefined || value === '') {
      return Math.max(1, Math.floor(os.availableParallelism() / this.#localWorldSize));
    }
    const threads = Number(value);
    if (!Number.isInteger(threads) || threads < 1) {
      throw new ConfigError(`UNIPROC_CPU_THREADS is ${value}; it must be a positive integer`);
    }
    return threads;
  }

  /**
   * Tells the other ranks that this one has failed, and why, and stops waiting for them. Their
   * PeerLostError has `cause` as its cause.
   */
  abort(reason: string, cause?: unknown): void {
    this.processGroup?.abort(reason, cause);
    this.communicator?.abort(reason);
  }

  /** Loads the weights from the checkpoint, or random ones ('dummy'). */
  async loadModel(onProgress?: (progress: LoadProgress) => void): Promise<void> {
    const { model, scheduler, cache, limits } = this.#config;
    const device = this.#openDevice;
    // Async scheduling launches a step during the previous one, each from its own staging set.
    const numSteps = scheduler.asyncScheduling ? 2 : 1;
    await this.#loader.examine(device, this.rank);
    const kvCacheGroups = groupsByLayer(this.getKvCacheSpec(), this.modelSpec.kvLayers);
    const modelLimits: ModelLimits = {
      maxNumSeqs: scheduler.maxNumSeqs,
      maxNumBatchedTokens: scheduler.maxNumBatchedTokens,
      maxModelLen: model.maxModelLen,
      blockSize: cache.blockSize,
      kvCacheGroups,
      numSteps,
      maxLogprobs: model.maxLogprobs,
      listMemoryBytes: limits.maxListMemoryBytes,
      enforceEager: model.enforceEager,
    };
    const nativeModel = new (native().ModelRunner)(
      device,
      this.#loader.spec,
      modelLimits,
      this.communicator,
    );
    this.#runner = new ModelRunner(
      nativeModel,
      model.transformer.spec.vocabSize,
      scheduler.maxNumSeqs,
      Math.max(...kvCacheGroups) + 1,
    );
    await this.#loader.load(nativeModel, this.#place, onProgress);
  }

  /** A window that no request exceeds is full attention. */
  getKvCacheSpec(): Map<string, KVCacheSpec> {
    const spec = this.modelSpec;
    const { maxModelLen } = this.#config.model;
    return new Map(
      layersWithKeys(spec).map((layer) => {
        const window = spec.slidingWindows[layer];
        return [
          layerName(layer),
          new KVCacheSpec(
            this.#config.cache.blockSize,
            ...headsOf(spec, layer),
            this.#config.cache.dtype,
            window === 0 || window >= maxModelLen ? null : window,
          ),
        ];
      }),
    );
  }

  /**
   * Bytes available for the KV cache beside weights and the largest step, whose products' algorithms
   * a GPU then chooses. Rejects with OUT_OF_MEMORY.
   */
  async determineAvailableMemory(): Promise<number> {
    const device = this.#openDevice;
    const { model } = this;
    this.#memory ??= new MemoryBudget(this.#config, this.#localWorldSize);
    const available = await this.#memory.availableForKvCache(device, model);
    if (this.deviceProperties && this.#config.device.kind === 'cuda') {
      await chooseProductAlgorithms(device, this.deviceProperties);
    }
    return available;
  }

  /** Throws INVALID_STATE for groups that are not those of the layers' specs. */
  async initializeFromConfig(kvCacheConfig: KVCacheConfig): Promise<void> {
    requireGroups(this.getKvCacheSpec(), kvCacheConfig);
    this.#kvCacheConfig = kvCacheConfig;
    await this.model.allocateKvCache(kvCacheConfig.numBlocks);
  }

  /**
   * Warms up by running dummy steps; does not affect requests or sampling. Resolves to the seconds
   * taken.
   */
  async compileOrWarmUpModel(): Promise<number> {
    const start = performance.now();
    await this.model.warmUp();
    return (performance.now() - start) / 1000;
  }

  /** An override may be async; steps still reach the device in call order. */
  executeModel(schedulerOutput: SchedulerOutput): StepOutput | Promise<StepOutput> {
    if (schedulerOutput.totalNumScheduledTokens > 0) this.#numSteps++;
    return this.modelRunner.executeModel(schedulerOutput);
  }

  sampleTokens(grammarOutput: GrammarOutput | null): StepOutput | Promise<StepOutput> {
    return this.modelRunner.sampleTokens(grammarOutput);
  }

  /** Runs an empty step, for ranks without work beside others. */
  async executeDummyBatch(): Promise<void> {
    this.#numSteps++;
    await this.model.warmUp();
  }

  /** Calls `fn` with the model. */
  applyModel<T>(fn: (model: NativeModelRunner) => T): T {
    return fn(this.model);
  }

  supportedTasks(): string[] {
    return [this.#config.model.transformer.pooling === null ? 'generate' : 'embed'];
  }

  /** The device and this rank's share of the weights. Throws INVALID_STATE before `initDevice`. */
  getSummary(): WorkerSummary {
    const { rank, worldSize } = this.#place;
    if (!this.deviceProperties) throw new InvalidStateError('the device is not open');
    const { name: deviceName, capability } = this.deviceProperties;
    const weightBytes = this.#loader.weightBytes(this.#place);
    return { deviceName, capability, rank, worldSize, weightBytes };
  }

  /** Resolves once all enqueued work is done; rejects with the device's error. */
  async checkHealth(): Promise<void> {
    await this.#openDevice.synchronize();
  }

  /**
   * Releases memory. Level 1 keeps the weights in host memory (on a CPU: in place), level 2
   * discards them; both discard the KV cache. Throws INVALID_STATE, synchronously, while requests
   * are unfinished. Rejects with OUT_OF_MEMORY, and stays awake, if host memory cannot hold the
   * weights.
   */
  sleep(level: 1 | 2): Promise<void> {
    const { size } = this.modelRunner.inputBatch;
    if (size > 0) {
      throw new InvalidStateError(
        `sleep was called with ${size} requests unfinished; finish or abort them first`,
      );
    }
    return this.#released.release(this.model, level);
  }

  /**
   * Restores the tags' memory, reloading discarded weights from the checkpoint. Rejects with
   * OUT_OF_MEMORY and the figures; tags not restored by then stay asleep.
   */
  wakeUp(tags: readonly SleepTag[] = ['weights', 'kv_cache']): Promise<void> {
    const { model } = this;
    return this.#released.restore(model, tags, {
      loadWeights: () => this.#loader.reload(model, this.#openDevice, this.#place),
      numBlocks: this.#kvCacheConfig?.numBlocks ?? null,
    });
  }

  /** Rejects with NOT_SUPPORTED without a CUDA profiler. */
  async profile(isStart: boolean): Promise<void> {
    if (this.#config.device.kind !== 'cuda') throw new NotSupportedError('profile');
    await this.#openDevice.profile(isStart);
  }

  /**
   * Leaves its rank group; then, unless it is to shut down, joins the new one and loads its new
   * share of the weights. The KV cache is lost and must be sized again. Throws NOT_SUPPORTED,
   * changing nothing, if not started by a launcher; rejects as `initDevice` and `loadModel` do.
   */
  async reinitializeDistributed(request: ReconfigureDistributedRequest): Promise<void> {
    if (this.args.distributedInitMethod !== 'env://') {
      throw new NotSupportedError(
        'reinitializeDistributed',
        "reinitializeDistributed needs distributedExecutorBackend 'external_launcher'",
      );
    }
    // Wait until no other rank's device still reads this rank's results.
    await this.communicator?.barrier();
    await this.shutdown();
    const { KEEP_CURRENT_RANK, SHUTDOWN_CURRENT_RANK } = ReconfigureRankType;
    const { newDataParallelRank, newDataParallelRankLocal, newDataParallelSize } = request;
    const { newDataParallelMasterIp, newDataParallelMasterPort } = request;
    if (newDataParallelRank === SHUTDOWN_CURRENT_RANK) return;
    const { rank, localRank } = this.#place;
    this.#place = {
      rank: newDataParallelRank === KEEP_CURRENT_RANK ? rank : newDataParallelRank,
      localRank:
        newDataParallelRankLocal === KEEP_CURRENT_RANK ? localRank : newDataParallelRankLocal,
      worldSize: newDataParallelSize,
      initMethod: `tcp://${addressOf(newDataParallelMasterIp, newDataParallelMasterPort)}`,
    };
    await this.initDevice();
    await this.loadModel();
  }

  /** Completes launched steps, leaves the rank group and frees everything. Idempotent. */
  async shutdown(): Promise<void> {
    const { device, communicator, processGroup } = this;
    const runner = this.#runner;
    this.device = null;
    this.communicator = null;
    this.processGroup = null;
    this.#runner = null;
    await runner?.model.shutdown();
    await communicator?.shutdown();
    await processGroup?.leave(this.#numSteps);
    await device?.shutdown();
  }
}
