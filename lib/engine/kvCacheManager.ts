/**
 * Gives requests the KV cache blocks that their tokens need, and takes them back. Full blocks whose
 * tokens are known can be found again by other requests that begin with the same tokens (vLLM V1's
 * KVCacheManager).
 *
 * A block may be found as soon as the step that fills it is scheduled: the device carries steps out
 * in order, and within a step writes a layer's keys and values before any row reads them.
 */
import { BlockHasher } from './blockHash';
import { BlockPool } from './blockPool';
import type { Request } from './request';

const NO_BLOCKS: readonly number[] = Object.freeze([]);

/** Tokens of requests that began to run, and how many of them were found in the cache. */
export interface PrefixCacheStats {
  queries: number;
  hits: number;
}

export class KVCacheManager {
  readonly blockPool: BlockPool;
  /** Since the start or the last reset. */
  prefixCacheStats: PrefixCacheStats = { queries: 0, hits: 0 };
  private readonly hasher: BlockHasher;
  /** Resets so far. Each begins a cache that shares nothing with the one before. */
  private generation = 0;

  constructor(
    numBlocks: number,
    /** Tokens. */
    readonly blockSize: number,
    readonly enablePrefixCaching: boolean,
  ) {
    this.blockPool = new BlockPool(numBlocks);
    this.hasher = new BlockHasher(blockSize);
  }

  /** Blocks in use, of all. */
  get usage(): number {
    return 1 - this.blockPool.numFreeBlocks / this.blockPool.numBlocks;
  }

  /**
   * The longest run of cached blocks that a request without blocks can begin with. At least its last
   * token is left to be computed, since the next is sampled from it.
   */
  getComputedBlocks(request: Request): readonly number[] {
    this.enterGeneration(request);
    // Logprobs of the prompt need its logits, and so the whole of it computed.
    if (!this.enablePrefixCaching || request.samplingParams.promptLogprobs !== null) {
      return NO_BLOCKS;
    }
    const blockIds: number[] = [];
    const most = Math.floor((request.numTokens - 1) / this.blockSize);
    for (let i = 0; i < most; i++) {
      const blockId = this.blockPool.getCachedBlock(this.hashOf(request, i));
      if (blockId === undefined) break;
      blockIds.push(blockId);
    }
    return blockIds;
  }

  /** Whether a request that holds no blocks could have all that its known tokens need. */
  hasRoomFor(request: Request, computedBlocks: readonly number[]): boolean {
    let needed = this.numBlocksFor(request.numTokens) - computedBlocks.length;
    for (const blockId of computedBlocks) {
      if (this.blockPool.refCount(blockId) === 0) needed++;
    }
    return needed <= this.blockPool.numFreeBlocks;
  }

  /** Has a request without blocks begin with these, which are computed. */
  shareBlocks(request: Request, computedBlocks: readonly number[]): void {
    this.blockPool.touch(computedBlocks);
    for (const blockId of computedBlocks) request.blockIds.push(blockId);
    request.numCachedBlocks = computedBlocks.length;
    request.numComputedTokens = computedBlocks.length * this.blockSize;
    if (request.numCachedTokens !== null) return;
    request.numCachedTokens = request.numComputedTokens;
    this.prefixCacheStats.queries += request.numTokens;
    this.prefixCacheStats.hits += request.numCachedTokens;
  }

  /**
   * Gives the request blocks for `numNewTokens` beyond those computed. Returns the blocks it did
   * not have before (often none), or null, changing nothing, when not enough are free.
   */
  allocateSlots(request: Request, numNewTokens: number): readonly number[] | null {
    const numTokens = request.numComputedTokens + numNewTokens;
    const needed = this.numBlocksFor(numTokens) - request.blockIds.length;
    if (needed > this.blockPool.numFreeBlocks) return null;
    const blockIds = needed > 0 ? this.blockPool.getNewBlocks(needed) : NO_BLOCKS;
    for (const blockId of blockIds) request.blockIds.push(blockId);
    this.cacheFullBlocks(request, numTokens);
    return blockIds;
  }

  /** Takes all of the request's blocks back. What they hold can still be found. */
  free(request: Request): void {
    this.cacheFullBlocks(request, request.numComputedTokens);
    this.blockPool.releaseBlocks(request.blockIds);
    request.blockIds.length = 0;
    request.numCachedBlocks = 0;
  }

  /** Nothing computed so far is found again, nor what running requests compute on top of it. */
  resetPrefixCache(): void {
    this.blockPool.resetPrefixCache();
    this.generation++;
    this.prefixCacheStats = { queries: 0, hits: 0 };
  }

  private enterGeneration(request: Request): void {
    if (request.cacheGeneration === this.generation) return;
    request.cacheGeneration = this.generation;
    request.blockHashes.length = 0;
  }

  /** Lets the blocks be found that `numTokens` computed tokens fill, as far as they are known. */
  private cacheFullBlocks(request: Request, numTokens: number): void {
    if (!this.enablePrefixCaching) return;
    const numFull = Math.floor(Math.min(numTokens, request.numTokens) / this.blockSize);
    for (let i = request.numCachedBlocks; i < numFull; i++) {
      this.blockPool.cacheBlock(request.blockIds[i], this.hashOf(request, i));
    }
    request.numCachedBlocks = Math.max(request.numCachedBlocks, numFull);
  }

  /** Of the request's block `i`, which is full of known tokens. */
  private hashOf(request: Request, i: number): string {
    const { blockHashes } = request;
    while (blockHashes.length <= i) {
      const parent =
        blockHashes.at(-1) ?? this.hasher.root(request.cacheSalt, request.cacheGeneration);
      const start = blockHashes.length * this.blockSize;
      const tokenIds = request.tokensBetween(start, start + this.blockSize);
      blockHashes.push(this.hasher.next(parent, tokenIds));
    }
    return blockHashes[i];
  }

  private numBlocksFor(numTokens: number): number {
    return Math.ceil(numTokens / this.blockSize);
  }
}
