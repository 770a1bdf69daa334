/** Digests that ranks compare to detect diverging schedules (UNIPROC_CHECK_SCHEDULE=1). */
import { createHash } from 'node:crypto';
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';
import type { Future } from './future';

export class ScheduleDigest {
  #step = 0;
  /** Outputs of steps that may be in flight. */
  readonly #outputs: Future<ModelRunnerOutput | null>[] = [];

  /** A step is launched only once the step `maxConcurrentBatches` before it has been read. */
  constructor(private readonly maxConcurrentBatches: number) {}

  /** The step's number, and a digest of its schedule and of the tokens last sampled. */
  next(
    { numScheduledTokens, scheduledNewReqs, scheduledCachedReqs, preemptedReqIds }: SchedulerOutput,
    output: Future<ModelRunnerOutput | null>,
  ): { step: number; digest: Uint8Array } {
    this.#outputs.push(output);
    const before =
      this.#outputs.length > this.maxConcurrentBatches ? this.#outputs.shift()?.peek() : null;
    const sampled = before?.status === 'fulfilled' ? before.value?.sampledTokenIds.tokenIds : null;
    const schedule = [
      numScheduledTokens,
      scheduledNewReqs,
      scheduledCachedReqs.allTokenIds,
      preemptedReqIds,
      sampled,
    ];
    const digest = createHash('sha256').update(JSON.stringify(schedule, plain)).digest();
    return { step: this.#step++, digest };
  }
}

/** Encodes values that JSON lacks. */
function plain(_key: string, value: unknown): unknown {
  if (typeof value === 'bigint') return String(value);
  if (value instanceof Map) return [...(value as Map<unknown, unknown>)];
  if (value instanceof Int32Array) return [...value];
  return value;
}
