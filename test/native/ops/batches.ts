/** Requests in a paged KV cache, and batches of their tokens. */
import type { NativeRequest } from '../../../lib/native';
import { GREEDY } from '../../support/sampling';
import type { Batch, Ops, Requests } from './binding';
import type { Random } from './reference';

/** One row of a batch: tokens numComputed .. numComputed + numScheduled of the request in `slot`. */
export interface Row {
  slot: number;
  numComputed: number;
  numScheduled: number;
}

/** A paged cache's layout: each request has its own blocks. */
export class Layout {
  readonly blockTables: Int32Array[];
  readonly numBlocks: number;

  /** Allocates blocks in random order for requests of the given lengths. */
  constructor(
    readonly blockSize: number,
    lengths: number[],
    random: Random,
  ) {
    const counts = lengths.map((length) => Math.ceil(length / blockSize));
    this.numBlocks = counts.reduce((a, b) => a + b, 0);
    const order = random.permutation(this.numBlocks);
    let next = 0;
    this.blockTables = counts.map((count) => order.slice(next, (next += count)));
  }

  /** Cache slot of a request's token. */
  cacheSlot(slot: number, position: number): number {
    const block = this.blockTables[slot][Math.floor(position / this.blockSize)];
    return block * this.blockSize + (position % this.blockSize);
  }

  /** A request table with a request in each slot. */
  requests(ops: Ops, tokenIds: Int32Array[], vocabSize: number): Requests {
    const requests = ops.makeRequests({
      vocabSize,
      maxNumSeqs: tokenIds.length,
      maxModelLen: Math.max(...tokenIds.map((ids) => ids.length)),
      blockSize: this.blockSize,
      maxLogprobs: 0,
    });
    this.enter(ops, requests, tokenIds);
    return requests;
  }

  /** Puts a request into each slot of a table. */
  enter(ops: Ops, requests: Requests, tokenIds: Int32Array[]): void {
    tokenIds.forEach((ids, slot) => {
      const request: NativeRequest = {
        tokenIds: ids,
        numPromptTokens: ids.length,
        blockIds: this.blockTables[slot],
        sampling: GREEDY,
      };
      ops.addRequest(requests, slot, request, this.numBlocks);
    });
  }
}

/** A batch before prepareInputs. */
export function makeBatch(ops: Ops, rows: Row[]): Batch {
  const queryStarts = [0];
  for (const row of rows) queryStarts.push(queryStarts[queryStarts.length - 1] + row.numScheduled);
  const numTokens = queryStarts[rows.length];
  const maxKeys = Math.max(...rows.map((row) => row.numComputed + row.numScheduled));
  return {
    numRows: rows.length,
    numTokens,
    slots: ops.ints(rows.map((row) => row.slot)),
    numComputedTokens: ops.ints(rows.map((row) => row.numComputed)),
    queryStarts: ops.ints(queryStarts),
    tokenIds: ops.zeros(numTokens, 'int32'),
    positions: ops.zeros(numTokens, 'int32'),
    cacheSlots: ops.zeros(numTokens, 'int32'),
    maxQueryLen: Math.max(...rows.map((row) => row.numScheduled)),
    numDecodeRows: rows.filter((row) => row.numScheduled === 1).length,
    isDecode: rows.every((row) => row.numScheduled === 1),
    hasFewKeys: rows.length <= 8 && rows.length * maxKeys <= 4096,
  };
}

/** The slot and position of each token. */
export function tokensOf(rows: Row[]): { slot: number; position: number }[] {
  return rows.flatMap(({ slot, numComputed, numScheduled }) =>
    Array.from({ length: numScheduled }, (_, i) => ({ slot, position: numComputed + i })),
  );
}
