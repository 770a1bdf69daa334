/**
 * Requests refused by the device. Steps run without them, including steps scheduled before the
 * engine learned of the refusal.
 */
import { InvalidRequestError } from '../errors';
import type { SchedulerOutput } from '../contract/schedulerOutput';

const NONE: ReadonlyMap<string, Error> = new Map<string, Error>();

export class RefusedRequests {
  /** By id, until the scheduler reports them finished. */
  private readonly refused = new Map<string, Error>();

  /**
   * Calls `prepare` with the step without refused requests; returns its result and the step's
   * refused requests with their errors. To refuse a request, `prepare` throws InvalidRequestError
   * with a `requestId` before changing anything; other errors are rethrown.
   */
  prepare<T>(
    step: SchedulerOutput,
    prepare: (step: SchedulerOutput) => T,
  ): { prepared: T; failedReqs: ReadonlyMap<string, Error> } {
    for (;;) {
      try {
        const prepared = prepare(this.refused.size === 0 ? step : this.without(step));
        const failedReqs = this.refused.size === 0 ? NONE : this.among(step);
        for (const reqId of step.finishedReqIds) this.refused.delete(reqId);
        return { prepared, failedReqs };
      } catch (error) {
        const reqId = error instanceof InvalidRequestError ? error.requestId : undefined;
        if (reqId === undefined || this.refused.has(reqId)) throw error;
        this.refused.set(reqId, error as Error);
      }
    }
  }

  private among(step: SchedulerOutput): ReadonlyMap<string, Error> {
    const { numScheduledTokens } = step;
    return new Map([...this.refused].filter(([reqId]) => numScheduledTokens.has(reqId)));
  }

  private without(step: SchedulerOutput): SchedulerOutput {
    const isKnown = (reqId: string) => !this.refused.has(reqId);
    const numScheduledTokens = new Map(
      [...step.numScheduledTokens].filter(([reqId]) => isKnown(reqId)),
    );
    const cached = step.scheduledCachedReqs;
    const rows = cached.reqIds.flatMap((reqId, i) => (isKnown(reqId) ? [i] : []));
    return {
      ...step,
      scheduledNewReqs: step.scheduledNewReqs.filter(({ reqId }) => isKnown(reqId)),
      scheduledCachedReqs: {
        ...cached,
        reqIds: rows.map((i) => cached.reqIds[i]),
        newBlockIds: rows.map((i) => cached.newBlockIds[i]),
        numComputedTokens: rows.map((i) => cached.numComputedTokens[i]),
      },
      numScheduledTokens,
      totalNumScheduledTokens: [...numScheduledTokens.values()].reduce((sum, n) => sum + n, 0),
      preemptedReqIds: step.preemptedReqIds.filter(isKnown),
    };
  }
}
