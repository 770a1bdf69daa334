/** The error of a call that was pending when its engine stopped. */
import { defineOutputs } from '../callErrors';
import { ExecutorFailedError, ShutdownError } from '../errors';
import type { RequestOutput } from '../requestOutput';

/**
 * The call's own copy of the error that stopped the engine, with what the call had generated: the error
 * itself is shared by all calls.
 */
export function stopErrorOf(error: Error, partialOutputs: () => RequestOutput[]): Error {
  const { message, cause } = error;
  const options = cause === undefined ? undefined : { cause };
  let own: ExecutorFailedError | ShutdownError;
  if (error instanceof ShutdownError) own = new ShutdownError(message, options);
  else if (error instanceof ExecutorFailedError) own = new ExecutorFailedError(message, options);
  else return error;
  defineOutputs(own, partialOutputs);
  return own;
}
