/** Requests with a common prefix share its KV cache blocks. Blocks have 4 tokens. */
import { generateAlone } from './pagedModel';
import { promptOf, SchedulerDriver } from './schedulerDriver';

const caching = (limits: ConstructorParameters<typeof SchedulerDriver>[0] = {}) =>
  new SchedulerDriver({ blockSize: 4, enablePrefixCaching: true, ...limits });

/** Prefix cache hits of the request, as sent to the worker. */
function numFound({ steps }: SchedulerDriver, requestId: string): number {
  for (const { scheduledNewReqs } of steps) {
    const data = scheduledNewReqs.find(({ reqId }) => reqId === requestId);
    if (data) return data.numComputedTokens;
  }
  throw new Error(`${requestId} never began`);
}

/** Runs prompts one after another for one token each; returns the hits of each. */
function runInTurn(driver: SchedulerDriver, ...prompts: number[][]): number[] {
  return prompts.map((prompt, i) => {
    const id = `${driver.requests.size}-${i}`;
    driver.add(id, prompt, { maxTokens: 1 });
    driver.run();
    expect(driver.outcomes.get(id)?.tokenIds).toEqual(generateAlone(prompt, { maxTokens: 1 }));
    return numFound(driver, id);
  });
}

test('a prompt reuses the full blocks of an earlier one', () => {
  const prompt = promptOf(11);
  expect(runInTurn(caching(), prompt, prompt, [...prompt.slice(0, 6), 90, 91, 92])).toEqual([
    0, 8, 4,
  ]);
});

test('a block is found by all preceding tokens, not by its own alone', () => {
  const block = [1, 2, 3, 4];
  const driver = caching();
  expect(runInTurn(driver, [...block, ...block, 5], [9, 9, 9, 9, ...block, 5])).toEqual([0, 0]);
});

test('the last token is always computed, since the next is sampled from it', () => {
  expect(runInTurn(caching(), promptOf(8), promptOf(8), promptOf(9))).toEqual([0, 4, 8]);
});

test.each([1, 2])('generated tokens are cached too, %i in flight', (depth) => {
  const driver = caching({ depth });
  driver.add('first', promptOf(5), { maxTokens: 4 });
  const { first } = driver.run();
  // The last token is never computed: eight are in the cache.
  expect(runInTurn(driver, [...promptOf(5), ...first, 7, 7])).toEqual([8]);
});

test.each([1, 2])('blocks of a running request are shared, %i in flight', (depth) => {
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

test('only the same salt shares blocks', () => {
  const driver = caching();
  const found = ['', 'one', 'two', 'one', ''].map((cacheSalt, i) => {
    driver.add(String(i), promptOf(9), { maxTokens: 1 }, { cacheSalt });
    driver.run();
    return numFound(driver, String(i));
  });
  expect(found).toEqual([0, 0, 0, 8, 8]);
});

test('blocks are reallocated in the order freed, the end of a sequence first', () => {
  const driver = caching({ numBlocks: 8, maxModelLen: 32 });
  const [a, b] = [promptOf(13, 1), promptOf(13, 2)];
  runInTurn(driver, a, b);
  // `a` and `b` have four of the eight blocks each, three of them full. Five are reallocated: all
  // of `a` and the end of `b`.
  runInTurn(driver, promptOf(17, 3));
  expect(runInTurn(driver, b)).toEqual([12]);
  expect(runInTurn(driver, a)).toEqual([0]);
});

test('a preempted request reuses its blocks that are still cached', () => {
  const driver = caching({ numBlocks: 7, maxModelLen: 20 });
  driver.add('old', promptOf(8), { maxTokens: 12 });
  driver.add('new', promptOf(8, 5), { maxTokens: 12 });
  const tokens = driver.run();
  const resumed = driver.steps.find((step) => step.scheduledCachedReqs.resumedReqIds.size > 0);
  expect(resumed?.scheduledCachedReqs.reqIds).toEqual(['new']);
  expect(resumed?.scheduledCachedReqs.numComputedTokens[0]).toBeGreaterThan(0);
  expect(tokens.new).toEqual(generateAlone(promptOf(8, 5), { maxTokens: 12 }));
});

test('a prompt with prompt logprobs is computed whole', () => {
  const driver = caching();
  runInTurn(driver, promptOf(9));
  driver.add('a', promptOf(9), { maxTokens: 1, promptLogprobs: 0 });
  driver.run();
  expect(numFound(driver, 'a')).toBe(0);
});

test('nothing is shared when disabled', () => {
  const driver = caching({ enablePrefixCaching: false });
  expect(runInTurn(driver, promptOf(9), promptOf(9))).toEqual([0, 0]);
});

test('hits are counted in tokens', () => {
  const driver = caching();
  runInTurn(driver, promptOf(9), promptOf(9), promptOf(10, 3));
  expect(driver.kvCacheManager.prefixCacheStats).toEqual({ queries: 28, hits: 8 });
  expect([...driver.requests.values()].map((request) => request.numCachedTokens)).toEqual([
    0, 8, 0,
  ]);
});

describe('after resetPrefixCache', () => {
  test('earlier blocks are not found', () => {
    const driver = caching();
    runInTurn(driver, promptOf(9));
    driver.kvCacheManager.resetPrefixCache();
    expect(runInTurn(driver, promptOf(9), promptOf(9))).toEqual([0, 8]);
    expect(driver.kvCacheManager.prefixCacheStats).toEqual({ queries: 18, hits: 8 });
  });

  test('nor blocks that a request running at the reset computes later', () => {
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

  test('nor by a request that looked them up before', () => {
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
