/**
 * Admits calls: prompts are encoded off this thread, then all requests of the call arrive together.
 * The loop hands the call to the scheduler before its next step, and each Request is made when it
 * reaches the head of the queue. A call counts, and can be aborted, from its creation.
 */
import { abortReason, isAborted } from '../abortSignal';
import type { UniprocConfig } from '../config/uniprocConfig';
import {
  InvalidStateError,
  QueueFullError,
  RequestAbortedError,
  RequestFailedError,
  UniprocError,
} from '../errors';
import type { Executor } from '../executor/executor';
import { codeOf, log } from '../log';
import type { Call } from './call';
import type { CallInputs, EngineInput } from './callInputs';
import { type CallOptions, checkTask } from './callOptions';
import type { EndReason } from './metrics';
import type { OutputProcessor } from './outputProcessor';
import { type CallReceiver, PendingCall, type Sample } from './pendingCall';
import { Request } from './request';
import { ParentRequest } from './requestState';
import type { Scheduler } from './scheduler';
import { requestSeed, sampleSeed } from './seeds';
import { stopErrorOf } from './stopError';
import { type Pieces, slicedWork } from '../slicedWork';
import type { SchedulingFault } from './waitingRequests';

/** Requests of an ended call that are dropped at once; a larger call is dropped in slices. */
const MAX_DROPPED_AT_ONCE = 64;

/** Sample counts of a call that needs no new requests. */
const NOTHING_TO_MAKE = { numRequests: 0, numSamples: [], texts: [] };

type Arrival = PendingCall | 'resetPrefixCache';

export class Admission {
  /** Calls in progress. */
  private readonly calls = new Map<Call, PendingCall>();
  /** Arrivals since the last step, in order. */
  private arrivals: Arrival[] = [];
  /** One promise for each large ended call; it resolves once the call's requests are dropped. */
  private readonly drops = new Set<Promise<void>>();
  /** Requests of calls in progress that the scheduler does not have yet. */
  private numArriving = 0;
  /** Prompts submitted since the start; the index of the next prompt. */
  numRequests = 0;
  /** Requests left waiting by the last step for lack of slots or blocks. */
  numLeftWaiting = 0;
  /** Set before the first call, once the KV cache is sized. */
  scheduler!: Scheduler;

  constructor(
    private readonly config: UniprocConfig,
    private readonly executor: Executor,
    private readonly outputProcessor: OutputProcessor,
    /** Wakes the engine loop. */
    private readonly wake: () => void,
  ) {}

  /** No call is in progress. */
  get isIdle(): boolean {
    return this.calls.size === 0;
  }

  /** Requests not running, including those still being encoded. */
  get numWaiting(): number {
    return this.scheduler.numWaiting + this.numArriving;
  }

  /** Incomplete samples of calls in progress. */
  get numUnfinishedRequests(): number {
    let count = this.outputProcessor.numUnfinishedRequests;
    for (const { numLeft } of this.calls.values()) count += numLeft;
    return count;
  }

  /** Requests that this rank may end on its own. */
  get numRankLocalRequests(): number {
    let count = this.outputProcessor.numRankLocalRequests;
    for (const { call, receiver, numLeft } of this.calls.values()) {
      if (call.isWatched || receiver.isStream) count += numLeft;
    }
    return count;
  }

  /**
   * Assigns the call its request ids and seeds, by order of creation, and starts encoding its
   * prompts. `begin` starts the call, now or later.
   */
  make(
    callInputs: CallInputs,
    receiver: CallReceiver,
    options: CallOptions,
    call: Call,
    firstRequest = this.numRequests,
  ): PendingCall {
    this.numRequests = Math.max(this.numRequests, firstRequest + callInputs.numPrompts);
    const pending = new PendingCall(
      callInputs,
      receiver,
      options,
      call,
      firstRequest,
      this.makeRequest,
    );
    this.encode(pending, callInputs);
    return pending;
  }

  private encode(pending: PendingCall, callInputs: CallInputs): void {
    try {
      const encoded = callInputs.encode(() => !pending.call.isEnded);
      if (encoded instanceof Promise) {
        pending.encoding = encoded.then(
          (inputs) => {
            pending.inputs = inputs;
            this.wake();
          },
          (error: unknown) => this.failToEncode(pending, error),
        );
      } else {
        pending.inputs = encoded;
      }
    } catch (error) {
      this.failToEncode(pending, error);
    }
  }

  private failToEncode(pending: PendingCall, error: unknown): void {
    this.fail(pending, asRequestError(String(pending.firstRequest), 'encoded', error));
    this.wake();
  }

  /**
   * Checks that a call can be admitted now. Throws InvalidStateError while the executor sleeps,
   * QueueFullError, or RequestAbortedError.
   */
  check(
    { numPrompts, numRequests }: Pick<CallInputs, 'numPrompts' | 'numRequests'>,
    options: CallOptions,
  ): void {
    checkTask(this.config.model.transformer.pooling, options);
    const { signal } = options;
    if (signal !== undefined && isAborted(signal)) {
      const progress = { numPrompts, numPromptsDone: 0, numOutputTokens: 0 };
      throw new RequestAbortedError(abortReason(signal), progress, () => []);
    }
    if (this.executor.isSleeping) throw asleep();
    const { maxQueuedRequests, maxNumSeqs } = this.config.scheduler;
    if (maxQueuedRequests === null) return;
    // Requests left waiting by the last step lacked blocks or slots, so later requests wait too.
    const isFull = Math.min(this.numLeftWaiting, this.scheduler.numWaiting) > 0;
    const numFreeSlots = isFull ? 0 : Math.max(0, maxNumSeqs - this.scheduler.numRunning);
    const numWaiting = Math.max(0, this.numWaiting - numFreeSlots);
    const numSlotsForCall = Math.max(0, numFreeSlots - this.numWaiting);
    if (numWaiting + Math.max(0, numRequests - numSlotsForCall) <= maxQueuedRequests) return;
    throw new QueueFullError(maxQueuedRequests, numWaiting, numRequests);
  }

  /** Counts the call's requests from now on. The call may have ended already. */
  admit(pending: PendingCall): void {
    pending.isAdmitted = true;
    pending.call.whenEnded(() => this.onCallEnded(pending));
  }

  /** Enqueues the call's requests as soon as they are encoded. The call may have ended already. */
  begin(pending: PendingCall): void {
    const { call } = pending;
    if (call.numPrompts === 0) call.end();
    if (call.isEnded) return;
    this.watch(pending);
    this.admit(pending);
    this.calls.set(call, pending);
    this.numArriving += pending.numRequests;
    if (pending.encoding === null) this.arrive(pending);
    else void pending.encoding.then(() => this.arrive(pending));
  }

  /** Watches the call's signal and timeout. */
  private watch(pending: PendingCall): void {
    const { call, options, receiver } = pending;
    const partialOutputs = () => pending.partialOutputs();
    call.watch(options, partialOutputs, (reason, error) => {
      this.end(pending, reason);
      receiver.failed(error, reason === 'abort');
    });
  }

  /** Throws RequestFailedError. */
  private readonly makeRequest = (
    pending: PendingCall,
    input: EngineInput,
    sample: Sample,
  ): Request => {
    try {
      const { firstRequest, options } = pending;
      const { requestId, promptIndex, index } = sample;
      const { promptTokenIds, samplingParams, stopTokenIds, badWordsTokenIds } = input;
      const parent = this.parentOf(pending, input, sample);
      const place = firstRequest + promptIndex;
      const seed = samplingParams.seed ?? requestSeed(this.config.model.seed, place);
      const request = new Request({
        requestId,
        promptTokenIds,
        samplingParams,
        stopTokenIds,
        badWordsTokenIds,
        seed: sampleSeed(BigInt(seed), index),
        maxModelLen: this.config.model.maxModelLen,
        priority: options.priority,
        cacheSalt: options.cacheSalt,
        pooling: options.pooling,
      });
      this.outputProcessor.addRequest(request, parent, index, pending.time);
      return request;
    } catch (error) {
      throw new RequestFailedError(sample.requestId, 'admitted', error);
    }
  };

  /** The ParentRequest of the sample's prompt; samples of a prompt are made consecutively. */
  private parentOf(
    pending: PendingCall,
    { prompt, promptTokenIds, samplingParams, reply }: EngineInput,
    { promptIndex, index }: Sample,
  ): ParentRequest {
    if (index > 0 && pending.parent !== null) return pending.parent;
    return (pending.parent = new ParentRequest(
      String(pending.firstRequest + promptIndex),
      prompt,
      promptTokenIds,
      samplingParams,
      pending.receiver.of(promptIndex),
      pending.call,
      samplingParams.n,
      pending.time,
      reply,
    ));
  }

  /** Adds a request that other ranks have begun; the scheduler gets it at once. */
  adopt(request: Request, receiver: CallReceiver, call: Call): void {
    const { requestId, promptTokenIds, samplingParams } = request;
    const pending = new PendingCall(NOTHING_TO_MAKE, receiver, {}, call, 0, this.makeRequest);
    const parent = new ParentRequest(
      requestId,
      null,
      promptTokenIds,
      samplingParams,
      receiver.of(0),
      call,
      1, // each sample is added separately
    );
    this.outputProcessor.addRequest(request, parent, 0, pending.time);
    pending.requestIds.push(requestId);
    pending.isScheduled = true;
    this.calls.set(call, pending);
    this.admit(pending);
    this.scheduler.addRequest(request);
  }

  resetPrefixCache(): void {
    this.arrive('resetPrefixCache');
  }

  private arrive(arrival: Arrival): void {
    this.arrivals.push(arrival);
    this.wake();
  }

  /** Hands arrivals to the scheduler; `resetPrefixCache` performs a reset. */
  takeArrivals(resetPrefixCache: () => void): void {
    while (this.arrivals.length > 0) {
      const { arrivals } = this;
      this.arrivals = [];
      for (const arrival of arrivals) {
        if (arrival === 'resetPrefixCache') resetPrefixCache();
        else this.schedule(arrival);
      }
    }
  }

  private schedule(pending: PendingCall): void {
    if (pending.call.isEnded) return;
    // The executor may have been put to sleep since the call was made.
    if (this.executor.isSleeping) {
      this.fail(pending, asleep());
      return;
    }
    this.numArriving -= pending.numRequests;
    pending.isScheduled = true;
    this.scheduler.addSource(pending);
  }

  /** Ends a call; the caller is notified separately. */
  end(pending: PendingCall, reason: EndReason): void {
    pending.endReason = reason;
    pending.call.end();
  }

  /** Called when a call ends: done, aborted or failed. Drops its unfinished requests. */
  private onCallEnded(pending: PendingCall): void {
    const { call, requestIds, numLeft } = pending;
    const hasBegun = this.calls.delete(call);
    if (hasBegun && !pending.isScheduled) this.numArriving -= pending.numRequests;
    if (call.numPromptsDone === call.numPrompts || !pending.isAdmitted) return;
    this.scheduler.removeSource(pending);
    // Ranks in lockstep drop requests between the same steps.
    if (requestIds.length <= MAX_DROPPED_AT_ONCE || this.executor.inLockstep) {
      this.drop(pending, requestIds);
    } else {
      // First the requests that hold slots and blocks.
      const { outputProcessor, scheduler } = this;
      const isOfCall = (requestId: string) => outputProcessor.callOf(requestId) === call;
      this.drop(pending, scheduler.runningReqIds.filter(isOfCall));
      this.dropInSlices(this.dropOneByOne(pending));
    }
    const records = this.outputProcessor.dropSamples(pending);
    if (records === null) return;
    if (numLeft > MAX_DROPPED_AT_ONCE) this.dropInSlices(records);
    else while (records.next().done !== true);
  }

  private *dropOneByOne(pending: PendingCall): Pieces {
    for (const requestId of pending.requestIds) {
      this.drop(pending, [requestId]);
      yield;
    }
  }

  private dropInSlices(pieces: Pieces): void {
    const dropped = slicedWork.finish(pieces);
    this.drops.add(dropped);
    void dropped.finally(() => this.drops.delete(dropped));
  }

  /** Ends the unfinished requests of an ended call; the worker frees them with the next step. */
  private drop({ endReason, isScheduled }: PendingCall, requestIds: readonly string[]): void {
    const dropped = this.outputProcessor.dropRequests(requestIds, endReason);
    if (!isScheduled || dropped.length === 0) return;
    this.scheduler.finishRequests(dropped, 'abort');
    this.wake();
  }

  /** Ends a call with an error. */
  fail(pending: PendingCall, error: unknown, reason: EndReason = 'error'): void {
    if (pending.call.isEnded) return;
    const { firstRequest, numRequests } = pending;
    log('the call of %d requests from %d on ends: %s', numRequests, firstRequest, codeOf(error));
    this.end(pending, reason);
    pending.receiver.failed(error);
  }

  /**
   * Ends the call of a request that failed with `cause` while it was being `stage` (for example
   * 'scheduled'). Ignores finished requests.
   */
  failRequest(requestId: string, stage: string, cause: unknown): void {
    const call = this.outputProcessor.callOf(requestId);
    const pending = call && this.calls.get(call);
    if (pending === undefined) return;
    this.fail(pending, asRequestError(requestId, stage, cause));
  }

  /** Ends the call of a request that could not be scheduled. */
  failToSchedule({ requestId, source, error }: SchedulingFault): void {
    if (requestId !== null) this.failRequest(requestId, 'scheduled', error);
    else this.fail(source as PendingCall, error);
  }

  /** Fails every call, in slices, when the engine stops; resolves once all callers are notified. */
  async failAll(error: Error, reason: EndReason): Promise<void> {
    this.arrivals = [];
    function* calls(admission: Admission): Pieces {
      for (const pending of admission.calls.values()) {
        const own = stopErrorOf(error, () => pending.partialOutputs());
        admission.fail(pending, own, reason);
        yield;
      }
    }
    await slicedWork.finish(calls(this));
    await Promise.all(this.drops);
  }

  /** Resolves once every call in progress is encoded or has ended. */
  async settled(): Promise<void> {
    for (const pending of [...this.calls.values()]) await pending.encoding;
  }
}

function asRequestError(requestId: string, stage: string, error: unknown): UniprocError {
  return error instanceof UniprocError ? error : new RequestFailedError(requestId, stage, error);
}

function asleep(): InvalidStateError {
  return new InvalidStateError('the executor is asleep; call llm.wakeUp() first');
}
