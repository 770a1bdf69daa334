/**
 * Groups of layers with different attention windows share a pool of blocks. Blocks have 4 tokens;
 * where nothing else is said group 0 has full attention and group 1 a window of 6 tokens, so a query
 * at the beginning of a block reads 2 blocks before it.
 */
import { NO_BLOCK } from '../../lib/contract/kvCache';
import type { Request } from '../../lib/engine/request';
import { generateAlone } from './pagedModel';
import { promptOf, SchedulerDriver } from './schedulerDriver';

const BLOCK_SIZE = 4;
const WINDOW = 6;

type Limits = ConstructorParameters<typeof SchedulerDriver>[0];

const driverOf = (limits: Limits = {}) =>
  new SchedulerDriver({
    blockSize: BLOCK_SIZE,
    enablePrefixCaching: true,
    slidingWindows: [null, WINDOW],
    ...limits,
  });

/** The blocks that the request holds in a group, with their indices. */
function heldIn({ limits }: SchedulerDriver, { blockIds }: Request, group: number): number[] {
  const numGroups = limits.slidingWindows.length;
  return blockIds.flatMap((blockId, at) =>
    at % numGroups === group && blockId !== NO_BLOCK ? [Math.floor(at / numGroups)] : [],
  );
}

/** Tokens found in the prefix cache, and the blocks sent, when the request first ran. */
function found({ steps }: SchedulerDriver, requestId: string): { tokens: number; ids: number[] } {
  const data = steps
    .flatMap(({ scheduledNewReqs }) => scheduledNewReqs)
    .find(({ reqId }) => reqId === requestId);
  return { tokens: data?.numComputedTokens ?? NaN, ids: data?.blockIds ?? [] };
}

/** Runs a prompt to its end, for one token; returns the tokens found in the prefix cache. */
function runOne(driver: SchedulerDriver, prompt: number[]): number {
  const id = String(driver.requests.size);
  driver.add(id, prompt, { maxTokens: 1 });
  driver.run();
  expect(driver.outcomes.get(id)?.tokenIds).toEqual(generateAlone(prompt, { maxTokens: 1 }));
  return found(driver, id).tokens;
}

/** Evicts block `i` of a prompt that ran, from a group's index of cached blocks. */
function evict(driver: SchedulerDriver, request: Request, i: number, group: number): void {
  const { blockPool } = driver.kvCacheManager;
  const hash = request.blockHashes[i];
  const blockId = blockPool.getCachedBlock(hash, group);
  expect(blockId).toBeDefined();
  (blockPool as unknown as { evict(blockId: number): void }).evict(blockId as number);
}

describe('blocks behind a window', () => {
  test.each([1, 2])('are freed as a request grows, with %i steps in flight', (depth) => {
    const driver = driverOf({ depth, maxModelLen: 64 });
    const request = driver.add('a', promptOf(5), { maxTokens: 50 });
    const mostHeld = Math.ceil((WINDOW - 1 + 1) / BLOCK_SIZE) + 1;
    let most = 0;
    while (driver.scheduler.hasUnfinishedRequests()) {
      driver.turn();
      most = Math.max(most, heldIn(driver, request, 1).length);
    }
    expect(most).toBe(mostHeld);
    // The full group holds all tokens, except that the last one sampled is not computed.
    const numBlocks = Math.ceil(54 / BLOCK_SIZE);
    expect(driver.kvCacheManager.blockPool.peakNumUsedBlocks).toBeLessThanOrEqual(
      numBlocks + mostHeld,
    );
    expect(driver.outcomes.get('a')?.tokenIds).toEqual(
      generateAlone(promptOf(5), { maxTokens: 50 }),
    );
    expect(driver.numFreeBlocks).toBe(driver.limits.numBlocks);
  });

  test('are freed between the chunks of a prompt', () => {
    const driver = driverOf({ maxNumBatchedTokens: 8 });
    const request = driver.add('a', promptOf(40), { maxTokens: 1 });
    for (let chunk = 0; chunk < 5; chunk++) {
      driver.launch();
      // The chunk's two blocks, and the two before its first query.
      const first = Math.max(0, 2 * chunk - 2);
      const expected = [0, 1, 2, 3].map((i) => first + i).filter((i) => i < 2 * chunk + 2);
      expect(heldIn(driver, request, 1)).toEqual(expected);
      expect(heldIn(driver, request, 0)).toHaveLength(2 * chunk + 2);
      driver.land();
    }
  });

  test('go to other requests in the same step', () => {
    // Two requests of 12 tokens: each holds 3 blocks of the window's group at most.
    const driver = driverOf({
      numBlocks: 8,
      slidingWindows: [WINDOW],
      maxNumBatchedTokens: 4,
      depth: 2,
    });
    const prompts = [promptOf(12, 1), promptOf(12, 2)];
    prompts.forEach((prompt, i) => driver.add(String(i), prompt, { maxTokens: 30 }));
    const tokens = driver.run();
    prompts.forEach((prompt, i) => {
      expect(tokens[i]).toEqual(generateAlone(prompt, { maxTokens: 30 }));
    });
    expect(driver.scheduler.numPreemptions).toBe(0);
  });

  test('hold a token of a window of one token only in its step', () => {
    const driver = driverOf({ slidingWindows: [1] });
    const request = driver.add('a', promptOf(8), { maxTokens: 20 });
    driver.turn();
    for (let i = 0; i < 12; i++) {
      driver.turn();
      expect(heldIn(driver, request, 0)).toHaveLength(1);
    }
  });
});

describe('a prefix', () => {
  test('is found though a window has lost the blocks before it', () => {
    const driver = driverOf({ maxNumBatchedTokens: 8 });
    const prompt = promptOf(33);
    expect(runOne(driver, prompt)).toBe(0);
    const first = driver.requests.get('0') as Request;
    for (const i of [0, 1, 2, 3, 4, 5]) evict(driver, first, i, 1);
    expect(runOne(driver, prompt)).toBe(32);
    const { ids } = found(driver, '1');
    const ofWindow = ids.filter((_, at) => at % 2 === 1);
    // Nothing before the two blocks that the next query reads.
    expect(ofWindow.slice(0, 6)).toEqual(Array.from({ length: 6 }, () => NO_BLOCK));
    expect(ofWindow.slice(6)).not.toContain(NO_BLOCK);
    expect(ids.filter((_, at) => at % 2 === 0)).not.toContain(NO_BLOCK);
  });

  // Blocks 0 to 7 are full; a prefix needs the last two before its end.
  test.each([
    ['the last block', [7], 28],
    ['the block before the last', [6], 24],
    ['the last block and one in the middle', [7, 4], 28],
    ['every block but the first', [1, 2, 3, 4, 5, 6, 7], 4],
    ['every block', [0, 1, 2, 3, 4, 5, 6, 7], 0],
  ])('ends where a window lacks %s', (_, missing, tokens) => {
    const driver = driverOf();
    const prompt = promptOf(33);
    runOne(driver, prompt);
    for (const i of missing) evict(driver, driver.requests.get('0') as Request, i, 1);
    expect(runOne(driver, prompt)).toBe(tokens);
  });

  test('ends where full attention lacks a block, whatever a window has', () => {
    const driver = driverOf();
    const prompt = promptOf(33);
    runOne(driver, prompt);
    evict(driver, driver.requests.get('0') as Request, 5, 0);
    expect(runOne(driver, prompt)).toBe(20);
  });

  test('suits all windows at once', () => {
    // Windows of 6 and 14 tokens read 2 and 4 blocks before a query.
    const driver = driverOf({ slidingWindows: [6, 14] });
    const prompt = promptOf(41);
    runOne(driver, prompt);
    const request = driver.requests.get('0') as Request;
    // The large window could end at 8 blocks, but the small one lacks block 7, and for a prefix of 7
    // blocks the large one has blocks 3 to 6.
    evict(driver, request, 8, 1);
    evict(driver, request, 7, 0);
    expect(runOne(driver, prompt)).toBe(28);
  });

  test('of all-window models is found by its last blocks alone', () => {
    const driver = driverOf({ slidingWindows: [WINDOW], maxNumBatchedTokens: 8 });
    const prompt = promptOf(33);
    runOne(driver, prompt);
    for (const i of [0, 1, 2, 3, 4, 5]) evict(driver, driver.requests.get('0') as Request, i, 0);
    expect(runOne(driver, prompt)).toBe(32);
  });

  test('is the same in a block of two groups, which do not share it', () => {
    const driver = driverOf();
    runOne(driver, promptOf(9));
    const { blockPool } = driver.kvCacheManager;
    const [hash] = (driver.requests.get('0') as Request).blockHashes;
    const ids = [0, 1].map((group) => blockPool.getCachedBlock(hash, group));
    expect(new Set(ids).size).toBe(2);
    blockPool.uncache([hash]);
    expect([0, 1].map((group) => blockPool.getCachedBlock(hash, group))).toEqual([
      undefined,
      undefined,
    ]);
  });
});

describe('admission', () => {
  test('counts of a window only what a request holds at once', () => {
    // 16 tokens a step: 6 blocks of the window's group at most, for 40 tokens of 10 blocks.
    const most = Math.ceil((WINDOW - 1 + 16) / BLOCK_SIZE) + 1;
    expect(most).toBe(7);
    for (const [numBlocks, fits] of [
      [most, true],
      [most - 1, false],
    ] as const) {
      const driver = driverOf({ numBlocks, slidingWindows: [WINDOW], maxNumBatchedTokens: 16 });
      driver.add('a', promptOf(40), { maxTokens: 1 });
      expect(driver.launch().totalNumScheduledTokens).toBe(fits ? 16 : 0);
    }
  });

  test('looks a refused request up again once its window is cached', () => {
    const driver = driverOf({ numBlocks: 7, slidingWindows: [WINDOW], maxNumBatchedTokens: 64 });
    const prompt = promptOf(20);
    const a = driver.add('a', prompt, { maxTokens: 40 });
    driver.turn();
    for (const i of [0, 1, 2, 3, 4]) evict(driver, a, i, 0);
    // Finds nothing, and needs 11 blocks. When `a` has cached blocks 5 and 6 it needs 4, as many as
    // are free.
    const continued = [...prompt, ...generateAlone(prompt, { maxTokens: 21 })];
    driver.add('b', continued, { maxTokens: 2 });
    for (let i = 0; i < 9; i++) driver.turn();
    expect(a.status).toBe('running');
    expect(found(driver, 'b').tokens).toBe(28);
    expect(driver.run()['b']).toEqual(generateAlone(continued, { maxTokens: 2 }));
    expect(driver.numFreeBlocks).toBe(7);
  });
});

describe('all blocks are free after', () => {
  const grown = (depth = 2) => {
    const driver = driverOf({ depth, slidingWindows: [null, WINDOW, WINDOW, 14] });
    const request = driver.add('a', promptOf(21), { maxTokens: 30 });
    for (let i = 0; i < 12; i++) driver.turn();
    expect(heldIn(driver, request, 1).length).toBeLessThan(heldIn(driver, request, 0).length);
    return { driver, request };
  };

  test('an abort', () => {
    const { driver } = grown();
    driver.abort('a');
    expect(driver.numFreeBlocks).toBe(driver.limits.numBlocks);
  });

  test('an error, whose blocks are found no more', () => {
    const { driver, request } = grown();
    driver.kvCacheManager.discard(request);
    expect(driver.numFreeBlocks).toBe(driver.limits.numBlocks);
    expect(driver.kvCacheManager.getComputedBlocks(request)).toEqual([]);
  });

  test('a preemption, from which the request resumes with what its windows need', () => {
    const { driver, request } = grown(1);
    const numHeld = driver.limits.numBlocks - driver.numFreeBlocks;
    driver.kvCacheManager.free(request);
    expect(driver.numFreeBlocks).toBe(driver.limits.numBlocks);
    const computed = driver.kvCacheManager.getComputedBlocks(request);
    driver.kvCacheManager.shareBlocks(request, computed);
    expect(driver.limits.numBlocks - driver.numFreeBlocks).toBeLessThanOrEqual(numHeld);
    expect(heldIn(driver, request, 1)).toEqual(heldIn(driver, request, 2));
    expect(heldIn(driver, request, 1)).toHaveLength(2);
    expect(heldIn(driver, request, 3)).toHaveLength(4);
    driver.kvCacheManager.free(request);
    expect(driver.numFreeBlocks).toBe(driver.limits.numBlocks);
  });

  test('a reset of the prefix cache', () => {
    const { driver } = grown(1);
    driver.kvCacheManager.resetPrefixCache();
    const tokens = driver.run();
    expect(tokens['a']).toEqual(generateAlone(promptOf(21), { maxTokens: 30 }));
    expect(driver.numFreeBlocks).toBe(driver.limits.numBlocks);
  });
});
