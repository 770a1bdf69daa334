/** Requests that wait, those among them that have not been made yet. */
import { HARD_LIMITS } from '../config/limits';
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
  /** Of the next one's lists on the device. */
  readonly listBytes: number;
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

/** Most that is set aside in one step: some microseconds each. */
const MAX_SET_ASIDE = 1024;

export class WaitingRequests {
  private readonly queue: RequestQueue<Waiting>;
  /** Set aside: the long lists of the first have no place, and those behind it have long lists, too. */
  private readonly aside: RequestQueue<Waiting>;
  /** In this step. */
  private numSetAside = 0;
  /** Requests that sources have still to make, the next of each not counted. */
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

  /** From now on `findFirst` may return what was set aside. */
  beginStep(): void {
    this.numSetAside = 0;
  }

  /**
   * The first in order that may still enter in this step; undefined when there is none. Once one was
   * set aside in the step, it has short lists.
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
   * There is no place for the lists of `waiting`, the first in order: in this step only those with
   * short lists enter. So long lists keep their order among themselves, and hold up no others.
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

  /** The request must be here. */
  remove(request: Request): void {
    this.queueOf(request).remove(request);
  }

  private queueOf(waiting: Waiting): RequestQueue<Waiting> {
    return this.aside.has(waiting) ? this.aside : this.queue;
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
    this.queueOf(source).remove(source);
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
    for (const source of [...this.queue.entries, ...this.aside.entries].filter(isSource)) {
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
    this.aside.clear();
  }
}

function isSource(waiting: Waiting): waiting is RequestSource {
  return !(waiting instanceof Request);
}
