/** What ranks compare to see that they step together (UNIPROC_CHECK_SCHEDULE=1). */
import { createHash } from 'node:crypto';
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';
import type { Future } from './future';

export class ScheduleDigest {
  #step = 0;
  /** Outputs of the steps that may be in flight. */
  readonly #outputs: Future<ModelRunnerOutput | null>[] = [];

  /** `maxConcurrentBatches`: a step is launched once the one so many before it has been read. */
  constructor(private readonly maxConcurrentBatches: number) {}

  /** The step's number, and the digest of its schedule and of the tokens that were sampled before. */
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

/** What JSON has no word for. */
function plain(_key: string, value: unknown): unknown {
  if (typeof value === 'bigint') return String(value);
  if (value instanceof Map) return [...(value as Map<unknown, unknown>)];
  if (value instanceof Int32Array) return [...value];
  return value;
}
