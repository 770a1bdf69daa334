/** Engine statistics. */
import { aliasField } from '../deprecation';
import type { PrefixCacheStats } from './kvCacheManager';
import type { EndReason, HistogramStats } from './metrics';

/** Old names of fields; not enumerable. */
interface DeprecatedStats {
  /** @deprecated Use `timeToFirstTokenMs`. */
  readonly timeToFirstToken?: HistogramStats;
  /** @deprecated Use `interTokenLatencyMs`. */
  readonly interTokenLatency?: HistogramStats;
}

/** Counters are totals since creation. Each of a prompt's `n` samples is a request. */
export interface EngineStats extends DeprecatedStats {
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
  timeToFirstTokenMs: HistogramStats;
  /** From each token of a request to its next. */
  interTokenLatencyMs: HistogramStats;
}

/** Adds the fields' old names. */
export function withOldNames(stats: EngineStats): EngineStats {
  aliasField(stats, 'timeToFirstToken', 'timeToFirstTokenMs');
  aliasField(stats, 'interTokenLatency', 'interTokenLatencyMs');
  return stats;
}
