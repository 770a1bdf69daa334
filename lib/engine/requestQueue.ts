/** What waits, in the scheduling policy's order. */
import type { Request } from './request';

/** What a queue has to know of an entry. */
export interface QueueEntry {
  /** Its place in the queue; -1 while it is in none. */
  queueIndex: number;
}

/**
 * A binary heap in which each entry knows its place (`queueIndex`): adding, taking the first and
 * removing any entry cost O(log size), looking at the first O(1). A removed entry is let go at once,
 * so aborted requests take no memory.
 */
export class RequestQueue<Entry extends QueueEntry = Request> {
  private heap: Entry[] = [];

  /** `precedes` is a strict total order. */
  constructor(private readonly precedes: (a: Entry, b: Entry) => boolean) {}

  get size(): number {
    return this.heap.length;
  }

  /** The first in order; undefined when the queue is empty. */
  get first(): Entry | undefined {
    return this.heap.at(0);
  }

  has(entry: Entry): boolean {
    return this.heap[entry.queueIndex] === entry;
  }

  add(entry: Entry): void {
    this.siftUp(entry, this.heap.length);
  }

  /** The entry must be in the queue. */
  remove(entry: Entry): void {
    const index = entry.queueIndex;
    const last = this.heap.pop() as Entry;
    entry.queueIndex = -1;
    if (last === entry) return;
    const parent = (index - 1) >> 1;
    if (index > 0 && this.precedes(last, this.heap[parent])) this.siftUp(last, index);
    else this.siftDown(last, index);
  }

  /** In no order. */
  get entries(): readonly Entry[] {
    return this.heap;
  }

  clear(): void {
    for (const entry of this.heap) entry.queueIndex = -1;
    this.heap = [];
  }

  /** Puts the entry at `index` or, past the entries that it precedes, nearer to the root. */
  private siftUp(entry: Entry, index: number): void {
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (!this.precedes(entry, this.heap[parent])) break;
      this.place(this.heap[parent], index);
      index = parent;
    }
    this.place(entry, index);
  }

  /** Puts the entry at `index` or, past the entries that precede it, nearer to the leaves. */
  private siftDown(entry: Entry, index: number): void {
    const { length } = this.heap;
    for (let child = 2 * index + 1; child < length; child = 2 * index + 1) {
      if (child + 1 < length && this.precedes(this.heap[child + 1], this.heap[child])) child++;
      if (!this.precedes(this.heap[child], entry)) break;
      this.place(this.heap[child], index);
      index = child;
    }
    this.place(entry, index);
  }

  private place(entry: Entry, index: number): void {
    this.heap[index] = entry;
    entry.queueIndex = index;
  }
}
