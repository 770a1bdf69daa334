/**
 * Reads a caller's AbortSignal through the platform's methods, because a signal's own properties may
 * override them and throw.
 */

const aborted = Object.getOwnPropertyDescriptor(AbortSignal.prototype, 'aborted');
const reason = Object.getOwnPropertyDescriptor(AbortSignal.prototype, 'reason');

/** Throws TypeError for another object. */
export function isAborted(signal: AbortSignal): boolean {
  return aborted?.get?.call(signal) === true;
}

/** The reason that `abort` was given. */
export function abortReason(signal: AbortSignal): unknown {
  return reason?.get?.call(signal) as unknown;
}

export function addAbortListener(signal: AbortSignal, listener: (this: AbortSignal) => void): void {
  EventTarget.prototype.addEventListener.call(signal, 'abort', listener);
}

export function removeAbortListener(
  signal: AbortSignal,
  listener: (this: AbortSignal) => void,
): void {
  EventTarget.prototype.removeEventListener.call(signal, 'abort', listener);
}
