/** Engine statistics. */
import { aliasField } from '../deprecation';
import type { PrefixCacheStats } from './kvCacheManager';
import type { EndReason, HistogramStats } from './metrics';
import type { StartupRecord } from './startupRecord';

/** What the KV cache holds, and how much of it is in use. */
export interface KVCacheStats {
  /** Share of the blocks in use, 0 to 1. */
  usage: number;
  numBlocks: number;
  /** Tokens in a block. */
  blockSize: number;
  /** Tokens of all blocks. */
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

/** `usage`: the share of the blocks in use. */
export function kvCacheStats(startup: StartupRecord, usage: number): KVCacheStats {
  const { numKvBlocks, blockSize, numKvTokens, maxModelLen, maxFullLengthRequests } = startup;
  return {
    usage,
    numBlocks: numKvBlocks,
    blockSize,
    numTokens: numKvTokens,
    maxModelLen,
    maxFullLengthRequests,
  };
}

/** Adds the fields' old names. */
export function withOldNames(stats: EngineStats): EngineStats {
  aliasField(stats, 'timeToFirstToken', 'timeToFirstTokenMs');
  aliasField(stats, 'interTokenLatency', 'interTokenLatencyMs');
  return stats;
}
