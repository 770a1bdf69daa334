/**
 * Releases and restores a model's memory. The executor tracks whether steps may run
 * (executor/sleepState.ts); this tracks where the memory is.
 */
import type { NativeModelRunner } from '../native';
import type { SleepTag } from './workerBase';

/** How to restore released memory. */
export interface Restore {
  /** Reloads the weights from the checkpoint. */
  loadWeights(): Promise<void>;
  /** KV cache blocks; null if it had none. */
  numBlocks: number | null;
}

export class ReleasedMemory {
  /** Released tags; a wakeUp after a partial failure restores the rest. */
  readonly #tags = new Set<SleepTag>();
  /** Location of released weights: 1: host memory, 2: checkpoint only. */
  #level: 1 | 2 = 1;

  /** `onCuda`: device memory is separate from host memory. */
  constructor(private readonly onCuda: boolean) {}

  /**
   * Releases what is not released, and with level 2 weights in host memory, too. Rejects with
   * OUT_OF_MEMORY, releasing nothing, if host memory cannot hold the weights.
   */
  async release(model: NativeModelRunner, level: 1 | 2): Promise<void> {
    // Weights first: only they can fail.
    if (level === 2 || !this.#tags.has('weights')) {
      this.#level = level;
      if (level === 2) await model.releaseWeights();
      else if (this.onCuda) await model.offloadWeights();
    }
    this.#tags.add('weights').add('kv_cache');
    await model.releaseKvCache();
  }

  /** Rejects with OUT_OF_MEMORY and the figures; tags not restored by then stay released. */
  async restore(
    model: NativeModelRunner,
    tags: readonly SleepTag[],
    restore: Restore,
  ): Promise<void> {
    if (tags.includes('weights') && this.#tags.has('weights')) {
      if (this.#level === 2) await restore.loadWeights();
      else if (this.onCuda) await model.restoreWeights();
      this.#tags.delete('weights');
    }
    if (tags.includes('kv_cache') && this.#tags.has('kv_cache')) {
      if (restore.numBlocks !== null) await model.allocateKvCache(restore.numBlocks);
      this.#tags.delete('kv_cache');
    }
  }
}
