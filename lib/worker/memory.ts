/** Computes the device memory available for the KV cache. */
import type { UniprocConfig } from '../config/uniprocConfig';
import { InvalidStateError, OutOfMemoryError } from '../errors';
import type { MemoryInfo, NativeDeviceThread, NativeModelRunner } from '../native';

/** Default share of the free host memory for the KV caches of all ranks on a CPU. */
export const CPU_CACHE_SHARE = 0.25;
/** Default share of a GPU's memory for an engine, as in vLLM. */
export const CUDA_MEMORY_UTILIZATION = 0.9;

const GIB = 2 ** 30;
const gib = (bytes: number) => `${(bytes / GIB).toFixed(2)} GiB`;

export class MemoryBudget {
  /** Measured before loading the model. */
  #baseline: MemoryInfo | null = null;

  constructor(
    private readonly config: UniprocConfig,
    /** Ranks on this machine, which divide the host memory. */
    private readonly localWorldSize: number,
  ) {}

  /** GPU memory is separate from host memory. */
  get #onCuda(): boolean {
    return this.config.device.kind === 'cuda';
  }

  /** Share of the device's memory for this engine; null on a CPU without memoryUtilization. */
  get #utilization(): number | null {
    const { memoryUtilization } = this.config.cache;
    if (this.#onCuda) return memoryUtilization ?? CUDA_MEMORY_UTILIZATION;
    return memoryUtilization && memoryUtilization / this.localWorldSize;
  }

  /**
   * Measures free memory before loading. Rejects with OUT_OF_MEMORY if it is less than
   * memoryUtilization requests.
   */
  async measureBaseline(device: NativeDeviceThread): Promise<void> {
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
   * Bytes available for the KV cache: this engine's share without the peak usage of weights and the
   * largest step (`model.profile`). `kvCacheMemoryBytes` overrides the result, but the step is
   * profiled still, so that a model too large fails here. Rejects with OUT_OF_MEMORY and
   * the figures.
   */
  async availableForKvCache(device: NativeDeviceThread, model: NativeModelRunner): Promise<number> {
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
          'cannot be determined; retry',
      );
    }
    // The driver, kernels and other processes use GPU memory that is not allocated here.
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
