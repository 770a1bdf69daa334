/**
 * Reads a caller's AbortSignal through the platform's methods, because a signal's own properties may
 * override them and throw. A signal of another realm or polyfill (jsdom's) has methods of its own, which
 * are called instead.
 */

const abortedGetter = Object.getOwnPropertyDescriptor(AbortSignal.prototype, 'aborted');
const reasonGetter = Object.getOwnPropertyDescriptor(AbortSignal.prototype, 'reason');

/** Whether the platform made it. */
function isPlatforms(signal: AbortSignal): boolean {
  try {
    abortedGetter?.get?.call(signal);
    return true;
  } catch {
    return false;
  }
}

/** Whether the value can be watched as an AbortSignal. */
export function isAbortSignal(value: unknown): value is AbortSignal {
  if (typeof value !== 'object' || value === null) return false;
  if (isPlatforms(value as AbortSignal)) return true;
  try {
    const { aborted, addEventListener, removeEventListener } = value as Partial<AbortSignal>;
    return (
      typeof aborted === 'boolean' &&
      typeof addEventListener === 'function' &&
      typeof removeEventListener === 'function'
    );
  } catch {
    return false;
  }
}

export function isAborted(signal: AbortSignal): boolean {
  return isPlatforms(signal) ? abortedGetter?.get?.call(signal) === true : signal.aborted;
}

/** The reason that `abort` was given; an AbortError for a polyfill's signal without one. */
export function abortReason(signal: AbortSignal): unknown {
  if (isPlatforms(signal)) return reasonGetter?.get?.call(signal) as unknown;
  try {
    const reason = signal.reason as unknown;
    if (reason !== undefined) return reason;
    return new DOMException('This operation was aborted', 'AbortError');
  } catch (error) {
    return error;
  }
}

/** Throws the reason of a signal that is aborted. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal !== undefined && isAborted(signal)) throw abortReason(signal);
}

export function addAbortListener(signal: AbortSignal, listener: () => void): void {
  if (isPlatforms(signal)) EventTarget.prototype.addEventListener.call(signal, 'abort', listener);
  else signal.addEventListener('abort', listener);
}

/** Never throws: it is called while a call ends. */
export function removeAbortListener(signal: AbortSignal, listener: () => void): void {
  try {
    if (isPlatforms(signal)) {
      EventTarget.prototype.removeEventListener.call(signal, 'abort', listener);
    } else {
      signal.removeEventListener('abort', listener);
    }
  } catch (error) {
    process.emitWarning(`a signal's removeEventListener threw: ${String(error)}`, 'UniprocWarning');
  }
}
