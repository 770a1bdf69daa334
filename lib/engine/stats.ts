/** How an engine stands, for those who run it. */
import type { PrefixCacheStats } from './kvCacheManager';
import type { EndReason, HistogramStats } from './metrics';

/** Sums are since the engine was made. Each of a prompt's `n` samples is a request. */
export interface EngineStats {
  /** Requests that no step computes yet, or that were preempted. */
  numWaitingReqs: number;
  numRunningReqs: number;
  /** Share of the KV cache's blocks that requests hold, 0 to 1. */
  kvCacheUsage: number;
  /** Tokens looked up in the prefix cache, and those found; since its last reset. */
  prefixCacheStats: PrefixCacheStats;
  numPreemptions: number;
  /** Requests that have ended, by why they did. */
  numFinishedReqs: Record<EndReason, number>;
  /** Tokens in: of prompts that are computed. */
  numPromptTokens: number;
  /** Tokens out. */
  numOutputTokens: number;
  /** Requests that ended with InvalidLogitsError: the model computed NaN for them. */
  numNansInLogits: number;
  /** From the call to the first token. */
  timeToFirstToken: HistogramStats;
  /** From a request's token to its next. */
  interTokenLatency: HistogramStats;
}
