/** `NODE_DEBUG=uniproc`: what the library does, a line for each step, on stderr. */
import { debuglog } from 'node:util';
import { UniprocError } from './errors';
import { isError } from './realm';

/**
 * Writes `UNIPROC <pid>: ...` to stderr where NODE_DEBUG names uniproc; otherwise returns at once.
 * `format` has util.format's placeholders, so no string is made while the log is off. What users wrote
 * (prompts, messages, stop strings, cache salts, error messages that quote them) is never a value
 * here: ids, counts, paths of files and error codes are.
 */
export const log: (format: string, ...values: readonly unknown[]) => void = debuglog('uniproc');

/** What the log says of an error. Its message may quote a prompt, so it is left out. */
export function codeOf(error: unknown): string {
  if (error instanceof UniprocError) return error.code;
  return isError(error) ? error.name : 'an error of another type';
}
