/** The worker interface that an executor calls (vLLM V1's WorkerBase). */
import type { LoadProgress } from '../config/uniprocConfig';
import type { KVCacheConfig, KVCacheSpec } from '../contract/kvCache';
import type { AsyncModelRunnerOutput, ModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { GrammarOutput } from '../contract/grammarOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';
import type { WorkerArgs } from '../contract/workerArgs';

export type { WorkerArgs };

export type SleepTag = 'weights' | 'kv_cache';

/** The output, an output in flight, or null: then `sampleTokens` must follow. */
export type StepOutput = ModelRunnerOutput | AsyncModelRunnerOutput | null;

/**
 * Runs steps on one device. The executor calls these methods by name; start-up order: initDevice,
 * loadModel, (getKvCacheSpec, determineAvailableMemory, initializeFromConfig,
 * compileOrWarmUpModel). Methods may return a value or a promise, and must not block.
 */
export abstract class WorkerBase {
  constructor(readonly args: WorkerArgs) {}

  abstract initDevice(): Promise<void> | void;
  abstract loadModel(onProgress?: (progress: LoadProgress) => void): Promise<void> | void;
  /** By layer name. */
  abstract getKvCacheSpec(): Map<string, KVCacheSpec>;
  /** Bytes available for the KV cache. */
  abstract determineAvailableMemory(): Promise<number> | number;
  abstract initializeFromConfig(kvCacheConfig: KVCacheConfig): Promise<void> | void;
  abstract compileOrWarmUpModel(): Promise<number> | number;
  abstract executeModel(schedulerOutput: SchedulerOutput): StepOutput | Promise<StepOutput>;
  abstract sampleTokens(grammarOutput: GrammarOutput | null): StepOutput | Promise<StepOutput>;
  abstract checkHealth(): Promise<void> | void;
  abstract shutdown(): Promise<void> | void;
}
