/** Whether what a worker gave back for a step is what was scheduled. */
import {
  InvalidLogitsError,
  InvalidRequestError,
  InvalidStateError,
  RequestFailedError,
  type UniprocError,
} from '../errors';
import type { ModelRunnerOutput } from '../worker/outputs';
import type { SchedulerOutput } from '../worker/schedulerOutput';
import type { EngineCoreOutput } from './outputs';
import type { Request } from './request';

/**
 * Throws InvalidStateError when the output cannot be this step's, since it has none of the requests
 * that are `unfinished`: the executor has failed then.
 */
export function checkOutput(
  step: SchedulerOutput,
  output: ModelRunnerOutput,
  unfinished: ReadonlyMap<string, Request>,
): void {
  const { reqIdToIndex, sampledTokenIds } = output;
  const { tokenIds, offsets } = sampledTokenIds;
  const end = offsets[offsets.length - 1];
  if (end > tokenIds.length) {
    throw new InvalidStateError(
      `a step's output has ${tokenIds.length} tokens, but its offsets go up to ${end}`,
    );
  }
  let first: string | null = null;
  for (const requestId of step.numScheduledTokens.keys()) {
    if (!unfinished.has(requestId)) continue;
    if (reqIdToIndex.has(requestId)) return;
    first ??= requestId;
  }
  if (first === null) return;
  throw new InvalidStateError(
    `request ${first} was scheduled but is not in the output, nor is any other request of the step`,
  );
}

/**
 * Why a request cannot go on with its row of a step's output, -1 for none, which is to have
 * `numExpected` tokens; null when it can. `vocabSize` is for messages.
 */
export function faultOf(
  requestId: string,
  { numNansInLogits, sampledTokenIds: { offsets } }: ModelRunnerOutput,
  row: number,
  numExpected: number,
  vocabSize: number | null,
): UniprocError | null {
  if (!(row >= 0 && row < offsets.length - 1)) {
    return misfit(requestId, "the worker's output of a step has no row for it");
  }
  const numNans = numNansInLogits?.get(requestId) ?? 0;
  if (numNans > 0) return new InvalidLogitsError(requestId, numNans, vocabSize);
  const numTokens = offsets[row + 1] - offsets[row];
  if (numTokens === numExpected) return null;
  const compared = numTokens < numExpected ? 'fewer' : 'more';
  return misfit(
    requestId,
    `the worker gave back ${compared} tokens than were scheduled, ${numTokens} for ${numExpected}`,
  );
}

/** Why a request ends whose parameters forbid every token that could come next. */
export function nothingPermitted({ requestId, numOutputTokens }: Request): InvalidRequestError {
  return new InvalidRequestError(
    `request ${requestId}: after ${numOutputTokens} tokens its parameters permit no next one: ` +
      'allowedTokenIds, badWords and minTokens (which forbids stop tokens) exclude all; relax one of them',
    { requestId },
  );
}

function misfit(requestId: string, message: string): RequestFailedError {
  return new RequestFailedError(requestId, 'computed', new InvalidStateError(message));
}

/** The records of a step's outputs, which the next step's overwrite, lest each token costs an object. */
export class OutputRecords {
  readonly outputs: EngineCoreOutput[] = [];

  /** `index` is at most their number so far. */
  at(index: number): EngineCoreOutput {
    if (index === this.outputs.length) {
      this.outputs.push({
        requestId: '',
        start: 0,
        end: 0,
        promptLogprobs: null,
        finishReason: null,
        error: null,
      });
    }
    return this.outputs[index];
  }
}
