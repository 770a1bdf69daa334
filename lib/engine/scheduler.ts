/**
 * What runs in the next step (vLLM V1's scheduler). There is no prefill phase and no decode phase:
 * a request has tokens (known, or sampled by a step in flight) and a number of them computed, and a
 * step computes some more, within its budget of tokens, for as many requests as have blocks.
 *
 * A step may be scheduled before the one before it is read. So what a step will have computed
 * counts as computed when it is scheduled, and a token it will sample is a placeholder until
 * `updateFromOutput` brings it. Nothing here depends on when an output arrives, only on the order
 * of calls: the same calls give the same schedule.
 */
import type { SchedulerConfig } from '../config/uniprocConfig';
import { InvalidStateError } from '../errors';
import type { LogprobsLists, ModelRunnerOutput } from '../worker/outputs';
import {
  type CachedRequestData,
  emptySchedulerOutput,
  type NewRequestData,
  type SchedulerOutput,
} from '../worker/schedulerOutput';
import type { KVCacheManager } from './kvCacheManager';
import type { EngineCoreOutput, EngineCoreOutputs, FinishReason } from './outputs';
import type { Request } from './request';

/** A SchedulerOutput while it is written. */
interface StepInMaking extends SchedulerOutput {
  scheduledCachedReqs: CachedRequestData & {
    resumedReqIds: Set<string>;
    allTokenIds: Map<string, Int32Array>;
  };
  numScheduledTokens: Map<string, number>;
  preemptedReqIds: string[];
}

export class Scheduler {
  /** By id: all that are not finished. */
  private readonly requests = new Map<string, Request>();
  /**
   * In the policy's order, both. Those that come first are the first to run and the last to be
   * preempted.
   */
  private waiting: Request[] = [];
  private running: Request[] = [];
  /** Whether some in the list have finished since it was last swept. */
  private waitingIsStale = false;
  private runningIsStale = false;
  /** Finished since the last step was scheduled. */
  private finishedReqIds: string[] = [];
  private readonly outputs: EngineCoreOutput[] = [];
  private numArrivals = 0;
  private preemptions = 0;

  /** The cache holds at least one request of the model's length, so the oldest can always run. */
  constructor(
    private readonly config: Omit<SchedulerConfig, 'asyncScheduling' | 'maxQueuedRequests'>,
    private kvCacheManager: KVCacheManager,
  ) {}

  get numWaiting(): number {
    return this.waiting.length;
  }

  get numRunning(): number {
    return this.running.length;
  }

  /** Since the start. */
  get numPreemptions(): number {
    return this.preemptions;
  }

  /** By arrival. */
  get unfinishedRequests(): readonly Request[] {
    return [...this.requests.values()];
  }

  hasUnfinishedRequests(): boolean {
    return this.requests.size > 0;
  }

  addRequest(request: Request): void {
    request.arrival = this.numArrivals++;
    this.requests.set(request.requestId, request);
    this.insert(this.waiting, request);
  }

  /** Whether `a` goes before `b`: by arrival, and by priority first where that is the policy. */
  private precedes(a: Request, b: Request): boolean {
    if (this.config.policy === 'priority' && a.priority !== b.priority) {
      return a.priority < b.priority;
    }
    return a.arrival < b.arrival;
  }

  private insert(list: Request[], request: Request): void {
    let index = list.length;
    while (index > 0 && this.precedes(request, list[index - 1])) index--;
    list.splice(index, 0, request);
  }

  /**
   * The next step: first the running requests, then waiting ones while there is room, each in the
   * policy's order. When blocks run out the last of the running requests gives its own back and is
   * computed again later.
   */
  schedule(): SchedulerOutput {
    const step = emptySchedulerOutput() as StepInMaking;
    step.finishedReqIds = this.finishedReqIds;
    this.finishedReqIds = [];

    let budget = this.config.maxNumBatchedTokens;
    budget = this.scheduleRunning(step, budget);
    budget = this.scheduleWaiting(step, budget);
    step.totalNumScheduledTokens = this.config.maxNumBatchedTokens - budget;
    return step;
  }

  /** Returns what is left of the budget. */
  private scheduleRunning(step: StepInMaking, budget: number): number {
    for (let i = 0; i < this.running.length && budget > 0; i++) {
      const request = this.running[i];
      if (request.reachesLimitInFlight) continue;
      const numNewTokens = this.numTokensToCompute(request, budget);
      const newBlockIds = this.allocateOrPreempt(request, numNewTokens, step);
      if (newBlockIds === null) break;
      const cached = step.scheduledCachedReqs;
      cached.reqIds.push(request.requestId);
      cached.newBlockIds.push(newBlockIds.length > 0 ? (newBlockIds as number[]) : null);
      cached.numComputedTokens.push(request.numComputedTokens);
      cached.numOutputTokens.push(request.numOutputTokens + request.numOutputPlaceholders);
      this.advance(request, numNewTokens, step);
      budget -= numNewTokens;
    }
    return budget;
  }

  /** All that are left, as far as the step has room and a long prompt may take of it. */
  private numTokensToCompute(request: Request, budget: number): number {
    const left = request.numTokensWithPlaceholders - request.numComputedTokens;
    return Math.min(left, budget, this.config.longPrefillTokenThreshold || Infinity);
  }

  /** Blocks for the request, taken from the last if need be; null when that is the request itself. */
  private allocateOrPreempt(
    request: Request,
    numNewTokens: number,
    step: StepInMaking,
  ): readonly number[] | null {
    for (;;) {
      const newBlockIds = this.kvCacheManager.allocateSlots(request, numNewTokens);
      if (newBlockIds !== null) return newBlockIds;
      const last = this.running.pop() as Request;
      this.preempt(last);
      step.preemptedReqIds.push(last.requestId);
      if (last === request) return null;
    }
  }

  private preempt(request: Request): void {
    this.kvCacheManager.free(request);
    request.status = 'preempted';
    request.numComputedTokens = 0;
    this.preemptions++;
    this.insert(this.waiting, request);
  }

  /**
   * The worker has lost all that it knew, and the cache is another: every request is new to it, and
   * computed again from the tokens it has. No step is in flight. Returns the ids of those that ran.
   */
  restart(kvCacheManager: KVCacheManager): string[] {
    const ran = this.running.map(({ requestId }) => requestId);
    this.preemptions += ran.length;
    this.kvCacheManager = kvCacheManager;
    this.running = [];
    this.waiting = [];
    this.finishedReqIds = [];
    for (const request of this.requests.values()) {
      request.status = 'waiting';
      request.numComputedTokens = 0;
      request.numCachedBlocks = 0;
      request.blockIds.length = 0;
      this.insert(this.waiting, request);
    }
    return ran;
  }

  /** Returns what is left of the budget. */
  private scheduleWaiting(step: StepInMaking, budget: number): number {
    while (this.waiting.length > 0 && this.running.length < this.config.maxNumSeqs && budget > 0) {
      const request = this.waiting[0];
      // A preempted one comes back with all its tokens, so those in flight have to be known.
      if (request.numOutputPlaceholders > 0) break;
      const computedBlocks = this.kvCacheManager.getComputedBlocks(request);
      // Half a prompt would hold blocks that it may have to give up before it is of use.
      if (!this.kvCacheManager.hasRoomFor(request, computedBlocks)) break;
      this.kvCacheManager.shareBlocks(request, computedBlocks);
      const numNewTokens = this.numTokensToCompute(request, budget);
      this.kvCacheManager.allocateSlots(request, numNewTokens);
      if (request.status === 'waiting') step.scheduledNewReqs.push(newRequestData(request));
      else this.resume(request, step);
      this.waiting.shift();
      this.insert(this.running, request);
      request.status = 'running';
      this.advance(request, numNewTokens, step);
      budget -= numNewTokens;
    }
    return budget;
  }

  private resume(request: Request, step: StepInMaking): void {
    const cached = step.scheduledCachedReqs;
    cached.resumedReqIds.add(request.requestId);
    cached.allTokenIds.set(request.requestId, request.allTokenIds());
    cached.reqIds.push(request.requestId);
    cached.newBlockIds.push([...request.blockIds]);
    cached.numComputedTokens.push(request.numComputedTokens);
    cached.numOutputTokens.push(request.numOutputTokens);
  }

  /** Puts the request into the step, which samples once it has computed all tokens there are. */
  private advance(request: Request, numNewTokens: number, step: StepInMaking): void {
    step.numScheduledTokens.set(request.requestId, numNewTokens);
    request.numComputedTokens += numNewTokens;
    if (request.numComputedTokens === request.numTokensWithPlaceholders) {
      request.numOutputPlaceholders++;
    }
  }

  /**
   * Takes what a step sampled: appends it, ends the requests it ends. Steps are given in the order
   * they were scheduled. Tokens of a request that ended while the step was in flight are dropped.
   * What is returned is valid until the next call.
   */
  updateFromOutput(step: SchedulerOutput, output: ModelRunnerOutput): EngineCoreOutputs {
    const { tokenIds, offsets } = output.sampledTokenIds;
    let length = 0;
    for (const requestId of step.numScheduledTokens.keys()) {
      const request = this.requests.get(requestId);
      if (request === undefined) continue;
      const row = output.reqIdToIndex.get(requestId);
      if (row === undefined) {
        throw new InvalidStateError(`request ${requestId} was scheduled but is not in the output`);
      }
      const start = offsets[row];
      const end = this.appendTokens(request, tokenIds, start, offsets[row + 1]);
      const promptLogprobs = output.promptLogprobs.get(requestId) ?? null;
      this.writeOutput(length++, request, start, end, promptLogprobs);
    }
    this.dropFinished();
    return { outputs: this.outputs, length, sampledTokenIds: tokenIds, logprobs: output.logprobs };
  }

  /** Returns where the tokens that count end: the request may stop at one of them. */
  private appendTokens(request: Request, tokenIds: Int32Array, start: number, end: number): number {
    request.numOutputPlaceholders -= end - start;
    for (let i = start; i < end; i++) {
      request.appendOutputToken(tokenIds[i]);
      const finishReason = request.checkStop();
      if (finishReason !== null) {
        this.finish(request, finishReason);
        return i + 1;
      }
    }
    return end;
  }

  /** Into a record of an earlier step, lest each token costs an object. */
  private writeOutput(
    index: number,
    { requestId, finishReason }: Request,
    start: number,
    end: number,
    promptLogprobs: LogprobsLists | null,
  ): void {
    if (index === this.outputs.length) {
      this.outputs.push({ requestId, start, end, promptLogprobs, finishReason });
      return;
    }
    const output = this.outputs[index];
    output.requestId = requestId;
    output.start = start;
    output.end = end;
    output.promptLogprobs = promptLogprobs;
    output.finishReason = finishReason;
  }

  /** Ends requests from outside, wherever they stand; ids that are finished already are ignored. */
  finishRequests(requestIds: readonly string[], finishReason: FinishReason): void {
    for (const requestId of requestIds) {
      const request = this.requests.get(requestId);
      if (request !== undefined) this.finish(request, finishReason);
    }
    this.dropFinished();
  }

  /**
   * Its blocks can be had at once, even if a step that writes to them is in flight: the device
   * carries steps out in order, so the next owner writes later.
   */
  private finish(request: Request, finishReason: FinishReason): void {
    if (request.status === 'running') this.runningIsStale = true;
    else this.waitingIsStale = true;
    request.status = 'finished';
    request.finishReason = finishReason;
    this.kvCacheManager.free(request);
    this.requests.delete(request.requestId);
    this.finishedReqIds.push(request.requestId);
  }

  private dropFinished(): void {
    if (this.runningIsStale) this.running = this.running.filter(isUnfinished);
    if (this.waitingIsStale) this.waiting = this.waiting.filter(isUnfinished);
    this.runningIsStale = this.waitingIsStale = false;
  }
}

function isUnfinished(request: Request): boolean {
  return request.status !== 'finished';
}

function newRequestData(request: Request): NewRequestData {
  return {
    reqId: request.requestId,
    promptTokenIds: request.promptTokenIds,
    ...(request.numOutputTokens > 0 && { prefillTokenIds: request.allTokenIds() }),
    samplingParams: request.samplingParams,
    stopTokenIds: request.stopTokenIds,
    badWordsTokenIds: request.badWordsTokenIds,
    seed: request.seed,
    blockIds: [...request.blockIds],
    numComputedTokens: request.numComputedTokens,
  };
}
