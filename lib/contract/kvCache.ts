/**
 * Specification and configuration of the paged KV cache (vLLM V1's KVCacheSpec and KVCacheConfig).
 */
import { BYTES_PER_ELEMENT, type DType } from '../config/dtype';

/** KV cache spec of one layer: blocks of `blockSize` tokens, keys and values. */
export class KVCacheSpec {
  constructor(
    /** Tokens. */
    readonly blockSize: number,
    readonly numKvHeads: number,
    readonly headSize: number,
    readonly dtype: DType,
    /** Attention window in tokens; null: full attention. */
    readonly slidingWindow: number | null,
  ) {}

  /** Bytes per block and layer. */
  get pageSizeBytes(): number {
    return 2 * this.blockSize * this.numKvHeads * this.headSize * BYTES_PER_ELEMENT[this.dtype];
  }

  /** Bytes per layer for one request of `maxModelLen` tokens. */
  maxMemoryUsageBytes(maxModelLen: number): number {
    return Math.ceil(maxModelLen / this.blockSize) * this.pageSizeBytes;
  }
}

/** A worker's KV cache; all its layers share one block table. */
export interface KVCacheConfig {
  numBlocks: number;
}
