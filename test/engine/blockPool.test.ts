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
  pool.releaseBlocks([0]);
  pool.releaseBlocks([1]);
  expect(pool.getNewBlocks(2)).toEqual([2, 0]);
  pool.releaseBlocks([2]);
  expect(pool.getNewBlocks(2)).toEqual([1, 2]);
});

test('of blocks let go together the last is taken first', () => {
  const pool = new BlockPool(3);
  pool.releaseBlocks(pool.getNewBlocks(3));
  expect(pool.getNewBlocks(3)).toEqual([2, 1, 0]);
});

test('a block can be held again, be it in use or free', () => {
  const pool = new BlockPool(3);
  pool.getNewBlocks(2);
  pool.releaseBlocks([0]);
  pool.touch([0, 1]);
  expect([0, 1, 2].map((blockId) => pool.refCount(blockId))).toEqual([1, 2, 0]);
  expect(pool.numFreeBlocks).toBe(1);
  expect(pool.getNewBlocks(1)).toEqual([2]);
  pool.releaseBlocks([1]);
  expect(pool.numFreeBlocks).toBe(0);
  pool.releaseBlocks([1]);
  expect(pool.numFreeBlocks).toBe(1);
});

test('a block is found by its hash until it is taken for something else', () => {
  const pool = new BlockPool(2);
  const [a, b] = pool.getNewBlocks(2);
  pool.cacheBlock(a, 'of a');
  pool.cacheBlock(b, 'of b');
  pool.releaseBlocks([a]);
  expect(pool.getCachedBlock('of a')).toBe(a);
  pool.getNewBlocks(1);
  expect(pool.getCachedBlock('of a')).toBeUndefined();
  expect(pool.getCachedBlock('of b')).toBe(b);
});

test('of two blocks with the same content the first is found, and its twin takes nothing from it', () => {
  const pool = new BlockPool(3);
  const [a, b] = pool.getNewBlocks(2);
  pool.cacheBlock(a, 'same');
  pool.cacheBlock(b, 'same');
  pool.releaseBlocks([b]);
  pool.getNewBlocks(2);
  expect(pool.getCachedBlock('same')).toBe(a);
});

test('after a reset nothing is found, and blocks are held as before', () => {
  const pool = new BlockPool(2);
  const [a] = pool.getNewBlocks(1);
  pool.cacheBlock(a, 'of a');
  pool.resetPrefixCache();
  expect(pool.getCachedBlock('of a')).toBeUndefined();
  expect(pool.refCount(a)).toBe(1);
});
