/**
 * Keeps the engines of several ranks on the same schedule: calls run one after another, and a
 * change of the rank group waits for a step at which all ranks stop. With one rank calls overlap,
 * and `SingleRank` does none of this.
 */
import { divisionFault } from '../model/division';
import {
  type ReconfigureDistributedRequest,
  ReconfigureRankType,
} from '../config/reconfigureRequest';
import { InvalidStateError, NotSupportedError, ShutdownError } from '../errors';
import type { Executor } from '../executor/executor';
import type { Admission } from './admission';
import { Call } from './call';
import { type CallInputs, encodedInputs } from './callInputs';
import { type CallOptions, checkTask } from './callOptions';
import type { EndReason } from './metrics';
import type { CallReceiver, PendingCall } from './pendingCall';
import {
  decodeState,
  encodeState,
  lastCommonStep,
  type QueuedCall,
  type RankState,
} from './reinitialization';
import type { Request } from './request';
import { stopErrorOf } from './stopError';

/** Call order and step counting with respect to other ranks. */
export interface Lockstep {
  /** Samples of queued calls. */
  readonly numQueuedRequests: number;
  /** The pending change of the rank group. */
  readonly change: RankChange | null;
  /** Before the first step: receives the state of the ranks that ran before this one joined. */
  start(): Promise<void>;
  /** Starts or queues a call. Throws if it cannot be admitted now. */
  submit(inputs: CallInputs, receiver: CallReceiver, options: CallOptions, call: Call): void;
  /** Throws NotSupportedError if streams are not supported. */
  checkStream(): void;
  resetPrefixCache(): void;
  /** Starts the queued calls that are due before the next step. */
  startQueuedCalls(): void;
  /** Counts a launched step. */
  launched(): void;
  /** Fails queued calls and the pending change when the engine stops. */
  failAll(error: Error, reason: EndReason): void;
}

/** A pending change of the rank group. */
export interface RankChange {
  /**
   * Resolves once the change is agreed or refused; then null. This rank launches no step until then.
   */
  readonly agreement: Promise<void> | null;
  /** Whether this rank has launched the last step that the ranks have agreed on. */
  readonly isDue: boolean;
  /** Forms the new group. No step is in flight on any rank. */
  carryOut(): Promise<void>;
}

/** One rank: every call starts when it is made. */
export class SingleRank implements Lockstep {
  readonly numQueuedRequests = 0;
  readonly change = null;

  constructor(private readonly admission: Admission) {}

  start(): Promise<void> {
    return Promise.resolve();
  }

  submit(inputs: CallInputs, receiver: CallReceiver, options: CallOptions, call: Call): void {
    this.admission.check(inputs, options);
    this.admission.begin(this.admission.make(inputs, receiver, options, call));
  }

  resetPrefixCache(): void {
    this.admission.resetPrefixCache();
  }

  checkStream(): void {}
  startQueuedCalls(): void {}
  launched(): void {}
  failAll(): void {}
}

/** What RankLockstep needs from the engine. */
export interface LockstepEngine {
  /** Wakes the engine loop. */
  wake(): void;
  isStopped(): boolean;
  unfinishedRequests(): readonly Request[];
  /** Hands arrivals to the scheduler. */
  takeArrivals(): void;
  /** Sizes the cache again and recomputes every request, after the worker lost its state. */
  restart(): Promise<void>;
  stop(error: Error): void;
  /** Called once one rank is left and the queue is empty. */
  endLockstep(): void;
}

/** A queued call, or an operation between two calls. */
type QueueItem = PendingCall | 'resetPrefixCache' | 'reinitialize';

interface PendingChange {
  request: ReconfigureDistributedRequest;
  /** Calls and prompts submitted before the change. */
  numCalls: number;
  numRequests: number;
  /** Null once agreed. */
  agreement: Promise<void> | null;
  /** The step after which all ranks stop; NaN until agreed. */
  lastStep: number;
  done: () => void;
  failed: (error: unknown) => void;
}

/** Receiver of calls with outputs delivered by other ranks. */
const DISCARD_OUTPUTS: CallReceiver = {
  isStream: false,
  of: () => ({ finished: () => {}, failed: () => {} }),
  failed: () => {},
};

/** Several ranks, or one rank before or after a change to several. */
export class RankLockstep implements Lockstep, RankChange {
  /** In order of submission. */
  private queued: QueueItem[] = [];
  /** Steps launched since this rank group formed; identical on every rank. */
  private numSteps = 0;
  /** Calls made since then; identical on every rank. */
  private numCalls = 0;
  /** Changes requested since then. */
  private numReinitializations = 0;
  private pending: PendingChange | null = null;
  /** Set once the engine has stopped. */
  private error: Error | null = null;

  constructor(
    private readonly executor: Executor,
    private readonly admission: Admission,
    private readonly engine: LockstepEngine,
  ) {}

  get change(): RankChange | null {
    return this.pending === null ? null : this;
  }

  get numQueuedRequests(): number {
    let count = 0;
    for (const item of this.queued) {
      if (typeof item === 'object' && !item.call.isEnded) count += item.numRequests;
    }
    return count;
  }

  async start(): Promise<void> {
    const state = await this.executor.broadcast(null);
    if (state !== null) this.restoreState(state);
  }

  /**
   * Restores the requests and queued calls of the existing ranks; those ranks deliver the outputs.
   */
  private restoreState(state: Uint8Array): void {
    const { admission } = this;
    const { maxModelLen } = this.executor.config.model;
    const { numRequests, requests, queued } = decodeState(state, maxModelLen);
    for (const request of requests) admission.adopt(request, DISCARD_OUTPUTS, new Call(1));
    for (const item of queued) {
      if (item === 'resetPrefixCache') this.queued.push(item);
      else {
        const { firstRequest, options } = item;
        const inputs = encodedInputs(item.inputs);
        const call = new Call(inputs.numPrompts);
        const pending = admission.make(inputs, DISCARD_OUTPUTS, options, call, firstRequest);
        admission.admit(pending);
        this.queued.push(pending);
      }
    }
    admission.numRequests = numRequests;
  }

  /**
   * Queues the call until earlier calls have ended. Throws NotSupportedError for a signal or
   * timeout. Ranks make the same calls, but at different times: if two overlapped, the second would
   * join the first at a different step on each rank.
   */
  submit(inputs: CallInputs, receiver: CallReceiver, options: CallOptions, call: Call): void {
    if (options.signal) throw rankLocal('signal', 'the caller');
    if (options.timeoutMs !== undefined) throw rankLocal('timeoutMs', 'its clock');
    checkTask(this.executor.config.model.transformer.pooling, options);
    this.numCalls++;
    this.queue(this.admission.make(inputs, receiver, options, call));
  }

  checkStream(): void {
    throw rankLocal('a stream', 'its reader');
  }

  resetPrefixCache(): void {
    if (this.error !== null) throw this.error;
    this.queue('resetPrefixCache');
  }

  private queue(item: QueueItem): void {
    if (typeof item === 'object') this.admission.admit(item);
    this.queued.push(item);
    this.engine.wake();
  }

  /**
   * Starts the next call once the previous one has ended and its prompts are encoded. Ranks encode
   * at their own pace, but launch no step in between.
   */
  startQueuedCalls(): void {
    while (this.admission.isIdle) {
      const item = this.queued.at(0);
      if (item === undefined || item === 'reinitialize') return;
      if (item === 'resetPrefixCache') this.admission.resetPrefixCache();
      else if (!item.call.isEnded) {
        if (item.inputs === null) return;
        this.begin(item);
      }
      this.queued.shift();
      this.endWhenOver();
    }
  }

  private begin(item: PendingCall): void {
    try {
      this.admission.check(item, item.options);
      this.admission.begin(item);
    } catch (error) {
      item.isAdmitted = false;
      this.admission.fail(item, error);
    }
  }

  launched(): void {
    this.numSteps++;
  }

  /**
   * Requests the change from the other ranks; the loop carries it out. Rejects with
   * InvalidStateError or ConfigError when the ranks cannot or do not agree.
   */
  reinitialize(request: ReconfigureDistributedRequest): Promise<void> {
    if (this.pending !== null) {
      const error = new InvalidStateError(
        'reinitializeDistributed: another change is in progress; await it first',
      );
      return Promise.reject(error);
    }
    const { numCalls } = this;
    const { numRequests } = this.admission;
    return new Promise((done, failed) => {
      const lastStep = NaN;
      const pending = { request, numCalls, numRequests, agreement: null, lastStep, done, failed };
      this.pending = pending;
      this.agree(pending);
      this.queue('reinitialize');
    });
  }

  /**
   * Exchanges the ranks' states at once, and refuses the change as soon as they are known: the loop
   * may await a step that another rank launches only after both have requested the next change.
   */
  private agree(pending: PendingChange): void {
    const agreement = this.gatherRankStates(pending.request).then((rankStates) => {
      try {
        pending.lastStep = lastCommonStep(rankStates);
        pending.agreement = null;
      } catch (error) {
        this.endChange();
        pending.failed(error);
      }
    });
    // The loop handles its rejection.
    agreement.catch(() => {});
    pending.agreement = agreement;
  }

  private async gatherRankStates(request: ReconfigureDistributedRequest): Promise<RankState[]> {
    const { numSteps, numCalls } = this;
    const rankState: RankState = { numSteps, numCalls, request, fault: this.faultOf(request) };
    const name = `reinitialize ${this.numReinitializations++}`;
    const all = await this.executor.gather(name, Buffer.from(JSON.stringify(rankState)));
    return all.map((bytes) => JSON.parse(Buffer.from(bytes).toString()) as RankState);
  }

  /** Why this rank cannot make the change; null if it can. */
  private faultOf({ newDataParallelSize: size }: ReconfigureDistributedRequest): string | null {
    if (this.executor.isSleeping) return 'its executor is asleep; call llm.wakeUp() first';
    const { numRankLocalRequests } = this.admission;
    if (size > 1 && numRankLocalRequests > 0) {
      return `it has ${numRankLocalRequests} requests that only this rank may end (stream, signal, timeoutMs); finish or abort them`;
    }
    return divisionFault(this.executor.config.model.transformer.spec, size);
  }

  get agreement(): Promise<void> | null {
    return this.pending?.agreement ?? null;
  }

  get isDue(): boolean {
    return this.numSteps === this.pending?.lastStep;
  }

  async carryOut(): Promise<void> {
    // Joining ranks receive requests, so finish encoding first.
    await this.admission.settled();
    // The engine may have stopped, which cancels the change.
    const { engine, executor, pending } = this;
    if (pending === null || engine.isStopped()) return;
    const { request, numCalls, numRequests, done, failed } = pending;
    engine.takeArrivals();
    try {
      await executor.reinitializeDistributed(request);
      if (request.newDataParallelRank === ReconfigureRankType.SHUTDOWN_CURRENT_RANK) {
        this.endChange();
        engine.stop(new ShutdownError('this rank has left its group'));
        done();
        return;
      }
      await engine.restart();
      const requests = engine.unfinishedRequests();
      const queued = await this.queuedBeforeChange();
      await executor.broadcast(encodeState({ numRequests, requests, queued }));
    } catch (error) {
      if (error instanceof NotSupportedError) {
        this.endChange();
        failed(error);
        return;
      }
      // The executor is unusable, and other ranks may be waiting for it.
      void executor.shutdown(error).catch(() => {});
      throw error;
    }
    // The new group has formed: restart its counters.
    this.numSteps = 0;
    this.numCalls -= numCalls;
    this.numReinitializations = 0;
    this.endChange();
    done();
  }

  /** Encoded calls and prefix cache resets queued before the change. */
  private async queuedBeforeChange(): Promise<(QueuedCall | 'resetPrefixCache')[]> {
    const before = this.queued.slice(0, this.queued.indexOf('reinitialize'));
    const queued: (QueuedCall | 'resetPrefixCache')[] = [];
    for (const item of before) {
      if (typeof item === 'string') queued.push('resetPrefixCache');
      else {
        await item.encoding;
        const { firstRequest, inputs, options } = item;
        if (inputs !== null) queued.push({ firstRequest, inputs, options });
      }
    }
    return queued;
  }

  /** Clears the pending change, cancelled or done. */
  private endChange(): void {
    this.queued = this.queued.filter((item) => item !== 'reinitialize');
    this.pending = null;
    this.endWhenOver();
  }

  private endWhenOver(): void {
    const isOver = !this.executor.inLockstep && this.pending === null && this.queued.length === 0;
    if (isOver) this.engine.endLockstep();
  }

  failAll(error: Error, reason: EndReason): void {
    const { queued } = this;
    this.error = error;
    this.queued = [];
    for (const item of queued) {
      if (typeof item !== 'object') continue;
      this.admission.fail(
        item,
        stopErrorOf(error, () => item.partialOutputs()),
        reason,
      );
    }
    this.pending?.failed(error);
  }
}

function rankLocal(what: string, trigger: string): NotSupportedError {
  return new NotSupportedError(
    what,
    `${what} could end requests on this rank alone (by ${trigger}), but ranks that share a model must ` +
      'schedule the same; use generate or chat without it, with the same arguments on every rank',
  );
}
