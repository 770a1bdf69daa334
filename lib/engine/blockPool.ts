/**
 * KV cache blocks with reference counts, a free list, and an index of cached full blocks by hash
 * (vLLM V1's BlockPool).
 *
 * A freed block keeps its content and stays in the index until it is reallocated. The free list is
 * ordered least recently used first; a cache hit removes a block from its middle.
 *
 * All groups of layers (KVCacheGroup) share the blocks; each has its own index of cached blocks.
 */
import { NO_BLOCK } from '../contract/kvCache';
import type { BlockHash } from './blockHash';

export class BlockPool {
  /**
   * [numBlocks + 1] each: a doubly linked ring of free blocks; index `numBlocks` is the sentinel.
   */
  private readonly next: Int32Array;
  private readonly previous: Int32Array;
  private numFree: number;
  /** [numBlocks] */
  private readonly refCounts: Int32Array;
  /** [numBlocks]: the hash under which a block is cached. */
  private readonly hashes: (BlockHash | null)[];
  /** [numBlocks]: the group in which a block is cached. */
  private readonly groups: Uint16Array;
  /** [numGroups] */
  private readonly cached: readonly Map<BlockHash, number>[];
  private releases = 0;
  private fewestFree: number;

  constructor(
    readonly numBlocks: number,
    numGroups = 1,
  ) {
    const end = numBlocks;
    this.next = Int32Array.from({ length: numBlocks + 1 }, (_, i) => (i === end ? 0 : i + 1));
    this.previous = Int32Array.from({ length: numBlocks + 1 }, (_, i) => (i === 0 ? end : i - 1));
    this.numFree = numBlocks;
    this.refCounts = new Int32Array(numBlocks);
    this.hashes = new Array<BlockHash | null>(numBlocks).fill(null);
    this.groups = new Uint16Array(numBlocks);
    this.cached = Array.from({ length: numGroups }, () => new Map<BlockHash, number>());
    this.fewestFree = numBlocks;
  }

  get numFreeBlocks(): number {
    return this.numFree;
  }

  /** Most blocks in use at once since the start. */
  get peakNumUsedBlocks(): number {
    return this.numBlocks - this.fewestFree;
  }

  /** Block references released since the start. */
  get numReleases(): number {
    return this.releases;
  }

  /** Requests that hold the block; 0 when it is free. */
  refCount(blockId: number): number {
    return this.refCounts[blockId];
  }

  /** The group's block cached under the hash, free or in use. */
  getCachedBlock(hash: BlockHash, group = 0): number | undefined {
    return this.cached[group].get(hash);
  }

  /** Caches a full block of a group under its hash; an earlier block with the same hash stays. */
  cacheBlock(blockId: number, hash: BlockHash, group = 0): void {
    const cached = this.cached[group];
    if (cached.has(hash)) return;
    cached.set(hash, blockId);
    this.hashes[blockId] = hash;
    this.groups[blockId] = group;
  }

  /** Evicts these hashes from the index of each group. Requests keep their blocks. */
  uncache(hashes: readonly BlockHash[]): void {
    for (const cached of this.cached) {
      for (const hash of hashes) {
        const blockId = cached.get(hash);
        if (blockId !== undefined) this.evict(blockId);
      }
    }
  }

  /** Evicts all blocks from the index. Requests keep their blocks. */
  resetPrefixCache(): void {
    for (const cached of this.cached) cached.clear();
    this.hashes.fill(null);
  }

  /**
   * Allocates `count` blocks (at most `numFreeBlocks`) with a reference count of 1, evicting their
   * cached content.
   */
  getNewBlocks(count: number): number[] {
    const blockIds = new Array<number>(count);
    for (let i = 0; i < count; i++) {
      const blockId = this.next[this.numBlocks];
      this.removeFromFreeList(blockId);
      this.refCounts[blockId] = 1;
      this.evict(blockId);
      blockIds[i] = blockId;
    }
    this.fewestFree = Math.min(this.fewestFree, this.numFree);
    return blockIds;
  }

  /**
   * Increments the blocks' reference counts, removing free blocks from the free list. Skips
   * NO_BLOCK, as the next two do.
   */
  touch(blockIds: readonly number[]): void {
    for (const blockId of blockIds) {
      if (blockId === NO_BLOCK) continue;
      if (this.refCounts[blockId]++ === 0) this.removeFromFreeList(blockId);
    }
    this.fewestFree = Math.min(this.fewestFree, this.numFree);
  }

  /**
   * Decrements the reference counts of a sequence's blocks and frees those that reach 0. The last
   * block is freed, and so reused, first: other requests are likelier to share the first.
   */
  releaseBlocks(blockIds: readonly number[]): void {
    for (let i = blockIds.length - 1; i >= 0; i--) {
      const blockId = blockIds[i];
      if (blockId === NO_BLOCK) continue;
      this.releases++;
      if (--this.refCounts[blockId] === 0) this.appendToFreeList(blockId);
    }
  }

  /**
   * Calls `count` with the reference counts as they would be if `holders` released their blocks, and
   * with the number of blocks that this would free. Changes nothing.
   */
  supposeReleased<T>(holders: readonly (readonly number[])[], count: (numFreed: number) => T): T {
    const { refCounts } = this;
    let numFreed = 0;
    for (const blockIds of holders) {
      for (const blockId of blockIds) {
        if (blockId !== NO_BLOCK && --refCounts[blockId] === 0) numFreed++;
      }
    }
    const result = count(numFreed);
    for (const blockIds of holders) {
      for (const blockId of blockIds) if (blockId !== NO_BLOCK) refCounts[blockId]++;
    }
    return result;
  }

  private evict(blockId: number): void {
    const hash = this.hashes[blockId];
    if (hash === null) return;
    this.cached[this.groups[blockId]].delete(hash);
    this.hashes[blockId] = null;
  }

  private removeFromFreeList(blockId: number): void {
    this.next[this.previous[blockId]] = this.next[blockId];
    this.previous[this.next[blockId]] = this.previous[blockId];
    this.numFree--;
  }

  private appendToFreeList(blockId: number): void {
    const end = this.numBlocks;
    const last = this.previous[end];
    this.next[last] = blockId;
    this.previous[blockId] = last;
    this.next[blockId] = end;
    this.previous[end] = blockId;
    this.numFree++;
  }
}
