/** Running requests, in the scheduling policy's order; at most maxNumSeqs. */
import { isUnfinished, type Request } from './request';

const NO_REQUESTS: readonly Request[] = Object.freeze([]);

/** The first is scheduled first in a step and preempted last. */
export class RunningRequests {
  private requests: Request[] = [];
  /** Whether requests may have finished since `sweep`. */
  isStale = false;

  /** `precedes` is a strict total order. */
  constructor(private readonly precedes: (a: Request, b: Request) => boolean) {}

  get size(): number {
    return this.requests.length;
  }

  /** In order. */
  get ids(): string[] {
    return this.requests.map(({ requestId }) => requestId);
  }

  at(index: number): Request | undefined {
    return this.requests.at(index);
  }

  add(request: Request): void {
    const { requests } = this;
    let index = requests.length;
    while (index > 0 && this.precedes(request, requests[index - 1])) index--;
    requests.splice(index, 0, request);
  }

  /** Removes and returns the last; there must be one. */
  takeLast(): Request {
    return this.requests.pop() as Request;
  }

  /** Removes the request if present. */
  remove(request: Request): void {
    this.requests = this.requests.filter((other) => other !== request);
  }

  /** Removes finished requests. */
  sweep(): void {
    this.requests = this.requests.filter(isUnfinished);
    this.isStale = false;
  }

  clear(): void {
    this.requests = [];
  }

  /** Trailing requests with strictly lower priority (a larger number). */
  lowerPriorityThan(priority: number): readonly Request[] {
    const { requests } = this;
    let start = requests.length;
    while (start > 0 && requests[start - 1].priority > priority) start--;
    return start === requests.length ? NO_REQUESTS : requests.slice(start);
  }
}
