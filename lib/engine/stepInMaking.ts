/** A step while the scheduler writes it. */
import {
  type CachedRequestData,
  emptySchedulerOutput,
  type NewRequestData,
  type SchedulerOutput,
} from '../worker/schedulerOutput';
import type { Request } from './request';

/** A SchedulerOutput that can be written to. */
export interface StepInMaking extends SchedulerOutput {
  scheduledCachedReqs: CachedRequestData & {
    resumedReqIds: Set<string>;
    allTokenIds: Map<string, Int32Array>;
    listOffsets?: Map<string, number>;
  };
  numScheduledTokens: Map<string, number>;
  preemptedReqIds: string[];
}

export function newStep(finishedReqIds: string[]): StepInMaking {
  const step = emptySchedulerOutput() as StepInMaking;
  step.finishedReqIds = finishedReqIds;
  return step;
}

/** The worker does not know the request yet. */
export function addNewRequest(step: StepInMaking, request: Request): void {
  const data: NewRequestData = {
    reqId: request.requestId,
    promptTokenIds: request.promptTokenIds,
    ...(request.numOutputTokens > 0 && { prefillTokenIds: request.allTokenIds() }),
    samplingParams: request.samplingParams,
    stopTokenIds: request.stopTokenIds,
    badWordsTokenIds: request.badWordsTokenIds,
    seed: request.seed,
    blockIds: [...request.blockIds],
    numComputedTokens: request.numComputedTokens,
    ...(request.listOffset !== null && { listOffset: request.listOffset }),
  };
  step.scheduledNewReqs.push(data);
}

/** The request was preempted, and comes back. */
export function addResumedRequest(step: StepInMaking, request: Request): void {
  const { scheduledCachedReqs: cached } = step;
  cached.resumedReqIds.add(request.requestId);
  cached.allTokenIds.set(request.requestId, request.allTokenIds());
  if (request.listOffset !== null) {
    cached.listOffsets ??= new Map();
    cached.listOffsets.set(request.requestId, request.listOffset);
  }
  addCachedRequest(step, request, [...request.blockIds]);
}

/** The worker knows the request; `newBlockIds` are those that it does not know of. */
export function addCachedRequest(
  { scheduledCachedReqs: cached }: StepInMaking,
  request: Request,
  newBlockIds: readonly number[],
): void {
  cached.reqIds.push(request.requestId);
  cached.newBlockIds.push(newBlockIds.length > 0 ? (newBlockIds as number[]) : null);
  cached.numComputedTokens.push(request.numComputedTokens);
  cached.numOutputTokens.push(request.numOutputTokens + request.numOutputPlaceholders);
}

/** Takes back what was written of the request that is being written. */
export function removeLatest(step: StepInMaking, { requestId }: Request): void {
  const { scheduledNewReqs, scheduledCachedReqs: cached } = step;
  step.numScheduledTokens.delete(requestId);
  if (scheduledNewReqs.at(-1)?.reqId === requestId) scheduledNewReqs.pop();
  cached.resumedReqIds.delete(requestId);
  cached.allTokenIds.delete(requestId);
  cached.listOffsets?.delete(requestId);
  if (cached.reqIds.at(-1) !== requestId) return;
  const length = cached.reqIds.length - 1;
  cached.reqIds.length = length;
  cached.newBlockIds.length = length;
  cached.numComputedTokens.length = length;
  cached.numOutputTokens.length = length;
}
