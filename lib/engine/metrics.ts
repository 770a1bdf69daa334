/** What the engine counts and times, and what it tells those who listen. */
import type { EventEmitter } from 'node:events';
import type { EndReason } from './outputs';
import type { Request } from './request';
import type { StartupRecord } from './startupRecord';

export type { EndReason } from './outputs';

/** One request that has ended, for a log. Of a prompt with `n` samples each is one. */
export interface FinishedRequest {
  requestId: string;
  /** 0 where it ended before its prompt was encoded. */
  numPromptTokens: number;
  /** Of those, taken from the prefix cache. */
  numCachedTokens: number;
  numOutputTokens: number;
  finishReason: EndReason;
  /** Milliseconds from the call to the first step that computes it; null when there was none. */
  queueTimeMs: number | null;
  /** Milliseconds from the call to its first token; null when there was none. */
  timeToFirstTokenMs: number | null;
  /** Milliseconds from the call to its end. */
  totalTimeMs: number;
}

/** Events of an engine, each with its listener's arguments. */
export interface EngineEvents {
  /**
   * The engine takes requests: in the turn of the event loop after that in which LLM.create resolved,
   * and again when reinitializeDistributed has formed another group of ranks.
   */
  started: [record: StartupRecord];
  /** A request has ended, for whatever reason. */
  finished: [request: FinishedRequest];
  /** A request gave its blocks to others, and is computed again later. */
  preempted: [requestId: string];
  /** Nothing runs any more: the executor failed for good. */
  failed: [error: Error];
}

/** How often a value fell into which range. */
export interface HistogramStats {
  /** Rising, in milliseconds; a bucket holds what is above the bound before it, up to its own. */
  upperBounds: readonly number[];
  /** One for each bound, and a last one for what is above them all; not cumulative. */
  counts: number[];
  /** Of all values, in milliseconds. */
  sum: number;
  /** Of values. */
  count: number;
}

/** Five to each power of ten: 0.1 ms to 100 s. */
const UPPER_BOUNDS: readonly number[] = Object.freeze([
  ...[0.1, 1, 10, 100, 1000, 10_000].flatMap((power) =>
    [1, 1.6, 2.5, 4, 6.3].map((step) => Number((step * power).toPrecision(2))),
  ),
  100_000,
]);

export class Histogram {
  private readonly counts = new Float64Array(UPPER_BOUNDS.length + 1);
  private sum = 0;
  private lastValue = NaN;
  private lastBucket = 0;

  /** `value` in milliseconds. */
  observe(value: number): void {
    // All rows of a step that were in the step before have waited equally long.
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

/** The first bucket whose bound is not below the value. */
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

/** When things happened to a request, by `performance.now()`; NaN when they have not. */
export class RequestTimes {
  /** Of the first step that computes it. */
  scheduled = NaN;
  firstToken = NaN;
  lastToken = NaN;

  constructor(
    /** Of the call. */
    readonly arrival: number,
  ) {}
}

/** What is told of a request that has ended. */
type EndedRequest = Pick<Request, 'requestId' | 'numPromptTokens' | 'numCachedTokens'>;

/** Sums since the engine was made. */
export class EngineMetrics {
  /** Tokens of prompts that are computed, those found in the prefix cache among them. */
  numPromptTokens = 0;
  numOutputTokens = 0;
  /** Requests that were ended because logits of theirs were NaN. */
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

  /** A request of this many prompt tokens got its first token. */
  firstToken(times: RequestTimes, now: number, numPromptTokens: number): void {
    this.numPromptTokens += numPromptTokens;
    this.timeToFirstToken.observe(now - times.arrival);
    times.firstToken = times.lastToken = now;
  }

  nextToken(times: RequestTimes, now: number): void {
    this.interTokenLatency.observe(now - times.lastToken);
    times.lastToken = now;
  }

  /** A request has ended. */
  finished(
    request: EndedRequest,
    times: RequestTimes,
    numOutputTokens: number,
    finishReason: EndReason,
  ): void {
    this.numFinishedReqs[finishReason]++;
    if (this.hasListeners) this.tell(request, times, numOutputTokens, finishReason);
  }

  /** Whether anyone wants to hear of requests that end. */
  get hasListeners(): boolean {
    return this.events.listenerCount('finished') > 0;
  }

  /** Tells those who listen of a request that has ended, without counting it. */
  tell(
    { requestId, numPromptTokens, numCachedTokens }: EndedRequest,
    { arrival, scheduled, firstToken }: RequestTimes,
    numOutputTokens: number,
    finishReason: EndReason,
  ): void {
    emit(this.events, 'finished', {
      requestId,
      numPromptTokens,
      numCachedTokens: numCachedTokens ?? 0,
      numOutputTokens,
      finishReason,
      queueTimeMs: elapsed(arrival, scheduled),
      timeToFirstTokenMs: elapsed(arrival, firstToken),
      totalTimeMs: performance.now() - arrival,
    });
  }
}

/** Null when the end has not come. */
function elapsed(start: number, end: number): number | null {
  return Number.isNaN(end) ? null : end - start;
}

/**
 * Emits an event. A listener that throws does what it does elsewhere in Node, an uncaught exception,
 * but not in the middle of the engine's step.
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
