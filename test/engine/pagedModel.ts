/**
 * A test model: a request's next token is a function of all its tokens, read back from a paged
 * cache through the block table. A schedule that loses a token, writes one twice, overwrites
 * another request's block, shares a block with other content or resumes wrongly either throws here
 * or changes the output. With several groups of layers each group has a copy of every token in its
 * own blocks; tokens before a group's window are not read from it.
 */
import { NO_BLOCK } from '../../lib/contract/kvCache';
import { type ModelRunnerOutput, RaggedTokenIds } from '../../lib/contract/modelRunnerOutput';
import type { SchedulerOutput } from '../../lib/contract/schedulerOutput';

export const VOCAB_SIZE = 97;

/** The next token after `context`. */
export function nextToken(context: readonly number[]): number {
  let hash = 17;
  for (const tokenId of context) hash = (hash * 31 + tokenId + 1) % 1_000_003;
  return hash % VOCAB_SIZE;
}

/** A request's output, computed without an engine. */
export function generateAlone(
  prompt: readonly number[],
  {
    maxTokens,
    stopTokenIds = [],
    minTokens = 0,
  }: { maxTokens: number; stopTokenIds?: readonly number[]; minTokens?: number },
): number[] {
  const output: number[] = [];
  while (output.length < maxTokens) {
    const tokenId = nextToken([...prompt, ...output]);
    output.push(tokenId);
    if (output.length > minTokens && stopTokenIds.includes(tokenId)) break;
  }
  return output;
}

interface Known {
  tokenIds: number[];
  /** [numBlocks, numGroups] */
  blockIds: number[];
  numComputedTokens: number;
  /** False while preempted. */
  active: boolean;
}

export interface PagedModelLimits {
  numBlocks: number;
  blockSize: number;
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
  /** Of each group of layers, in tokens; null: full attention. */
  slidingWindows?: readonly (number | null)[];
}

function check(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(`schedule: ${message}`);
}

export class PagedModel {
  /** Token ids in place of keys and values. */
  private readonly cache: Int32Array;
  readonly requests = new Map<string, Known>();
  /** Requests with each block in their table. */
  private readonly holders = new Map<number, Known[]>();
  private readonly windows: readonly (number | null)[];
  numSteps = 0;

  constructor(readonly limits: PagedModelLimits) {
    this.cache = new Int32Array(limits.numBlocks * limits.blockSize).fill(-1);
    this.windows = limits.slidingWindows ?? [null];
  }

  /** Executes a step. Rows are returned in reverse: consumers must use reqIdToIndex. */
  step(step: SchedulerOutput): ModelRunnerOutput {
    this.numSteps++;
    this.applyChanges(step);
    for (const reqId of step.numScheduledTokens.keys()) this.forgetBehindWindows(this.known(reqId));
    this.checkBlocks();
    this.checkBudget(step);
    const written = new Set<number>();
    for (const [reqId, count] of step.numScheduledTokens) this.write(reqId, count, written);
    const sampled = Array.from(step.numScheduledTokens, ([reqId, count]) =>
      this.readAndSample(reqId, count),
    );
    const reqIds = [...step.numScheduledTokens.keys()].reverse();
    return {
      reqIds,
      reqIdToIndex: new Map(reqIds.map((reqId, index) => [reqId, index])),
      sampledTokenIds: RaggedTokenIds.from(sampled.reverse()),
      numNansInLogits: new Map(),
      logprobs: null,
      promptLogprobs: new Map(),
    };
  }

  private known(reqId: string): Known {
    const request = this.requests.get(reqId);
    check(request !== undefined, `request ${reqId} is not known to the worker`);
    return request;
  }

  private applyChanges(step: SchedulerOutput): void {
    for (const reqId of step.finishedReqIds) {
      check(!step.numScheduledTokens.has(reqId), `finished request ${reqId} is scheduled`);
      this.requests.delete(reqId);
    }
    for (const reqId of step.preemptedReqIds) {
      const request = this.known(reqId);
      check(request.active, `request ${reqId} is preempted twice`);
      request.active = false;
      request.blockIds = [];
      request.numComputedTokens = 0;
    }
    for (const data of step.scheduledNewReqs) {
      check(!this.requests.has(data.reqId), `request ${data.reqId} is new twice`);
      check(step.numScheduledTokens.has(data.reqId), `new request ${data.reqId} has no tokens`);
      this.requests.set(data.reqId, {
        tokenIds: Array.from(data.prefillTokenIds ?? data.promptTokenIds),
        blockIds: [...data.blockIds],
        numComputedTokens: data.numComputedTokens,
        active: true,
      });
    }
    const { reqIds, resumedReqIds, newBlockIds, numComputedTokens, allTokenIds } =
      step.scheduledCachedReqs;
    reqIds.forEach((reqId, i) => {
      const request = this.known(reqId);
      check(step.numScheduledTokens.has(reqId), `cached request ${reqId} has no tokens`);
      const blockIds = newBlockIds[i];
      if (resumedReqIds.has(reqId)) {
        check(!request.active, `request ${reqId} resumes without having been preempted`);
        const tokenIds = Array.from(allTokenIds.get(reqId) ?? []);
        check(
          tokenIds.join() === request.tokenIds.join(),
          `request ${reqId} resumes with ${tokenIds.length} of its ${request.tokenIds.length} tokens`,
        );
        request.active = true;
        request.blockIds = [...(blockIds ?? [])];
        request.numComputedTokens = numComputedTokens[i];
      } else {
        check(request.active, `request ${reqId} goes on while preempted`);
        request.blockIds.push(...(blockIds ?? []));
      }
      check(
        numComputedTokens[i] === request.numComputedTokens,
        `request ${reqId} has ${request.numComputedTokens} tokens computed, not ${numComputedTokens[i]}`,
      );
    });
  }

  private checkBlocks(): void {
    this.holders.clear();
    let numActive = 0;
    for (const [reqId, request] of this.requests) {
      const { active } = request;
      const blockIds = request.blockIds.filter((blockId) => blockId !== NO_BLOCK);
      check(request.blockIds.length % this.windows.length === 0, 'a group has fewer blocks');
      check(new Set(blockIds).size === blockIds.length, `request ${reqId} has a block twice`);
      if (active) numActive++;
      for (const blockId of blockIds) {
        const inPool = Number.isInteger(blockId) && blockId >= 0 && blockId < this.limits.numBlocks;
        check(inPool, `block ${blockId} is not in the pool`);
        this.holders.set(blockId, [...(this.holders.get(blockId) ?? []), request]);
      }
    }
    check(numActive <= this.limits.maxNumSeqs, `${numActive} requests are on the worker at once`);
  }

  private checkBudget(step: SchedulerOutput): void {
    let total = 0;
    for (const [reqId, count] of step.numScheduledTokens) {
      check(count > 0, `request ${reqId} has ${count} tokens`);
      total += count;
    }
    check(total === step.totalNumScheduledTokens, 'the total is not the sum');
    check(total <= this.limits.maxNumBatchedTokens, `${total} tokens are over the budget`);
  }

  /** Writes a row's tokens to the cache. */
  private write(reqId: string, count: number, written: Set<number>): void {
    const request = this.known(reqId);
    check(request.active, `request ${reqId} is scheduled while preempted`);
    const end = request.numComputedTokens + count;
    check(end <= request.tokenIds.length, `request ${reqId} computes tokens it does not have`);
    for (let position = request.numComputedTokens; position < end; position++) {
      for (let group = 0; group < this.windows.length; group++) {
        const slot = this.slotOf(request, position, group);
        check(!written.has(slot), `slot ${slot} is written twice in a step`);
        this.checkSharers(reqId, slot, position);
        written.add(slot);
        this.cache[slot] = request.tokenIds[position];
      }
    }
  }

  /** Reads what a row's queries attend to in each group; returns the sampled token. */
  private readAndSample(reqId: string, count: number): number[] {
    const request = this.known(reqId);
    const { tokenIds } = request;
    const end = request.numComputedTokens + count;
    for (let group = 0; group < this.windows.length; group++) {
      const first = this.firstKey(request.numComputedTokens, group);
      for (let position = first; position < end; position++) {
        check(
          this.cache[this.slotOf(request, position, group)] === tokenIds[position],
          `request ${reqId} reads position ${position} of group ${group}, which has another token`,
        );
      }
    }
    request.numComputedTokens = end;
    if (end < tokenIds.length) return [];
    const tokenId = nextToken(tokenIds);
    tokenIds.push(tokenId);
    return [tokenId];
  }

  /** The first position that the query at `position` reads. */
  private firstKey(position: number, group: number): number {
    const window = this.windows[group];
    return window === null ? 0 : Math.max(0, position - window + 1);
  }

  /** The request no longer holds blocks before the windows of its first query in the step. */
  private forgetBehindWindows(request: Known): void {
    for (let group = 0; group < this.windows.length; group++) {
      const first = this.firstKey(request.numComputedTokens, group);
      const numBehind = Math.floor(first / this.limits.blockSize);
      for (let i = 0; i < numBehind; i++) {
        request.blockIds[i * this.windows.length + group] = NO_BLOCK;
      }
    }
  }

  /** A write to a shared block must match the other requests' content. */
  private checkSharers(reqId: string, slot: number, position: number): void {
    const blockId = Math.floor(slot / this.limits.blockSize);
    const beginning = ({ tokenIds }: Known) => tokenIds.slice(0, position + 1).join();
    for (const other of this.holders.get(blockId) ?? []) {
      check(
        beginning(other) === beginning(this.known(reqId)),
        `request ${reqId} writes to block ${blockId} of a request with other tokens`,
      );
    }
  }

  private slotOf(request: Known, position: number, group: number): number {
    const { blockSize } = this.limits;
    const at = Math.floor(position / blockSize) * this.windows.length + group;
    const blockId = request.blockIds[at] as number | undefined;
    check(
      blockId !== undefined && blockId !== NO_BLOCK,
      `there is no block for position ${position} of group ${group}`,
    );
    return blockId * blockSize + (position % blockSize);
  }
}
