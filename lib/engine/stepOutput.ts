/** Checks a worker's output against the scheduled step. */
import {
  InvalidLogitsError,
  InvalidRequestError,
  InvalidStateError,
  RequestFailedError,
  type UniprocError,
} from '../errors';
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';
import type { EngineCoreOutput } from './outputs';
import type { Request } from './request';

/**
 * Throws InvalidStateError if the output contains none of the step's `unfinished` requests: then
 * the executor has failed.
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
 * Why the request's row of a step's output is invalid, null if valid. `row` is -1 if missing and
 * should have `numExpected` tokens; `vocabSize` is for the message.
 */
export function faultOf(
  requestId: string,
  { numNansInLogits, sampledTokenIds: { offsets } }: ModelRunnerOutput,
  row: number,
  numExpected: number,
  vocabSize: number | null,
): UniprocError | null {
  if (!(row >= 0 && row < offsets.length - 1)) {
    return outputMismatch(requestId, "the worker's output has no row for it");
  }
  const numNans = numNansInLogits?.get(requestId) ?? 0;
  if (numNans > 0) return new InvalidLogitsError(requestId, numNans, vocabSize);
  const numTokens = offsets[row + 1] - offsets[row];
  if (numTokens === numExpected) return null;
  const compared = numTokens < numExpected ? 'fewer' : 'more';
  return outputMismatch(
    requestId,
    `the worker returned ${compared} tokens than were scheduled: ${numTokens} instead of ${numExpected}`,
  );
}

/** The error of a request with no allowed next token. */
export function noAllowedToken({ requestId, numOutputTokens }: Request): InvalidRequestError {
  return new InvalidRequestError(
    `request ${requestId}: after ${numOutputTokens} tokens its parameters allow no next token: ` +
      'allowedTokenIds, structuredOutputs, badWords and minTokens (which bans stop tokens) exclude all; ' +
      'relax one of them',
    { requestId },
  );
}

function outputMismatch(requestId: string, message: string): RequestFailedError {
  return new RequestFailedError(requestId, 'computed', new InvalidStateError(message));
}

/** Output records reused by every step, so tokens allocate no objects. */
export class OutputRecords {
  readonly outputs: EngineCoreOutput[] = [];

  /** `index` is at most the number of records so far. */
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
