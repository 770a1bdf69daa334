import fc from 'fast-check';
import type { Request } from '../../lib/engine/request';
import { RequestQueue } from '../../lib/engine/requestQueue';

class Counting {
  numComparisons = 0;
  readonly queue = new RequestQueue((a, b) => {
    this.numComparisons++;
    return a.priority - b.priority < 0 || (a.priority === b.priority && a.arrival < b.arrival);
  });
}

let numItems = 0;

/** The fields that the queue uses. */
function request(priority: number): Request {
  const made: Pick<Request, 'priority' | 'arrival' | 'queueIndex'> = {
    priority,
    arrival: numItems++,
    queueIndex: -1,
  };
  return made as unknown as Request;
}

test('the first is always first in order after any adds and removes', () => {
  const operation = fc.oneof(
    fc.record({ add: fc.integer({ min: -3, max: 3 }) }),
    fc.record({ remove: fc.nat() }),
  );
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 80 }), (operations) => {
      const { queue } = new Counting();
      let reference: Request[] = [];
      for (const happening of operations) {
        if ('add' in happening) {
          const added = request(happening.add);
          reference.push(added);
          queue.add(added);
        } else if (reference.length > 0) {
          const removed = reference[happening.remove % reference.length];
          reference = reference.filter((other) => other !== removed);
          queue.remove(removed);
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
  const items = Array.from({ length: 20_000 }, (_, i) => request(priorityOf(i)));
  for (const added of items) counting.queue.add(added);
  expect(counting.numComparisons).toBeLessThan(20_000 * 15);
  counting.numComparisons = 0;
  // As when aborted in arrival order.
  for (const removed of items) counting.queue.remove(removed);
  expect(counting.queue.size).toBe(0);
  expect(counting.numComparisons).toBeLessThan(20_000 * 2 * 15);
});

test('a cleared queue is empty and can be refilled', () => {
  const { queue } = new Counting();
  const [a, b] = [request(2), request(1)];
  queue.add(a);
  queue.add(b);
  queue.clear();
  expect([queue.size, queue.first, a.queueIndex]).toEqual([0, undefined, -1]);
  queue.add(a);
  expect(queue.first).toBe(a);
});
