import type { UniprocError } from '../../lib/errors';
import { type ModelRunnerOutput, RaggedTokenIds } from '../../lib/contract/modelRunnerOutput';
import type { SchedulerOutput } from '../../lib/contract/schedulerOutput';
import { generateAlone } from './pagedModel';
import { type Outcome, promptOf, SchedulerDriver } from './schedulerDriver';

/** Tokens per request in a step. */
function tokensIn(step: SchedulerOutput): Record<string, number> {
  return Object.fromEntries(step.numScheduledTokens);
}

describe('a request', () => {
  test('computes its prompt in one step, then one token per step', () => {
    const driver = new SchedulerDriver();
    driver.add('a', promptOf(5), { maxTokens: 3 });
    const { a } = driver.run();
    expect(a).toEqual(generateAlone(promptOf(5), { maxTokens: 3 }));
    expect(driver.steps.map(tokensIn)).toEqual([{ a: 5 }, { a: 1 }, { a: 1 }, {}]);
  });

  test('is sent to the worker whole, then by changes', () => {
    const driver = new SchedulerDriver({ blockSize: 4 });
    driver.add('a', promptOf(7), { maxTokens: 4 });
    driver.turn();
    driver.turn();
    driver.turn();
    const [first, second, third] = driver.steps;
    expect(first.scheduledNewReqs).toMatchObject([
      { reqId: 'a', numComputedTokens: 0, blockIds: [0, 1] },
    ]);
    expect(Array.from(first.scheduledNewReqs[0].promptTokenIds)).toEqual(promptOf(7));
    // Positions 7 and 8: the second opens a block.
    expect(second.scheduledCachedReqs).toMatchObject({
      reqIds: ['a'],
      newBlockIds: [null],
      numComputedTokens: [7],
    });
    expect(third.scheduledCachedReqs).toMatchObject({
      newBlockIds: [[2]],
      numComputedTokens: [8],
    });
  });

  test('finishes at maxTokens with reason length', () => {
    const driver = new SchedulerDriver();
    driver.add('a', promptOf(3), { maxTokens: 2 });
    driver.run();
    expect(driver.outcomes.get('a')).toMatchObject({ finishReason: 'length' });
  });

  test('finishes at maxModelLen', () => {
    const driver = new SchedulerDriver({ maxModelLen: 10 });
    driver.add('a', promptOf(7), { maxTokens: null });
    expect(driver.run().a).toHaveLength(3);
    expect(driver.outcomes.get('a')).toMatchObject({ finishReason: 'length' });
  });

  test('finishes at a stop token, which it keeps, with reason stop', () => {
    const free = generateAlone(promptOf(3), { maxTokens: 8 });
    const driver = new SchedulerDriver();
    driver.add('a', promptOf(3), { maxTokens: 8, stopTokenIds: [free[4]] });
    expect(driver.run().a).toEqual(free.slice(0, 5));
    expect(driver.outcomes.get('a')).toMatchObject({ finishReason: 'stop' });
  });

  test('finishes with reason stop if its last token is a stop token', () => {
    const free = generateAlone(promptOf(3), { maxTokens: 3 });
    const driver = new SchedulerDriver();
    driver.add('a', promptOf(3), { maxTokens: 3, stopTokenIds: [free[2]] });
    driver.run();
    expect(driver.outcomes.get('a')).toMatchObject({ finishReason: 'stop' });
  });

  test('ignores a stop token in its first minTokens tokens', () => {
    const [, , third] = generateAlone(promptOf(3), { maxTokens: 3 });
    const lengths = [2, 3].map((minTokens) => {
      const driver = new SchedulerDriver();
      driver.add('a', promptOf(3), { maxTokens: 5, minTokens, stopTokenIds: [third] });
      return driver.run().a.length;
    });
    expect(lengths).toEqual([3, 5]);
  });

  test('frees all its blocks, and the worker frees it in the next step', () => {
    const driver = new SchedulerDriver();
    driver.add('a', promptOf(9), { maxTokens: 1 });
    driver.turn();
    expect(driver.numFreeBlocks).toBe(64);
    expect(driver.model.requests.size).toBe(1);
    expect(driver.launch()).toMatchObject({ finishedReqIds: ['a'], totalNumScheduledTokens: 0 });
    expect(driver.model.requests.size).toBe(0);
  });
});

describe('a step', () => {
  test('mixes decodes with prompts', () => {
    const driver = new SchedulerDriver();
    driver.add('a', promptOf(5), { maxTokens: 8 });
    driver.turn();
    driver.add('b', promptOf(6, 2), { maxTokens: 8 });
    driver.turn();
    expect(tokensIn(driver.steps[1])).toEqual({ a: 1, b: 6 });
  });

  test('admits requests in arrival order', () => {
    const driver = new SchedulerDriver({ maxNumSeqs: 2 });
    for (const id of ['c', 'a', 'b']) driver.add(id, promptOf(2), { maxTokens: 2 });
    driver.turn();
    driver.turn();
    driver.turn();
    expect(driver.steps.map((step) => [...step.numScheduledTokens.keys()])).toEqual([
      ['c', 'a'],
      ['c', 'a'],
      ['b'],
    ]);
  });

  test('has at most maxNumSeqs requests', () => {
    const driver = new SchedulerDriver({ maxNumSeqs: 3 });
    for (let i = 0; i < 5; i++) driver.add(String(i), promptOf(2), { maxTokens: 3 });
    driver.turn();
    expect(driver.steps[0].numScheduledTokens.size).toBe(3);
    expect(driver.scheduler.numRunning).toBe(3);
    expect(driver.scheduler.numWaiting).toBe(2);
  });

  test('has at most maxNumBatchedTokens tokens: longer prompts are chunked', () => {
    const driver = new SchedulerDriver({ maxNumBatchedTokens: 8 });
    driver.add('a', promptOf(2), { maxTokens: 6 });
    driver.turn();
    driver.add('b', promptOf(18, 3), { maxTokens: 2 });
    const tokens = driver.run();
    expect(driver.steps.slice(1, 5).map(tokensIn)).toEqual([
      { a: 1, b: 7 },
      { a: 1, b: 7 },
      { a: 1, b: 4 },
      { a: 1, b: 1 },
    ]);
    expect(tokens).toEqual({
      a: generateAlone(promptOf(2), { maxTokens: 6 }),
      b: generateAlone(promptOf(18, 3), { maxTokens: 2 }),
    });
  });

  test('limits a prompt to longPrefillTokenThreshold, and admits more prompts instead', () => {
    const driver = new SchedulerDriver({ maxNumBatchedTokens: 16, longPrefillTokenThreshold: 6 });
    driver.add('a', promptOf(14), { maxTokens: 2 });
    driver.add('b', promptOf(7, 3), { maxTokens: 2 });
    driver.add('c', promptOf(5, 4), { maxTokens: 2 });
    driver.run();
    expect(driver.steps.slice(0, 3).map(tokensIn)).toEqual([
      { a: 6, b: 6, c: 4 },
      { a: 6, b: 1, c: 1 },
      { a: 2, b: 1, c: 1 },
    ]);
  });

  test('does not sample an incomplete prompt', () => {
    const driver = new SchedulerDriver({ maxNumBatchedTokens: 4 });
    driver.add('a', promptOf(6), { maxTokens: 1 });
    driver.turn();
    expect(driver.outcomes.get('a')).toEqual({ tokenIds: [], finishReason: null });
    driver.turn();
    expect(driver.outcomes.get('a')?.tokenIds).toHaveLength(1);
  });

  test.each([1, 2, 3, 5, 7, 64])('gives the same tokens with a budget of %i', (budget) => {
    const driver = new SchedulerDriver({
      maxNumBatchedTokens: budget,
      maxNumSeqs: Math.min(budget, 8),
    });
    const lengths = [1, 13, 4, 21];
    lengths.forEach((length, i) => driver.add(String(i), promptOf(length, i), { maxTokens: 9 }));
    expect(driver.run()).toEqual(
      Object.fromEntries(
        lengths.map((length, i) => [i, generateAlone(promptOf(length, i), { maxTokens: 9 })]),
      ),
    );
  });
});

test('a step admits only a few requests with long lists, but at least one', () => {
  const driver = new SchedulerDriver({ maxListMemoryBytes: 2 ** 23 });
  const allowedTokenIds = Array.from({ length: 100_000 }, (_, i) => i);
  for (const id of ['a', 'b', 'c', 'd']) {
    driver.add(id, promptOf(3), { allowedTokenIds, maxTokens: 2 });
  }
  driver.add('longer', promptOf(3), {
    allowedTokenIds: [...allowedTokenIds, ...allowedTokenIds, ...allowedTokenIds],
    maxTokens: 2,
  });
  driver.add('last', promptOf(3), { maxTokens: 2 });
  const entered = () => driver.launch().scheduledNewReqs.map(({ reqId }) => reqId);
  expect([entered(), entered(), entered()]).toEqual([['a', 'b', 'c'], ['d', 'longer'], ['last']]);
});

describe('when blocks run out', () => {
  /** Two requests that need five blocks each, and a pool of seven. */
  function tightDriver(depth: number): SchedulerDriver {
    const driver = new SchedulerDriver({ numBlocks: 7, maxModelLen: 20, depth });
    driver.add('old', promptOf(8), { maxTokens: 12 });
    driver.add('new', promptOf(8, 5), { maxTokens: 12 });
    return driver;
  }

  test.each([1, 2])('the newest request is preempted and recomputed, %i in flight', (depth) => {
    const driver = tightDriver(depth);
    const tokens = driver.run();
    const preempting = driver.steps.findIndex((step) => step.preemptedReqIds.length > 0);
    expect(driver.steps[preempting].preemptedReqIds).toEqual(['new']);
    expect(tokensIn(driver.steps[preempting])).toEqual({ old: 1 });

    const resuming = driver.steps.find((step) => step.scheduledCachedReqs.resumedReqIds.size > 0);
    const { reqIds, allTokenIds, numComputedTokens } = resuming?.scheduledCachedReqs ?? {};
    expect([reqIds, numComputedTokens]).toEqual([['new'], [0]]);
    const known = [...promptOf(8, 5), ...tokens.new];
    const resumed = Array.from(allTokenIds?.get('new') ?? []);
    expect(resumed.length).toBeGreaterThan(8);
    expect(resumed).toEqual(known.slice(0, resumed.length));

    expect(tokens).toEqual({
      old: generateAlone(promptOf(8), { maxTokens: 12 }),
      new: generateAlone(promptOf(8, 5), { maxTokens: 12 }),
    });
    expect(driver.numFreeBlocks).toBe(7);
  });

  test('the newest request may preempt itself while others continue', () => {
    const driver = new SchedulerDriver({ numBlocks: 5, maxModelLen: 20 });
    driver.add('old', promptOf(9), { maxTokens: 4 });
    driver.add('new', promptOf(8, 5), { maxTokens: 4 });
    driver.turn();
    driver.turn();
    expect(driver.steps[1].preemptedReqIds).toEqual(['new']);
    expect(tokensIn(driver.steps[1])).toEqual({ old: 1 });
    driver.run();
  });

  test('a preempted request waits for its tokens in flight', () => {
    const driver = new SchedulerDriver({ numBlocks: 6, maxModelLen: 24, depth: 2 });
    driver.add('old', promptOf(11), { maxTokens: 3 });
    driver.add('new', promptOf(8, 5), { maxTokens: 9 });
    driver.launch();
    // Allocates the last block to 'new', which has two tokens in flight.
    driver.launch();
    driver.land();
    const third = driver.launch();
    expect(third.preemptedReqIds).toEqual(['new']);
    driver.abort('old');
    // Blocks suffice, but a token of 'new' is in flight.
    expect(driver.numFreeBlocks).toBe(6);
    expect(driver.launch().totalNumScheduledTokens).toBe(0);
    driver.land();
    const resumed = driver.launch();
    expect([...resumed.scheduledCachedReqs.resumedReqIds]).toEqual(['new']);
    driver.run();
    expect(driver.outcomes.get('new')?.tokenIds).toEqual(
      generateAlone(promptOf(8, 5), { maxTokens: 9 }),
    );
  });

  test('no request overtakes a preempted one', () => {
    const driver = tightDriver(1);
    driver.add('late', promptOf(13), { maxTokens: 1 });
    driver.run();
    const entering = driver.steps.flatMap((step) => {
      const { resumedReqIds } = step.scheduledCachedReqs;
      const newReqIds = step.scheduledNewReqs.map(({ reqId }) => reqId);
      const rows = [...step.numScheduledTokens.keys()];
      return rows.filter((reqId) => resumedReqIds.has(reqId) || newReqIds.includes(reqId));
    });
    expect(entering).toEqual(['old', 'new', 'new', 'late']);
  });

  test('a prompt waits for blocks for all of it', () => {
    const driver = new SchedulerDriver({ numBlocks: 6, maxModelLen: 24, maxNumBatchedTokens: 9 });
    driver.add('a', promptOf(8), { maxTokens: 4 });
    driver.turn();
    // A chunk would fit in the four free blocks, the prompt would not.
    driver.add('b', promptOf(17), { maxTokens: 1 });
    driver.turn();
    expect(tokensIn(driver.steps[1])).toEqual({ a: 1 });
    driver.run();
    expect(driver.outcomes.get('b')?.tokenIds).toHaveLength(1);
  });
});

describe('by priority', () => {
  const entering = ({ steps }: SchedulerDriver) =>
    steps.flatMap(({ scheduledNewReqs }) => scheduledNewReqs.map(({ reqId }) => reqId));

  test('the lower number runs first, equals by arrival', () => {
    const driver = new SchedulerDriver({ policy: 'priority', maxNumSeqs: 1 });
    const priorities = { a: 1, b: 0, c: 1, d: -3, e: 0 };
    for (const [id, priority] of Object.entries(priorities)) {
      driver.add(id, promptOf(2), { maxTokens: 1 }, { priority });
    }
    driver.run();
    expect(entering(driver)).toEqual(['d', 'b', 'e', 'a', 'c']);
  });

  test('is ignored under another policy', () => {
    const driver = new SchedulerDriver({ maxNumSeqs: 1 });
    driver.add('a', promptOf(2), { maxTokens: 1 }, { priority: 1 });
    driver.add('b', promptOf(2), { maxTokens: 1 }, { priority: 0 });
    driver.run();
    expect(entering(driver)).toEqual(['a', 'b']);
  });

  test('the last in order is preempted, even if it arrived first', () => {
    const driver = new SchedulerDriver({ policy: 'priority', numBlocks: 7, maxModelLen: 20 });
    driver.add('low', promptOf(8), { maxTokens: 12 }, { priority: 5 });
    driver.turn();
    driver.add('high', promptOf(8, 5), { maxTokens: 12 }, { priority: 1 });
    const tokens = driver.run();
    expect(driver.steps.flatMap(({ preemptedReqIds }) => preemptedReqIds)).toContain('low');
    expect(driver.steps.flatMap(({ preemptedReqIds }) => preemptedReqIds)).not.toContain('high');
    expect(driver.scheduler.numPreemptions).toBeGreaterThan(0);
    expect(tokens).toEqual({
      low: generateAlone(promptOf(8), { maxTokens: 12 }),
      high: generateAlone(promptOf(8, 5), { maxTokens: 12 }),
    });
  });
});

describe('an urgent request, by priority,', () => {
  const preempted = ({ steps }: SchedulerDriver) =>
    steps.flatMap(({ preemptedReqIds }) => preemptedReqIds);

  /** Three requests of descending priority hold all slots. */
  function fullDriver(depth: number): SchedulerDriver {
    const driver = new SchedulerDriver({ policy: 'priority', maxNumSeqs: 3, depth });
    for (const [i, priority] of [1, 3, 2].entries()) {
      driver.add(`p${priority}`, promptOf(3, i), { maxTokens: 12 }, { priority });
    }
    driver.turn();
    return driver;
  }

  test.each([1, 2])('preempts the lowest for its slot at once, %i in flight', (depth) => {
    const driver = fullDriver(depth);
    driver.add('urgent', promptOf(4, 9), { maxTokens: 5 }, { priority: 0 });
    const step = driver.launch();
    expect(step.preemptedReqIds).toEqual(['p3']);
    expect([...step.numScheduledTokens.keys()]).toEqual(['urgent', 'p1', 'p2']);
    const tokens = driver.run();
    expect(preempted(driver)).toEqual(['p3']);
    expect(tokens).toEqual({
      p1: generateAlone(promptOf(3, 0), { maxTokens: 12 }),
      p3: generateAlone(promptOf(3, 1), { maxTokens: 12 }),
      p2: generateAlone(promptOf(3, 2), { maxTokens: 12 }),
      urgent: generateAlone(promptOf(4, 9), { maxTokens: 5 }),
    });
  });

  test('preempts no equal for a slot', () => {
    const driver = fullDriver(1);
    driver.add('equal', promptOf(4, 9), { maxTokens: 5 }, { priority: 3 });
    driver.run();
    expect(preempted(driver)).toEqual([]);
  });

  test('preempts nothing under fcfs', () => {
    const driver = new SchedulerDriver({ maxNumSeqs: 1 });
    driver.add('low', promptOf(3), { maxTokens: 9 }, { priority: 5 });
    driver.turn();
    driver.add('urgent', promptOf(4, 9), { maxTokens: 5 }, { priority: 0 });
    driver.run();
    expect(preempted(driver)).toEqual([]);
  });

  test('preempts as many as it needs for blocks, the lowest first', () => {
    const driver = new SchedulerDriver({ policy: 'priority', numBlocks: 10, maxModelLen: 40 });
    for (const priority of [1, 2, 3]) {
      driver.add(`p${priority}`, promptOf(9, priority), { maxTokens: 3 }, { priority });
    }
    driver.turn();
    // Each holds 3 of the 10 blocks; 5 more than the one that is left are needed.
    driver.add('urgent', promptOf(22, 9), { maxTokens: 2 }, { priority: 0 });
    const step = driver.launch();
    expect(step.preemptedReqIds).toEqual(['p3', 'p2']);
    expect([...step.numScheduledTokens.keys()]).toEqual(['urgent', 'p1']);
    const tokens = driver.run();
    expect(tokens.p3).toEqual(generateAlone(promptOf(9, 3), { maxTokens: 3 }));
  });

  test('preempts nothing if that would not suffice', () => {
    const driver = new SchedulerDriver({ policy: 'priority', numBlocks: 10, maxModelLen: 40 });
    driver.add('first', promptOf(26, 1), { maxTokens: 2 }, { priority: 0 });
    driver.add('low', promptOf(5, 2), { maxTokens: 2 }, { priority: 3 });
    driver.turn();
    // 7 and 2 blocks are held; with those of 'low' there would be 3.
    driver.add('urgent', promptOf(14, 9), { maxTokens: 1 }, { priority: 1 });
    const step = driver.launch();
    expect(step.preemptedReqIds).toEqual([]);
    expect(step.numScheduledTokens.has('low')).toBe(true);
    driver.run();
  });

  test('counts blocks shared by two victims as free once both are preempted', () => {
    const driver = new SchedulerDriver({
      policy: 'priority',
      numBlocks: 6,
      maxModelLen: 24,
      enablePrefixCaching: true,
    });
    driver.add('low', promptOf(17), { maxTokens: 2 }, { priority: 3 });
    driver.add('twin', promptOf(17), { maxTokens: 2 }, { priority: 3 });
    driver.turn();
    expect(driver.numFreeBlocks).toBe(0);
    driver.add('urgent', promptOf(20, 9), { maxTokens: 1 }, { priority: 1 });
    expect(driver.launch().preemptedReqIds).toEqual(['twin', 'low']);
    driver.run();
  });

  test("gets its share of a step before lower priorities' long prompts", () => {
    const driver = new SchedulerDriver({ policy: 'priority', maxNumBatchedTokens: 8 });
    driver.add('long', promptOf(40), { maxTokens: 1 }, { priority: 3 });
    driver.turn();
    driver.add('urgent', promptOf(5, 9), { maxTokens: 1 }, { priority: 1 });
    expect(tokensIn(driver.launch())).toEqual({ urgent: 5, long: 3 });
    driver.run();
  });

  test('that was preempted resumes once its tokens in flight are known', () => {
    const driver = new SchedulerDriver({ policy: 'priority', maxNumSeqs: 1, depth: 2 });
    driver.add('low', promptOf(3), { maxTokens: 6 }, { priority: 3 });
    driver.launch();
    driver.add('urgent', promptOf(5, 9), { maxTokens: 1 }, { priority: 1 });
    expect(driver.launch().preemptedReqIds).toEqual(['low']);
    driver.abort('urgent');
    // Its first token is in flight.
    expect(driver.launch().totalNumScheduledTokens).toBe(0);
    driver.land();
    expect([...driver.launch().scheduledCachedReqs.resumedReqIds]).toEqual(['low']);
    expect(driver.run().low).toEqual(generateAlone(promptOf(3), { maxTokens: 6 }));
  });
});

describe('a request that waits for room', () => {
  /** The first shares a prefix with the second, and holds blocks that the second needs. */
  function waitingDriver() {
    const driver = new SchedulerDriver({
      numBlocks: 20,
      maxModelLen: 80,
      enablePrefixCaching: true,
    });
    const lookUps = jest.spyOn(driver.kvCacheManager.blockPool, 'getCachedBlock');
    driver.add('running', promptOf(30), { maxTokens: 50 });
    driver.turn();
    // 18 blocks, of which it finds 5; 8 of the 20 are held.
    driver.add('waiting', [...promptOf(20), ...promptOf(50, 60)], { maxTokens: 1 });
    driver.add('behind', promptOf(5, 5), { maxTokens: 1 });
    lookUps.mockClear();
    return { driver, lookUps };
  }

  test('is not looked up again until something changes for it', () => {
    const { driver, lookUps } = waitingDriver();
    driver.turn();
    const first = lookUps.mock.calls.length;
    expect(first).toBeGreaterThan(0);
    for (let i = 0; i < 45; i++) driver.turn();
    expect(driver.scheduler.numWaiting).toBe(2);
    expect(lookUps.mock.calls.length).toBe(first);
    driver.run();
  });

  test('is admitted in the step in which blocks become free', () => {
    const { driver } = waitingDriver();
    for (let i = 0; i < 5; i++) driver.turn();
    driver.abort('running');
    expect(driver.launch().scheduledNewReqs).toMatchObject([
      { reqId: 'waiting', numComputedTokens: 20 },
      { reqId: 'behind', numComputedTokens: 0 },
    ]);
    driver.run();
  });

  test('is admitted once a block of its prefix is cached, with no block freed', () => {
    const driver = new SchedulerDriver({
      numBlocks: 10,
      maxModelLen: 40,
      longPrefillTokenThreshold: 2,
      enablePrefixCaching: true,
    });
    driver.add('other', [1], { maxTokens: 3 });
    driver.add('like it', promptOf(25), { maxTokens: 1 });
    driver.add('waiting', promptOf(33), { maxTokens: 1 });
    // It needs 9 blocks. 2 are held, and then one of them is full of its own beginning.
    expect(driver.launch().numScheduledTokens.get('waiting')).toBeUndefined();
    driver.land();
    expect(driver.launch().numScheduledTokens.get('waiting')).toBe(2);
    driver.run();
  });

  test('is not kept after an abort', () => {
    const { driver } = waitingDriver();
    driver.turn();
    driver.abort('waiting');
    expect(driver.scheduler.numWaiting).toBe(1);
    expect(driver.scheduler.unfinishedRequests.map(({ requestId }) => requestId)).toEqual([
      'running',
      'behind',
    ]);
    expect((driver.kvCacheManager as unknown as { refusal: unknown }).refusal).toBeNull();
    driver.run();
  });
});

test.each(['fcfs', 'priority'] as const)(
  'a step costs the same with 20,000 waiting requests, by %s',
  (policy) => {
    const comparisons = [10, 20_000].map((numWaiting) => {
      const driver = new SchedulerDriver({ policy, maxNumSeqs: 2 });
      for (let i = 0; i < 2; i++) driver.add(`r${i}`, promptOf(3), { maxTokens: 40 });
      driver.turn();
      for (let i = 0; i < numWaiting; i++) {
        driver.add(String(i), promptOf(3), { maxTokens: 4 }, { priority: numWaiting - i });
      }
      const { scheduler } = driver;
      const precedes = jest.spyOn(scheduler as unknown as { precedes: () => boolean }, 'precedes');
      driver.turn();
      return precedes.mock.calls.length;
    });
    expect(comparisons[1]).toBe(comparisons[0]);
    expect(comparisons[0]).toBeLessThan(10);
  },
);

describe('a fault of one request', () => {
  /** Runs 'a' and 'b', applying `change` to the second step's output; returns how each ends. */
  function runWith(
    change: (output: ModelRunnerOutput) => ModelRunnerOutput,
    depth = 1,
  ): { driver: SchedulerDriver; errors: Map<string, UniprocError> } {
    const driver = new SchedulerDriver({ enablePrefixCaching: true, depth });
    const step = driver.model.step.bind(driver.model);
    let numSteps = 0;
    driver.model.step = (scheduled) => {
      const output = step(scheduled);
      return ++numSteps === 2 ? change(output) : output;
    };
    driver.add('a', promptOf(9), { maxTokens: 6 });
    driver.add('b', promptOf(9, 5), { maxTokens: 6 });
    driver.run();
    return { driver, errors: driver.errors };
  }

  const withoutRow = (output: ModelRunnerOutput): ModelRunnerOutput => ({
    ...output,
    reqIdToIndex: new Map([...output.reqIdToIndex].filter(([reqId]) => reqId !== 'a')),
  });
  const withTokens =
    (tokenIds: number[]) =>
    (output: ModelRunnerOutput): ModelRunnerOutput => ({
      ...output,
      sampledTokenIds: RaggedTokenIds.from(
        output.reqIds.map((reqId, i) =>
          reqId === 'a' ? tokenIds : [...output.sampledTokenIds.at(i)],
        ),
      ),
    });
  const withNans = (output: ModelRunnerOutput): ModelRunnerOutput => ({
    ...output,
    numNansInLogits: new Map([['a', 7]]),
  });

  describe.each([1, 2])('with %i in flight', (depth) => {
    test.each([
      ['a row that is missing', withoutRow, 'REQUEST_FAILED', /request a .*no row/],
      ['a row of no tokens', withTokens([]), 'REQUEST_FAILED', /request a .*fewer tokens/],
      ['a row of too many', withTokens([1, 2, 3]), 'REQUEST_FAILED', /request a .*more tokens/],
      ['a row with NaN', withNans, 'LOGITS_INVALID', /request a: 7 of 97 logits are NaN/],
    ])('%s ends that request alone', (_, change, code, message) => {
      const { driver, errors } = runWith(change, depth);
      expect([...errors.keys()]).toEqual(['a']);
      expect(errors.get('a')).toMatchObject({
        code,
        message: expect.stringMatching(message) as string,
      });
      // The first step's token only; nothing from the faulty step or later.
      const alone = generateAlone(promptOf(9), { maxTokens: 6 });
      const { tokenIds } = driver.outcomes.get('a') as Outcome;
      expect(tokenIds).toEqual(alone.slice(0, tokenIds.length));
      expect(tokenIds.length).toBeLessThan(6);
      expect(driver.outcomes.get('b')).toEqual({
        tokenIds: generateAlone(promptOf(9, 5), { maxTokens: 6 }),
        finishReason: 'length',
      });
      expect(driver.numFreeBlocks).toBe(driver.limits.numBlocks);
      expect(driver.model.requests.size).toBe(0);
    });
  });

  test.each([
    ['a new request', 0],
    ['a running request', 1],
    ['a running request that needs a block', 4],
  ])('while %s is scheduled leaves the step to the others', (_, numTurns) => {
    const driver = new SchedulerDriver();
    const fault = new TypeError('no such block');
    const { kvCacheManager } = driver;
    const allocateSlots = kvCacheManager.allocateSlots.bind(kvCacheManager);
    for (const [i, id] of ['a', 'b', 'c'].entries()) {
      driver.add(id, promptOf(9, i), { maxTokens: 8 });
    }
    for (let turn = 0; turn < numTurns; turn++) driver.turn();
    kvCacheManager.allocateSlots = (request, numNewTokens) => {
      const blockIds = allocateSlots(request, numNewTokens);
      if (request.requestId === 'b') throw fault;
      return blockIds;
    };
    const step = driver.launch();
    expect([...step.numScheduledTokens.keys()]).toEqual(['a', 'c']);
    expect(driver.scheduler.takeFaults()).toMatchObject([{ requestId: 'b', error: fault }]);
    expect(driver.scheduler.takeFaults()).toEqual([]);
    const tokens = driver.run();
    expect([tokens.a, tokens.c]).toEqual(
      [0, 2].map((i) => generateAlone(promptOf(9, i), { maxTokens: 8 })),
    );
    expect(driver.numFreeBlocks).toBe(driver.limits.numBlocks);
    expect(driver.model.requests.size).toBe(0);
  });

  test('while its tokens are appended fails that request alone', () => {
    const driver = new SchedulerDriver();
    const broken = driver.add('a', promptOf(9), { maxTokens: 8 });
    driver.add('b', promptOf(9, 5), { maxTokens: 8 });
    jest.spyOn(broken, 'appendOutputToken').mockImplementation(() => {
      throw new RangeError('too long');
    });
    expect(driver.run().b).toEqual(generateAlone(promptOf(9, 5), { maxTokens: 8 }));
    expect(driver.errors.get('a')).toMatchObject({ code: 'REQUEST_FAILED' });
    expect(driver.numFreeBlocks).toBe(driver.limits.numBlocks);
  });

  test('evicts its blocks from the prefix cache', () => {
    const { driver } = runWith(withNans);
    driver.add('again', promptOf(9), { maxTokens: 1 });
    driver.add('other', promptOf(9, 5), { maxTokens: 1 });
    expect(driver.launch().scheduledNewReqs).toMatchObject([
      { reqId: 'again', numComputedTokens: 0 },
      { reqId: 'other', numComputedTokens: 8 },
    ]);
    driver.run();
  });

  test("in a worker's offsets beyond its tokens fails the whole step", () => {
    const driver = new SchedulerDriver();
    driver.add('a', promptOf(2), { maxTokens: 1 });
    const step = driver.scheduler.schedule();
    const output = driver.model.step(step);
    const sampledTokenIds = new RaggedTokenIds(new Int32Array(0), Int32Array.of(0, 1));
    expect(() => driver.scheduler.updateFromOutput(step, { ...output, sampledTokenIds })).toThrow(
      /0 tokens.* 1$/,
    );
  });
});

describe('with two steps in flight', () => {
  test("a step is scheduled before the previous step's tokens are known", () => {
    const driver = new SchedulerDriver({ depth: 2 });
    driver.add('a', promptOf(5), { maxTokens: 4 });
    driver.launch();
    const second = driver.launch();
    expect(tokensIn(second)).toEqual({ a: 1 });
    expect(second.scheduledCachedReqs).toMatchObject({
      numComputedTokens: [5],
    });
  });

  test('a request that reaches maxTokens in flight is not scheduled again', () => {
    const driver = new SchedulerDriver({ depth: 2 });
    driver.add('a', promptOf(5), { maxTokens: 2 });
    driver.launch();
    driver.launch();
    expect(driver.launch().totalNumScheduledTokens).toBe(0);
    driver.run();
    expect(driver.steps.filter((step) => step.totalNumScheduledTokens > 0)).toHaveLength(2);
  });

  test('the token sampled after a stop token is dropped', () => {
    const free = generateAlone(promptOf(5), { maxTokens: 8 });
    const driver = new SchedulerDriver({ depth: 2 });
    driver.add('a', promptOf(5), { maxTokens: 8, stopTokenIds: [free[1]] });
    expect(driver.run().a).toEqual(free.slice(0, 2));
    // The step after the stop token was in flight.
    expect(driver.steps.filter((step) => step.totalNumScheduledTokens > 0)).toHaveLength(3);
    expect(driver.numFreeBlocks).toBe(64);
  });

  test('the tokens are the same as with one', () => {
    const tokens = [1, 2].map((depth) => {
      const driver = new SchedulerDriver({ depth, maxNumBatchedTokens: 10, maxNumSeqs: 3 });
      for (let i = 0; i < 6; i++) {
        driver.add(String(i), promptOf(1 + 5 * i, i), { maxTokens: 3 + i, stopTokenIds: [11, 50] });
      }
      return driver.run();
    });
    expect(tokens[0]).toEqual(tokens[1]);
    expect(tokens[0]).toEqual(
      Object.fromEntries(
        Array.from({ length: 6 }, (_, i) => [
          i,
          generateAlone(promptOf(1 + 5 * i, i), { maxTokens: 3 + i, stopTokenIds: [11, 50] }),
        ]),
      ),
    );
  });
});

describe('finishRequests', () => {
  test.each([1, 2])('frees the blocks of a running request at once, %i in flight', (depth) => {
    const driver = new SchedulerDriver({ depth });
    driver.add('a', promptOf(9), { maxTokens: 9 });
    driver.turn();
    driver.abort('a');
    expect(driver.numFreeBlocks).toBe(64);
    expect(driver.launch()).toMatchObject({ finishedReqIds: ['a'], totalNumScheduledTokens: 0 });
    driver.run();
  });

  test('removes a waiting request', () => {
    const driver = new SchedulerDriver({ maxNumSeqs: 1 });
    driver.add('a', promptOf(2), { maxTokens: 3 });
    driver.add('b', promptOf(2), { maxTokens: 3 });
    driver.turn();
    driver.abort('b');
    driver.run();
    expect(driver.steps.every((step) => !step.numScheduledTokens.has('b'))).toBe(true);
  });

  test('sends the worker only requests that it holds', () => {
    const driver = new SchedulerDriver({ maxNumSeqs: 1 });
    driver.add('a', promptOf(2), { maxTokens: 9 });
    driver.add('b', promptOf(2), { maxTokens: 9 });
    driver.turn();
    driver.abort('b');
    driver.abort('a');
    expect(driver.launch().finishedReqIds).toEqual(['a']);
  });

  test('ignores a finished request', () => {
    const driver = new SchedulerDriver();
    driver.add('a', promptOf(2), { maxTokens: 1 });
    driver.run();
    driver.abort('a');
    expect(driver.launch().finishedReqIds).toEqual([]);
  });
});

test('prompt logprobs are in the output of the step that computes them', () => {
  const driver = new SchedulerDriver({ maxNumBatchedTokens: 4 });
  driver.add('a', promptOf(6), { maxTokens: 2, promptLogprobs: 0 });
  const rows = { width: 1, tokenIds: new Int32Array(3), logprobs: new Float32Array(3) };
  const logprobs = { ...rows, ranks: new Int32Array(3) };
  const given = [null, logprobs, null].map((promptLogprobs) => {
    const step = driver.scheduler.schedule();
    const output = driver.model.step(step);
    const { outputs, length } = driver.scheduler.updateFromOutput(step, {
      ...output,
      promptLogprobs: new Map(promptLogprobs && [['a', promptLogprobs]]),
    });
    return outputs.slice(0, length).map((entry) => entry.promptLogprobs);
  });
  expect(given).toEqual([[null], [logprobs], [null]]);
});

test('an output without a scheduled request is an error that names it', () => {
  const driver = new SchedulerDriver();
  driver.add('a', promptOf(2), { maxTokens: 1 });
  const step = driver.scheduler.schedule();
  const output = { ...driver.model.step(step), reqIdToIndex: new Map() };
  expect(() => driver.scheduler.updateFromOutput(step, output)).toThrow(/request a /);
});

test('an output for requests that have all finished is no error', () => {
  const driver = new SchedulerDriver();
  driver.add('a', promptOf(2), { maxTokens: 4 });
  const step = driver.scheduler.schedule();
  const output = { ...driver.model.step(step), reqIdToIndex: new Map() };
  driver.abort('a');
  expect(driver.scheduler.updateFromOutput(step, output).length).toBe(0);
});

test('the same calls give the same schedule', () => {
  const schedules = [0, 1].map(() => {
    const driver = new SchedulerDriver({ depth: 2, numBlocks: 16, maxNumBatchedTokens: 12 });
    for (let i = 0; i < 5; i++) driver.add(String(i), promptOf(3 + 4 * i, i), { maxTokens: 20 });
    driver.turn();
    driver.abort('2');
    driver.run();
    return driver.steps;
  });
  expect(schedules[0]).toEqual(schedules[1]);
});
