/**
 * Gives a model's memory back and takes it again. Whether steps may run meanwhile is for the executor
 * to say (executor/sleepState.ts); what is kept here is where the memory is.
 */
import type { NativeModel } from '../native';
import type { SleepTag } from './workerBase';

/** How memory given back is filled again. */
export interface Restore {
  /** Reads the weights from the checkpoint again. */
  loadWeights(): Promise<void>;
  /** Blocks of the KV cache; null: it had none. */
  numBlocks: number | null;
}

export class ReleasedMemory {
  /** Given back and not taken again; a wakeUp that failed half way goes on with what is left. */
  readonly #tags = new Set<SleepTag>();
  /** Where released weights are: 1 in host memory, 2 in the checkpoint alone. */
  #level: 1 | 2 = 1;

  /** `onCuda`: the host's memory is not the device's. */
  constructor(private readonly onCuda: boolean) {}

  /** Rejects with OUT_OF_MEMORY, having given nothing back, when the host has none for the weights. */
  async release(model: NativeModel, level: 1 | 2): Promise<void> {
    this.#level = level;
    // First what can fail.
    if (level === 2) await model.releaseWeights();
    else if (this.onCuda) await model.offloadWeights();
    this.#tags.add('weights').add('kv_cache');
    await model.releaseKvCache();
  }

  /** Rejects with OUT_OF_MEMORY and the figures; what was not taken again by then is released still. */
  async restore(model: NativeModel, tags: readonly SleepTag[], restore: Restore): Promise<void> {
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
