/** Old names of the engine's options. */
import { renameOption } from '../deprecation';
import { isOptionsObject } from '../realm';

export interface DeprecatedEngineArgs {
  /** @deprecated Use `distributedTimeoutMs`. */
  distributedTimeout?: number;
}

interface RenamedEngineArgs extends DeprecatedEngineArgs {
  distributedTimeoutMs?: number;
}

/** The options by their present names. `fail` makes the error for an option given twice, differently. */
export function withNewNames<Args extends RenamedEngineArgs>(
  args: Args,
  fail: (message: string) => Error,
): Args {
  if (!isOptionsObject(args)) return args;
  return renameOption(args, 'distributedTimeout', 'distributedTimeoutMs', fail);
}
