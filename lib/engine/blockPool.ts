/**
 * The blocks of the KV cache: which are free, how many requests hold each of the others, and which
 * hold tokens that another request may find again (vLLM V1's BlockPool).
 *
 * A block that is let go keeps its content and can be found until it is taken for other tokens; the
 * one that has been free longest is taken first. So the free blocks are a list in that order, from
 * whose middle a block that is found again leaves.
 */
import type { BlockHash } from './blockHash';

export class BlockPool {
  /**
   * [numBlocks + 1] each: the free blocks as a ring, from which block `numBlocks`, which does not
   * exist, marks both ends.
   */
  private readonly next: Int32Array;
  private readonly previous: Int32Array;
  private numFree: number;
  /** [numBlocks] */
  private readonly refCounts: Int32Array;
  /** [numBlocks]: what a block can be found by. */
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

  /** How often a holder let a block go, since the start. */
  get numReleases(): number {
    return this.releases;
  }

  /** How many hold the block; 0 when it is free. */
  refCount(blockId: number): number {
    return this.refCounts[blockId];
  }

  /** The block that holds what the hash stands for, free or not. */
  getCachedBlock(hash: BlockHash): number | undefined {
    return this.cached.get(hash);
  }

  /** Lets the block, which is full, be found by the hash; the first block under a hash stays. */
  cacheBlock(blockId: number, hash: BlockHash): void {
    if (this.cached.has(hash)) return;
    this.cached.set(hash, blockId);
    this.hashes[blockId] = hash;
  }

  /** Nothing is found by these hashes from now on. Who holds a block keeps it. */
  uncache(hashes: readonly BlockHash[]): void {
    for (const hash of hashes) {
      const blockId = this.cached.get(hash);
      if (blockId !== undefined) this.forget(blockId);
    }
  }

  /** No block can be found from now on. Who holds one keeps it. */
  resetPrefixCache(): void {
    this.cached.clear();
    this.hashes.fill(null);
  }

  /** Takes `count` blocks, no more than are free, each held once and found by nothing. */
  getNewBlocks(count: number): number[] {
    const blockIds = new Array<number>(count);
    for (let i = 0; i < count; i++) {
      const blockId = this.next[this.numBlocks];
      this.leaveFreeList(blockId);
      this.refCounts[blockId] = 1;
      this.forget(blockId);
      blockIds[i] = blockId;
    }
    return blockIds;
  }

  /** Holds each block once more; one that was free is free no longer. */
  touch(blockIds: readonly number[]): void {
    for (const blockId of blockIds) {
      if (this.refCounts[blockId]++ === 0) this.leaveFreeList(blockId);
    }
  }

  /**
   * Lets a sequence's blocks go once each; the last to let go frees a block. The sequence's end is
   * freed first, and so taken first: its beginning is what others may share.
   */
  releaseBlocks(blockIds: readonly number[]): void {
    this.releases += blockIds.length;
    for (let i = blockIds.length - 1; i >= 0; i--) {
      if (--this.refCounts[blockIds[i]] === 0) this.joinFreeList(blockIds[i]);
    }
  }

  /**
   * How many blocks would become free if `holders` let theirs go, those in `kept` apart. Changes
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

  private forget(blockId: number): void {
    const hash = this.hashes[blockId];
    if (hash === null) return;
    this.cached.delete(hash);
    this.hashes[blockId] = null;
  }

  private leaveFreeList(blockId: number): void {
    this.next[this.previous[blockId]] = this.next[blockId];
    this.previous[this.next[blockId]] = this.previous[blockId];
    this.numFree--;
  }

  private joinFreeList(blockId: number): void {
    const end = this.numBlocks;
    const last = this.previous[end];
    this.next[last] = blockId;
    this.previous[blockId] = last;
    this.next[blockId] = end;
    this.previous[end] = blockId;
    this.numFree++;
  }
}
