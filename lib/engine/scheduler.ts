/**
 * Schedules steps (vLLM V1's Scheduler). There is no separate prefill or decode phase: a request
 * has tokens (known, or sampled by a step in flight), some of them computed, and each step computes
 * more, within its token budget, for as many requests as have blocks.
 *
 * A step may be scheduled before the previous step's output is read, so scheduled tokens count as
 * computed, and a token to be sampled is a placeholder until `updateFromOutput` delivers it. The
 * schedule depends on the order of calls alone, not on timing.
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
  type StepBuilder,
} from './stepBuilder';
import { checkOutput, faultOf, noAllowedToken, OutputRecords } from './stepOutput';
import type { RequestSource, SchedulingFault, Waiting } from './waitingRequests';
import { WaitingRequests } from './waitingRequests';

const NO_REQUESTS: readonly Request[] = Object.freeze([]);
const NO_FAULTS: readonly SchedulingFault[] = Object.freeze([]);

export class Scheduler {
  /** Unfinished requests, by id. */
  private readonly requests = new Map<string, Request>();
  private readonly waiting = new WaitingRequests((a, b) => this.precedes(a, b));
  private readonly running = new RunningRequests((a, b) => this.precedes(a, b));
  /** Requests on the worker that finished since the last step was scheduled. */
  private finishedReqIds: string[] = [];
  private readonly faults: SchedulingFault[] = [];
  private readonly records = new OutputRecords();
  private readonly listMemory: ListMemory;
  private numArrivals = 0;
  /** Preemptions since the start. */
  numPreemptions = 0;

  /** The cache holds at least one request of maxModelLen, so the oldest can always run. */
  constructor(
    private readonly config: Omit<SchedulerConfig, 'asyncScheduling' | 'maxQueuedRequests'>,
    private kvCacheManager: KVCacheManager,
    /** For error messages. */
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

  /** In scheduling order. */
  get runningReqIds(): readonly string[] {
    return this.running.ids;
  }

  /** Unfinished requests, by arrival; excludes requests that sources have not made yet. */
  get unfinishedRequests(): readonly Request[] {
    return [...this.requests.values()].sort((a, b) => a.arrival - b.arrival);
  }

  /** The unfinished request with this id. */
  requestOf(requestId: string): Request | undefined {
    return this.requests.get(requestId);
  }

  hasUnfinishedRequests(): boolean {
    return this.requests.size + this.waiting.size > 0;
  }

  addRequest(request: Request, arrival = this.numArrivals++): void {
    request.arrival = arrival;
    this.requests.set(request.requestId, request);
    this.waiting.add(request);
  }

  /** Adds a source of at least one request. */
  addSource(source: RequestSource): void {
    source.arrival = this.numArrivals;
    this.numArrivals += source.numLeft;
    this.waiting.addSource(source);
  }

  removeSource(source: RequestSource): void {
    this.waiting.removeSource(source);
  }

  /** Whether `a` is scheduled before `b`: by priority under that policy, then by arrival. */
  private precedes(a: Waiting, b: Waiting): boolean {
    if (this.config.policy === 'priority' && a.priority !== b.priority) {
      return a.priority < b.priority;
    }
    return a.arrival < b.arrival;
  }

  /**
   * Schedules requests in policy order within the token budget, running ones before waiting ones except
   * more urgent ones under 'priority'. When blocks run out, the last running request is preempted.
   * Admission stops at the first request that does not fit, unless it lacks only list memory.
   */
  schedule(): SchedulerOutput {
    const step = newStep(this.finishedReqIds);
    this.finishedReqIds = [];
    this.waiting.beginStep();

    let budget = this.config.maxNumBatchedTokens;
    /** Running requests before `next` are scheduled in this step and cannot be preempted in it. */
    let next = 0;
    let canAdmit = true;
    let admissionCost = 0;
    while (budget > 0) {
      const request = this.running.at(next);
      const first = this.waiting.findFirst();
      const isAdmission: boolean =
        canAdmit && first !== undefined && (request === undefined || this.precedes(first, request));
      let candidate: Waiting | undefined = isAdmission ? first : request;
      if (candidate === undefined) break;
      try {
        if (!(candidate instanceof Request)) {
          candidate = this.waiting.makeNext(candidate);
          this.addRequest(candidate, candidate.arrival);
        }
        if (isAdmission) {
          const numNewTokens = this.admit(candidate, budget, step);
          if (numNewTokens > 0) next++;
          admissionCost += numNewTokens > 0 ? candidate.admissionCost : 0;
          canAdmit = this.waiting.findFirst() !== candidate && admissionCost < MAX_ADMISSION_COST;
          budget -= numNewTokens;
        } else {
          budget -= this.scheduleRunning(candidate, budget, step);
          // If not running, it was the last and preempted itself.
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

  /** Fails a request that could not be scheduled; the step continues without it. */
  private fail(request: Request, error: unknown, step: StepBuilder): void {
    removeLatest(step, request);
    // It may be in either queue, or in neither.
    if (request.queueIndex >= 0) this.waiting.remove(request);
    this.running.remove(request);
    request.status = 'running';
    this.finish(request, 'error');
    this.faults.push({ requestId: request.requestId, source: null, error });
  }

  /** Returns and clears the scheduling faults. */
  takeFaults(): readonly SchedulingFault[] {
    return this.faults.length > 0 ? this.faults.splice(0) : NO_FAULTS;
  }

  /** Schedules a running request; returns its number of scheduled tokens. */
  private scheduleRunning(request: Request, budget: number, step: StepBuilder): number {
    if (request.reachesLimitInFlight) return 0;
    const numNewTokens = this.numTokensToCompute(request, budget);
    const newBlockIds = this.allocateOrPreempt(request, numNewTokens, step);
    if (newBlockIds === null) return 0;
    addCachedRequest(step, request, newBlockIds);
    this.advance(request, numNewTokens, step);
    return numNewTokens;
  }

  /** Remaining tokens, limited by the budget and longPrefillTokenThreshold. */
  private numTokensToCompute(request: Request, budget: number): number {
    const left = request.numTokensWithPlaceholders - request.numComputedTokens;
    return Math.min(left, budget, this.config.longPrefillTokenThreshold || Infinity);
  }

  /** Allocates blocks, preempting from the last if needed; null if that is the request itself. */
  private allocateOrPreempt(
    request: Request,
    numNewTokens: number,
    step: StepBuilder,
  ): readonly number[] | null {
    for (;;) {
      const newBlockIds = this.kvCacheManager.allocateSlots(request, numNewTokens);
      if (newBlockIds !== null) return newBlockIds;
      if (this.preemptLast(step) === request) return null;
    }
  }

  private preemptLast(step: StepBuilder): Request {
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
   * Requeues every request with a new cache, to be recomputed from its tokens, after the worker
   * lost its state; no step may be in flight. Makes all requests, since joining ranks receive them.
   * Returns the ids of the requests that were running.
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
      request.restart();
      this.waiting.add(request);
    }
    return ran;
  }

  /**
   * Admits the first waiting request if a slot, blocks for all its known tokens and list memory are
   * available. Returns its number of scheduled tokens; 0 if it must wait.
   */
  private admit(request: Request, budget: number, step: StepBuilder): number {
    // A request resumes with all its tokens, so none may be in flight.
    if (request.numOutputPlaceholders > 0) return 0;
    const computedBlocks = this.makeRoom(request, step);
    if (computedBlocks === null) return 0;
    this.kvCacheManager.shareBlocks(request, computedBlocks);
    this.listMemory.allocate(request);
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
   * Makes room for the request, preempting running requests of strictly lower priority if needed,
   * the last first. Returns its cached prefix blocks; null, without preempting, if that would not
   * suffice.
   */
  private makeRoom(request: Request, step: StepBuilder): readonly number[] | null {
    const { kvCacheManager, listMemory, running } = this;
    const { maxNumSeqs } = this.config;
    const victims = this.lowerPriorityThan(request);
    if (running.size >= maxNumSeqs && victims.length === 0) return null;
    if (!listMemory.hasRoom(request, victims)) return this.waiting.setAside(request);
    // A partly allocated prompt would hold blocks that it may have to free before use.
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

  /** Running requests of strictly lower priority, under the priority policy. */
  private lowerPriorityThan({ priority }: Request): readonly Request[] {
    if (this.config.policy !== 'priority') return NO_REQUESTS;
    return this.running.lowerPriorityThan(priority);
  }

  /** Adds the request to the step; it samples once all its tokens are computed. */
  private advance(request: Request, numNewTokens: number, step: StepBuilder): void {
    step.numScheduledTokens.set(request.requestId, numNewTokens);
    request.numComputedTokens += numNewTokens;
    const samples = request.numComputedTokens === request.numTokensWithPlaceholders ? 1 : 0;
    request.numOutputPlaceholders += samples;
    request.tokensInFlight.push(samples);
    step.hasStructuredOutputRequests ||= samples > 0 && request.hasGrammar;
  }

  /**
   * Appends a step's sampled tokens and finishes requests that stop. Steps must be passed in
   * scheduling order. Tokens of requests that finished while the step was in flight are dropped. A
   * missing or invalid row fails its request; throws InvalidStateError if the output does not
   * belong to this step. The result is valid until the next call.
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
    this.removeFinished();
    const { sampledTokenIds, logprobs, pooled } = output;
    const { outputs } = this.records;
    return { outputs, length, sampledTokenIds: sampledTokenIds.tokenIds, logprobs, pooled };
  }

  /** Writes the request's output of the step into `result`. */
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

  /**
   * Appends the tokens from `result.start` to `end`, stopping at the one that finishes the request.
   */
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
        result.error = noAllowedToken(request);
        this.finish(request, 'error');
        return;
      }
      request.appendOutputToken(tokenIds[i]);
      result.end = i + 1;
      result.finishReason = request.checkStop();
      if (result.finishReason !== null) this.finish(request, result.finishReason);
    }
  }

  /** Finishes requests in any state; ignores ids that are finished. */
  finishRequests(requestIds: readonly string[], finishReason: EndReason): void {
    for (const requestId of requestIds) {
      const request = this.requests.get(requestId);
      if (request !== undefined) this.finish(request, finishReason);
    }
    this.removeFinished();
  }

  /**
   * Frees its blocks at once, even if a step in flight writes to them: the device executes steps in
   * order, so the next owner writes later.
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

  private removeFinished(): void {
    if (this.running.isStale) this.running.sweep();
  }
}
