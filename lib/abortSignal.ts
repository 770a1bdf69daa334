/**
 * The state of a caller's AbortSignal, and its listeners, through the methods of the platform: a signal
 * can have properties of its own, which answer or throw what they like.
 */

const aborted = Object.getOwnPropertyDescriptor(AbortSignal.prototype, 'aborted');
const reason = Object.getOwnPropertyDescriptor(AbortSignal.prototype, 'reason');

/** Throws TypeError for what is no AbortSignal. */
export function isAborted(signal: AbortSignal): boolean {
  return aborted?.get?.call(signal) === true;
}

/** Why it was aborted. */
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
