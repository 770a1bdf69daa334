/** Options of an executor's calls. */
import type { LoadProgress } from '../config/uniprocConfig';
import { renameOption } from '../deprecation';
import { ConfigError } from '../errors';

export interface RpcOptions {
  /** Then rejects with RpcTimeoutError, and a late result is dropped. */
  timeoutMs?: number;
  /** @deprecated Use `timeoutMs`. */
  timeout?: number;
  args?: readonly unknown[];
  /** Passed after `args`, as the last argument. */
  kwargs?: object;
}

export interface StepOptions {
  /** Then rejects with RpcTimeoutError, and the executor has failed. */
  timeoutMs?: number;
  /** @deprecated Use `timeoutMs`. */
  timeout?: number;
}

export interface CreateOptions {
  /** Called with the progress of weight loading. */
  onProgress?: (progress: LoadProgress) => void;
}

/** `timeoutMs`, also by its old name. Throws ConfigError if the two differ. */
export function timeoutOf(options: StepOptions): number | undefined {
  return renameOption(options, 'timeout', 'timeoutMs', fail).timeoutMs;
}

const fail = (message: string) => new ConfigError(message);
