/**
 * What an engine does because other ranks schedule what it schedules: calls wait for those before
 * them, and a change of the group of ranks waits for the step at which all of them stop. Where there
 * is one rank calls overlap, and none of this takes part.
 */
import { divisionFault } from '../model/division';
import type { ReconfigureDistributedRequest } from '../config/reconfigureRequest';
import { InvalidStateError, NotSupportedError } from '../errors';
import type { Executor } from '../executor/executor';
import type { Admission } from './admission';
import type { EndReason } from './metrics';
import type { PendingCall } from './pendingCall';
import { lastStepOf, type QueuedCall, type Standing } from './reinitialization';

/** A call, or what is to happen between two calls. */
type Turn = PendingCall | 'resetPrefixCache' | 'reinitialize';

/** A change of the ranks that was asked for, until it is done. */
export interface Reinitialization {
  request: ReconfigureDistributedRequest;
  /** Calls made before it, and prompts given before it. */
  numCalls: number;
  numRequests: number;
  /** How all ranks stand. Until it is known this one launches nothing. */
  standings: Promise<Standing[]>;
  done: () => void;
  failed: (error: unknown) => void;
}

export class RankGroup {
  /** In the order made. Empty where calls may overlap. */
  private turns: Turn[] = [];
  /** Steps launched and calls made since this group of ranks formed; the same on every rank. */
  numSteps = 0;
  private numCalls = 0;
  /** Changes asked for since then, done or not. */
  private numReinitializations = 0;
  private pendingChange: Reinitialization | null = null;

  constructor(
    private readonly executor: Executor,
    private readonly admission: Admission,
    /** Has the loop look for a turn. */
    private readonly wake: () => void,
  ) {}

  /** Calls must not overlap: other ranks take part in them, or are about to. */
  get takesTurns(): boolean {
    return this.executor.inLockstep || this.pendingChange !== null || this.turns.length > 0;
  }

  get reinitialization(): Reinitialization | null {
    return this.pendingChange;
  }

  /** Samples of the calls that wait for their turn. */
  get numQueuedRequests(): number {
    let count = 0;
    for (const turn of this.turns) {
      if (typeof turn === 'object' && !turn.call.isEnded) count += turn.numRequests;
    }
    return count;
  }

  /**
   * Throws NotSupportedError for a call with a signal or a timeout. Ranks that step together make the
   * same calls, but each at its own time: of two that overlap, the second would join the first at a
   * step that is another on each rank.
   */
  checkTurn({ options }: Pick<PendingCall, 'options'>): void {
    if (options.signal) throw rankLocal('signal', "the caller's");
    if (options.timeoutMs !== undefined) throw rankLocal('timeoutMs', 'the clock');
  }

  /** Has a call, or a reset of the prefix cache, wait for the calls before it to end. */
  queue(turn: PendingCall | 'resetPrefixCache'): void {
    if (turn !== 'resetPrefixCache') this.numCalls++;
    this.takeOver(turn);
    this.wake();
  }

  /** The same for one that other ranks queued, which does not count as made in this group. */
  takeOver(turn: PendingCall | 'resetPrefixCache'): void {
    if (turn !== 'resetPrefixCache') this.admission.admit(turn);
    this.turns.push(turn);
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

  /** Asks the other ranks for the change; the loop carries it out. */
  askForChange(
    request: ReconfigureDistributedRequest,
    config: { spec: Parameters<typeof divisionFault>[0] },
  ): Promise<void> {
    if (this.pendingChange !== null) {
      const error = new InvalidStateError('reinitializeDistributed while another is under way');
      return Promise.reject(error);
    }
    const { numCalls } = this;
    const { numRequests } = this.admission;
    // At once: the loop may be waiting for a step that the others launch when they know of this one.
    const fault = this.faultOf(request, config.spec);
    const standings = this.gatherStandings(request, fault);
    // The loop, which awaits it later, handles its rejection.
    standings.catch(() => {});
    return new Promise((done, failed) => {
      this.pendingChange = { request, numCalls, numRequests, standings, done, failed };
      this.turns.push('reinitialize');
      this.wake();
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
  private faultOf(
    { newDataParallelSize: size }: ReconfigureDistributedRequest,
    spec: Parameters<typeof divisionFault>[0],
  ): string | null {
    if (this.executor.isSleeping) return 'it is asleep; call executor.wakeUp() first';
    const { numRankLocalRequests } = this.admission;
    if (size > 1 && numRankLocalRequests > 0) {
      return `it has ${numRankLocalRequests} requests that it may end alone (stream, signal, timeoutMs)`;
    }
    return divisionFault(spec, size);
  }

  /** Whether this rank is where all agree to stop. Where they cannot agree the change is given up. */
  async isAtLastStep({ standings, failed }: Reinitialization): Promise<boolean> {
    const all = await standings;
    try {
      return this.numSteps === lastStepOf(all);
    } catch (error) {
      this.endChange();
      failed(error);
      return false;
    }
  }

  /** The calls, encoded, and the resets that wait for their turn before the change. */
  async turnsBeforeChange(): Promise<(QueuedCall | 'resetPrefixCache')[]> {
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
  endChange(): void {
    this.turns = this.turns.filter((turn) => turn !== 'reinitialize');
    this.pendingChange = null;
  }

  /** A group has formed after a change: what ranks count begins anew. */
  restartCounts({ numCalls }: Reinitialization): void {
    this.numSteps = 0;
    this.numCalls -= numCalls;
    this.numReinitializations = 0;
  }

  /** Nothing runs any more: ends the calls that wait for their turn, and the change. */
  failAll(error: Error, reason: EndReason): void {
    const { turns } = this;
    this.turns = [];
    for (const turn of turns)
      if (typeof turn === 'object') this.admission.fail(turn, error, reason);
    this.pendingChange?.failed(error);
  }
}

export function rankLocal(what: string, whose: string): NotSupportedError {
  return new NotSupportedError(
    what,
    `${what} would end requests by ${whose} choice on this rank alone, and ranks that share a model ` +
      'must schedule the same; use generate or chat without it, alike on every rank',
  );
}
