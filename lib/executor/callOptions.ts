/** Options of an executor's calls. */
import { z } from 'zod';
import { parseFields, show } from '../config/schema';
import type { LoadProgress } from '../config/uniprocConfig';
import { renameOption } from '../deprecation';
import { ConfigError } from '../errors';
import { isOptionsObject } from '../realm';

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

const rpcSchema = z.strictObject({
  timeoutMs: z
    .custom<number>((value) => typeof value === 'number' && value >= 0)
    .optional()
    .describe('milliseconds, a number of at least 0'),
  // Not copied: the worker gets the caller's values.
  args: z
    .custom<readonly unknown[]>((value) => Array.isArray(value))
    .optional()
    .describe('a list of arguments'),
  kwargs: z
    .custom<object>((value) => typeof value === 'object' && value !== null)
    .optional()
    .describe('an object'),
} satisfies Record<Exclude<keyof RpcOptions, 'timeout'>, z.ZodType>);

/** Checks the arguments of LLM.collectiveRpc. Throws ConfigError naming the argument and its value. */
export function checkRpcOptions(method: unknown, options: unknown): RpcOptions {
  const fail = (message: string) => new ConfigError(`collectiveRpc: ${message}`);
  if (typeof method !== 'string' && typeof method !== 'function') {
    throw fail(`method is ${show(method)}; it must be the name of a method, or a function`);
  }
  const given = isOptionsObject(options)
    ? renameOption<RpcOptions>(options, 'timeout', 'timeoutMs', fail)
    : options;
  return parseFields(rpcSchema, given, fail);
}

/** `timeoutMs`, also by its old name. Throws ConfigError if the two differ. */
export function timeoutOf(options: StepOptions): number | undefined {
  return renameOption(options, 'timeout', 'timeoutMs', fail).timeoutMs;
}

const fail = (message: string) => new ConfigError(message);
