import { BlockPool } from '../../lib/engine/blockPool';

test('a new pool is all free and allocates blocks in order', () => {
  const pool = new BlockPool(4);
  expect(pool.numFreeBlocks).toBe(4);
  expect(pool.getNewBlocks(3)).toEqual([0, 1, 2]);
  expect(pool.numFreeBlocks).toBe(1);
});

test('an allocated block has reference count 1, a freed one 0', () => {
  const pool = new BlockPool(2);
  const [blockId] = pool.getNewBlocks(1);
  expect(pool.refCount(blockId)).toBe(1);
  pool.releaseBlocks([blockId]);
  expect(pool.refCount(blockId)).toBe(0);
  expect(pool.numFreeBlocks).toBe(2);
});

test('the least recently freed block is allocated first', () => {
  const pool = new BlockPool(3);
  pool.getNewBlocks(3);
  pool.releaseBlocks([2]);
  pool.releaseBlocks([0]);
  pool.releaseBlocks([1]);
  expect(pool.getNewBlocks(2)).toEqual([2, 0]);
  pool.releaseBlocks([2]);
  expect(pool.getNewBlocks(2)).toEqual([1, 2]);
});

test('of blocks freed together the last is allocated first', () => {
  const pool = new BlockPool(3);
  pool.releaseBlocks(pool.getNewBlocks(3));
  expect(pool.getNewBlocks(3)).toEqual([2, 1, 0]);
});

test('touch adds a reference to a block in use or free', () => {
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

test('a block is cached under its hash until it is reallocated', () => {
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

test('of two blocks with one hash the first stays cached when the second is reallocated', () => {
  const pool = new BlockPool(3);
  const [a, b] = pool.getNewBlocks(2);
  pool.cacheBlock(a, 'same');
  pool.cacheBlock(b, 'same');
  pool.releaseBlocks([b]);
  pool.getNewBlocks(2);
  expect(pool.getCachedBlock('same')).toBe(a);
});

test('a reset evicts all hashes and keeps references', () => {
  const pool = new BlockPool(2);
  const [a] = pool.getNewBlocks(1);
  pool.cacheBlock(a, 'of a');
  pool.resetPrefixCache();
  expect(pool.getCachedBlock('of a')).toBeUndefined();
  expect(pool.refCount(a)).toBe(1);
});

test('a reallocated block leaves the index of its group, of however many groups', () => {
  const pool = new BlockPool(1, 300);
  const [block] = pool.getNewBlocks(1);
  pool.cacheBlock(block, 'hash', 299);
  pool.releaseBlocks([block]);
  pool.getNewBlocks(1);
  expect(pool.getCachedBlock('hash', 299)).toBeUndefined();
});
