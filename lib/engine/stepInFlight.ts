/** A step that was launched, and how its output comes. */
import { ExecutorFailedError, InvalidStateError, ShutdownError } from '../errors';
import type { Future } from '../executor/future';
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';
import type { EventLoopTurn } from '../slicedWork';

export interface StepInFlight {
  step: SchedulerOutput;
  output: Future<ModelRunnerOutput | null>;
}

/**
 * What the step brought. Waits for the next turn of the event loop where the output is there already,
 * and where steps have run in this turn for long: Node delivers up to 1,000 outputs in a turn when each
 * is ready as soon as the one before it is delivered, and serves no timer or socket in between.
 */
export async function outputOf(
  output: Future<ModelRunnerOutput | null>,
  turn: EventLoopTurn,
): Promise<ModelRunnerOutput> {
  if (output.done() || turn.isUsedUp) await turn.next();
  const modelRunnerOutput = await output;
  if (modelRunnerOutput !== null) return modelRunnerOutput;
  throw new InvalidStateError('executeModel gave null for a step without grammars');
}

export function asExecutorFailure(error: unknown): Error {
  if (error instanceof ExecutorFailedError || error instanceof ShutdownError) return error;
  return new ExecutorFailedError(`a step failed: ${String(error)}`, { cause: error });
}
