/**
 * Channels of node:diagnostics_channel, for tracing. Nothing is made or read for a channel without
 * subscribers. Node reports what a subscriber throws as an uncaught exception on the next tick, outside
 * the step.
 */
import { type Channel, channel } from 'node:diagnostics_channel';
import type { FinishedRequest } from './metrics';
import type { Scheduler } from './scheduler';
import type { StepInFlight } from './stepInFlight';

/** A request is in a step for the first time. Each of a prompt's `n` samples is a request. */
export interface RequestStartMessage {
  requestId: string;
  numPromptTokens: number;
  /** Prompt tokens found in the prefix cache. */
  numCachedTokens: number;
  /** Milliseconds from the call. */
  queueTimeMs: number;
}

/** A step's outputs are delivered. */
export interface StepMessage {
  numScheduledReqs: number;
  numScheduledTokens: number;
  /** Requests of the step that were in none before. */
  numNewReqs: number;
  numPreemptedReqs: number;
  /** After the step. */
  numRunningReqs: number;
  numWaitingReqs: number;
  /** Milliseconds from launch to delivery; null for a step launched before there was a subscriber. */
  durationMs: number | null;
}

/** Messages by channel. */
export interface DiagnosticsMessages {
  'uniproc:request:start': RequestStartMessage;
  'uniproc:request:finish': FinishedRequest;
  'uniproc:step': StepMessage;
}

const named = <Name extends keyof DiagnosticsMessages>(name: Name) =>
  channel(name) as Channel<unknown, DiagnosticsMessages[Name]>;

export const requestStart = named('uniproc:request:start');
export const requestFinish = named('uniproc:request:finish');
const stepDone = named('uniproc:step');

/** The time of a launch, by `performance.now()`; NaN without a subscriber. */
export const launchTime = (): number => (stepDone.hasSubscribers ? performance.now() : NaN);

export function publishStep({ step, launched }: StepInFlight, scheduler: Scheduler): void {
  if (!stepDone.hasSubscribers) return;
  stepDone.publish({
    numScheduledReqs: step.numScheduledTokens.size,
    numScheduledTokens: step.totalNumScheduledTokens,
    numNewReqs: step.scheduledNewReqs.length,
    numPreemptedReqs: step.preemptedReqIds.length,
    numRunningReqs: scheduler.numRunning,
    numWaitingReqs: scheduler.numWaiting,
    durationMs: Number.isNaN(launched) ? null : performance.now() - launched,
  });
}
