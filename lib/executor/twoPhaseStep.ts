/**
 * Tracks the step launched but not sampled. The executor alone owns this state: it refuses invalid
 * calls before they reach a worker, so workers keep only the step itself.
 */
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import { InvalidStateError } from '../errors';
import { Future } from './future';

/** Null: `sampleTokens` must follow. */
type StepFuture = Future<ModelRunnerOutput | null>;

export class TwoPhaseStep {
  /** The last launched step, until its sampling is launched. */
  #launched: StepFuture | null = null;
  /** Whether that step may need `sampleTokens`. */
  #mayWait = false;

  /** Launches a step; InvalidStateError if the previous one may still need sampling. */
  launch(mayWait: boolean, launch: () => StepFuture): StepFuture {
    if (this.#mustSample()) {
      return Future.failed(
        new InvalidStateError(
          'executeModel was called while the previous step awaits sampleTokens; call sampleTokens first',
        ),
      );
    }
    this.#mayWait = mayWait;
    return (this.#launched = launch());
  }

  #mustSample(): boolean {
    if (this.#launched === null) return false;
    const outcome = this.#launched.peek();
    if (outcome === null) return this.#mayWait;
    return outcome.status === 'fulfilled' && outcome.value === null;
  }

  /** Samples the launched step; null if that step failed; else InvalidStateError. */
  sample(sample: () => StepFuture): StepFuture {
    const launched = this.#launched;
    if (launched === null) return Future.failed(nothingToSample());
    if (launched.peek()?.status === 'rejected') {
      this.#launched = null;
      return Future.resolved<ModelRunnerOutput | null>(null);
    }
    if (!this.#mustSample()) return Future.failed(nothingToSample());
    this.#launched = null;
    const sampled = sample();
    return launched.done() ? sampled : sampledUnlessFailed(launched, sampled);
  }
}

/**
 * Output of sampling launched before its forward pass was done: null if the forward fails, whatever
 * the sampling's result.
 */
function sampledUnlessFailed(launched: StepFuture, sampled: StepFuture): StepFuture {
  const future = new Future<ModelRunnerOutput | null>();
  launched.addDoneCallback(() => {
    const forward = launched.peek();
    if (forward?.status !== 'fulfilled') future.setResult(null);
    else if (forward.value !== null) future.setException(nothingToSample());
    else
      sampled.then(
        (output) => future.setResult(output),
        (error: unknown) => future.setException(error),
      );
  });
  return future;
}

function nothingToSample(): InvalidStateError {
  return new InvalidStateError(
    'sampleTokens was called, but no step awaits it: executeModel must return null first',
  );
}
