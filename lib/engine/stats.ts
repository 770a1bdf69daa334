/** Engine statistics. */
import type { PrefixCacheStats } from './kvCacheManager';
import type { EndReason, HistogramStats } from './metrics';

/** Counters are totals since creation. Each of a prompt's `n` samples is a request. */
export interface EngineStats {
  /** Requests not scheduled yet, or preempted. */
  numWaitingReqs: number;
  numRunningReqs: number;
  /** Share of the KV cache blocks in use, 0 to 1. */
  kvCacheUsage: number;
  /** Tokens looked up and found in the prefix cache since its last reset. */
  prefixCacheStats: PrefixCacheStats;
  numPreemptions: number;
  /** Finished requests, by reason. */
  numFinishedReqs: Record<EndReason, number>;
  /** Prompt tokens processed. */
  numPromptTokens: number;
  /** Generated tokens. */
  numOutputTokens: number;
  /** Requests that ended with InvalidLogitsError. */
  numNansInLogits: number;
  /** From the call to the first token. */
  timeToFirstToken: HistogramStats;
  /** From each token of a request to its next. */
  interTokenLatency: HistogramStats;
}
