/** What an executor asks of a worker: one device's half of a step (vLLM V1's WorkerBase). */
import type { LoadProgress, UniprocConfig } from '../config/uniprocConfig';
import type { KVCacheConfig, KVCacheSpec } from '../contract/kvCache';
import type { AsyncModelRunnerOutput, ModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { GrammarOutput } from '../contract/grammarOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';

/** What a worker is made with (the wrapper keeps `sharedWorkerLock` for itself). */
export interface WorkerArgs {
  config: UniprocConfig;
  localRank: number;
  rank: number;
  /** `tcp://<ip>:<port>` or `env://`. */
  distributedInitMethod: string;
  isDriverWorker: boolean;
}

export type SleepTag = 'weights' | 'kv_cache';

/** The output, or one that is still computed, or null: `sampleTokens` must follow. */
export type StepOutput = ModelRunnerOutput | AsyncModelRunnerOutput | null;

/**
 * One device's half of a step. The executor calls these by name, in this order at the start:
 * initDevice, loadModel, (getKvCacheSpec, determineAvailableMemory, initializeFromConfig,
 * compileOrWarmUpModel). A method may answer with a value or a promise; it must not block.
 */
export abstract class WorkerBase {
  constructor(readonly args: WorkerArgs) {}

  abstract initDevice(): Promise<void> | void;
  abstract loadModel(onProgress?: (progress: LoadProgress) => void): Promise<void> | void;
  /** By layer name. */
  abstract getKvCacheSpec(): Map<string, KVCacheSpec>;
  /** Bytes for the KV cache. */
  abstract determineAvailableMemory(): Promise<number> | number;
  abstract initializeFromConfig(kvCacheConfig: KVCacheConfig): Promise<void> | void;
  abstract compileOrWarmUpModel(): Promise<number> | number;
  abstract executeModel(schedulerOutput: SchedulerOutput): StepOutput | Promise<StepOutput>;
  abstract sampleTokens(grammarOutput: GrammarOutput | null): StepOutput | Promise<StepOutput>;
  abstract checkHealth(): Promise<void> | void;
  abstract shutdown(): Promise<void> | void;
}
