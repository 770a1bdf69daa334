/** Timeouts in milliseconds; Infinity never expires. */
import { ConfigError } from './errors';

/** Maximum delay of setTimeout; a longer one would fire immediately. */
export const MAX_TIMER = 2 ** 31 - 1;

/** Throws ConfigError unless `timeout` is a number of at least 0. */
export function checkTimeout(timeout: number): void {
  if (typeof timeout !== 'number' || !(timeout >= 0)) {
    throw new ConfigError(
      `timeoutMs is ${String(timeout)}; it must be milliseconds, a number of at least 0`,
    );
  }
}

/**
 * Calls `expired` after `timeout` milliseconds, never for undefined or Infinity; returns a function
 * that cancels it. Keeps the process alive unless `ref` is false. Throws ConfigError as checkTimeout.
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
