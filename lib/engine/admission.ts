/**
 * The way of a call into the engine: its prompts are encoded, off this thread, then its requests are
 * made, in slices, and arrive together; the loop gives them to the scheduler before its next step.
 * From the moment when it is made a call counts, and can be given up.
 */
import type { RequestOptions } from '../config/requestOptions';
import { readingOf } from '../config/snapshot';
import type { UniprocConfig } from '../config/uniprocConfig';
import { InvalidStateError, QueueFullError, RequestFailedError, UniprocError } from '../errors';
import type { Executor } from '../executor/executor';
import type { Call } from './call';
import type { CallInputs, EngineInput } from './callInputs';
import { type EndReason, type EngineMetrics, RequestTimes } from './metrics';
import type { OutputProcessor } from './outputProcessor';
import { type CallReceiver, PendingCall, type UnmadeRequest } from './pendingCall';
import { Request } from './request';
import { ParentRequest } from './requestState';
import type { Scheduler } from './scheduler';
import { requestSeed, sampleSeed } from './seeds';
import { type Pieces, slicedWork } from './slicedWork';

/** Requests of an ended call up to which all are ended at once; of a larger one, in slices. */
const DROPPED_AT_ONCE = 64;

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
    private readonly metrics: EngineMetrics,
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
    for (const { numUnmade } of this.calls.values()) count += numUnmade;
    return count;
  }

  /** Requests that this process alone may end before they are done. */
  get numRankLocalRequests(): number {
    let count = this.outputProcessor.numRankLocalRequests;
    for (const { call, receiver, numUnmade } of this.calls.values()) {
      if (call.isWatched || receiver.isStream) count += numUnmade;
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
    const pending = new PendingCall(callInputs, receiver, options, call, firstRequest);
    this.encode(pending);
    return pending;
  }

  private encode(pending: PendingCall): void {
    try {
      const encoded = pending.callInputs.encode(() => !pending.call.isEnded);
      if (encoded instanceof Promise) {
        pending.encoding = encoded.then(
          (inputs) => {
            pending.inputs = inputs;
            this.wake();
          },
          (error: unknown) => this.failToEncode(pending, error),
        );
      } else pending.inputs = encoded;
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
  check({ numRequests }: CallInputs, { signal }: RequestOptions): void {
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
    const { call, callInputs } = pending;
    if (callInputs.numPrompts === 0) call.end();
    if (call.isEnded) return;
    this.watch(pending);
    this.admit(pending);
    this.calls.set(call, pending);
    this.numArriving += callInputs.numRequests;
    if (pending.inputs !== null) this.makeRequests(pending, pending.inputs);
    else void pending.encoding?.then(() => this.makeRequests(pending, pending.inputs ?? []));
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

  private makeRequests(pending: PendingCall, inputs: readonly EngineInput[]): void {
    if (pending.call.isEnded) return;
    slicedWork.run(
      this.requestsOf(pending, inputs),
      () => {
        if (pending.call.isEnded) return;
        this.arrive(pending);
      },
      (error) => {
        const requestId = String(pending.firstRequest);
        this.fail(pending, new RequestFailedError(requestId, 'admitted', error));
      },
    );
  }

  private *requestsOf(pending: PendingCall, inputs: readonly EngineInput[]): Pieces {
    const { call, firstRequest, receiver } = pending;
    for (const [i, input] of inputs.entries()) {
      const { prompt, promptTokenIds, samplingParams } = input;
      const { n } = samplingParams;
      const count = firstRequest + i;
      const parent = new ParentRequest(
        String(count),
        prompt,
        promptTokenIds,
        samplingParams,
        receiver.of(i),
        call,
      );
      const seed = samplingParams.seed ?? requestSeed(this.config.model.seed, count);
      for (let index = 0; index < n; index++) {
        if (call.isEnded) return;
        this.makeRequest(pending, input, i, parent, index, BigInt(seed));
        yield;
      }
    }
  }

  private makeRequest(
    pending: PendingCall,
    input: EngineInput,
    promptIndex: number,
    parent: ParentRequest,
    index: number,
    seed: bigint,
  ): void {
    const { promptTokenIds, samplingParams, stopTokenIds, badWordsTokenIds } = input;
    const { priority, cacheSalt } = pending.options;
    const request = new Request({
      requestId: pending.requestId(promptIndex, index),
      promptTokenIds,
      samplingParams,
      stopTokenIds,
      badWordsTokenIds,
      seed: sampleSeed(seed, index),
      maxModelLen: this.config.model.maxModelLen,
      priority,
      cacheSalt,
    });
    this.outputProcessor.addRequest(request, parent, index, pending.time);
    pending.requestIds.push(request.requestId);
    pending.requests.push(request);
  }

  /** A request that other ranks began: it is computed along, and given to the scheduler at once. */
  adopt(request: Request, receiver: CallReceiver, call: Call): void {
    const { requestId, promptTokenIds, samplingParams } = request;
    const inputs = { numPrompts: 1, numRequests: 1, numSamples: [1], encode: () => [] };
    const pending = new PendingCall(inputs, receiver, {}, call, 0);
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
    this.numArriving -= pending.callInputs.numRequests;
    pending.isScheduled = true;
    const { requests } = pending;
    pending.requests = [];
    for (const request of requests) {
      try {
        this.scheduler.addRequest(request);
      } catch (error) {
        this.fail(pending, new RequestFailedError(request.requestId, 'scheduled', error));
        return;
      }
    }
  }

  /** Ends a call that its caller gave up, and knows of. */
  giveUp(pending: PendingCall, reason: EndReason): void {
    pending.endReason = reason;
    pending.call.end();
  }

  /** A call is done; or it was given up or failed, perhaps with one of its requests, and all end. */
  private ended(pending: PendingCall): void {
    const { call, requestIds, numUnmade } = pending;
    const hasBegun = this.calls.delete(call);
    if (hasBegun && !pending.isScheduled) this.numArriving -= pending.callInputs.numRequests;
    pending.requests = [];
    if (call.numPromptsDone === call.numPrompts || !pending.isAdmitted) return;
    // Ranks that step together drop requests between the same steps.
    const isAtOnce = requestIds.length <= DROPPED_AT_ONCE || this.executor.inLockstep;
    // Of many, first those that hold seats and blocks.
    const isRunning = (requestId: string) => this.outputProcessor.callOf(requestId) === call;
    this.drop(pending, isAtOnce ? requestIds : this.scheduler.runningReqIds.filter(isRunning));
    if (isAtOnce && numUnmade <= DROPPED_AT_ONCE) {
      for (const unmade of pending.unmade()) this.dropUnmade(pending, unmade);
    } else {
      const dropped = slicedWork.finish(this.dropped(pending));
      this.drops.add(dropped);
      void dropped.finally(() => this.drops.delete(dropped));
    }
  }

  /** Ends requests of a call that has ended, those that have not; the worker hears of it by the next step. */
  private drop({ endReason, isScheduled }: PendingCall, requestIds: readonly string[]): void {
    const dropped = this.outputProcessor.dropRequests(requestIds, endReason);
    if (!isScheduled || dropped.length === 0) return;
    this.scheduler.finishRequests(dropped, 'abort');
    this.wake();
  }

  /** All of a call's requests, one by one. */
  private *dropped(pending: PendingCall): Pieces {
    for (const requestId of pending.requestIds) {
      this.drop(pending, [requestId]);
      yield;
    }
    for (const unmade of pending.unmade()) {
      this.dropUnmade(pending, unmade);
      yield;
    }
  }

  /** Finished like a request, though it never was one. */
  private dropUnmade({ endReason, time }: PendingCall, unmade: UnmadeRequest): void {
    const ended = { ...unmade, numCachedTokens: null };
    this.metrics.finished(ended, new RequestTimes(time), 0, endReason);
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

  /** Resolves once every call that has begun is with the scheduler or has ended, arrivals not counted. */
  async settled(): Promise<void> {
    const isUnderWay = ({ call, isScheduled, numUnmade }: PendingCall) =>
      !call.isEnded && !isScheduled && numUnmade > 0;
    for (const pending of [...this.calls.values()]) {
      await pending.encoding;
      while (isUnderWay(pending)) await new Promise((resolve) => setImmediate(resolve));
    }
  }
}

function asRequestError(requestId: string, stage: string, error: unknown): UniprocError {
  return error instanceof UniprocError ? error : new RequestFailedError(requestId, stage, error);
}

function asleep(): InvalidStateError {
  return new InvalidStateError('the executor is asleep; call executor.wakeUp() first');
}
