/** The blocks of the KV cache: which are free, and how many requests hold each of the others. */

export class BlockPool {
  /** Free blocks, in a ring: the one that has been free longest is taken first. */
  private readonly freeBlocks: Int32Array;
  private firstFree = 0;
  private numFree: number;
  /** [numBlocks] */
  private readonly refCounts: Int32Array;

  constructor(readonly numBlocks: number) {
    this.freeBlocks = Int32Array.from({ length: numBlocks }, (_, blockId) => blockId);
    this.numFree = numBlocks;
    this.refCounts = new Int32Array(numBlocks);
  }

  get numFreeBlocks(): number {
    return this.numFree;
  }

  /** How many hold the block; 0 when it is free. */
  refCount(blockId: number): number {
    return this.refCounts[blockId];
  }

  /** Takes `count` blocks, no more than are free, each held once. */
  getNewBlocks(count: number): number[] {
    const blockIds = new Array<number>(count);
    for (let i = 0; i < count; i++) {
      const blockId = this.freeBlocks[this.firstFree];
      this.firstFree = (this.firstFree + 1) % this.numBlocks;
      this.refCounts[blockId] = 1;
      blockIds[i] = blockId;
    }
    this.numFree -= count;
    return blockIds;
  }

  /** Lets each block go once; the last to let go frees it. */
  releaseBlocks(blockIds: readonly number[]): void {
    for (const blockId of blockIds) {
      if (--this.refCounts[blockId] > 0) continue;
      this.freeBlocks[(this.firstFree + this.numFree++) % this.numBlocks] = blockId;
    }
  }
}
