/** Gives requests the KV cache blocks that their tokens need, and takes them back. */
import { BlockPool } from './blockPool';
import type { Request } from './request';

const NO_BLOCKS: readonly number[] = Object.freeze([]);

export class KVCacheManager {
  readonly blockPool: BlockPool;

  constructor(
    numBlocks: number,
    /** Tokens. */
    readonly blockSize: number,
  ) {
    this.blockPool = new BlockPool(numBlocks);
  }

  /** Whether a request that holds no blocks could be given all that its known tokens need. */
  hasRoomFor(request: Request): boolean {
    return this.numBlocksFor(request.numTokens) <= this.blockPool.numFreeBlocks;
  }

  /**
   * Gives the request blocks for `numNewTokens` beyond those computed. Returns the blocks it did
   * not have before (often none), or null, changing nothing, when not enough are free.
   */
  allocateSlots(request: Request, numNewTokens: number): readonly number[] | null {
    const needed =
      this.numBlocksFor(request.numComputedTokens + numNewTokens) - request.blockIds.length;
    if (needed <= 0) return NO_BLOCKS;
    if (needed > this.blockPool.numFreeBlocks) return null;
    const blockIds = this.blockPool.getNewBlocks(needed);
    for (const blockId of blockIds) request.blockIds.push(blockId);
    return blockIds;
  }

  /** Takes all of the request's blocks back. */
  free(request: Request): void {
    this.blockPool.releaseBlocks(request.blockIds);
    request.blockIds.length = 0;
  }

  private numBlocksFor(numTokens: number): number {
    return Math.ceil(numTokens / this.blockSize);
  }
}
