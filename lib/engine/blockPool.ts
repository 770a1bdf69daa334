/**
 * KV cache blocks with reference counts, a free list, and an index of cached full blocks by hash
 * (vLLM V1's BlockPool).
 *
 * A freed block keeps its content and stays in the index until it is reallocated. The free list is
 * ordered least recently used first; a cache hit removes a block from its middle.
 */
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
  private readonly cached = new Map<BlockHash, number>();
  private releases = 0;

  constructor(readonly numBlocks: number) {
    const end = numBlocks;
    this.next = Int32Array.from({ length: numBlocks + 1 }, (_, i) => (i === end ? 0 : i + 1));
    this.previous = Int32Array.from({ length: numBlocks + 1 }, (_, i) => (i === 0 ? end : i - 1));
    this.numFree = numBlocks;
    this.refCounts = new Int32Array(numBlocks);
    this.hashes = new Array<BlockHash | null>(numBlocks).fill(null);
  }

  get numFreeBlocks(): number {
    return this.numFree;
  }

  /** Block references released since the start. */
  get numReleases(): number {
    return this.releases;
  }

  /** Requests that hold the block; 0 when it is free. */
  refCount(blockId: number): number {
    return this.refCounts[blockId];
  }

  /** The block cached under the hash, free or in use. */
  getCachedBlock(hash: BlockHash): number | undefined {
    return this.cached.get(hash);
  }

  /** Caches a full block under its hash; an earlier block with the same hash stays. */
  cacheBlock(blockId: number, hash: BlockHash): void {
    if (this.cached.has(hash)) return;
    this.cached.set(hash, blockId);
    this.hashes[blockId] = hash;
  }

  /** Evicts these hashes from the index. Requests keep their blocks. */
  uncache(hashes: readonly BlockHash[]): void {
    for (const hash of hashes) {
      const blockId = this.cached.get(hash);
      if (blockId !== undefined) this.evict(blockId);
    }
  }

  /** Evicts all blocks from the index. Requests keep their blocks. */
  resetPrefixCache(): void {
    this.cached.clear();
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
    return blockIds;
  }

  /** Increments the blocks' reference counts, removing free blocks from the free list. */
  touch(blockIds: readonly number[]): void {
    for (const blockId of blockIds) {
      if (this.refCounts[blockId]++ === 0) this.removeFromFreeList(blockId);
    }
  }

  /**
   * Decrements the reference counts of a sequence's blocks and frees those that reach 0. The last
   * block is freed, and so reused, first: other requests are likelier to share the first.
   */
  releaseBlocks(blockIds: readonly number[]): void {
    this.releases += blockIds.length;
    for (let i = blockIds.length - 1; i >= 0; i--) {
      if (--this.refCounts[blockIds[i]] === 0) this.appendToFreeList(blockIds[i]);
    }
  }

  /**
   * Blocks that would become free if `holders` released theirs, except those in `kept`. Changes
   * nothing.
   */
  numFreedBy(holders: readonly (readonly number[])[], kept: readonly number[]): number {
    const { refCounts } = this;
    let count = 0;
    for (const blockId of kept) refCounts[blockId]++;
    for (const blockIds of holders) {
      for (const blockId of blockIds) if (--refCounts[blockId] === 0) count++;
    }
    for (const blockIds of holders) for (const blockId of blockIds) refCounts[blockId]++;
    for (const blockId of kept) refCounts[blockId]--;
    return count;
  }

  private evict(blockId: number): void {
    const hash = this.hashes[blockId];
    if (hash === null) return;
    this.cached.delete(hash);
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
