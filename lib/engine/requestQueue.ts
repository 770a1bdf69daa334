/** Requests that wait, in the scheduling policy's order. */
import type { Request } from './request';

/**
 * A binary heap in which each request knows its place (`queueIndex`): adding, taking the first and
 * removing any request cost O(log size), looking at the first O(1). A removed request is let go at
 * once, so aborted requests take no memory.
 */
export class RequestQueue {
  private heap: Request[] = [];

  /** `precedes` is a strict total order. */
  constructor(private readonly precedes: (a: Request, b: Request) => boolean) {}

  get size(): number {
    return this.heap.length;
  }

  /** The first in order; undefined when the queue is empty. */
  get first(): Request | undefined {
    return this.heap.at(0);
  }

  add(request: Request): void {
    this.siftUp(request, this.heap.length);
  }

  /** The request must be in the queue. */
  remove(request: Request): void {
    const index = request.queueIndex;
    const last = this.heap.pop() as Request;
    request.queueIndex = -1;
    if (last === request) return;
    const parent = (index - 1) >> 1;
    if (index > 0 && this.precedes(last, this.heap[parent])) this.siftUp(last, index);
    else this.siftDown(last, index);
  }

  clear(): void {
    for (const request of this.heap) request.queueIndex = -1;
    this.heap = [];
  }

  /** Puts the request at `index` or, past the requests that it precedes, nearer to the root. */
  private siftUp(request: Request, index: number): void {
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (!this.precedes(request, this.heap[parent])) break;
      this.place(this.heap[parent], index);
      index = parent;
    }
    this.place(request, index);
  }

  /** Puts the request at `index` or, past the requests that precede it, nearer to the leaves. */
  private siftDown(request: Request, index: number): void {
    const { length } = this.heap;
    for (let child = 2 * index + 1; child < length; child = 2 * index + 1) {
      if (child + 1 < length && this.precedes(this.heap[child + 1], this.heap[child])) child++;
      if (!this.precedes(this.heap[child], request)) break;
      this.place(this.heap[child], index);
      index = child;
    }
    this.place(request, index);
  }

  private place(request: Request, index: number): void {
    this.heap[index] = request;
    request.queueIndex = index;
  }
}
