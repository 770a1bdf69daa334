/** Timeouts, in milliseconds, of which Infinity is one that never comes. */
import { ConfigError } from './errors';

/** Most milliseconds that setTimeout can count; longer would fire at once. */
export const MAX_TIMER = 2 ** 31 - 1;

/** Throws ConfigError for what is not a duration. */
export function checkTimeout(timeout: number): void {
  if (typeof timeout !== 'number' || !(timeout >= 0)) {
    throw new ConfigError(`timeout must be milliseconds, 0 or more, not ${String(timeout)}`);
  }
}

/**
 * Calls back after `timeout` milliseconds; returns what stops it. Undefined or Infinity: never. The
 * process does not end before, unless `ref` is false. Throws ConfigError for what is not a duration.
 */
export function startTimer(
  timeout: number | undefined,
  expired: () => void,
  { ref = true }: { ref?: boolean } = {},
): () => void {
  if (timeout === undefined || timeout === Infinity) return () => {};
  checkTimeout(timeout);
  const timer = setTimeout(expired, Math.min(timeout, MAX_TIMER));
  if (!ref) timer.unref();
  return () => clearTimeout(timer);
}
