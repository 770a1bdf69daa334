/** A step that was launched, and how its output comes. */
import { setImmediate as nextTurnOfEventLoop } from 'node:timers/promises';
import { ExecutorFailedError, InvalidStateError, ShutdownError } from '../errors';
import type { Future } from '../executor/future';
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';

export interface StepInFlight {
  step: SchedulerOutput;
  output: Future<ModelRunnerOutput | null>;
}

export async function outputOf(
  output: Future<ModelRunnerOutput | null>,
): Promise<ModelRunnerOutput> {
  // A worker that is always done already would keep timers and sockets from ever being served.
  if (output.done()) await nextTurnOfEventLoop();
  const modelRunnerOutput = await output;
  if (modelRunnerOutput !== null) return modelRunnerOutput;
  throw new InvalidStateError('executeModel gave null for a step without grammars');
}

export function asExecutorFailure(error: unknown): Error {
  if (error instanceof ExecutorFailedError || error instanceof ShutdownError) return error;
  return new ExecutorFailedError(`a step failed: ${String(error)}`, { cause: error });
}
