/** A launched step and its output. */
import { ExecutorFailedError, InvalidStateError, ShutdownError } from '../errors';
import type { Future } from '../executor/future';
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';
import type { EventLoopTurn } from '../slicedWork';

export interface StepInFlight {
  step: SchedulerOutput;
  output: Future<ModelRunnerOutput | null>;
  /** When it was launched, by `performance.now()`; NaN unless it is traced. */
  launched: number;
}

/**
 * Awaits the step's output. Yields to the event loop first if the output is already done or the
 * turn's budget is used up: Node delivers up to 1,000 consecutive ready outputs in one turn without
 * serving timers or sockets.
 */
export async function outputOf(
  output: Future<ModelRunnerOutput | null>,
  turn: EventLoopTurn,
): Promise<ModelRunnerOutput> {
  if (output.done() || turn.isUsedUp) await turn.next();
  const modelRunnerOutput = await output;
  if (modelRunnerOutput !== null) return modelRunnerOutput;
  throw new InvalidStateError(
    'executeModel returned null for a step without structured-output requests',
  );
}

export function asExecutorFailure(error: unknown): Error {
  if (error instanceof ExecutorFailedError || error instanceof ShutdownError) return error;
  return new ExecutorFailedError(`a step failed: ${String(error)}`, { cause: error });
}
