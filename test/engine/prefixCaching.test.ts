/** Requests that begin alike share the KV cache's blocks of their beginning. Blocks are of 4 tokens. */
import { generateAlone } from './pagedModel';
import { promptOf, SchedulerDriver } from './schedulerDriver';

const caching = (limits: ConstructorParameters<typeof SchedulerDriver>[0] = {}) =>
  new SchedulerDriver({ blockSize: 4, enablePrefixCaching: true, ...limits });

/** How many tokens of the request were in the cache, as the worker was told when it began. */
function numFound({ steps }: SchedulerDriver, requestId: string): number {
  for (const { scheduledNewReqs } of steps) {
    const data = scheduledNewReqs.find(({ reqId }) => reqId === requestId);
    if (data) return data.numComputedTokens;
  }
  throw new Error(`${requestId} never began`);
}

/** Runs one prompt after the other, a token each; how many tokens of each were found. */
function runInTurn(driver: SchedulerDriver, ...prompts: number[][]): number[] {
  return prompts.map((prompt, i) => {
    const id = `${driver.requests.size}-${i}`;
    driver.add(id, prompt, { maxTokens: 1 });
    driver.run();
    expect(driver.outcomes.get(id)?.tokenIds).toEqual(generateAlone(prompt, { maxTokens: 1 }));
    return numFound(driver, id);
  });
}

test('a prompt finds the full blocks that an earlier one computed', () => {
  const prompt = promptOf(11);
  expect(runInTurn(caching(), prompt, prompt, [...prompt.slice(0, 6), 90, 91, 92])).toEqual([
    0, 8, 4,
  ]);
});

test('a block is found by all that comes before it, not by its own tokens alone', () => {
  const block = [1, 2, 3, 4];
  const driver = caching();
  expect(runInTurn(driver, [...block, ...block, 5], [9, 9, 9, 9, ...block, 5])).toEqual([0, 0]);
});

test('its last token is computed always, for the next is sampled from it', () => {
  expect(runInTurn(caching(), promptOf(8), promptOf(8), promptOf(9))).toEqual([0, 4, 8]);
});

test.each([1, 2])('what was generated is found as well, %i in flight', (depth) => {
  const driver = caching({ depth });
  driver.add('first', promptOf(5), { maxTokens: 4 });
  const { first } = driver.run();
  // The last token was never computed: eight are in the cache.
  expect(runInTurn(driver, [...promptOf(5), ...first, 7, 7])).toEqual([8]);
});

test.each([1, 2])('a running request is shared with, %i in flight', (depth) => {
  const driver = caching({ depth });
  driver.add('a', promptOf(10), { maxTokens: 9 });
  driver.turn();
  driver.add('b', promptOf(10), { maxTokens: 9 });
  const tokens = driver.run();
  expect(numFound(driver, 'b')).toBe(8);
  const expected = generateAlone(promptOf(10), { maxTokens: 9 });
  expect(tokens).toEqual({ a: expected, b: expected });
});

test('samples of one prompt share its full blocks from their first step on', () => {
  const driver = caching({ maxNumBatchedTokens: 64 });
  for (const id of ['a', 'b', 'c']) driver.add(id, promptOf(10), { maxTokens: 2 });
  const step = driver.launch();
  expect([...step.numScheduledTokens.values()]).toEqual([10, 2, 2]);
  // Two blocks shared, and one each.
  expect(driver.limits.numBlocks - driver.numFreeBlocks).toBe(5);
  driver.run();
  expect(driver.numFreeBlocks).toBe(driver.limits.numBlocks);
});

test('another salt finds nothing, the same one does', () => {
  const driver = caching();
  const found = ['', 'one', 'two', 'one', ''].map((cacheSalt, i) => {
    driver.add(String(i), promptOf(9), { maxTokens: 1 }, { cacheSalt });
    driver.run();
    return numFound(driver, String(i));
  });
  expect(found).toEqual([0, 0, 0, 8, 8]);
});

test('blocks are taken for others in the order in which they were let go, ends of sequences first', () => {
  const driver = caching({ numBlocks: 8, maxModelLen: 32 });
  const [a, b] = [promptOf(13, 1), promptOf(13, 2)];
  runInTurn(driver, a, b);
  // Of the eight blocks `a` and `b` have four each, three of them full. Five are taken: all of `a`
  // and the end of `b`.
  runInTurn(driver, promptOf(17, 3));
  expect(runInTurn(driver, b)).toEqual([12]);
  expect(runInTurn(driver, a)).toEqual([0]);
});

test('a preempted request begins again with what of it is still there', () => {
  const driver = caching({ numBlocks: 7, maxModelLen: 20 });
  driver.add('old', promptOf(8), { maxTokens: 12 });
  driver.add('new', promptOf(8, 5), { maxTokens: 12 });
  const tokens = driver.run();
  const resumed = driver.steps.find((step) => step.scheduledCachedReqs.resumedReqIds.size > 0);
  expect(resumed?.scheduledCachedReqs.reqIds).toEqual(['new']);
  expect(resumed?.scheduledCachedReqs.numComputedTokens[0]).toBeGreaterThan(0);
  expect(tokens.new).toEqual(generateAlone(promptOf(8, 5), { maxTokens: 12 }));
});

test('a prompt whose logprobs are wanted is computed whole', () => {
  const driver = caching();
  runInTurn(driver, promptOf(9));
  driver.add('a', promptOf(9), { maxTokens: 1, promptLogprobs: 0 });
  driver.run();
  expect(numFound(driver, 'a')).toBe(0);
});

test('switched off, nothing is shared', () => {
  const driver = caching({ enablePrefixCaching: false });
  expect(runInTurn(driver, promptOf(9), promptOf(9))).toEqual([0, 0]);
});

test('what was found is counted, in tokens', () => {
  const driver = caching();
  runInTurn(driver, promptOf(9), promptOf(9), promptOf(10, 3));
  expect(driver.kvCacheManager.prefixCacheStats).toEqual({ queries: 28, hits: 8 });
  expect([...driver.requests.values()].map((request) => request.numCachedTokens)).toEqual([
    0, 8, 0,
  ]);
});

describe('after resetPrefixCache', () => {
  test('nothing of before is found', () => {
    const driver = caching();
    runInTurn(driver, promptOf(9));
    driver.kvCacheManager.resetPrefixCache();
    expect(runInTurn(driver, promptOf(9), promptOf(9))).toEqual([0, 8]);
    expect(driver.kvCacheManager.prefixCacheStats).toEqual({ queries: 18, hits: 8 });
  });

  test('nor what a request that ran then computes on top of it', () => {
    const driver = caching();
    // Six tokens: one block is full at the reset, the next fills up after it.
    driver.add('running', promptOf(6), { maxTokens: 8 });
    driver.add('short', promptOf(3, 50), { maxTokens: 8 });
    driver.turn();
    driver.kvCacheManager.resetPrefixCache();
    const { running, short } = driver.run();
    expect(running).toEqual(generateAlone(promptOf(6), { maxTokens: 8 }));
    expect(runInTurn(driver, [...promptOf(6), ...running])).toEqual([0]);
    expect(runInTurn(driver, [...promptOf(3, 50), ...short])).toEqual([0]);
  });

  test('nor that by a request that looked for it before', () => {
    const driver = caching({ numBlocks: 6, maxModelLen: 24 });
    const running = promptOf(2, 50);
    driver.add('running', running, { maxTokens: 8 });
    driver.turn();
    // Waits for all six blocks; the first of 'running' is not full yet.
    const waiting = [...running, ...generateAlone(running, { maxTokens: 8 }), ...promptOf(11, 7)];
    driver.add('waiting', waiting, { maxTokens: 1 });
    driver.turn();
    driver.kvCacheManager.resetPrefixCache();
    driver.run();
    expect(numFound(driver, 'waiting')).toBe(0);
  });
});
