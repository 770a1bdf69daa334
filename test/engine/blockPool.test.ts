import { BlockPool } from '../../lib/engine/blockPool';

test('a new pool is all free, and gives blocks in order', () => {
  const pool = new BlockPool(4);
  expect(pool.numFreeBlocks).toBe(4);
  expect(pool.getNewBlocks(3)).toEqual([0, 1, 2]);
  expect(pool.numFreeBlocks).toBe(1);
});

test('a block that was taken is held once, one that was let go is free', () => {
  const pool = new BlockPool(2);
  const [blockId] = pool.getNewBlocks(1);
  expect(pool.refCount(blockId)).toBe(1);
  pool.releaseBlocks([blockId]);
  expect(pool.refCount(blockId)).toBe(0);
  expect(pool.numFreeBlocks).toBe(2);
});

test('the block that has been free longest is taken first', () => {
  const pool = new BlockPool(3);
  pool.getNewBlocks(3);
  pool.releaseBlocks([2]);
  pool.releaseBlocks([0, 1]);
  expect(pool.getNewBlocks(2)).toEqual([2, 0]);
  pool.releaseBlocks([2]);
  expect(pool.getNewBlocks(2)).toEqual([1, 2]);
});
