/**
 * Which step is launched and not sampled yet. The executor is the one owner of this: it refuses what
 * does not fit before any worker is called, so workers keep nothing but the step itself.
 */
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import { InvalidStateError } from '../errors';
import { Future } from './future';

/** Null: `sampleTokens` must follow. */
type StepFuture = Future<ModelRunnerOutput | null>;

export class TwoPhaseStep {
  /** The step last launched, until its sampling has been launched too. */
  #launched: StepFuture | null = null;
  /** Whether that step may turn out to wait for its sampling. */
  #mayWait = false;

  /** `launch()`, unless the step before may still wait for its sampling: then InvalidStateError. */
  launch(mayWait: boolean, launch: () => StepFuture): StepFuture {
    if (this.#mustSample()) {
      return Future.failed(
        new InvalidStateError('executeModel again before sampleTokens of the step before'),
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

  /** `sample()`, where a step waits for it; null where that step failed; else InvalidStateError. */
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
 * The samples of a step whose forward was not done when they were asked for: null if the forward
 * fails after all, whatever became of the sampling.
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
  return new InvalidStateError('sampleTokens without an executeModel that resolved null before it');
}
