/**
 * Allocates KV cache blocks to requests and frees them. Full blocks of known tokens are cached for
 * requests with the same prefix (vLLM V1's KVCacheManager).
 *
 * A block is cached as soon as the step that fills it is scheduled: the device executes steps in
 * order, and within a step writes a layer's keys and values before any row reads them.
 */
import { type BlockHash, BlockHasher } from './blockHash';
import { BlockPool } from './blockPool';
import type { Request } from './request';

const NO_BLOCKS: readonly number[] = Object.freeze([]);

/** Tokens looked up when requests first ran, and tokens found. */
export interface PrefixCacheStats {
  queries: number;
  hits: number;
}

/** The last failed `findRoom`. */
interface Refusal {
  request: Request;
  /** Missing blocks, at least 1. */
  numLacking: number;
  /** `blockPool.numReleases` at that time. */
  numReleases: number;
  /** Hash of the first block not found; null when none is looked up. */
  missingHash: BlockHash | null;
}

export class KVCacheManager {
  readonly blockPool: BlockPool;
  /** Since creation or the last reset. */
  prefixCacheStats: PrefixCacheStats = { queries: 0, hits: 0 };
  private readonly hasher: BlockHasher;
  /** Number of resets, part of every hash: a reset cache shares nothing with the one before. */
  private generation = 0;
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

  /** Share of the blocks in use, 0 to 1. */
  get usage(): number {
    return 1 - this.blockPool.numFreeBlocks / this.blockPool.numBlocks;
  }

  /**
   * The cached prefix blocks of a request without blocks, if its known tokens fit now or would fit
   * after `others` are preempted; else null.
   *
   * After a failure the request is looked up again only once it may fit. Each of these events
   * reduces the missing blocks by at most one: a block reference is released; the block after its
   * cached prefix is cached. (Caching an evicted block again only undoes the eviction.)
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

  /** Most prefix blocks that the request may take from the cache. */
  private numSharable(request: Request): number {
    // Prompt logprobs need the logits of the whole prompt.
    if (!this.enablePrefixCaching || request.samplingParams.promptLogprobs !== null) return 0;
    return Math.floor((request.numTokens - 1) / this.blockSize);
  }

  /**
   * The longest cached prefix of a request without blocks. At least the last token is left to
   * compute: the next token is sampled from its logits.
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

  /** Whether the known tokens of a request without blocks fit. */
  hasRoomFor(request: Request, computedBlocks: readonly number[]): boolean {
    return this.numLacking(request, computedBlocks) <= 0;
  }

  /** Blocks needed beyond the free ones; negative when some are left over. */
  private numLacking(request: Request, computedBlocks: readonly number[]): number {
    let needed = this.numBlocksFor(request.numTokens) - computedBlocks.length;
    for (const blockId of computedBlocks) {
      if (this.blockPool.refCount(blockId) === 0) needed++;
    }
    return needed - this.blockPool.numFreeBlocks;
  }

  /** Assigns cached prefix blocks to a request without blocks. */
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
   * Allocates blocks for `numNewTokens` beyond the computed tokens. Returns the new blocks (often
   * none), or null, changing nothing, when too few are free.
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

  /** Frees the request's blocks; their content stays cached. */
  free(request: Request): void {
    this.cacheFullBlocks(request, request.numComputedTokens);
    this.release(request);
  }

  /**
   * Frees the blocks of a request whose computation failed and evicts them from the cache, so no
   * other request reuses invalid keys and values.
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

  /** Invalidates all cached blocks, and blocks that running requests compute after them. */
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

  /** Caches the blocks filled by `numTokens` computed tokens, as far as the tokens are known. */
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

  /** Hash of the request's block `i`, which is full of known tokens. */
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
