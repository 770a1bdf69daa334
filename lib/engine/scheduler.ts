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
import { DEFAULT_LIMITS } from '../config/limits';
import type { SchedulerConfig } from '../config/uniprocConfig';
import { RequestFailedError } from '../errors';
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';
import type { KVCacheManager } from './kvCacheManager';
import { ListMemory } from './listMemory';
import type { EndReason, EngineCoreOutput, EngineCoreOutputs } from './outputs';
import { isUnfinished, MAX_ADMISSION_COST, Request } from './request';
import { RunningRequests } from './runningRequests';
import {
  addCachedRequest,
  addNewRequest,
  addResumedRequest,
  newStep,
  removeLatest,
  type StepInMaking,
} from './stepInMaking';
import { checkOutput, faultOf, nothingPermitted, OutputRecords } from './stepOutput';
import type { RequestSource, SchedulingFault, Waiting } from './waitingRequests';
import { WaitingRequests } from './waitingRequests';

const NO_REQUESTS: readonly Request[] = Object.freeze([]);
const NO_FAULTS: readonly SchedulingFault[] = Object.freeze([]);

export class Scheduler {
  /** By id: all that were made and are not finished. */
  private readonly requests = new Map<string, Request>();
  private readonly waiting = new WaitingRequests((a, b) => this.precedes(a, b));
  private readonly running = new RunningRequests((a, b) => this.precedes(a, b));
  /** Finished since the last step was scheduled, of those that the worker knows. */
  private finishedReqIds: string[] = [];
  private readonly faults: SchedulingFault[] = [];
  private readonly records = new OutputRecords();
  private readonly listMemory: ListMemory;
  private numArrivals = 0;
  /** Since the start. */
  numPreemptions = 0;

  /** The cache holds at least one request of the model's length, so the oldest can always run. */
  constructor(
    private readonly config: Omit<SchedulerConfig, 'asyncScheduling' | 'maxQueuedRequests'>,
    private kvCacheManager: KVCacheManager,
    /** Logits of a row, for messages. */
    private readonly vocabSize: number | null = null,
    maxListMemoryBytes: number = DEFAULT_LIMITS.maxListMemoryBytes,
  ) {
    this.listMemory = new ListMemory(maxListMemoryBytes);
  }

  get numWaiting(): number {
    return this.waiting.size;
  }

  get numRunning(): number {
    return this.running.size;
  }

  /** In the order in which they are scheduled. */
  get runningReqIds(): readonly string[] {
    return this.running.ids;
  }

  /** Those that were made, by arrival. */
  get unfinishedRequests(): readonly Request[] {
    return [...this.requests.values()].sort((a, b) => a.arrival - b.arrival);
  }

  hasUnfinishedRequests(): boolean {
    return this.requests.size + this.waiting.size > 0;
  }

  addRequest(request: Request, arrival = this.numArrivals++): void {
    request.arrival = arrival;
    this.requests.set(request.requestId, request);
    this.waiting.add(request);
  }

  /** Adds the requests that the source makes, which is one at least. */
  addSource(source: RequestSource): void {
    source.arrival = this.numArrivals;
    this.numArrivals += source.numLeft;
    this.waiting.addSource(source);
  }

  removeSource(source: RequestSource): void {
    this.waiting.removeSource(source);
  }

  /** Whether `a` goes before `b`: by arrival, and by priority first where that is the policy. */
  private precedes(a: Waiting, b: Waiting): boolean {
    if (this.config.policy === 'priority' && a.priority !== b.priority) {
      return a.priority < b.priority;
    }
    return a.arrival < b.arrival;
  }

  /**
   * The next step: running and waiting requests in the policy's order, as far as there is budget; so
   * those that run come before those that wait, except, under 'priority', before a more urgent one.
   * When blocks run out the last of the running requests gives its own back and is computed again
   * later. Once a waiting request cannot enter, none behind it does (where it lacks only a place for its
   * lists: none with long lists), nor once those that entered cost so much that the loop would be held.
   */
  schedule(): SchedulerOutput {
    const step = newStep(this.finishedReqIds);
    this.finishedReqIds = [];
    this.waiting.beginStep();

    let budget = this.config.maxNumBatchedTokens;
    /** Running requests before `next` have had their turn in this step; they are not preempted in it. */
    let next = 0;
    let mayEnter = true;
    let admissionCost = 0;
    while (budget > 0) {
      const request = this.running.at(next);
      const first = this.waiting.findFirst();
      const enters: boolean =
        mayEnter && first !== undefined && (request === undefined || this.precedes(first, request));
      let candidate: Waiting | undefined = enters ? first : request;
      if (candidate === undefined) break;
      try {
        if (!(candidate instanceof Request)) {
          candidate = this.waiting.makeNext(candidate);
          this.addRequest(candidate, candidate.arrival);
        }
        if (enters) {
          const numNewTokens = this.admit(candidate, budget, step);
          if (numNewTokens > 0) next++;
          admissionCost += numNewTokens > 0 ? candidate.admissionCost : 0;
          mayEnter = this.waiting.findFirst() !== candidate && admissionCost < MAX_ADMISSION_COST;
          budget -= numNewTokens;
        } else {
          budget -= this.scheduleRunning(candidate, budget, step);
          // It was the last, and gave its blocks back, if it no longer runs.
          if (candidate.status === 'running') next++;
        }
      } catch (error) {
        if (candidate instanceof Request) this.fail(candidate, error, step);
        else this.faults.push({ requestId: null, source: candidate, error });
      }
    }
    step.totalNumScheduledTokens = this.config.maxNumBatchedTokens - budget;
    return step;
  }

  /** Ends a request that could not be scheduled; the step goes on without it. */
  private fail(request: Request, error: unknown, step: StepInMaking): void {
    removeLatest(step, request);
    // It may have been on its way from one to the other.
    if (request.queueIndex >= 0) this.waiting.remove(request);
    this.running.remove(request);
    request.status = 'running';
    this.finish(request, 'error');
    this.faults.push({ requestId: request.requestId, source: null, error });
  }

  /** Requests that ended because scheduling them threw, since this was last called. */
  takeFaults(): readonly SchedulingFault[] {
    return this.faults.length > 0 ? this.faults.splice(0) : NO_FAULTS;
  }

  /** Returns how many tokens of the request the step computes. */
  private scheduleRunning(request: Request, budget: number, step: StepInMaking): number {
    if (request.reachesLimitInFlight) return 0;
    const numNewTokens = this.numTokensToCompute(request, budget);
    const newBlockIds = this.allocateOrPreempt(request, numNewTokens, step);
    if (newBlockIds === null) return 0;
    addCachedRequest(step, request, newBlockIds);
    this.advance(request, numNewTokens, step);
    return numNewTokens;
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
      if (this.preemptLast(step) === request) return null;
    }
  }

  private preemptLast(step: StepInMaking): Request {
    const request = this.running.takeLast();
    this.kvCacheManager.free(request);
    this.listMemory.free(request);
    request.status = 'preempted';
    request.numComputedTokens = 0;
    this.numPreemptions++;
    this.waiting.add(request);
    step.preemptedReqIds.push(request.requestId);
    return request;
  }

  /**
   * The worker has lost all that it knew, and the cache is another: every request is new to it, and
   * computed again from the tokens it has. No step is in flight. All requests are made, since other
   * ranks are told of them. Returns the ids of those that ran.
   */
  restart(kvCacheManager: KVCacheManager): string[] {
    const add = (request: Request) => this.addRequest(request, request.arrival);
    this.faults.push(...this.waiting.makeAll(add));
    const ran = this.running.ids;
    this.numPreemptions += ran.length;
    this.kvCacheManager = kvCacheManager;
    this.running.clear();
    this.waiting.clear();
    this.listMemory.clear();
    this.finishedReqIds = [];
    for (const request of this.requests.values()) {
      request.status = 'waiting';
      request.isOnWorker = false;
      request.numComputedTokens = 0;
      request.numCachedBlocks = 0;
      request.tokensInFlight.length = 0;
      request.blockIds.length = 0;
      this.waiting.add(request);
    }
    return ran;
  }

  /**
   * Takes the first of the waiting requests up, if it can have a seat, blocks for all its known
   * tokens and a place for its lists. Returns how many of them the step computes; 0 when it has to wait.
   */
  private admit(request: Request, budget: number, step: StepInMaking): number {
    // A preempted one comes back with all its tokens, so those in flight have to be known.
    if (request.numOutputPlaceholders > 0) return 0;
    const computedBlocks = this.makeRoom(request, step);
    if (computedBlocks === null) return 0;
    this.kvCacheManager.shareBlocks(request, computedBlocks);
    this.listMemory.take(request);
    const numNewTokens = this.numTokensToCompute(request, budget);
    this.kvCacheManager.allocateSlots(request, numNewTokens);
    if (request.isOnWorker) addResumedRequest(step, request);
    else addNewRequest(step, request);
    request.isOnWorker = true;
    this.waiting.remove(request);
    this.running.add(request);
    request.status = 'running';
    this.advance(request, numNewTokens, step);
    return numNewTokens;
  }

  /**
   * The cached blocks that the request begins with, once it has a seat and room, for which running
   * requests of strictly lower priority give up theirs, the last first. Null, and none is preempted,
   * when even that would not be enough.
   */
  private makeRoom(request: Request, step: StepInMaking): readonly number[] | null {
    const { kvCacheManager, listMemory, running } = this;
    const { maxNumSeqs } = this.config;
    const victims = this.outrankedBy(request);
    if (running.size >= maxNumSeqs && victims.length === 0) return null;
    if (!listMemory.hasRoom(request, victims)) return this.waiting.setAside(request);
    // Half a prompt would hold blocks that it may have to give up before it is of use.
    const computedBlocks = kvCacheManager.findRoom(request, victims);
    if (computedBlocks === null) return null;
    while (
      running.size >= maxNumSeqs ||
      !kvCacheManager.hasRoomFor(request, computedBlocks) ||
      !listMemory.hasRoom(request)
    ) {
      this.preemptLast(step);
    }
    return computedBlocks;
  }

  /** Running requests of strictly lower priority, where that is the policy. */
  private outrankedBy({ priority }: Request): readonly Request[] {
    return this.config.policy === 'priority' ? this.running.outrankedBy(priority) : NO_REQUESTS;
  }

  /** Puts the request into the step, which samples once it has computed all tokens there are. */
  private advance(request: Request, numNewTokens: number, step: StepInMaking): void {
    step.numScheduledTokens.set(request.requestId, numNewTokens);
    request.numComputedTokens += numNewTokens;
    const samples = request.numComputedTokens === request.numTokensWithPlaceholders ? 1 : 0;
    request.numOutputPlaceholders += samples;
    request.tokensInFlight.push(samples);
  }

  /**
   * Takes what a step sampled: appends it, ends the requests it ends. Steps are given in the order
   * they were scheduled. Tokens of a request that ended while the step was in flight are dropped. A
   * row that is missing or wrong ends its request with an error; throws InvalidStateError when the
   * output is not one of this step at all. What is returned is valid until the next call.
   */
  updateFromOutput(step: SchedulerOutput, output: ModelRunnerOutput): EngineCoreOutputs {
    checkOutput(step, output, this.requests);
    let length = 0;
    for (const requestId of step.numScheduledTokens.keys()) {
      const request = this.requests.get(requestId);
      if (request === undefined) continue;
      const result = this.records.at(length++);
      result.requestId = requestId;
      try {
        this.updateRequest(request, output, result);
      } catch (error) {
        result.error = new RequestFailedError(requestId, 'computed', error);
        if (request.status !== 'finished') this.finish(request, 'error');
      }
    }
    this.dropFinished();
    const { tokenIds } = output.sampledTokenIds;
    const { outputs } = this.records;
    return { outputs, length, sampledTokenIds: tokenIds, logprobs: output.logprobs };
  }

  /** Writes what the step brought the request into `result`. */
  private updateRequest(
    request: Request,
    output: ModelRunnerOutput,
    result: EngineCoreOutput,
  ): void {
    const { requestId } = request;
    const { tokenIds, offsets } = output.sampledTokenIds;
    const row = output.reqIdToIndex.get(requestId) ?? -1;
    const start = offsets.at(Math.max(row, 0)) ?? 0;
    const numExpected = request.tokensInFlight.shift() ?? 0;
    result.start = result.end = start;
    result.promptLogprobs = output.promptLogprobs.get(requestId) ?? null;
    result.finishReason = null;
    result.error = faultOf(requestId, output, row, numExpected, this.vocabSize);
    if (result.error !== null) this.finish(request, 'error');
    else this.appendTokens(request, tokenIds, offsets[row + 1], result);
  }

  /** Those from `result.start` to `end`, or up to the one that the request ends with. */
  private appendTokens(
    request: Request,
    tokenIds: Int32Array,
    end: number,
    result: EngineCoreOutput,
  ): void {
    const { start } = result;
    request.numOutputPlaceholders -= end - start;
    for (let i = start; i < end && isUnfinished(request); i++) {
      if (request.forbids(tokenIds[i], this.vocabSize ?? Infinity)) {
        result.error = nothingPermitted(request);
        this.finish(request, 'error');
        return;
      }
      request.appendOutputToken(tokenIds[i]);
      result.end = i + 1;
      result.finishReason = request.checkStop();
      if (result.finishReason !== null) this.finish(request, result.finishReason);
    }
  }

  /** Ends requests from outside, wherever they stand; ids that are finished already are ignored. */
  finishRequests(requestIds: readonly string[], finishReason: EndReason): void {
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
  private finish(request: Request, finishReason: EndReason): void {
    if (request.status === 'running') this.running.isStale = true;
    else this.waiting.remove(request);
    request.status = 'finished';
    request.finishReason = finishReason;
    if (finishReason === 'error') this.kvCacheManager.discard(request);
    else this.kvCacheManager.free(request);
    this.listMemory.free(request);
    this.requests.delete(request.requestId);
    if (request.isOnWorker) this.finishedReqIds.push(request.requestId);
  }

  private dropFinished(): void {
    if (this.running.isStale) this.running.sweep();
  }
}
