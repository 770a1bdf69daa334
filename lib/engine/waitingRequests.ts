/** Requests that wait, those among them that have not been made yet. */
import { Request } from './request';
import { type QueueEntry, RequestQueue } from './requestQueue';

/**
 * The requests of a call, which arrive together and have one priority. In the queue the source stands
 * where the next of them would stand, and the rest would follow that one directly; so each is made
 * when it is the first in the queue, and a request that waits costs no memory.
 */
export interface RequestSource extends QueueEntry {
  /** Lower runs first, where the scheduler's policy is 'priority'. */
  readonly priority: number;
  /** How many requests came before the next one; the scheduler's. */
  arrival: number;
  /** Requests that are still to be made. */
  readonly numLeft: number;
  /** Makes the next one. When it throws, no other is asked for. */
  makeNext(): Request;
}

/** What waits: a request, or what makes it. */
export type Waiting = Request | RequestSource;

/** A request that could not be scheduled and was ended, and what was thrown. */
export interface SchedulingFault {
  /** Null where it could not even be made. */
  requestId: string | null;
  /** What was to make it; null where that was done. */
  source: RequestSource | null;
  error: unknown;
}

export class WaitingRequests {
  private readonly queue: RequestQueue<Waiting>;
  /** Requests that sources have still to make, the next of each not counted. */
  private numBehindNext = 0;

  /** `precedes` is a strict total order. */
  constructor(precedes: (a: Waiting, b: Waiting) => boolean) {
    this.queue = new RequestQueue(precedes);
  }

  /** All requests, made or not. */
  get size(): number {
    return this.queue.size + this.numBehindNext;
  }

  /** The first in order; undefined when none waits. */
  get first(): Waiting | undefined {
    return this.queue.first;
  }

  add(request: Request): void {
    this.queue.add(request);
  }

  /** The request must be here. */
  remove(request: Request): void {
    this.queue.remove(request);
  }

  /** Adds the requests that the source makes, which is one at least. */
  addSource(source: RequestSource): void {
    this.numBehindNext += source.numLeft - 1;
    this.queue.add(source);
  }

  /** What the source has not made is not wanted any more; it may have made everything. */
  removeSource(source: RequestSource): void {
    if (source.queueIndex < 0) return;
    this.numBehindNext -= source.numLeft - 1;
    this.queue.remove(source);
  }

  /**
   * The source's next request, which is to wait where the source does; the source goes behind it.
   * When it cannot be made, the source is not here any more.
   */
  makeNext(source: RequestSource): Request {
    this.removeSource(source);
    const request = source.makeNext();
    request.arrival = source.arrival++;
    if (source.numLeft > 0) this.addSource(source);
    return request;
  }

  /** Makes all that is not made yet and gives it to `add`; returns what could not be made. */
  makeAll(add: (request: Request) => void): SchedulingFault[] {
    const faults: SchedulingFault[] = [];
    for (const source of this.queue.entries.filter(isSource)) {
      try {
        while (source.queueIndex >= 0) add(this.makeNext(source));
      } catch (error) {
        faults.push({ requestId: null, source, error });
      }
    }
    return faults;
  }

  /** Only requests wait, no sources. */
  clear(): void {
    this.queue.clear();
  }
}

function isSource(waiting: Waiting): waiting is RequestSource {
  return !(waiting instanceof Request);
}
