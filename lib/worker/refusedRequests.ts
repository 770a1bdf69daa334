/**
 * Requests that the device would not take. Their steps run without them, and so do the steps that
 * were scheduled before the engine heard of it.
 */
import { InvalidRequestError } from '../errors';
import type { SchedulerOutput } from '../contract/schedulerOutput';

const NONE: ReadonlyMap<string, Error> = new Map<string, Error>();

export class RefusedRequests {
  /** By id, until the scheduler says that they have ended. */
  private readonly refused = new Map<string, Error>();

  /**
   * `prepare` of the step without the requests that were refused, before or now, and those among them
   * that the step has, with why. `prepare` throws InvalidRequestError with a `requestId`, changing
   * nothing, for a request that it refuses; what else it throws is thrown here.
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
