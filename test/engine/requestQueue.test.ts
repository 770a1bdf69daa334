import fc from 'fast-check';
import type { Request } from '../../lib/engine/request';
import { RequestQueue } from '../../lib/engine/requestQueue';

/** What the queue uses of a request. */
interface Item {
  priority: number;
  arrival: number;
  queueIndex: number;
}

class Counting {
  numComparisons = 0;
  readonly queue = new RequestQueue((a, b) => {
    this.numComparisons++;
    return a.priority - b.priority < 0 || (a.priority === b.priority && a.arrival < b.arrival);
  });
}

let numItems = 0;
const item = (priority: number): Item => ({ priority, arrival: numItems++, queueIndex: -1 });

test('the first is always the first in order, whatever is added and removed', () => {
  const operation = fc.oneof(
    fc.record({ add: fc.integer({ min: -3, max: 3 }) }),
    fc.record({ remove: fc.nat() }),
  );
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 80 }), (operations) => {
      const { queue } = new Counting();
      let reference: Item[] = [];
      for (const happening of operations) {
        if ('add' in happening) {
          const added = item(happening.add);
          reference.push(added);
          queue.add(added as Request);
        } else if (reference.length > 0) {
          const removed = reference[happening.remove % reference.length];
          reference = reference.filter((other) => other !== removed);
          queue.remove(removed as Request);
          expect(removed.queueIndex).toBe(-1);
        }
        reference.sort((a, b) => a.priority - b.priority || a.arrival - b.arrival);
        expect(queue.first).toBe(reference[0]);
        expect(queue.size).toBe(reference.length);
      }
    }),
  );
});

test.each([
  ['falling', (i: number) => -i],
  ['rising', (i: number) => i],
  ['equal', () => 0],
])('20,000 requests of %s priority cost a logarithm of comparisons each', (_, priorityOf) => {
  const counting = new Counting();
  const items = Array.from({ length: 20_000 }, (_, i) => item(priorityOf(i)) as Request);
  for (const request of items) counting.queue.add(request);
  expect(counting.numComparisons).toBeLessThan(20_000 * 15);
  counting.numComparisons = 0;
  // As when they are aborted in the order they came.
  for (const request of items) counting.queue.remove(request);
  expect(counting.queue.size).toBe(0);
  expect(counting.numComparisons).toBeLessThan(20_000 * 2 * 15);
});

test('a queue that was cleared is empty and can be filled again', () => {
  const { queue } = new Counting();
  const [a, b] = [item(2) as Request, item(1) as Request];
  queue.add(a);
  queue.add(b);
  queue.clear();
  expect([queue.size, queue.first, a.queueIndex]).toEqual([0, undefined, -1]);
  queue.add(a);
  expect(queue.first).toBe(a);
});
