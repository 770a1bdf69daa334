/** Builds a step's SchedulerOutput. */
import {
  type CachedRequestData,
  emptySchedulerOutput,
  type NewRequestData,
  type SchedulerOutput,
} from '../contract/schedulerOutput';
import type { Request } from './request';

/** A mutable SchedulerOutput. */
export interface StepBuilder extends SchedulerOutput {
  scheduledCachedReqs: CachedRequestData & {
    resumedReqIds: Set<string>;
    allTokenIds: Map<string, Int32Array>;
    listOffsets?: Map<string, number>;
  };
  numScheduledTokens: Map<string, number>;
  preemptedReqIds: string[];
}

export function newStep(finishedReqIds: string[]): StepBuilder {
  const step = emptySchedulerOutput() as StepBuilder;
  step.finishedReqIds = finishedReqIds;
  return step;
}

/** Adds a request that the worker does not hold. */
export function addNewRequest(step: StepBuilder, request: Request): void {
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
    ...(request.pooling && { pooling: request.pooling }),
  };
  step.scheduledNewReqs.push(data);
}

/** Adds a preempted request that resumes. */
export function addResumedRequest(step: StepBuilder, request: Request): void {
  const { scheduledCachedReqs: cached } = step;
  cached.resumedReqIds.add(request.requestId);
  cached.allTokenIds.set(request.requestId, request.allTokenIds());
  if (request.listOffset !== null) {
    cached.listOffsets ??= new Map();
    cached.listOffsets.set(request.requestId, request.listOffset);
  }
  addCachedRequest(step, request, [...request.blockIds]);
}

/** Adds a request that the worker holds; `newBlockIds` are blocks allocated since its last step. */
export function addCachedRequest(
  { scheduledCachedReqs: cached }: StepBuilder,
  request: Request,
  newBlockIds: readonly number[],
): void {
  cached.reqIds.push(request.requestId);
  cached.newBlockIds.push(newBlockIds.length > 0 ? (newBlockIds as number[]) : null);
  cached.numComputedTokens.push(request.numComputedTokens);
}

/** Removes the partly added last request. */
export function removeLatest(step: StepBuilder, { requestId }: Request): void {
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
}
