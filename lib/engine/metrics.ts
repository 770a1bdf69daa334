/** Engine counters, latencies and events. */
import type { EventEmitter } from 'node:events';
import { requestFinish } from './diagnostics';
import type { EndReason } from './outputs';
import type { Request } from './request';
import type { StartupRecord } from './startupRecord';

export type { EndReason } from './outputs';

/** Log record of a finished request; each of a prompt's `n` samples has its own. */
export interface FinishedRequest {
  requestId: string;
  /** 0 if it ended before its prompt was encoded. */
  numPromptTokens: number;
  /** Prompt tokens found in the prefix cache. */
  numCachedTokens: number;
  numOutputTokens: number;
  finishReason: EndReason;
  /** Milliseconds from the call to the request's first step; null if there was none. */
  queueTimeMs: number | null;
  /** Milliseconds from the call to the first token; null if there was none. */
  timeToFirstTokenMs: number | null;
  /** Milliseconds from the call to its end. */
  totalTimeMs: number;
}

/** Engine events, with their listeners' arguments. */
export interface EngineEvents {
  /**
   * The engine accepts requests. Emitted one turn of the event loop after LLM.create resolves, and again
   * after reinitializeDistributed.
   */
  started: [record: StartupRecord];
  /** A request finished, for any reason. */
  finished: [request: FinishedRequest];
  /** A request was preempted: its blocks were freed, and it is recomputed later. */
  preempted: [requestId: string];
  /** The executor failed and the engine has stopped. */
  failed: [error: Error];
}

/** A histogram with fixed buckets. */
export interface HistogramStats {
  /** Ascending, in milliseconds; inclusive upper bounds. */
  upperBounds: readonly number[];
  /** One per bound and one above all bounds; not cumulative. */
  counts: number[];
  /** Sum of all values, in milliseconds. */
  sum: number;
  /** Number of values. */
  count: number;
}

/** Five per power of ten: 0.1 ms to 100 s. */
const FIVE_PER_POWER = [
  ...[0.1, 1, 10, 100, 1000, 10_000].flatMap((power) =>
    [1, 1.6, 2.5, 4, 6.3].map((step) => Number((step * power).toPrecision(2))),
  ),
  100_000,
];

/** The bounds of vLLM's metrics of token latencies, in milliseconds, which the server reports by them. */
export const VLLM_TOKEN_BOUNDS: readonly number[] = Object.freeze([
  10, 25, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1000, 2500, 5000, 7500, 10_000, 20_000, 40_000,
  80_000,
]);

const UPPER_BOUNDS: readonly number[] = Object.freeze(
  [...new Set([...FIVE_PER_POWER, ...VLLM_TOKEN_BOUNDS])].sort((a, b) => a - b),
);

export class Histogram {
  private readonly counts = new Float64Array(UPPER_BOUNDS.length + 1);
  private sum = 0;
  private lastValue = NaN;
  private lastBucket = 0;

  /** `value` in milliseconds. */
  observe(value: number): void {
    // Rows that decode in consecutive steps observe equal values.
    if (value !== this.lastValue) {
      this.lastValue = value;
      this.lastBucket = bucketOf(value);
    }
    this.counts[this.lastBucket]++;
    this.sum += value;
  }

  snapshot(): HistogramStats {
    const counts = Array.from(this.counts);
    return {
      upperBounds: UPPER_BOUNDS,
      counts,
      sum: this.sum,
      count: counts.reduce((total, count) => total + count, 0),
    };
  }
}

/** The first bucket with a bound of at least the value. */
function bucketOf(value: number): number {
  let low = 0;
  let high = UPPER_BOUNDS.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (value <= UPPER_BOUNDS[middle]) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** A request's timestamps, by `performance.now()`; NaN until they occur. */
export class RequestTimes {
  /** When the first step with the request was scheduled. */
  scheduled = NaN;
  firstToken = NaN;
  lastToken = NaN;

  constructor(
    /** When the call was made. */
    readonly arrival: number,
  ) {}
}

/** The fields of a finished request that its record needs. */
type EndedRequest = Pick<Request, 'requestId' | 'numPromptTokens' | 'numCachedTokens'>;

/** Totals since the engine was created. */
export class EngineMetrics {
  /** Prompt tokens processed, including prefix cache hits. */
  numPromptTokens = 0;
  numOutputTokens = 0;
  /** Requests that ended because their logits were NaN. */
  numNansInLogits = 0;
  readonly timeToFirstToken = new Histogram();
  readonly interTokenLatency = new Histogram();
  readonly numFinishedReqs: Record<EndReason, number> = {
    stop: 0,
    length: 0,
    abort: 0,
    timeout: 0,
    error: 0,
  };

  constructor(readonly events: EventEmitter<EngineEvents>) {}

  /** Records a request's first token. */
  firstToken(times: RequestTimes, now: number, numPromptTokens: number): void {
    this.numPromptTokens += numPromptTokens;
    this.timeToFirstToken.observe(now - times.arrival);
    times.firstToken = times.lastToken = now;
  }

  nextToken(times: RequestTimes, now: number): void {
    this.interTokenLatency.observe(now - times.lastToken);
    times.lastToken = now;
  }

  /** Counts a finished request and emits its event. */
  finished(
    request: EndedRequest,
    times: RequestTimes,
    numOutputTokens: number,
    finishReason: EndReason,
  ): void {
    this.numFinishedReqs[finishReason]++;
    if (this.hasListeners) this.emitFinished(request, times, numOutputTokens, finishReason);
  }

  /** Whether the event `finished` or its channel has a listener. */
  get hasListeners(): boolean {
    return this.events.listenerCount('finished') > 0 || requestFinish.hasSubscribers;
  }

  /** Emits `finished` without counting the request. */
  emitFinished(
    { requestId, numPromptTokens, numCachedTokens }: EndedRequest,
    { arrival, scheduled, firstToken }: RequestTimes,
    numOutputTokens: number,
    finishReason: EndReason,
  ): void {
    const record = {
      requestId,
      numPromptTokens,
      numCachedTokens: numCachedTokens ?? 0,
      numOutputTokens,
      finishReason,
      queueTimeMs: elapsed(arrival, scheduled),
      timeToFirstTokenMs: elapsed(arrival, firstToken),
      totalTimeMs: performance.now() - arrival,
    };
    emit(this.events, 'finished', record);
    requestFinish.publish(record);
  }
}

/** Milliseconds; null when `end` is NaN. */
export function elapsed(start: number, end: number): number | null {
  return Number.isNaN(end) ? null : end - start;
}

/**
 * Emits an event. An error thrown by a listener becomes an uncaught exception on the next tick,
 * outside the engine's step.
 */
export function emit<Name extends keyof EngineEvents>(
  events: EventEmitter<EngineEvents>,
  name: Name,
  ...args: EngineEvents[Name]
): void {
  try {
    (events as EventEmitter).emit(name, ...args);
  } catch (error) {
    process.nextTick(() => {
      throw error;
    });
  }
}
