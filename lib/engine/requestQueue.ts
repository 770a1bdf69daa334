/** The waiting queue, in the scheduling policy's order. */
import type { Request } from './request';

/** The field that a queue needs of its entries. */
export interface QueueEntry {
  /** Index in the queue's heap; -1 when not queued. */
  queueIndex: number;
}

/**
 * A binary heap whose entries store their index (`queueIndex`): adding, removing the first and
 * removing any entry are O(log size), reading the first is O(1). Removed entries, for example
 * aborted requests, take no memory.
 */
export class RequestQueue<Entry extends QueueEntry = Request> {
  private heap: Entry[] = [];

  /** `precedes` is a strict total order. */
  constructor(private readonly precedes: (a: Entry, b: Entry) => boolean) {}

  get size(): number {
    return this.heap.length;
  }

  /** The first in order; undefined if empty. */
  get first(): Entry | undefined {
    return this.heap.at(0);
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

  /** In heap order. */
  get entries(): readonly Entry[] {
    return this.heap;
  }

  clear(): void {
    for (const entry of this.heap) entry.queueIndex = -1;
    this.heap = [];
  }

  /** Inserts the entry at `index` and moves it toward the root. */
  private siftUp(entry: Entry, index: number): void {
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (!this.precedes(entry, this.heap[parent])) break;
      this.place(this.heap[parent], index);
      index = parent;
    }
    this.place(entry, index);
  }

  /** Inserts the entry at `index` and moves it toward the leaves. */
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
