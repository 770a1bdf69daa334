/**
 * Allocates KV cache blocks to requests and frees them. Full blocks of known tokens are cached for
 * requests with the same prefix (vLLM V1's KVCacheManager).
 *
 * A block is cached as soon as the step that fills it is scheduled: the device executes steps in
 * order, and within a step writes a layer's keys and values before any row reads them.
 *
 * Layers with different attention windows form groups (KVCacheGroup), each with a block table of its
 * own. A request's blocks are one list, with a block of each group for each `blockSize` tokens. In a
 * group with a window a request holds only the blocks that its next query reads, and those of the
 * step; blocks before them are freed when the next step is scheduled. A step in flight may still read
 * them: the device executes steps in order, so the next owner writes after it.
 */
import { maxBlocksHeld, NO_BLOCK } from '../contract/kvCache';
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
  /** Prefix blocks found, and looked up at most. */
  numFound: number;
  numSharable: number;
}

/** Groups of layers with the same attention window. */
interface Window {
  /** Tokens, the query's own included. */
  size: number;
  groups: readonly number[];
  /** Blocks before a query at a block's beginning that it reads. */
  numBlocksBefore: number;
}

export class KVCacheManager {
  readonly blockPool: BlockPool;
  /** Since creation or the last reset. */
  prefixCacheStats: PrefixCacheStats = { queries: 0, hits: 0 };
  private readonly hasher: BlockHasher;
  /** Number of resets, part of every hash: a reset cache shares nothing with the one before. */
  private generation = 0;
  private refusal: Refusal | null = null;
  private readonly numGroups: number;
  /** Groups without a window. */
  private readonly fullGroups: readonly number[];
  private readonly windows: readonly Window[];
  /** [numGroups]: most blocks that a request holds at once. */
  private readonly maxBlocks: readonly number[];

  constructor(
    numBlocks: number,
    /** Tokens. */
    readonly blockSize: number,
    readonly enablePrefixCaching: boolean,
    /** [numGroups]: each group's attention window in tokens; null: full attention. */
    slidingWindows: readonly (number | null)[] = [null],
    /** Most tokens of a request in a step. */
    maxTokensPerStep = Infinity,
  ) {
    this.numGroups = slidingWindows.length;
    this.blockPool = new BlockPool(numBlocks, this.numGroups);
    this.hasher = new BlockHasher(blockSize);
    const groupsOf = (window: number | null) =>
      slidingWindows.flatMap((size, group) => (size === window ? [group] : []));
    this.fullGroups = groupsOf(null);
    this.windows = [...new Set(slidingWindows)].flatMap((size) =>
      size === null
        ? []
        : [{ size, groups: groupsOf(size), numBlocksBefore: Math.ceil((size - 1) / blockSize) }],
    );
    this.maxBlocks = slidingWindows.map((window) =>
      maxBlocksHeld(window, blockSize, maxTokensPerStep),
    );
  }

  /** Share of the blocks in use, 0 to 1. */
  get usage(): number {
    return 1 - this.blockPool.numFreeBlocks / this.blockPool.numBlocks;
  }

  /**
   * The cached prefix blocks of a request without blocks, if its known tokens fit now or would fit
   * after `others` are preempted; else null.
   *
   * After a failure the request is looked up again only once it may fit. A released block reference
   * reduces the missing blocks by at most one. A block that is newly cached does so too where it
   * follows the cached prefix; behind an attention window, where it may complete what the window
   * needs, the request is looked up at once. (Caching an evicted block again only undoes the
   * eviction.)
   */
  findRoom(request: Request, others: readonly Request[] = []): readonly number[] | null {
    if (this.isStillRefused(request)) return null;
    this.refusal = null;
    const computedBlocks = this.getComputedBlocks(request);
    let numLacking = this.numLacking(request, computedBlocks);
    if (numLacking > 0 && others.length > 0) {
      numLacking = this.blockPool.supposeReleased(
        others.map(({ blockIds }) => blockIds),
        (numFreed) => this.numLacking(request, computedBlocks) - numFreed,
      );
    }
    if (numLacking <= 0) return computedBlocks;
    this.refusal = {
      request,
      numLacking,
      numReleases: this.blockPool.numReleases,
      numFound: computedBlocks.length / this.numGroups,
      numSharable: this.numSharable(request),
    };
    return null;
  }

  private isStillRefused(request: Request): boolean {
    const { refusal } = this;
    if (refusal?.request !== request) return false;
    return this.blockPool.numReleases - refusal.numReleases < refusal.numLacking;
  }

  /** Forgets the refusal if the request's block `i`, now cached under `hash`, may make it fit. */
  private noteCached(i: number, hash: BlockHash): void {
    const { refusal } = this;
    if (refusal === null || i >= refusal.numSharable) return;
    if (this.windows.length === 0 && i !== refusal.numFound) return;
    if (refusal.request.blockHashes[i] === hash) this.refusal = null;
  }

  /** Most prefix blocks that the request may take from the cache. */
  private numSharable(request: Request): number {
    // Prompt logprobs need the logits of the whole prompt.
    if (!this.enablePrefixCaching || request.samplingParams.promptLogprobs !== null) return 0;
    return Math.floor((request.numTokens - 1) / this.blockSize);
  }

  /**
   * The longest prefix of a request without blocks for which every group has the blocks that the
   * next query reads: all of them, or the last ones with a window. At least the last token is left
   * to compute: the next token is sampled from its logits.
   */
  getComputedBlocks(request: Request): readonly number[] {
    this.enterGeneration(request);
    const { blockPool, fullGroups, numGroups, windows } = this;
    const most = this.numSharable(request);
    if (most === 0) return NO_BLOCKS;
    if (windows.length === 0) return this.cachedPrefix(request, most);
    const numBlocks = this.numCachedPrefixBlocks(request, most);
    const blockIds = new Array<number>(numBlocks * numGroups).fill(NO_BLOCK);
    const fill = (groups: readonly number[], first: number) => {
      for (let i = Math.max(first, 0); i < numBlocks; i++) {
        for (const group of groups) {
          const blockId = blockPool.getCachedBlock(request.blockHashes[i], group);
          blockIds[i * numGroups + group] = blockId ?? NO_BLOCK;
        }
      }
    };
    fill(fullGroups, 0);
    for (const { groups, numBlocksBefore } of windows) fill(groups, numBlocks - numBlocksBefore);
    return blockIds;
  }

  /** The longest cached prefix of at most `most` blocks, where no group has a window. */
  private cachedPrefix(request: Request, most: number): readonly number[] {
    const blockIds: number[] = [];
    for (let i = 0; i < most; i++) {
      const hash = this.hashOf(request, i);
      for (let group = 0; group < this.numGroups; group++) {
        const blockId = this.blockPool.getCachedBlock(hash, group);
        if (blockId === undefined) return blockIds.slice(0, i * this.numGroups);
        blockIds.push(blockId);
      }
    }
    return blockIds;
  }

  private numCachedPrefixBlocks(request: Request, most: number): number {
    let end = most;
    if (this.fullGroups.length > 0) {
      end = 0;
      while (end < most && this.isCached(request, end, this.fullGroups)) end++;
    }
    // What suits one window may be too long for another.
    for (let before = -1; before !== end;) {
      before = end;
      for (const window of this.windows) end = this.longestWithin(request, end, window);
    }
    return end;
  }

  /** The longest prefix of at most `most` blocks of which the window's groups have the last ones. */
  private longestWithin(
    request: Request,
    most: number,
    { groups, numBlocksBefore }: Window,
  ): number {
    let end = most;
    for (let i = most - 1; i >= 0 && i >= end - numBlocksBefore; i--) {
      if (!this.isCached(request, i, groups)) end = i;
    }
    return end;
  }

  private isCached(request: Request, i: number, groups: readonly number[]): boolean {
    const hash = this.hashOf(request, i);
    return groups.every((group) => this.blockPool.getCachedBlock(hash, group) !== undefined);
  }

  /** Whether the known tokens of a request without blocks fit. */
  hasRoomFor(request: Request, computedBlocks: readonly number[]): boolean {
    return this.numLacking(request, computedBlocks) <= 0;
  }

  /** Blocks needed beyond the free ones; negative when some are left over. */
  private numLacking(request: Request, computedBlocks: readonly number[]): number {
    const { blockPool, maxBlocks, numGroups } = this;
    const numNew = this.numBlocksFor(request.numTokens) - computedBlocks.length / numGroups;
    let total = 0;
    for (let group = 0; group < numGroups; group++) {
      let needed = numNew;
      for (let i = group; i < computedBlocks.length; i += numGroups) {
        const blockId = computedBlocks[i];
        if (blockId !== NO_BLOCK && blockPool.refCount(blockId) === 0) needed++;
      }
      total += Math.min(needed, maxBlocks[group]);
    }
    return total - blockPool.numFreeBlocks;
  }

  /** Assigns cached prefix blocks to a request without blocks. */
  shareBlocks(request: Request, computedBlocks: readonly number[]): void {
    this.blockPool.touch(computedBlocks);
    for (const blockId of computedBlocks) request.blockIds.push(blockId);
    const numBlocks = computedBlocks.length / this.numGroups;
    this.windows.forEach(({ numBlocksBefore }, i) => {
      request.firstBlocks[i] = Math.max(0, numBlocks - numBlocksBefore);
    });
    request.numCachedBlocks = numBlocks;
    request.numComputedTokens = numBlocks * this.blockSize;
    if (request.numCachedTokens !== null) return;
    request.numCachedTokens = request.numComputedTokens;
    this.prefixCacheStats.queries += request.numTokens;
    this.prefixCacheStats.hits += request.numCachedTokens;
  }

  /**
   * Frees the blocks that no token beyond the computed ones reads, and allocates blocks for
   * `numNewTokens` such tokens. Returns the new blocks (often none), or null, allocating nothing,
   * when too few are free.
   */
  allocateSlots(request: Request, numNewTokens: number): readonly number[] | null {
    const numTokens = request.numComputedTokens + numNewTokens;
    if (this.windows.length > 0) this.releaseBehindWindows(request);
    const needed = this.numBlocksFor(numTokens) * this.numGroups - request.blockIds.length;
    if (needed > this.blockPool.numFreeBlocks) return null;
    const blockIds = needed > 0 ? this.blockPool.getNewBlocks(needed) : NO_BLOCKS;
    for (const blockId of blockIds) request.blockIds.push(blockId);
    this.cacheFullBlocks(request, numTokens);
    return blockIds;
  }

  /** Frees the blocks before the window of the next token to compute; their content stays cached. */
  private releaseBehindWindows(request: Request): void {
    const { blockIds, firstBlocks, numComputedTokens } = request;
    for (let window = 0; window < this.windows.length; window++) {
      const { size, groups } = this.windows[window];
      const end = Math.floor((numComputedTokens - size + 1) / this.blockSize);
      const first = firstBlocks[window] ?? 0;
      if (end <= first) continue;
      const behind: number[] = [];
      for (let i = first; i < end; i++) {
        for (const group of groups) {
          const at = i * this.numGroups + group;
          behind.push(blockIds[at]);
          blockIds[at] = NO_BLOCK;
        }
      }
      this.blockPool.releaseBlocks(behind);
      firstBlocks[window] = end;
    }
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
    request.firstBlocks.length = 0;
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
      for (let group = 0; group < this.numGroups; group++) {
        const blockId = request.blockIds[i * this.numGroups + group];
        if (blockId !== NO_BLOCK) this.blockPool.cacheBlock(blockId, hash, group);
      }
      this.noteCached(i, hash);
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
