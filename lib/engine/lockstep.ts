/**
 * What an engine does because other ranks schedule what it schedules: calls wait for those before
 * them, and a change of the group of ranks waits for the step at which all of them stop. Where there
 * is one rank calls overlap, and `SingleRank` does nothing of this.
 */
import { divisionFault } from '../model/division';
import {
  type ReconfigureDistributedRequest,
  ReconfigureRankType,
} from '../config/reconfigureRequest';
import type { RequestOptions } from '../config/requestOptions';
import { InvalidStateError, NotSupportedError, ShutdownError } from '../errors';
import type { Executor } from '../executor/executor';
import type { Admission } from './admission';
import { Call } from './call';
import { type CallInputs, encodedInputs } from './callInputs';
import type { EndReason } from './metrics';
import type { CallReceiver, PendingCall } from './pendingCall';
import {
  decodeState,
  encodeState,
  lastStepOf,
  type QueuedCall,
  type Standing,
} from './reinitialization';
import type { Request } from './request';

/** How calls begin and steps follow each other, with regard to the other ranks. */
export interface Lockstep {
  /** Samples of the calls that wait for their turn. */
  readonly numQueuedRequests: number;
  /** The change of the group of ranks that was asked for, until it is done. */
  readonly change: RankChange | null;
  /** Before the first step: takes over what ranks that were there before are computing. */
  start(): Promise<void>;
  /** Begins a call, now or in its turn. Throws what speaks against it now. */
  submit(inputs: CallInputs, receiver: CallReceiver, options: RequestOptions, call: Call): void;
  /** Throws NotSupportedError where a stream cannot be. */
  checkStream(): void;
  resetPrefixCache(): void;
  /** Begins the calls that have their turn before the next step. */
  takeTurns(): void;
  /** A step was launched. */
  launched(): void;
  /** Nothing runs any more: ends the calls that wait for their turn, and the change. */
  failAll(error: Error, reason: EndReason): void;
}

/** A change of the group of ranks that was asked for. */
export interface RankChange {
  /** Whether this rank is where all agree to stop. Where they cannot agree the change is given up. */
  isDue(): Promise<boolean>;
  /** Goes over to the new group. No step is in flight, on any rank. */
  carryOut(): Promise<void>;
}

/** There is no other rank: every call begins when it is made. */
export class SingleRank implements Lockstep {
  readonly numQueuedRequests = 0;
  readonly change = null;

  constructor(private readonly admission: Admission) {}

  start(): Promise<void> {
    return Promise.resolve();
  }

  submit(inputs: CallInputs, receiver: CallReceiver, options: RequestOptions, call: Call): void {
    this.admission.check(inputs, options);
    this.admission.begin(this.admission.make(inputs, receiver, options, call));
  }

  resetPrefixCache(): void {
    this.admission.resetPrefixCache();
  }

  checkStream(): void {}
  takeTurns(): void {}
  launched(): void {}
  failAll(): void {}
}

/** What ranks in lockstep ask of their engine. */
export interface EngineOfRank {
  /** Has the loop look for a turn. */
  wake(): void;
  isStopped(): boolean;
  unfinishedRequests(): readonly Request[];
  /** Gives the scheduler what arrived. */
  takeArrivals(): void;
  /** The worker has lost all that it had: sizes its cache anew, and computes every request again. */
  restart(): Promise<void>;
  stop(error: Error): void;
  /** There is no other rank any more, and no call that waits for its turn. */
  endLockstep(): void;
}

/** A call, or what is to happen between two calls. */
type Turn = PendingCall | 'resetPrefixCache' | 'reinitialize';

interface PendingChange {
  request: ReconfigureDistributedRequest;
  /** Calls made before it, and prompts given before it. */
  numCalls: number;
  numRequests: number;
  /** How all ranks stand. Until it is known this one launches nothing. */
  standings: Promise<Standing[]>;
  done: () => void;
  failed: (error: unknown) => void;
}

/** Receives the outputs that other ranks hand out. */
const DISCARD_OUTPUTS: CallReceiver = {
  isStream: false,
  of: () => ({ finished: () => {}, failed: () => {} }),
  failed: () => {},
};

/** Several ranks, or one that is about to become several or was until now. */
export class RankLockstep implements Lockstep, RankChange {
  /** In the order made. */
  private turns: Turn[] = [];
  /** Steps launched since this rank group formed; identical on every rank. */
  private numSteps = 0;
  /** Calls made since then; identical on every rank. */
  private numCalls = 0;
  /** Changes asked for since then, done or not. */
  private numReinitializations = 0;
  private pending: PendingChange | null = null;
  /** Why nothing runs any more. */
  private error: Error | null = null;

  constructor(
    private readonly executor: Executor,
    private readonly admission: Admission,
    private readonly engine: EngineOfRank,
  ) {}

  get change(): RankChange | null {
    return this.pending === null ? null : this;
  }

  get numQueuedRequests(): number {
    let count = 0;
    for (const turn of this.turns) {
      if (typeof turn === 'object' && !turn.call.isEnded) count += turn.numRequests;
    }
    return count;
  }

  async start(): Promise<void> {
    const state = await this.executor.broadcast(null);
    if (state !== null) this.takeOver(state);
  }

  /** Computes along what the ranks have that were there before this one; they hand it out. */
  private takeOver(state: Uint8Array): void {
    const { admission } = this;
    const { maxModelLen } = this.executor.config.model;
    const { numRequests, requests, turns } = decodeState(state, maxModelLen);
    for (const request of requests) admission.adopt(request, DISCARD_OUTPUTS, new Call(1));
    for (const turn of turns) {
      if (turn === 'resetPrefixCache') this.turns.push(turn);
      else {
        const { firstRequest, options } = turn;
        const inputs = encodedInputs(turn.inputs);
        const call = new Call(inputs.numPrompts);
        const pending = admission.make(inputs, DISCARD_OUTPUTS, options, call, firstRequest);
        admission.admit(pending);
        this.turns.push(pending);
      }
    }
    admission.numRequests = numRequests;
  }

  /**
   * Has the call wait for those before it to end. Throws NotSupportedError for a call with a signal or
   * a timeout. Ranks that step together make the same calls, but each at its own time: of two that
   * overlap, the second would join the first at a step that is another on each rank.
   */
  submit(inputs: CallInputs, receiver: CallReceiver, options: RequestOptions, call: Call): void {
    if (options.signal) throw rankLocal('signal', "the caller's");
    if (options.timeoutMs !== undefined) throw rankLocal('timeoutMs', 'the clock');
    this.numCalls++;
    this.queue(this.admission.make(inputs, receiver, options, call));
  }

  checkStream(): void {
    throw rankLocal('a stream', "its reader's");
  }

  resetPrefixCache(): void {
    if (this.error !== null) throw this.error;
    this.queue('resetPrefixCache');
  }

  private queue(turn: Turn): void {
    if (typeof turn === 'object') this.admission.admit(turn);
    this.turns.push(turn);
    this.engine.wake();
  }

  /**
   * Begins the next call, once the one before it has ended and its own prompts are encoded: ranks
   * encode at their own pace, but none launches a step in between.
   */
  takeTurns(): void {
    while (this.admission.isIdle) {
      const turn = this.turns.at(0);
      if (turn === undefined || turn === 'reinitialize') return;
      if (turn === 'resetPrefixCache') this.admission.resetPrefixCache();
      else if (!turn.call.isEnded) {
        if (turn.inputs === null) return;
        this.begin(turn);
      }
      this.turns.shift();
      this.endWhenOver();
    }
  }

  private begin(turn: PendingCall): void {
    try {
      this.admission.check(turn, turn.options);
      this.admission.begin(turn);
    } catch (error) {
      turn.isAdmitted = false;
      this.admission.fail(turn, error);
    }
  }

  launched(): void {
    this.numSteps++;
  }

  /**
   * Asks the other ranks for the change; the loop carries it out. Rejects with InvalidStateError or
   * ConfigError when the ranks cannot or do not agree.
   */
  reinitialize(request: ReconfigureDistributedRequest): Promise<void> {
    if (this.pending !== null) {
      const error = new InvalidStateError('reinitializeDistributed while another is under way');
      return Promise.reject(error);
    }
    const { numCalls } = this;
    const { numRequests } = this.admission;
    // At once: the loop may be waiting for a step that the others launch when they know of this one.
    const standings = this.gatherStandings(request, this.faultOf(request));
    // The loop, which awaits it later, handles its rejection.
    standings.catch(() => {});
    return new Promise((done, failed) => {
      this.pending = { request, numCalls, numRequests, standings, done, failed };
      this.queue('reinitialize');
    });
  }

  private async gatherStandings(
    request: ReconfigureDistributedRequest,
    fault: string | null,
  ): Promise<Standing[]> {
    const { numSteps, numCalls } = this;
    const standing: Standing = { numSteps, numCalls, request, fault };
    const name = `reinitialize ${this.numReinitializations++}`;
    const all = await this.executor.gather(name, Buffer.from(JSON.stringify(standing)));
    return all.map((bytes) => JSON.parse(Buffer.from(bytes).toString()) as Standing);
  }

  /** Why this rank cannot do what is asked; null when it can. */
  private faultOf({ newDataParallelSize: size }: ReconfigureDistributedRequest): string | null {
    if (this.executor.isSleeping) return 'it is asleep; call executor.wakeUp() first';
    const { numRankLocalRequests } = this.admission;
    if (size > 1 && numRankLocalRequests > 0) {
      return `it has ${numRankLocalRequests} requests that it may end alone (stream, signal, timeoutMs)`;
    }
    return divisionFault(this.executor.config.model.transformer.spec, size);
  }

  async isDue(): Promise<boolean> {
    if (this.pending === null) return false;
    const { standings, failed } = this.pending;
    const all = await standings;
    try {
      return this.numSteps === lastStepOf(all);
    } catch (error) {
      this.endChange();
      failed(error);
      return false;
    }
  }

  async carryOut(): Promise<void> {
    // Those that join are told of requests; what is still being encoded is to be among them.
    await this.admission.settled();
    // The engine may have stopped, which ends the change.
    const { engine, executor, pending } = this;
    if (pending === null || engine.isStopped()) return;
    const { request, numCalls, numRequests, done, failed } = pending;
    engine.takeArrivals();
    try {
      await executor.reinitializeDistributed(request);
      if (request.newDataParallelRank === ReconfigureRankType.SHUTDOWN_CURRENT_RANK) {
        this.endChange();
        engine.stop(new ShutdownError('this rank has left the others'));
        done();
        return;
      }
      await engine.restart();
      const requests = engine.unfinishedRequests();
      const turns = await this.turnsBeforeChange();
      await executor.broadcast(encodeState({ numRequests, requests, turns }));
    } catch (error) {
      if (error instanceof NotSupportedError) {
        this.endChange();
        failed(error);
        return;
      }
      // What is left of the executor is of no use, and others may wait for it.
      void executor.shutdown(error).catch(() => {});
      throw error;
    }
    // A group has formed: what ranks count begins anew.
    this.numSteps = 0;
    this.numCalls -= numCalls;
    this.numReinitializations = 0;
    this.endChange();
    done();
  }

  /** The calls, encoded, and the resets that wait for their turn before the change. */
  private async turnsBeforeChange(): Promise<(QueuedCall | 'resetPrefixCache')[]> {
    const before = this.turns.slice(0, this.turns.indexOf('reinitialize'));
    const queued: (QueuedCall | 'resetPrefixCache')[] = [];
    for (const turn of before) {
      if (typeof turn === 'string') queued.push('resetPrefixCache');
      else {
        await turn.encoding;
        const { firstRequest, inputs, options } = turn;
        if (inputs !== null) queued.push({ firstRequest, inputs, options });
      }
    }
    return queued;
  }

  /** The change is given up, or its group has formed. */
  private endChange(): void {
    this.turns = this.turns.filter((turn) => turn !== 'reinitialize');
    this.pending = null;
    this.endWhenOver();
  }

  private endWhenOver(): void {
    const isOver = !this.executor.inLockstep && this.pending === null && this.turns.length === 0;
    if (isOver) this.engine.endLockstep();
  }

  failAll(error: Error, reason: EndReason): void {
    const { turns } = this;
    this.error = error;
    this.turns = [];
    for (const turn of turns)
      if (typeof turn === 'object') this.admission.fail(turn, error, reason);
    this.pending?.failed(error);
  }
}

function rankLocal(what: string, whose: string): NotSupportedError {
  return new NotSupportedError(
    what,
    `${what} would end requests by ${whose} choice on this rank alone, and ranks that share a model ` +
      'must schedule the same; use generate or chat without it, alike on every rank',
  );
}
