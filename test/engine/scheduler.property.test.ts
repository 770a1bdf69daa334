/**
 * The scheduler under random traffic over a small pool. PagedModel checks each step as a worker
 * sees it; these tests check invariants, and that every request gets the tokens it gets alone.
 */
import fc from 'fast-check';
import { HARD_LIMITS } from '../../lib/config/limits';
import { NO_BLOCK } from '../../lib/contract/kvCache';
import type { Request } from '../../lib/engine/request';
import type { SchedulerOutput } from '../../lib/contract/schedulerOutput';
import { generateAlone } from './pagedModel';
import { promptOf, SchedulerDriver } from './schedulerDriver';

const MAX_MODEL_LEN = 24;
const STOP_TOKEN_IDS = [3, 14, 15, 92, 65, 35];
/** Biases of 8 bytes each, more than a seat has memory for. */
const LONG_LIST = new Map(
  Array.from({ length: HARD_LIMITS.slotListBytes / 8 + 1 }, (_, i) => [i, 0]),
);

const limits = fc.record({
  blockSize: fc.constantFrom(1, 3, 4),
  /** Blocks beyond those of one request. */
  extraBlocks: fc.integer({ min: 0, max: 20 }),
  maxNumSeqs: fc.integer({ min: 1, max: 6 }),
  extraBatchedTokens: fc.integer({ min: 0, max: 30 }),
  longPrefillTokenThreshold: fc.constantFrom(0, 1, 5),
  policy: fc.constantFrom('fcfs' as const, 'priority' as const),
  enablePrefixCaching: fc.boolean(),
  depth: fc.constantFrom(1, 2),
  /** One long list, or two. */
  maxListMemoryBytes: fc.constantFrom(5000, 10_000),
  /** Of the groups of layers. */
  slidingWindows: fc.oneof(
    { weight: 2, arbitrary: fc.constant([null]) },
    {
      weight: 3,
      arbitrary: fc.array(fc.constantFrom(null, 1, 2, 5, 9), { minLength: 1, maxLength: 3 }),
    },
  ),
});

/** Blocks with which a request of MAX_MODEL_LEN tokens always runs. */
function blocksOfLongest(
  { blockSize, slidingWindows }: { blockSize: number; slidingWindows: readonly (number | null)[] },
  maxTokensPerStep: number,
): number {
  return slidingWindows.reduce<number>((sum, window) => {
    const most =
      window === null ? Infinity : Math.ceil((window - 1 + maxTokensPerStep) / blockSize) + 1;
    return sum + Math.min(Math.ceil(MAX_MODEL_LEN / blockSize), most);
  }, 0);
}

/** Events between two iterations of the loop. */
const event = fc.oneof(
  { weight: 4, arbitrary: fc.constant({ kind: 'turn' as const }) },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant('add' as const),
      promptLength: fc.integer({ min: 1, max: 23 }),
      /** Few, so that many prompts share prefixes. */
      first: fc.nat(4),
      priority: fc.integer({ min: -1, max: 1 }),
      cacheSalt: fc.constantFrom('', 'tenant'),
      maxTokens: fc.option(fc.integer({ min: 1, max: 30 })),
      minTokens: fc.integer({ min: 0, max: 4 }),
      stops: fc.boolean(),
      hasLongLists: fc.boolean(),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('abort' as const), which: fc.nat(50) }) },
  { weight: 1, arbitrary: fc.constant({ kind: 'reset' as const }) },
);

/** Each block's reference count equals the number of requests that hold it. */
function checkPool({ kvCacheManager, limits, requests }: SchedulerDriver): void {
  const holders = new Int32Array(limits.numBlocks);
  for (const { blockIds } of requests.values()) {
    for (const blockId of blockIds) if (blockId !== NO_BLOCK) holders[blockId]++;
  }
  let numHeld = 0;
  for (let blockId = 0; blockId < limits.numBlocks; blockId++) {
    const count = kvCacheManager.blockPool.refCount(blockId);
    if (count !== holders[blockId]) {
      throw new Error(`block ${blockId} counts ${count} holders, and has ${holders[blockId]}`);
    }
    if (count > 0) numHeld++;
  }
  const numFree = kvCacheManager.blockPool.numFreeBlocks;
  if (numHeld + numFree !== limits.numBlocks) {
    throw new Error(`${numHeld} blocks are held, ${numFree} free, of ${limits.numBlocks}`);
  }
}

/** After a step a request holds no block before the window of the step's first token. */
function checkWindows({ kvCacheManager, limits, requests, steps }: SchedulerDriver): void {
  const { blockSize, slidingWindows } = limits;
  for (const [reqId, count] of steps.at(-1)?.numScheduledTokens ?? []) {
    const { blockIds, numComputedTokens } = requests.get(reqId) as Request;
    for (const [group, window] of slidingWindows.entries()) {
      if (window === null) continue;
      const end = Math.floor((numComputedTokens - count - window + 1) / blockSize);
      for (let i = 0; i < Math.min(end, blockIds.length / slidingWindows.length); i++) {
        if (blockIds[i * slidingWindows.length + group] === NO_BLOCK) continue;
        throw new Error(`request ${reqId} holds block ${i} of group ${group} behind its window`);
      }
    }
  }
  expect(kvCacheManager.blockPool.peakNumUsedBlocks).toBeLessThanOrEqual(limits.numBlocks);
}

/** A remembered failed lookup must agree with a new lookup. */
function checkRefusals({ kvCacheManager: manager }: SchedulerDriver): void {
  const findRoom = manager.findRoom.bind(manager);
  const remembered = manager as unknown as { refusal: unknown };
  manager.findRoom = (request, others) => {
    const answer = findRoom(request, others);
    const { refusal } = remembered;
    remembered.refusal = null;
    const anew = findRoom(request, others);
    remembered.refusal = refusal;
    if ((answer === null) !== (anew === null)) {
      throw new Error(`request ${request.requestId} has ${anew ? '' : 'no '}room, unlike before`);
    }
    return answer;
  };
}

test('no request is lost, no block leaks, and batching changes no token', () => {
  fc.assert(
    fc.property(
      limits,
      fc.array(event, { maxLength: 60 }),
      ({ extraBatchedTokens, extraBlocks, ...rest }, events) => {
        const maxNumBatchedTokens = rest.maxNumSeqs + extraBatchedTokens;
        const perStep = Math.min(maxNumBatchedTokens, rest.longPrefillTokenThreshold || Infinity);
        const numBlocks = blocksOfLongest(rest, perStep) + extraBlocks;
        const driver = new SchedulerDriver({
          ...rest,
          numBlocks,
          maxNumBatchedTokens,
          maxModelLen: MAX_MODEL_LEN,
        });
        checkRefusals(driver);
        const expected: number[][] = [];
        for (const happening of events) {
          if (happening.kind === 'turn') {
            driver.turn();
          } else if (happening.kind === 'abort') {
            const ids = [...driver.outcomes.keys()];
            if (ids.length > 0) driver.abort(ids[happening.which % ids.length]);
          } else if (happening.kind === 'reset') {
            driver.kvCacheManager.resetPrefixCache();
          } else {
            const prompt = promptOf(happening.promptLength, happening.first);
            const room = MAX_MODEL_LEN - prompt.length;
            const maxTokens =
              happening.maxTokens && Math.max(happening.maxTokens, happening.minTokens, 1);
            const minTokens = happening.minTokens;
            const stopTokenIds = happening.stops ? STOP_TOKEN_IDS : [];
            const params = {
              maxTokens,
              minTokens,
              stopTokenIds,
              logitBias: happening.hasLongLists ? LONG_LIST : undefined,
            };
            driver.add(String(expected.length), prompt, params, happening);
            expected.push(
              generateAlone(prompt, {
                maxTokens: Math.min(maxTokens ?? room, room),
                minTokens,
                stopTokenIds,
              }),
            );
          }
          checkPool(driver);
          if (happening.kind === 'turn') checkWindows(driver);
        }

        // The first request advances in each iteration, which bounds their number.
        const most = expected.length * (2 * MAX_MODEL_LEN + 2) + 2;
        for (let turns = 0; driver.scheduler.hasUnfinishedRequests(); turns++) {
          if (turns > most) throw new Error(`not done after ${turns} turns`);
          driver.turn();
          checkPool(driver);
        }
        driver.run();
        expect(driver.numFreeBlocks).toBe(numBlocks);
        expect(driver.model.requests.size).toBe(0);
        expected.forEach((tokenIds, i) => {
          const outcome = driver.outcomes.get(String(i));
          if (outcome?.finishReason === 'abort') {
            expect(outcome.tokenIds).toEqual(tokenIds.slice(0, outcome.tokenIds.length));
          } else {
            expect(outcome?.tokenIds).toEqual(tokenIds);
          }
        });
      },
    ),
    { numRuns: 2000 },
  );
});

describe('by priority', () => {
  const arrivals = fc.array(
    fc.record({
      /** Iterations before it arrives. */
      turns: fc.nat(3),
      promptLength: fc.integer({ min: 1, max: 16 }),
      first: fc.nat(4),
      priority: fc.integer({ min: 0, max: 3 }),
      maxTokens: fc.integer({ min: 1, max: 8 }),
    }),
    { minLength: 2, maxLength: 25 },
  );

  /** Runs the requests; `check` gets each step with the requests running and waiting before it. */
  function run(
    driver: SchedulerDriver,
    requests: typeof arrivals extends fc.Arbitrary<infer T> ? T : never,
    check: (step: SchedulerOutput, running: Request[], waiting: Request[]) => void,
  ): void {
    const launch = driver.launch.bind(driver);
    driver.launch = () => {
      const unfinished = [...driver.scheduler.unfinishedRequests];
      const running = unfinished.filter(({ status }) => status === 'running');
      const waiting = unfinished.filter(({ status }) => status !== 'running');
      const inFlight = new Set(unfinished.filter((request) => request.numOutputPlaceholders > 0));
      const step = launch();
      check(
        step,
        running,
        waiting.filter((request) => !inFlight.has(request)),
      );
      return step;
    };
    for (const [i, { turns, promptLength, first, priority, maxTokens }] of requests.entries()) {
      for (let turn = 0; turn < turns; turn++) driver.turn();
      driver.add(String(i), promptOf(promptLength, first), { maxTokens }, { priority });
    }
    const tokens = driver.run();
    for (const [i, { promptLength, first, maxTokens }] of requests.entries()) {
      expect(tokens[i]).toEqual(generateAlone(promptOf(promptLength, first), { maxTokens }));
    }
  }

  const before = (a: Request, b: Request) => a.priority - b.priority || a.arrival - b.arrival;

  test('the most urgent request gets its share of every step', () => {
    fc.assert(
      fc.property(limits, arrivals, ({ extraBatchedTokens, extraBlocks, ...rest }, requests) => {
        const maxNumBatchedTokens = rest.maxNumSeqs + extraBatchedTokens;
        const perStep = Math.min(maxNumBatchedTokens, rest.longPrefillTokenThreshold || Infinity);
        const driver = new SchedulerDriver({
          ...rest,
          policy: 'priority',
          numBlocks: blocksOfLongest(rest, perStep) + extraBlocks,
          maxNumBatchedTokens,
          maxModelLen: MAX_MODEL_LEN,
        });
        run(driver, requests, (step, running, waiting) => {
          // It may wait for equals that arrived earlier, and for its own tokens in flight.
          const urgent = [...waiting].sort(before).at(0);
          const mayWait = running.some(
            ({ priority }) => priority <= (urgent?.priority ?? Infinity),
          );
          if (urgent !== undefined && !mayWait) {
            const others = [...driver.scheduler.unfinishedRequests].sort(before);
            if (others[0] === urgent)
              expect([...step.numScheduledTokens.keys()][0]).toBe(urgent.requestId);
          }
          // No request is preempted for a lower priority, nor for an equal that arrived later.
          const scheduled = [...step.numScheduledTokens.keys()].map(
            (id) => driver.requests.get(id) as Request,
          );
          for (const id of step.preemptedReqIds) {
            const victim = driver.requests.get(id) as Request;
            if (scheduled.includes(victim)) continue;
            expect(scheduled.every((other) => before(other, victim) < 0)).toBe(true);
          }
        });
      }),
      { numRuns: 500 },
    );
  });

  test('with blocks for all, no request is preempted for an equal, and at most one for each', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 4 }), arrivals, (maxNumSeqs, requests) => {
        const driver = new SchedulerDriver({
          policy: 'priority',
          maxNumSeqs,
          numBlocks: maxNumSeqs * 6,
          maxModelLen: MAX_MODEL_LEN,
          depth: 2,
        });
        run(driver, requests, (step, running) => {
          const entered = [...step.numScheduledTokens.keys()]
            .map((id) => driver.requests.get(id) as Request)
            .filter((request) => !running.includes(request));
          expect(step.preemptedReqIds.length).toBeLessThanOrEqual(entered.length);
          for (const id of step.preemptedReqIds) {
            const victim = driver.requests.get(id) as Request;
            expect(entered.some(({ priority }) => priority < victim.priority)).toBe(true);
          }
        });
      }),
      { numRuns: 500 },
    );
  });
});
