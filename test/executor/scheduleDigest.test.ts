/** The digest that ranks compare: equal for equal schedules, different for any difference. */
import type { ModelRunnerOutput } from '../../lib/contract/modelRunnerOutput';
import {
  emptySchedulerOutput,
  type NewRequestData,
  type SchedulerOutput,
} from '../../lib/contract/schedulerOutput';
import { SamplingParams } from '../../lib/config/samplingParams';
import { Future } from '../../lib/executor/future';
import { ScheduleDigest } from '../../lib/executor/scheduleDigest';
import { outputOf } from './support';

const request = (changes: Partial<NewRequestData> = {}): NewRequestData => ({
  reqId: 'a',
  promptTokenIds: Int32Array.of(1, 2),
  samplingParams: new SamplingParams(),
  stopTokenIds: [3],
  badWordsTokenIds: [],
  seed: 2n ** 60n,
  blockIds: [4],
  numComputedTokens: 0,
  ...changes,
});

const schedule = (changes: Partial<SchedulerOutput> = {}): SchedulerOutput => ({
  ...emptySchedulerOutput(),
  scheduledNewReqs: [request()],
  numScheduledTokens: new Map([
    ['a', 2],
    ['b', 1],
  ]),
  totalNumScheduledTokens: 3,
  ...changes,
});

const resuming = (allTokenIds: number[]): Partial<SchedulerOutput> => ({
  scheduledCachedReqs: {
    ...emptySchedulerOutput().scheduledCachedReqs,
    reqIds: ['b'],
    allTokenIds: new Map([['b', Int32Array.from(allTokenIds)]]),
  },
});

/** The digests of steps with these outputs, by a rank with one step in flight. */
function digestsOf(
  steps: readonly SchedulerOutput[],
  output: ModelRunnerOutput = outputOf('a', 'b'),
): string[] {
  const digest = new ScheduleDigest(1);
  return steps.map((step, i) => {
    const made = digest.next(step, Future.resolved<ModelRunnerOutput | null>(output));
    expect(made.step).toBe(i);
    return Buffer.from(made.digest).toString('hex');
  });
}

it('is the same for the same schedule', () => {
  expect(digestsOf([schedule(resuming([1, 2]))])).toEqual(digestsOf([schedule(resuming([1, 2]))]));
});

it.each<[string, Partial<SchedulerOutput>]>([
  [
    'another number of tokens',
    {
      numScheduledTokens: new Map([
        ['a', 2],
        ['b', 2],
      ]),
    },
  ],
  [
    'another order of requests',
    {
      numScheduledTokens: new Map([
        ['b', 1],
        ['a', 2],
      ]),
    },
  ],
  [
    'another request',
    {
      numScheduledTokens: new Map([
        ['a', 2],
        ['c', 1],
      ]),
    },
  ],
  ['another prompt', { scheduledNewReqs: [request({ promptTokenIds: Int32Array.of(1, 3) })] }],
  ['another seed', { scheduledNewReqs: [request({ seed: 2n ** 60n + 1n })] }],
  ['other blocks', { scheduledNewReqs: [request({ blockIds: [5] })] }],
  ['another prefix hit', { scheduledNewReqs: [request({ numComputedTokens: 16 })] }],
  [
    'other sampling parameters',
    { scheduledNewReqs: [request({ samplingParams: new SamplingParams({ topK: 3 }) })] },
  ],
  ['a preempted request', { preemptedReqIds: ['c'] }],
  ['other tokens of a resumed request', resuming([1, 2])],
])('differs for %s', (_, changes) => {
  const base = schedule(resuming([1, 1]));
  expect(digestsOf([{ ...base, ...changes }])).not.toEqual(digestsOf([base]));
});

it('differs for other tokens, in the step after they are read', () => {
  const steps = [schedule(), schedule()];
  const sampled = outputOf('a', 'b');
  const forged = outputOf('a', 'b');
  forged.sampledTokenIds.tokenIds[1]++;
  const [first, second] = digestsOf(steps, sampled);
  const [forgedFirst, forgedSecond] = digestsOf(steps, forged);
  expect(forgedFirst).toBe(first);
  expect(forgedSecond).not.toBe(second);
});
