/** How much of a device's memory an engine may use, and what of it is left for the KV cache. */
import type { UniprocConfig } from '../config/uniprocConfig';
import { InvalidStateError, OutOfMemoryError } from '../errors';
import type { MemoryInfo, NativeDevice, NativeModel } from '../native';

/** Share of the free memory that the KV caches of a CPU's ranks may take when the user names none. */
export const CPU_CACHE_SHARE = 0.25;
/** Share of a GPU's memory that an engine may use when the user names none, as in vLLM. */
export const CUDA_MEMORY_UTILIZATION = 0.9;

const GIB = 2 ** 30;
const gib = (bytes: number) => `${(bytes / GIB).toFixed(2)} GiB`;

export class MemoryBudget {
  /** Before anything was loaded. */
  #baseline: MemoryInfo | null = null;

  constructor(
    private readonly config: UniprocConfig,
    /** Ranks on this machine, which divide its CPU's memory among them. */
    private readonly localWorldSize: number,
  ) {}

  /** The device is a GPU, whose memory is not the host's. */
  get #onCuda(): boolean {
    return this.config.device.kind === 'cuda';
  }

  /** Share of the device's memory this engine may use; null on the CPU, unless the user names one. */
  get #utilization(): number | null {
    const { memoryUtilization } = this.config.cache;
    if (this.#onCuda) return memoryUtilization ?? CUDA_MEMORY_UTILIZATION;
    return memoryUtilization && memoryUtilization / this.localWorldSize;
  }

  /**
   * Notes what is free before anything is loaded. Rejects with OUT_OF_MEMORY when that is less than
   * memoryUtilization asks for.
   */
  async measureBaseline(device: NativeDevice): Promise<void> {
    this.#baseline = await device.memory();
    const { total, free } = this.#baseline;
    const share = this.#utilization;
    if (this.config.cache.kvCacheMemoryBytes !== null || share === null) return;
    if (total * share > free) {
      throw new OutOfMemoryError(
        `memoryUtilization ${share} asks for ${gib(total * share)} of ${gib(total)}, but only ` +
          `${gib(free)} are free; lower memoryUtilization or free memory`,
      );
    }
  }

  /**
   * Bytes the KV cache may take: runs a step at the largest batch and takes what it and the weights
   * needed at most from the share of memory this engine was given. `kvCacheMemoryBytes` overrides
   * the figure; the step runs all the same, so that a model too large fails here. Rejects with
   * OUT_OF_MEMORY and the figures.
   */
  async availableForKvCache(device: NativeDevice, model: NativeModel): Promise<number> {
    const { kvCacheMemoryBytes } = this.config.cache;
    await device.resetPeakMemory();
    const graphBytes = await model.profile();
    const { total, free, allocated, peakAllocated } = await device.memory();
    if (kvCacheMemoryBytes !== null) return kvCacheMemoryBytes;
    const share = this.#utilization;
    if (share === null) return Math.floor((free * CPU_CACHE_SHARE) / this.localWorldSize);

    const freeBefore = this.#baseline?.free ?? 0;
    if (this.#onCuda && free > freeBefore) {
      throw new InvalidStateError(
        `${gib(freeBefore)} were free before the model was loaded and ${gib(free)} are now: ` +
          'another process freed GPU memory while the model was loading, so the available memory ' +
          'cannot be determined; start again',
      );
    }
    // A GPU's driver, kernels and other processes take memory that is not allocated here.
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
}
