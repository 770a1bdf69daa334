/** Combines the results of an executor's workers. */
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import { InvalidStateError } from '../errors';
import { Future } from './future';

type StepFuture = Future<ModelRunnerOutput | null>;

/** Throws InvalidStateError naming the method if there are no results. */
export function requireResults<T>(method: string, results: readonly T[]): readonly T[] {
  if (results.length > 0) return results;
  throw new InvalidStateError(`${method}: the executor has no workers; it must have at least one`);
}

/**
 * Combines a step's outputs: completes once every worker has, fails as soon as one does. Workers
 * that do not sample (all but the last of a pipeline) return null: the result is the first non-null
 * output, or null, after which `sampleTokens` must follow. Failed requests of every worker are
 * merged.
 *
 * `mayWait`: null means that the worker awaits `sampleTokens`, so all workers or none must return
 * null.
 */
export function joinOutputs(
  method: string,
  workers: readonly StepFuture[],
  mayWait: boolean,
): StepFuture {
  if (workers.length === 1) return workers[0];
  const joined = new Future<ModelRunnerOutput | null>();
  try {
    let numLeft = requireResults(method, workers).length;
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
        `${method}: worker ${waiting} of ${workers.length} awaits sampleTokens, but worker ` +
          `${first} returned an output; all workers of a step must do the same`,
      ),
    );
    return;
  }
  joined.setResult(outputs.reduce(withFaults, first < 0 ? null : outputs[first]));
}

/** Merges another worker's failed requests into the output. */
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

/** Union; entries of `a` take precedence. */
function union<T>(
  a: ReadonlyMap<string, T> | undefined,
  b: ReadonlyMap<string, T>,
): ReadonlyMap<string, T> {
  return a === undefined || a.size === 0 ? b : b.size === 0 ? a : new Map([...b, ...a]);
}
