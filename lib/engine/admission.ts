/**
 * The way of a call into the engine: its prompts are encoded, off this thread, then its requests
 * arrive together; the loop gives the call to the scheduler before its next step, and each request is
 * made when its turn comes. From the moment when it is made a call counts, and can be given up.
 */
import type { RequestOptions } from '../config/requestOptions';
import { readingOf } from '../config/snapshot';
import type { UniprocConfig } from '../config/uniprocConfig';
import { InvalidStateError, QueueFullError, RequestFailedError, UniprocError } from '../errors';
import type { Executor } from '../executor/executor';
import type { Call } from './call';
import type { CallInputs, EngineInput } from './callInputs';
import type { EndReason } from './metrics';
import type { OutputProcessor } from './outputProcessor';
import { type CallReceiver, PendingCall, type Sample } from './pendingCall';
import { Request } from './request';
import { ParentRequest } from './requestState';
import type { Scheduler } from './scheduler';
import { requestSeed, sampleSeed } from './seeds';
import { type Pieces, slicedWork } from '../slicedWork';
import type { SchedulingFault } from './waitingRequests';

/** Requests of an ended call up to which all are ended at once; of a larger one, in slices. */
const DROPPED_AT_ONCE = 64;

/** Counts of a call with one request, which exists already. */
const NOTHING_TO_MAKE = { numRequests: 0, numSamples: [] };

type Arrival = PendingCall | 'resetPrefixCache';

export class Admission {
  /** Calls that have begun and are not done. */
  private readonly calls = new Map<Call, PendingCall>();
  /** What came between two steps, in order. */
  private arrivals: Arrival[] = [];
  /** Each resolves once the requests of a large call that has ended are dropped. */
  private readonly drops = new Set<Promise<void>>();
  /** Requests of calls that have begun, which the scheduler does not have yet. */
  private numArriving = 0;
  /** Prompts that the engine was ever given: the next one's place. */
  numRequests = 0;
  /** Requests that the last step left waiting, for want of seats or blocks. */
  numLeftWaiting = 0;
  /** Set before the first call: it is made once the cache is sized. */
  scheduler!: Scheduler;

  constructor(
    private readonly config: UniprocConfig,
    private readonly executor: Executor,
    private readonly outputProcessor: OutputProcessor,
    /** Has the loop look for what arrived. */
    private readonly wake: () => void,
  ) {}

  /** No call has begun that is not done. */
  get isIdle(): boolean {
    return this.calls.size === 0;
  }

  /** Requests that no step computes, those among them whose prompt is still being encoded. */
  get numWaiting(): number {
    return this.scheduler.numWaiting + this.numArriving;
  }

  /** Samples that calls under way asked for and that are not complete. */
  get numUnfinishedRequests(): number {
    let count = this.outputProcessor.numUnfinishedRequests;
    for (const { numLeft } of this.calls.values()) count += numLeft;
    return count;
  }

  /** Requests that this process alone may end before they are done. */
  get numRankLocalRequests(): number {
    let count = this.outputProcessor.numRankLocalRequests;
    for (const { call, receiver, numLeft } of this.calls.values()) {
      if (call.isWatched || receiver.isStream) count += numLeft;
    }
    return count;
  }

  /**
   * Gives a call its place in the order of requests, from which follow their ids and seeds, and starts
   * to encode it. It begins with `begin`, now or later.
   */
  make(
    callInputs: CallInputs,
    receiver: CallReceiver,
    options: RequestOptions,
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
   * Throws what speaks against a call now: InvalidStateError while the executor sleeps, QueueFullError,
   * the reason of its signal.
   */
  check({ numRequests }: Pick<CallInputs, 'numRequests'>, { signal }: RequestOptions): void {
    signal?.throwIfAborted();
    if (this.executor.isSleeping) throw asleep();
    const { maxQueuedRequests, maxNumSeqs } = this.config.scheduler;
    if (maxQueuedRequests === null) return;
    // What the last step left waiting had no block or no seat, so that who comes after waits, too.
    const isFull = Math.min(this.numLeftWaiting, this.scheduler.numWaiting) > 0;
    const numFreeSeats = isFull ? 0 : Math.max(0, maxNumSeqs - this.scheduler.numRunning);
    const numWaiting = Math.max(0, this.numWaiting - numFreeSeats);
    const seatsForIt = Math.max(0, numFreeSeats - this.numWaiting);
    if (numWaiting + Math.max(0, numRequests - seatsForIt) <= maxQueuedRequests) return;
    throw new QueueFullError(maxQueuedRequests, numWaiting, numRequests);
  }

  /** From now on the requests of the call count. It may have ended already. */
  admit(pending: PendingCall): void {
    pending.isAdmitted = true;
    pending.call.whenEnded(() => this.ended(pending));
  }

  /** Has a call's requests come as soon as they can. It may have ended already. */
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

  /** Throws, with the call ended, what methods throw that a caller gave its signal. */
  private watch(pending: PendingCall): void {
    const { call, options, receiver } = pending;
    try {
      readingOf('options: signal', () =>
        call.watch(options, (reason, error) => {
          this.giveUp(pending, reason);
          receiver.failed(error, reason === 'abort');
        }),
      );
    } catch (error) {
      call.end();
      throw error;
    }
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
      });
      this.outputProcessor.addRequest(request, parent, index, pending.time);
      return request;
    } catch (error) {
      throw new RequestFailedError(sample.requestId, 'admitted', error);
    }
  };

  /** Of the sample's prompt, whose samples are made one after the other. */
  private parentOf(
    pending: PendingCall,
    { prompt, promptTokenIds, samplingParams }: EngineInput,
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
    ));
  }

  /** A request that other ranks began: it is computed along, and given to the scheduler at once. */
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
      1, // each sample comes by itself
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

  /** Gives the scheduler what arrived; `resetPrefixCache` carries a reset out. */
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
    // The executor may have fallen asleep since the call was made.
    if (this.executor.isSleeping) {
      this.fail(pending, asleep());
      return;
    }
    this.numArriving -= pending.numRequests;
    pending.isScheduled = true;
    this.scheduler.addSource(pending);
  }

  /** Ends a call that its caller gave up, and knows of. */
  giveUp(pending: PendingCall, reason: EndReason): void {
    pending.endReason = reason;
    pending.call.end();
  }

  /** A call is done; or it was given up or failed, perhaps with one of its requests, and all end. */
  private ended(pending: PendingCall): void {
    const { call, requestIds, numLeft } = pending;
    const hasBegun = this.calls.delete(call);
    if (hasBegun && !pending.isScheduled) this.numArriving -= pending.numRequests;
    if (call.numPromptsDone === call.numPrompts || !pending.isAdmitted) return;
    this.scheduler.removeSource(pending);
    // Ranks that step together drop requests between the same steps.
    if (requestIds.length <= DROPPED_AT_ONCE || this.executor.inLockstep) {
      this.drop(pending, requestIds);
    } else {
      // First those that hold seats and blocks.
      const { outputProcessor, scheduler } = this;
      const isOfCall = (requestId: string) => outputProcessor.callOf(requestId) === call;
      this.drop(pending, scheduler.runningReqIds.filter(isOfCall));
      this.dropInSlices(this.dropOneByOne(pending));
    }
    const records = this.outputProcessor.dropSamples(pending);
    if (records === null) return;
    if (numLeft > DROPPED_AT_ONCE) this.dropInSlices(records);
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

  /** Ends requests of a call that has ended, those that have not; the worker hears of it by the next step. */
  private drop({ endReason, isScheduled }: PendingCall, requestIds: readonly string[]): void {
    const dropped = this.outputProcessor.dropRequests(requestIds, endReason);
    if (!isScheduled || dropped.length === 0) return;
    this.scheduler.finishRequests(dropped, 'abort');
    this.wake();
  }

  /** Ends a call with an error. */
  fail(pending: PendingCall, error: unknown, reason: EndReason = 'error'): void {
    if (pending.call.isEnded) return;
    this.giveUp(pending, reason);
    pending.receiver.failed(error);
  }

  /**
   * Ends the call of a request that met `cause` while it was `stage`. Ids of requests that are
   * finished are ignored.
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

  /** Nothing runs any more: ends every call, in slices; resolves once all have heard of it. */
  async failAll(error: Error, reason: EndReason): Promise<void> {
    this.arrivals = [];
    function* calls(admission: Admission): Pieces {
      for (const pending of admission.calls.values()) {
        admission.fail(pending, error, reason);
        yield;
      }
    }
    await slicedWork.finish(calls(this));
    await Promise.all(this.drops);
  }

  /** Resolves once every call that has begun has arrived or has ended. */
  async settled(): Promise<void> {
    for (const pending of [...this.calls.values()]) await pending.encoding;
  }
}

function asRequestError(requestId: string, stage: string, error: unknown): UniprocError {
  return error instanceof UniprocError ? error : new RequestFailedError(requestId, stage, error);
}

function asleep(): InvalidStateError {
  return new InvalidStateError('the executor is asleep; call executor.wakeUp() first');
}
