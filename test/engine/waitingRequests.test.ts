import fc from 'fast-check';
import { SamplingParams } from '../../lib/config/samplingParams';
import { Request } from '../../lib/engine/request';
import {
  type RequestSource,
  type Waiting,
  WaitingRequests,
} from '../../lib/engine/waitingRequests';

const samplingParams = new SamplingParams({ maxTokens: 1 });

function requestOf(requestId: string, priority: number): Request {
  const promptTokenIds = Int32Array.of(1);
  const lists = { stopTokenIds: [], badWordsTokenIds: [] };
  return new Request({
    requestId,
    promptTokenIds,
    samplingParams,
    ...lists,
    seed: 0n,
    maxModelLen: 8,
    priority,
  });
}

class Source implements RequestSource {
  arrival = 0;
  queueIndex = -1;
  numMade = 0;

  constructor(
    readonly name: string,
    readonly priority: number,
    readonly count: number,
  ) {}

  get numLeft(): number {
    return this.count - this.numMade;
  }

  makeNext(): Request {
    return requestOf(`${this.name}.${this.numMade++}`, this.priority);
  }
}

const inOrder = (a: Waiting, b: Waiting) =>
  a.priority - b.priority < 0 || (a.priority === b.priority && a.arrival < b.arrival);

/** Removes the first, as the scheduler does. */
function takeFirst(waiting: WaitingRequests): Request {
  let first = waiting.first as Waiting;
  if (!(first instanceof Request)) waiting.add((first = waiting.makeNext(first)));
  waiting.remove(first);
  return first;
}

test('requests are ordered as if all had been made on arrival', () => {
  const operation = fc.oneof(
    fc.record({ priority: fc.integer({ min: -2, max: 2 }), count: fc.integer({ min: 1, max: 5 }) }),
    fc.constant('take' as const),
    fc.record({ abort: fc.nat() }),
    fc.record({ preempt: fc.nat() }),
  );
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 60 }), (operations) => {
      const waiting = new WaitingRequests(inOrder);
      const sources: Source[] = [];
      const taken: Request[] = [];
      /** [priority, arrival, id] of all waiting requests. */
      let reference: [number, number, string][] = [];
      let numArrivals = 0;
      for (const happening of operations) {
        if (happening === 'take') {
          const first = reference.shift();
          if (first === undefined) continue;
          const request = takeFirst(waiting);
          expect(request.requestId).toBe(first[2]);
          taken.push(request);
        } else if ('abort' in happening) {
          if (sources.length === 0) continue;
          const source = sources[happening.abort % sources.length];
          const { name, numMade } = source;
          waiting.removeSource(source);
          const isUnmade = (id: string) =>
            id.startsWith(`${name}.`) && Number(id.slice(name.length + 1)) >= numMade;
          reference = reference.filter(([, , id]) => !isUnmade(id));
        } else if ('preempt' in happening) {
          if (taken.length === 0) continue;
          const [request] = taken.splice(happening.preempt % taken.length, 1);
          waiting.add(request);
          reference.push([request.priority, request.arrival, request.requestId]);
        } else {
          const { priority, count } = happening;
          const source = new Source(String(sources.length), priority, count);
          source.arrival = numArrivals;
          sources.push(source);
          waiting.addSource(source);
          for (let i = 0; i < count; i++) {
            reference.push([priority, numArrivals++, `${source.name}.${i}`]);
          }
        }
        reference.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
        expect(waiting.size).toBe(reference.length);
      }
    }),
  );
});

test('one request is made for each one removed', () => {
  const waiting = new WaitingRequests(inOrder);
  const source = new Source('a', 0, 10_000);
  waiting.addSource(source);
  for (let i = 0; i < 3; i++) takeFirst(waiting);
  expect([source.numMade, waiting.size]).toEqual([3, 9997]);
});

test('a source that fails to make its request is removed, others stay', () => {
  const waiting = new WaitingRequests(inOrder);
  const broken = new Source('broken', 0, 3);
  broken.makeNext = () => {
    throw new Error('broken');
  };
  waiting.addSource(broken);
  waiting.addSource(Object.assign(new Source('good', 0, 2), { arrival: 3 }));
  expect(() => takeFirst(waiting)).toThrow('broken');
  expect(waiting.size).toBe(2);
  expect(takeFirst(waiting).requestId).toBe('good.0');
});

test('makeAll makes all requests and returns failures', () => {
  const waiting = new WaitingRequests(inOrder);
  const broken = new Source('broken', 1, 1);
  const error = new Error('broken');
  broken.makeNext = () => {
    throw error;
  };
  waiting.addSource(new Source('a', 0, 2));
  waiting.addSource(Object.assign(broken, { arrival: 2 }));
  const made: Request[] = [];
  expect(waiting.makeAll((request) => made.push(request))).toEqual([
    { requestId: null, source: broken, error },
  ]);
  expect(made.map(({ requestId, arrival }) => [requestId, arrival])).toEqual([
    ['a.0', 0],
    ['a.1', 1],
  ]);
});
