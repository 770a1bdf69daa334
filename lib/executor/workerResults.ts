/** One answer of an executor from those of its workers, however many there are. */
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import { InvalidStateError } from '../errors';
import { Future } from './future';

type StepFuture = Future<ModelRunnerOutput | null>;

/** Throws InvalidStateError that names the method when there is no answer at all. */
export function requireAnswers<T>(method: string, answers: readonly T[]): readonly T[] {
  if (answers.length > 0) return answers;
  throw new InvalidStateError(`${method}: the executor has no workers; it must have one at least`);
}

/**
 * A step's output, complete once every worker has answered; it fails as soon as one does. Workers
 * that do not sample, as all but the last of a pipeline, answer null: the output is the first that
 * there is, and null if there is none, when `sampleTokens` must follow. What any worker says of
 * requests that failed counts.
 *
 * `mayWait`: null says that the worker waits for `sampleTokens`, so all must give null or none.
 */
export function joinOutputs(
  method: string,
  workers: readonly StepFuture[],
  mayWait: boolean,
): StepFuture {
  if (workers.length === 1) return workers[0];
  const joined = new Future<ModelRunnerOutput | null>();
  try {
    let numLeft = requireAnswers(method, workers).length;
    for (const worker of workers) {
      worker.addDoneCallback(() => {
        const outcome = worker.peek();
        numLeft--;
        if (joined.done()) return;
        if (outcome?.status === 'rejected') joined.setException(outcome.reason);
        else if (numLeft === 0) complete(joined, method, workers, mayWait);
      });
    }
  } catch (error) {
    joined.setException(error);
  }
  return joined;
}

function complete(
  joined: StepFuture,
  method: string,
  workers: readonly StepFuture[],
  mayWait: boolean,
): void {
  const outputs = workers.map((worker) => {
    const outcome = worker.peek();
    return outcome?.status === 'fulfilled' ? outcome.value : null;
  });
  const first = outputs.findIndex((output) => output !== null);
  const waiting = outputs.indexOf(null);
  if (mayWait && first >= 0 && waiting >= 0) {
    joined.setException(
      new InvalidStateError(
        `${method}: worker ${waiting} of ${workers.length} waits for sampleTokens, but worker ` +
          `${first} gave an output; all workers of a step must do the same`,
      ),
    );
    return;
  }
  joined.setResult(outputs.reduce(withFaults, first < 0 ? null : outputs[first]));
}

/** The output with what another worker says of requests that failed. */
function withFaults(
  output: ModelRunnerOutput | null,
  other: ModelRunnerOutput | null,
): ModelRunnerOutput | null {
  if (output === null || other === null || other === output) return output;
  const { failedReqs, numNansInLogits } = other;
  return {
    ...output,
    ...(failedReqs && { failedReqs: union(output.failedReqs, failedReqs) }),
    ...(numNansInLogits && { numNansInLogits: union(output.numNansInLogits, numNansInLogits) }),
  };
}

/** Entries of `a` stand before those of `b`. */
function union<T>(
  a: ReadonlyMap<string, T> | undefined,
  b: ReadonlyMap<string, T>,
): ReadonlyMap<string, T> {
  return a === undefined || a.size === 0 ? b : b.size === 0 ? a : new Map([...b, ...a]);
}
