/** Waiting requests, including those not made yet. */
import { Request } from './request';
import { type QueueEntry, RequestQueue } from './requestQueue';

/**
 * The requests of a call, which arrive together and have one priority. A source is queued in the
 * position of its next request, with the rest directly behind it, so each is made only at the head
 * of the queue and waiting requests cost no memory.
 */
export interface RequestSource extends QueueEntry {
  /** Lower runs first, where the scheduler's policy is 'priority'. */
  readonly priority: number;
  /** Arrival number of the next request; set by the scheduler. */
  arrival: number;
  /** Requests not made yet. */
  readonly numLeft: number;
  /** Makes the next request; not called again after it throws. */
  makeNext(): Request;
}

/** A queue entry: a request or a source of requests. */
export type Waiting = Request | RequestSource;

/** A request or source that could not be scheduled, with the error. */
export interface SchedulingFault {
  /** Null if it could not be made. */
  requestId: string | null;
  /** The source that failed to make it; else null. */
  source: RequestSource | null;
  error: unknown;
}

export class WaitingRequests {
  private readonly queue: RequestQueue<Waiting>;
  /** Requests that sources have not made yet, excluding each one's next. */
  private numBehindNext = 0;

  /** `precedes` is a strict total order. */
  constructor(precedes: (a: Waiting, b: Waiting) => boolean) {
    this.queue = new RequestQueue(precedes);
  }

  /** All requests, made or not. */
  get size(): number {
    return this.queue.size + this.numBehindNext;
  }

  /** The first in order; undefined if empty. */
  get first(): Waiting | undefined {
    return this.queue.first;
  }

  add(request: Request): void {
    this.queue.add(request);
  }

  /** The request must be queued. */
  remove(request: Request): void {
    this.queue.remove(request);
  }

  /** Adds a source of at least one request. */
  addSource(source: RequestSource): void {
    this.numBehindNext += source.numLeft - 1;
    this.queue.add(source);
  }

  /** Removes the source's unmade requests; no effect if none are left. */
  removeSource(source: RequestSource): void {
    if (source.queueIndex < 0) return;
    this.numBehindNext -= source.numLeft - 1;
    this.queue.remove(source);
  }

  /**
   * Makes the source's next request, for the caller to queue; requeues the source behind it. On a
   * throw the source stays removed.
   */
  makeNext(source: RequestSource): Request {
    this.removeSource(source);
    const request = source.makeNext();
    request.arrival = source.arrival++;
    if (source.numLeft > 0) this.addSource(source);
    return request;
  }

  /** Makes all remaining requests and passes them to `add`; returns the failures. */
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

  /** Must contain no sources. */
  clear(): void {
    this.queue.clear();
  }
}

function isSource(waiting: Waiting): waiting is RequestSource {
  return !(waiting instanceof Request);
}
