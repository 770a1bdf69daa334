/** Waiting requests, including those not made yet. */
import { HARD_LIMITS } from '../config/limits';
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
  /** Bytes of the next request's lists on the device. */
  readonly listBytes: number;
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

/** Maximum requests set aside per step; each takes some microseconds. */
const MAX_SET_ASIDE = 1024;

export class WaitingRequests {
  private readonly queue: RequestQueue<Waiting>;
  /** Requests set aside: the first lacks list memory, and those behind it have long lists too. */
  private readonly aside: RequestQueue<Waiting>;
  /** Requests set aside in this step. */
  private numSetAside = 0;
  /** Requests that sources have not made yet, excluding each one's next. */
  private numBehindNext = 0;

  /** `precedes` is a strict total order. */
  constructor(private readonly precedes: (a: Waiting, b: Waiting) => boolean) {
    this.queue = new RequestQueue(precedes);
    this.aside = new RequestQueue(precedes);
  }

  /** All requests, made or not. */
  get size(): number {
    return this.queue.size + this.aside.size + this.numBehindNext;
  }

  /** Makes requests set aside available to `findFirst` again. */
  beginStep(): void {
    this.numSetAside = 0;
  }

  /**
   * The first request in order that can still be admitted in this step; undefined if there is none.
   * Returns only requests with short lists once one was set aside in the step.
   */
  findFirst(): Waiting | undefined {
    if (this.numSetAside === 0) {
      const [first, aside] = [this.queue.first, this.aside.first];
      if (first === undefined || aside === undefined) return first ?? aside;
      return this.precedes(aside, first) ? aside : first;
    }
    while (this.numSetAside < MAX_SET_ASIDE) {
      const { first } = this.queue;
      if (first === undefined || first.listBytes <= HARD_LIMITS.slotListBytes) return first;
      this.setAside(first);
    }
    return undefined;
  }

  /**
   * Sets aside the first request, which lacks list memory: only requests with short lists are admitted
   * in this step. So requests with long lists keep their order and do not delay others.
   */
  setAside(waiting: Waiting): null {
    this.numSetAside++;
    if (this.aside.has(waiting)) return null;
    this.queue.remove(waiting);
    this.aside.add(waiting);
    return null;
  }

  add(request: Request): void {
    this.queue.add(request);
  }

  /** The request must be queued. */
  remove(request: Request): void {
    this.queueOf(request).remove(request);
  }

  private queueOf(waiting: Waiting): RequestQueue<Waiting> {
    return this.aside.has(waiting) ? this.aside : this.queue;
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
    this.queueOf(source).remove(source);
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
    for (const source of [...this.queue.entries, ...this.aside.entries].filter(isSource)) {
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
    this.aside.clear();
  }
}

function isSource(waiting: Waiting): waiting is RequestSource {
  return !(waiting instanceof Request);
}
