/**
 * Specification and configuration of the paged KV cache (vLLM V1's KVCacheSpec and KVCacheConfig).
 */
import { BYTES_PER_ELEMENT, type CacheDType } from '../config/dtype';

/**
 * KV cache spec of one layer: blocks of `blockSize` tokens, keys and values. Without a window it is
 * vLLM's FullAttentionSpec, with one its SlidingWindowSpec.
 */
export class KVCacheSpec {
  constructor(
    /** Tokens. */
    readonly blockSize: number,
    readonly numKvHeads: number,
    readonly headSize: number,
    readonly dtype: CacheDType,
    /**
     * Attention window in tokens, the query's own included; null: full attention. Blocks that lie
     * before the window are freed while the request runs.
     */
    readonly slidingWindow: number | null,
  ) {}

  /** Bytes per block and layer. */
  get pageSizeBytes(): number {
    return 2 * this.blockSize * this.numKvHeads * this.headSize * BYTES_PER_ELEMENT[this.dtype];
  }

  /** Bytes per layer for one request of `maxModelLen` tokens, at most `maxTokensPerStep` a step. */
  maxMemoryUsageBytes(maxModelLen: number, maxTokensPerStep = maxModelLen): number {
    const { blockSize, slidingWindow } = this;
    const most = maxBlocksHeld(slidingWindow, blockSize, maxTokensPerStep);
    return Math.min(Math.ceil(maxModelLen / blockSize), most) * this.pageSizeBytes;
  }
}

/**
 * The most blocks that a request holds at once in a layer with this window, of blocks of `blockSize`
 * tokens: in a step of `maxTokensPerStep` tokens those tokens' blocks, and the blocks of the window
 * before the first. The first and the last may be partly used.
 */
export function maxBlocksHeld(
  slidingWindow: number | null,
  blockSize: number,
  maxTokensPerStep: number,
): number {
  if (slidingWindow === null) return Infinity;
  return Math.ceil((slidingWindow - 1 + maxTokensPerStep) / blockSize) + 1;
}

/**
 * Layers of one attention window that share a block table. All groups take blocks from one pool: the
 * i-th layers of all groups share memory if their blocks have the same bytes, and else have their own.
 */
export interface KVCacheGroup {
  /** Of this worker's layers; the other workers may have other layers of the group. */
  layerNames: string[];
  /** Attention window in tokens; null: full attention. */
  slidingWindow: number | null;
}

/** A worker's KV cache. */
export interface KVCacheConfig {
  numBlocks: number;
  /**
   * One group if all layers have the same window; the engine always sets it. Omitted: the groups of
   * the worker's specs.
   */
  kvCacheGroups?: KVCacheGroup[];
}

/** A KVCacheConfig with its groups. */
export type GroupedKVCacheConfig = Required<KVCacheConfig>;

/**
 * An entry of a block table that has no block: the block lies before the group's window, so no
 * query reads it (vLLM's null block).
 */
export const NO_BLOCK = -1;

/** A request has a block table for each group, so the number of groups is bounded. */
const MAX_GROUPS = 16;
/** Groups have the layers of the window with the most if that has fewer than this times the least. */
const SIMILAR = 1.5;

/**
 * Divides layers into groups by their window. Groups have equal numbers of layers, except that the
 * last group of a window may have fewer: its blocks are then partly unused (vLLM's
 * get_kv_cache_groups). `specs`: of the layers, in the model's order.
 */
export function groupLayers(
  specs: ReadonlyMap<string, Pick<KVCacheSpec, 'slidingWindow'>>,
): KVCacheGroup[] {
  const byWindow = new Map<number | null, string[]>();
  for (const [layer, { slidingWindow }] of specs) {
    const layers = byWindow.get(slidingWindow);
    if (layers === undefined) byWindow.set(slidingWindow, [layer]);
    else layers.push(layer);
  }
  const counts = Array.from(byWindow.values(), ({ length }) => length);
  const [least, most] = [Math.min(...counts), Math.max(...counts)];
  const numGroups = (size: number) =>
    counts.reduce((sum, count) => sum + Math.ceil(count / size), 0);
  let size = most < SIMILAR * least ? most : least;
  while (size < most && numGroups(size) > MAX_GROUPS) size++;
  return Array.from(byWindow, ([slidingWindow, layers]) =>
    Array.from({ length: Math.ceil(layers.length / size) }, (_, i) => ({
      layerNames: layers.slice(i * size, (i + 1) * size),
      slidingWindow,
    })),
  ).flat();
}
