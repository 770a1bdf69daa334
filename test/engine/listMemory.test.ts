/** Long sampling lists share one memory: allocations never overlap, and it cannot run out. */
import fc from 'fast-check';
import { HARD_LIMITS } from '../../lib/config/limits';
import { SamplingParams, type SamplingParamsOptions } from '../../lib/config/samplingParams';
import { ListMemory } from '../../lib/engine/listMemory';
import { Request } from '../../lib/engine/request';
import { generateAlone } from './pagedModel';
import { promptOf, SchedulerDriver } from './schedulerDriver';

function requestOf(numAllowed: number, options: SamplingParamsOptions = {}): Request {
  const allowedTokenIds = Array.from({ length: numAllowed }, (_, i) => i);
  return new Request({
    requestId: 'a',
    promptTokenIds: Int32Array.of(1),
    samplingParams: new SamplingParams({
      ...(numAllowed > 0 && { allowedTokenIds }),
      ...options,
    }),
    stopTokenIds: [5, 6, 7],
    badWordsTokenIds: [[1, 2], [3]],
    seed: 0n,
    maxModelLen: 8,
  });
}

/** Entries too large for a slot. */
const LONG = HARD_LIMITS.slotListBytes / 4 + 1;
const allowed = (length: number) => Array.from({ length }, (_, i) => i);

describe('the bytes of a request’s lists', () => {
  test('are 4 of each token id, bias and end of a bad word', () => {
    const logitBias = { 1: 0.5, 2: -0.5 };
    // 9 allowed, 3 stop, 2 biases of 2 words, bad words of 3 tokens and 2 ends.
    expect(requestOf(9, { logitBias }).listBytes).toBe(4 * (9 + 3 + 2 * 2 + 3 + 2));
  });
});

describe('ListMemory', () => {
  test('always has room for short lists, which need no allocation', () => {
    const memory = new ListMemory(1);
    const request = requestOf(10);
    expect(memory.hasRoom(request)).toBe(true);
    memory.allocate(request);
    expect(request.listOffset).toBeNull();
  });

  test('refuses lists that can never fit', () => {
    const memory = new ListMemory(4 * LONG);
    expect(() => memory.hasRoom(requestOf(LONG))).toThrow(/maxListMemoryBytes is 4100/);
  });

  test('allocates aligned ranges that never overlap, first fit', () => {
    const size = 64 * 1024;
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.boolean(), fc.integer({ min: LONG, max: 8 * LONG }), fc.nat(20))),
        (actions) => {
          const memory = new ListMemory(size);
          const holders: Request[] = [];
          for (const [takes, length, index] of actions) {
            const request = requestOf(length);
            if (takes && memory.hasRoom(request)) {
              memory.allocate(request);
              holders.push(request);
            } else if (holders.length > 0) {
              const leaving = holders.splice(index % holders.length, 1);
              const isEnough = memory.hasRoom(request, leaving);
              memory.free(leaving[0]);
              expect(memory.hasRoom(request)).toBe(isEnough);
              expect(leaving[0].listOffset).toBeNull();
            }
            const places = holders
              .map(({ listOffset, listBytes }) => [listOffset as number, listBytes])
              .sort(([a], [b]) => a - b);
            let end = 0;
            for (const [offset, bytes] of places) {
              expect(offset % 256).toBe(0);
              expect(offset).toBeGreaterThanOrEqual(end);
              end = offset + bytes;
            }
            expect(end).toBeLessThanOrEqual(size);
          }
          holders.forEach((request) => memory.free(request));
          expect(memory.hasRoom(requestOf(size / 4 - 8))).toBe(true);
        },
      ),
      { numRuns: 300 },
    );
  });
});

describe('scheduling with long lists', () => {
  const bytes = 4 * LONG;
  /** Memory for two requests. */
  const maxListMemoryBytes = 2 * (bytes + 256);
  const options = (maxTokens: number) => ({ maxTokens, allowedTokenIds: allowed(LONG) });

  test.each([1, 2])(
    'runs as many requests as have list memory, with %i steps in flight',
    (depth) => {
      const driver = new SchedulerDriver({ maxListMemoryBytes, depth });
      for (const [i, id] of ['a', 'b', 'c', 'd'].entries()) {
        driver.add(id, promptOf(3, i), options(2 + i));
      }
      const outputs = driver.run();
      for (const [i, id] of ['a', 'b', 'c', 'd'].entries()) {
        expect(outputs[id]).toEqual(generateAlone(promptOf(3, i), { maxTokens: 2 + i }));
      }
      const most = Math.max(...driver.steps.map((step) => step.numScheduledTokens.size));
      expect(most).toBe(2);
      expect(driver.scheduler.numPreemptions).toBe(0);
      const offsets = driver.steps.flatMap(({ scheduledNewReqs }) =>
        scheduledNewReqs.map(({ listOffset }) => listOffset),
      );
      expect(offsets.slice(0, 2)).toEqual([0, 4352]);
      expect(new Set(offsets)).toEqual(new Set([0, 4352]));
    },
  );

  test('lets requests with short lists run beside them', () => {
    const driver = new SchedulerDriver({ maxListMemoryBytes });
    for (const id of ['a', 'b']) driver.add(id, promptOf(3), options(5));
    driver.add('short', promptOf(3), { maxTokens: 5 });
    driver.turn();
    expect([...driver.steps[0].numScheduledTokens.keys()]).toEqual(['a', 'b', 'short']);
    driver.run();
  });

  test('fails only a request with lists that can never fit', () => {
    const driver = new SchedulerDriver({ maxListMemoryBytes });
    driver.add('a', promptOf(3), options(3));
    driver.add('large', promptOf(3), { maxTokens: 3, allowedTokenIds: allowed(3 * LONG) });
    driver.add('b', promptOf(3, 2), options(3));
    driver.launch();
    expect(driver.scheduler.takeFaults()).toMatchObject([
      { requestId: 'large', error: { code: 'REQUEST_INVALID' } },
    ]);
    const outputs = driver.run();
    expect(outputs.a).toEqual(generateAlone(promptOf(3), { maxTokens: 3 }));
    expect(outputs.b).toEqual(generateAlone(promptOf(3, 2), { maxTokens: 3 }));
  });

  test('preempts a less urgent request, which resumes at another offset', () => {
    const driver = new SchedulerDriver({ maxListMemoryBytes, policy: 'priority' });
    driver.add('low', promptOf(3), options(8), { priority: 2 });
    driver.add('middle', promptOf(3, 1), options(8), { priority: 1 });
    driver.turn();
    driver.turn();
    driver.add('urgent', promptOf(3, 2), options(3), { priority: 0 });
    const outputs = driver.run();
    const preempting = driver.steps.findIndex(({ preemptedReqIds }) => preemptedReqIds.length > 0);
    expect(driver.steps[preempting].preemptedReqIds).toEqual(['low']);
    expect(driver.steps[preempting].scheduledNewReqs).toMatchObject([
      { reqId: 'urgent', listOffset: expect.any(Number) as number },
    ]);
    const resumed = driver.steps.find(({ scheduledCachedReqs }) =>
      scheduledCachedReqs.resumedReqIds.has('low'),
    );
    expect(resumed?.scheduledCachedReqs.listOffsets?.get('low')).toEqual(expect.any(Number));
    expect(outputs.low).toEqual(generateAlone(promptOf(3), { maxTokens: 8 }));
    expect(outputs.urgent).toEqual(generateAlone(promptOf(3, 2), { maxTokens: 3 }));
  });
});
