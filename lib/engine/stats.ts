/** Engine statistics. */
import type { CacheDType } from '../config/dtype';
import { aliasField } from '../deprecation';
import type { KVCacheManager, PrefixCacheStats } from './kvCacheManager';
import type { EndReason, EngineMetrics, HistogramStats } from './metrics';
import type { Scheduler } from './scheduler';
import type { KVCacheGroupSummary, StartupRecord } from './startupRecord';

/** What the KV cache holds, and how much of it is in use. */
export interface KVCacheStats {
  /** Share of the blocks in use, 0 to 1. */
  usage: number;
  /** Type of keys and values. */
  dtype: CacheDType;
  numBlocks: number;
  /** Blocks in use, now and at most since the cache was allocated. */
  numUsedBlocks: number;
  peakNumUsedBlocks: number;
  /** Tokens in a block. */
  blockSize: number;
  /**
   * Groups of layers; all take blocks from the same pool. A request holds a block of each group for
   * `blockSize` tokens; in a group with a window only those of its window.
   */
  groups: KVCacheGroupSummary[];
  /** Tokens that the blocks hold, of requests no longer than the windows. */
  numTokens: number;
  /** Maximum tokens of a request. */
  maxModelLen: number;
  /** Requests of maxModelLen tokens that fit at once; at most maxNumSeqs. */
  maxFullLengthRequests: number;
}

/** Counters are totals since creation. Each of a prompt's `n` samples is a request. */
export interface EngineStats {
  /** Requests not scheduled yet, or preempted. */
  numWaitingReqs: number;
  numRunningReqs: number;
  /** Share of the KV cache blocks in use, 0 to 1; also `kvCache.usage`. */
  kvCacheUsage: number;
  kvCache: KVCacheStats;
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
  /** @deprecated Use `timeToFirstTokenMs`. Not enumerable. */
  readonly timeToFirstToken?: HistogramStats;
  /** @deprecated Use `interTokenLatencyMs`. Not enumerable. */
  readonly interTokenLatency?: HistogramStats;
}

export function kvCacheStats(
  startup: StartupRecord,
  { blockPool, usage }: KVCacheManager,
): KVCacheStats {
  const { numKvBlocks, blockSize, numKvTokens, maxModelLen, maxFullLengthRequests } = startup;
  return {
    usage,
    dtype: startup.kvCacheDtype,
    numBlocks: numKvBlocks,
    numUsedBlocks: blockPool.numBlocks - blockPool.numFreeBlocks,
    peakNumUsedBlocks: blockPool.peakNumUsedBlocks,
    blockSize,
    groups: startup.kvCacheGroups.map((group) => ({ ...group })),
    numTokens: numKvTokens,
    maxModelLen,
    maxFullLengthRequests,
  };
}

/** What the statistics are of. */
export interface StatsSources {
  numWaiting: number;
  startup: StartupRecord;
  kvCacheManager: KVCacheManager;
  metrics: EngineMetrics;
  scheduler: Scheduler;
}

export function engineStats(sources: StatsSources): EngineStats {
  const { kvCacheManager, metrics, numWaiting, scheduler, startup } = sources;
  return withOldNames({
    numWaitingReqs: numWaiting,
    numRunningReqs: scheduler.numRunning,
    kvCacheUsage: kvCacheManager.usage,
    kvCache: kvCacheStats(startup, kvCacheManager),
    prefixCacheStats: { ...kvCacheManager.prefixCacheStats },
    numPreemptions: scheduler.numPreemptions,
    numFinishedReqs: { ...metrics.numFinishedReqs },
    numPromptTokens: metrics.numPromptTokens,
    numOutputTokens: metrics.numOutputTokens,
    numNansInLogits: metrics.numNansInLogits,
    timeToFirstTokenMs: metrics.timeToFirstToken.snapshot(),
    interTokenLatencyMs: metrics.interTokenLatency.snapshot(),
  });
}

/** Adds the fields' old names. */
export function withOldNames(stats: EngineStats): EngineStats {
  aliasField(stats, 'timeToFirstToken', 'timeToFirstTokenMs');
  aliasField(stats, 'interTokenLatency', 'interTokenLatencyMs');
  return stats;
}
