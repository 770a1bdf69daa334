/**
 * Gives requests the KV cache blocks that their tokens need, and takes them back. Full blocks whose
 * tokens are known can be found again by other requests that begin with the same tokens (vLLM V1's
 * KVCacheManager).
 *
 * A block may be found as soon as the step that fills it is scheduled: the device carries steps out
 * in order, and within a step writes a layer's keys and values before any row reads them.
 */
import { type BlockHash, BlockHasher } from './blockHash';
import { BlockPool } from './blockPool';
import type { Request } from './request';

const NO_BLOCKS: readonly number[] = Object.freeze([]);

/** Tokens of requests that began to run, and how many of them were found in the cache. */
export interface PrefixCacheStats {
  queries: number;
  hits: number;
}

/** A request without room, as it was last looked at. */
interface Refusal {
  request: Request;
  /** Blocks that it lacks, at least 1. */
  numLacking: number;
  /** The block pool's at that time. */
  numReleases: number;
  /** What the first block that was not found would be found by; null when none is looked for. */
  missingHash: BlockHash | null;
}

export class KVCacheManager {
  readonly blockPool: BlockPool;
  /** Since the start or the last reset. */
  prefixCacheStats: PrefixCacheStats = { queries: 0, hits: 0 };
  private readonly hasher: BlockHasher;
  /** Resets so far. Each begins a cache that shares nothing with the one before. */
  private generation = 0;
  /** The latest. */
  private refusal: Refusal | null = null;

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
   * The cached blocks that a request without blocks can begin with, when there is room for all its
   * known tokens, or would be if `others` gave their blocks up; else null.
   *
   * A request that was refused is looked at again only once it may have room. Each of these takes one
   * from what it lacks at most: a holder lets a block go; the block after those that it found is
   * cached. (An evicted block that is cached again gives back what its eviction took.)
   */
  findRoom(request: Request, others: readonly Request[] = []): readonly number[] | null {
    if (this.isStillRefused(request)) return null;
    this.refusal = null;
    const computedBlocks = this.getComputedBlocks(request);
    let numLacking = this.numLacking(request, computedBlocks);
    if (numLacking > 0 && others.length > 0) {
      const holders = others.map(({ blockIds }) => blockIds);
      numLacking -= this.blockPool.numFreedBy(holders, computedBlocks);
    }
    if (numLacking <= 0) return computedBlocks;
    const { numReleases } = this.blockPool;
    const missingHash = this.missingHash(request, computedBlocks.length);
    this.refusal = { request, numLacking, numReleases, missingHash };
    return null;
  }

  private isStillRefused(request: Request): boolean {
    const { refusal } = this;
    if (refusal?.request !== request) return false;
    return this.blockPool.numReleases - refusal.numReleases < refusal.numLacking;
  }

  private missingHash(request: Request, numFound: number): BlockHash | null {
    return numFound < this.numSharable(request) ? this.hashOf(request, numFound) : null;
  }

  /** Blocks that the request may begin with without computing them. */
  private numSharable(request: Request): number {
    // Logprobs of the prompt need its logits, and so the whole of it computed.
    if (!this.enablePrefixCaching || request.samplingParams.promptLogprobs !== null) return 0;
    return Math.floor((request.numTokens - 1) / this.blockSize);
  }

  /**
   * The longest run of cached blocks that a request without blocks can begin with. At least its last
   * token is left to be computed, since the next is sampled from it.
   */
  getComputedBlocks(request: Request): readonly number[] {
    this.enterGeneration(request);
    const most = this.numSharable(request);
    if (most === 0) return NO_BLOCKS;
    const blockIds: number[] = [];
    for (let i = 0; i < most; i++) {
      const blockId = this.blockPool.getCachedBlock(this.hashOf(request, i));
      if (blockId === undefined) break;
      blockIds.push(blockId);
    }
    return blockIds;
  }

  /** Whether a request that holds no blocks could have all that its known tokens need. */
  hasRoomFor(request: Request, computedBlocks: readonly number[]): boolean {
    return this.numLacking(request, computedBlocks) <= 0;
  }

  /** Free blocks that are lacking for it; negative when some would be left. */
  private numLacking(request: Request, computedBlocks: readonly number[]): number {
    let needed = this.numBlocksFor(request.numTokens) - computedBlocks.length;
    for (const blockId of computedBlocks) {
      if (this.blockPool.refCount(blockId) === 0) needed++;
    }
    return needed - this.blockPool.numFreeBlocks;
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
    this.release(request);
  }

  /**
   * The same for a request whose computation went wrong: nothing is found by its tokens from now on,
   * lest others go on from broken keys and values.
   */
  discard(request: Request): void {
    this.enterGeneration(request);
    this.blockPool.uncache(request.blockHashes);
    this.release(request);
  }

  private release(request: Request): void {
    this.blockPool.releaseBlocks(request.blockIds);
    request.blockIds.length = 0;
    request.numCachedBlocks = 0;
    if (this.refusal?.request === request) this.refusal = null;
  }

  /** Nothing computed so far is found again, nor what running requests compute on top of it. */
  resetPrefixCache(): void {
    this.blockPool.resetPrefixCache();
    this.generation++;
    this.refusal = null;
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
      const hash = this.hashOf(request, i);
      this.blockPool.cacheBlock(request.blockIds[i], hash);
      if (hash === this.refusal?.missingHash) this.refusal = null;
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
