/** One device's half of a step: opens the device, loads the model, sizes its cache, runs it. */
import os from 'node:os';
import { ConfigError, InvalidStateError, NotSupportedError, OutOfMemoryError } from '../errors';
import type { LoadProgress, UniprocConfig } from '../config/uniprocConfig';
import {
  type DeviceProperties,
  type MemoryInfo,
  type ModelLimits,
  type ModelSpec,
  native,
  type NativeDevice,
  type NativeModel,
} from '../native';
import { readTensorTable } from './checkpoint';
import { type KVCacheConfig, KVCacheSpec } from './kvCache';
import { ModelRunner } from './modelRunner';
import type { GrammarOutput, SchedulerOutput } from './schedulerOutput';
import { shardSpec } from './tensorParallel';
import { weightParts } from './weights';
import {
  type ReconfigureDistributedRequest,
  type SleepTag,
  type StepOutput,
  WorkerBase,
} from './workerBase';

/** Share of the free memory that the KV cache may take on the CPU when the user names none. */
const CPU_CACHE_SHARE = 0.25;
/** Share of a GPU's memory that an engine may use when the user names none, as in vLLM. */
const CUDA_MEMORY_UTILIZATION = 0.9;

const GIB = 2 ** 30;
const gib = (bytes: number) => `${(bytes / GIB).toFixed(2)} GiB`;

export class Worker extends WorkerBase {
  /** The open device; null before `initDevice` and after `shutdown`. */
  device: NativeDevice | null = null;
  deviceProperties: DeviceProperties | null = null;
  /** Before anything was loaded. */
  #baseline: MemoryInfo | null = null;
  #runner: ModelRunner | null = null;
  #kvCacheConfig: KVCacheConfig | null = null;
  readonly #asleep = new Set<SleepTag>();
  /** Of the last sleep. */
  #sleepLevel: 1 | 2 = 1;

  get #config(): UniprocConfig {
    return this.args.config;
  }

  /** The device is a GPU, whose memory is not the host's. */
  get #onCuda(): boolean {
    return this.#config.device.kind === 'cuda';
  }

  get #openDevice(): NativeDevice {
    if (!this.device) throw new InvalidStateError('the device is not open; call initDevice first');
    return this.device;
  }

  /** Reachable as `executor.driverWorker.worker.modelRunner`. Throws INVALID_STATE before loadModel. */
  get modelRunner(): ModelRunner {
    if (!this.#runner) throw new InvalidStateError('the model is not loaded; call loadModel first');
    return this.#runner;
  }

  get model(): NativeModel {
    return this.modelRunner.model;
  }

  /** The forward pass this worker runs. */
  get modelSpec(): ModelSpec {
    const { transformer, dtype } = this.#config.model;
    return { ...shardSpec(transformer.spec, 0, 1), dtype };
  }

  /** Share of the device's memory this engine may use; null on the CPU, unless the user names one. */
  get #memoryUtilization(): number | null {
    const { memoryUtilization } = this.#config.cache;
    return memoryUtilization ?? (this.#onCuda ? CUDA_MEMORY_UTILIZATION : null);
  }

  /**
   * Opens the device. Rejects with DEVICE_FAILED when it is not there, and with OUT_OF_MEMORY when
   * less of it is free than memoryUtilization asks for.
   */
  async initDevice(): Promise<void> {
    const { kind } = this.#config.device;
    this.device = new (native().Device)(kind, this.args.localRank, cpuThreads());
    this.deviceProperties = await this.device.open();
    this.#baseline = await this.device.memory();
    const { total, free } = this.#baseline;
    const share = this.#memoryUtilization;
    if (this.#config.cache.kvCacheMemoryBytes !== null || share === null) return;
    if (total * share > free) {
      throw new OutOfMemoryError(
        `memoryUtilization ${share} asks for ${gib(total * share)} of ${gib(total)}, but only ` +
          `${gib(free)} are free; lower memoryUtilization or free memory`,
      );
    }
  }

  /** Maps the checkpoint's files and fills the weights, or makes random ones ('dummy'). */
  async loadModel(onProgress?: (progress: LoadProgress) => void): Promise<void> {
    const { model, scheduler, cache } = this.#config;
    const device = this.#openDevice;
    // Asynchronous scheduling launches a step while the one before it runs, each from its own set.
    const numSteps = scheduler.asyncScheduling ? 2 : 1;
    const limits: ModelLimits = {
      maxNumSeqs: scheduler.maxNumSeqs,
      maxNumBatchedTokens: scheduler.maxNumBatchedTokens,
      maxModelLen: model.maxModelLen,
      blockSize: cache.blockSize,
      numSteps,
      maxLogprobs: model.maxLogprobs,
      enforceEager: model.enforceEager,
    };
    const nativeModel = new (native().Model)(device, this.modelSpec, limits, null);
    this.#runner = new ModelRunner(
      nativeModel,
      model.transformer.spec.vocabSize,
      scheduler.maxNumSeqs,
    );
    await this.#fillWeights(onProgress);
  }

  async #fillWeights(onProgress?: (progress: LoadProgress) => void): Promise<void> {
    const { model, load } = this.#config;
    if (load.loadFormat === 'dummy') return this.model.loadDummy(model.seed);
    const table = await readTensorTable(model.path);
    const { files, parts, totalBytes } = weightParts(model.transformer.spec, table);
    const start = performance.now();
    let failure: unknown = null;
    await this.model.load(files, parts, (bytes, tensors) => {
      try {
        const bytesPerSecond = (1000 * bytes) / (performance.now() - start);
        const totalTensors = parts.length;
        onProgress?.({ bytes, totalBytes, tensors, totalTensors, bytesPerSecond });
      } catch (error) {
        // Thrown from a native callback it would end the process.
        failure ??= error;
      }
    });
    if (failure !== null) throw failure as Error;
  }

  getKvCacheSpec(): Map<string, KVCacheSpec> {
    const spec = this.modelSpec;
    return new Map(
      spec.slidingWindows.map((window, layer) => [
        `model.layers.${layer}.self_attn`,
        new KVCacheSpec(
          this.#config.cache.blockSize,
          spec.numKvHeads,
          spec.headDim,
          spec.dtype,
          window === 0 ? null : window,
        ),
      ]),
    );
  }

  /**
   * Bytes the KV cache may take: runs a step at the largest batch and takes what it and the weights
   * needed at most from the share of memory this engine was given. `kvCacheMemoryBytes` overrides
   * the figure; the step runs all the same, so that a model too large fails here. Rejects with
   * OUT_OF_MEMORY and the figures.
   */
  async determineAvailableMemory(): Promise<number> {
    const { kvCacheMemoryBytes } = this.#config.cache;
    await this.#openDevice.resetPeakMemory();
    const graphBytes = await this.model.profile();
    const { total, free, allocated, peakAllocated } = await this.#openDevice.memory();
    if (kvCacheMemoryBytes !== null) return kvCacheMemoryBytes;
    const share = this.#memoryUtilization;
    if (share === null) return Math.floor(free * CPU_CACHE_SHARE);

    const freeBefore = this.#baseline?.free ?? 0;
    if (this.#onCuda && free > freeBefore) {
      throw new InvalidStateError(
        `${gib(freeBefore)} were free before the model was loaded and ${gib(free)} are now: ` +
          'somebody else gave memory back meanwhile, so what is left cannot be told; start again',
      );
    }
    // A GPU's driver, kernels and other users take memory that is nobody's allocation here.
    const needed = peakAllocated + graphBytes + (this.#onCuda ? total - free - allocated : 0);
    const requested = Math.floor(total * share);
    if (requested <= needed) {
      throw new OutOfMemoryError(
        `memoryUtilization ${share} gives ${gib(requested)} of ${gib(total)}, but the model ` +
          `and its largest step need ${gib(needed)}; raise memoryUtilization or lower ` +
          'maxNumBatchedTokens',
      );
    }
    return requested - needed;
  }

  async initializeFromConfig(kvCacheConfig: KVCacheConfig): Promise<void> {
    this.#kvCacheConfig = kvCacheConfig;
    await this.model.allocateKvCache(kvCacheConfig.numBlocks);
  }

  /** Runs a few shapes once; requests and sampling stay as they were. Resolves to seconds taken. */
  async compileOrWarmUpModel(): Promise<number> {
    const start = performance.now();
    await this.model.warmUp();
    return (performance.now() - start) / 1000;
  }

  executeModel(schedulerOutput: SchedulerOutput): StepOutput {
    this.#requireAwake('executeModel');
    return this.modelRunner.executeModel(schedulerOutput);
  }

  sampleTokens(grammarOutput: GrammarOutput | null): StepOutput {
    return this.modelRunner.sampleTokens(grammarOutput);
  }

  /** A step on no request, as ranks without work run beside others. */
  async executeDummyBatch(): Promise<void> {
    this.#requireAwake('executeDummyBatch');
    await this.model.warmUp();
  }

  /** Calls `fn` with the model. */
  applyModel<T>(fn: (model: NativeModel) => T): T {
    return fn(this.model);
  }

  supportedTasks(): string[] {
    return ['generate'];
  }

  /** Resolves when all enqueued before it has run; rejects with what broke the device. */
  async checkHealth(): Promise<void> {
    await this.#openDevice.synchronize();
  }

  /**
   * Gives memory back. Level 1 keeps the weights in host memory (on the CPU: where they are), level
   * 2 drops them; the KV cache goes in both. Throws INVALID_STATE, at once, while it holds requests.
   * Rejects with OUT_OF_MEMORY, and stays awake, when the host has none for the weights.
   */
  sleep(level: 1 | 2): Promise<void> {
    const { size } = this.modelRunner.inputBatch;
    if (size > 0) {
      throw new InvalidStateError(`sleep with ${size} requests unfinished; finish or abort them`);
    }
    this.#asleep.add('weights').add('kv_cache');
    this.#sleepLevel = level;
    return this.#giveMemoryBack();
  }

  async #giveMemoryBack(): Promise<void> {
    const { model } = this;
    try {
      // First what can fail.
      if (this.#sleepLevel === 2) await model.releaseWeights();
      else if (this.#onCuda) await model.offloadWeights();
    } catch (error) {
      this.#asleep.clear();
      throw error;
    }
    await model.releaseKvCache();
  }

  /**
   * Brings back what the tags name; weights dropped are read from the checkpoint again. Rejects with
   * OUT_OF_MEMORY and the figures; what was not brought back by then is asleep still.
   */
  async wakeUp(tags: readonly SleepTag[] = ['weights', 'kv_cache']): Promise<void> {
    if (tags.includes('weights') && this.#asleep.has('weights')) {
      if (this.#sleepLevel === 2) await this.#fillWeights();
      else if (this.#onCuda) await this.model.restoreWeights();
      this.#asleep.delete('weights');
    }
    if (tags.includes('kv_cache') && this.#asleep.has('kv_cache')) {
      if (this.#kvCacheConfig) await this.model.allocateKvCache(this.#kvCacheConfig.numBlocks);
      this.#asleep.delete('kv_cache');
    }
  }

  #requireAwake(call: string): void {
    if (this.#asleep.size === 0) return;
    throw new InvalidStateError(
      `${call} while ${[...this.#asleep].join(' and ')} are asleep; call wakeUp first`,
    );
  }

  /** Rejects with NOT_SUPPORTED where there is no CUDA profiler. */
  async profile(isStart: boolean): Promise<void> {
    if (!this.#onCuda) throw new NotSupportedError('profile');
    await this.#openDevice.profile(isStart);
  }

  reinitializeDistributed(_request: ReconfigureDistributedRequest): never {
    throw new NotSupportedError('reinitializeDistributed');
  }

  /** Lets what was launched finish, then frees everything. Idempotent. */
  async shutdown(): Promise<void> {
    const { device } = this;
    const runner = this.#runner;
    this.device = null;
    this.#runner = null;
    await runner?.model.shutdown();
    await device?.shutdown();
  }
}

/** Threads that compute: UNIPROC_CPU_THREADS, or as many as there are cores to run on. */
function cpuThreads(): number {
  const value = process.env.UNIPROC_CPU_THREADS;
  if (value === undefined || value === '') return os.availableParallelism();
  const threads = Number(value);
  if (!Number.isInteger(threads) || threads < 1) {
    throw new ConfigError(`UNIPROC_CPU_THREADS is ${value}; it must be a positive integer`);
  }
  return threads;
}
