/** One call: its progress, and the signal and timeout that may end it early. */
import { abortReason, addAbortListener, removeAbortListener } from '../abortSignal';
import type { RequestOptions } from '../config/requestOptions';
import { RequestTimeoutError } from '../errors';
import { startTimer } from '../timer';
import { slicedWork } from '../slicedWork';

/**
 * Called with why the call ends early, and the error for its caller: for a signal, the signal's
 * reason.
 */
export type OnAbort = (why: 'abort' | 'timeout', error: unknown) => void;

export class Call {
  /** Prompts with all samples complete. */
  numPromptsDone = 0;
  /** Prompt tokens computed so far, summed over samples. */
  numPromptTokens = 0;
  /** Tokens generated so far. */
  numOutputTokens = 0;
  /** Whether a signal or a timeout may end it. */
  isWatched = false;
  private ended = false;
  /** Null without a signal, and once the call has ended. */
  private signal: AbortSignal | null = null;
  private stopTimer: (() => void) | null = null;
  private onAbort: OnAbort | null = null;
  private onEnd: (() => void) | null = null;

  constructor(readonly numPrompts: number) {}

  /** Done, failed or aborted. */
  get isEnded(): boolean {
    return this.ended;
  }

  /**
   * Calls `onAbort` when the signal is aborted or the timeout expires, unless the call ends first.
   */
  watch({ signal, timeoutMs }: RequestOptions, onAbort: OnAbort): void {
    this.isWatched = signal !== undefined || timeoutMs !== undefined;
    this.onAbort = onAbort;
    if (timeoutMs !== undefined) {
      this.stopTimer = startTimer(timeoutMs, () =>
        onAbort('timeout', new RequestTimeoutError(timeoutMs, this)),
      );
    }
    if (signal === undefined) return;
    addToSignal(signal, this);
    this.signal = signal;
  }

  /** The call's signal was aborted. */
  aborted(): void {
    const { signal } = this;
    if (signal !== null) this.onAbort?.('abort', abortReason(signal));
  }

  /** Registers the callback that `end` calls synchronously. */
  whenEnded(callback: () => void): void {
    this.onEnd = callback;
  }

  promptDone(): void {
    if (++this.numPromptsDone === this.numPrompts) this.end();
  }

  /** Ends the call and stops watching its signal and timeout. Idempotent. */
  end(): void {
    if (this.ended) return;
    this.ended = true;
    this.stopTimer?.();
    this.stopTimer = null;
    const { signal } = this;
    this.signal = null;
    if (signal !== null) removeFromSignal(signal, this);
    this.onAbort = null;
    this.onEnd?.();
  }
}

/** Calls in progress, by signal. */
const callsBySignal = new WeakMap<AbortSignal, Set<Call>>();

/**
 * Registers the call with its signal. Each signal has one listener, however many calls share it: a
 * service may pass one signal to hundreds of calls, and Node warns of a leak at the eleventh
 * listener.
 */
function addToSignal(signal: AbortSignal, call: Call): void {
  const waiting = callsBySignal.get(signal) ?? new Set();
  callsBySignal.set(signal, waiting);
  waiting.add(call);
  // Adds the listener only once: registering it again has no effect.
  addAbortListener(signal, abortAll);
}

function removeFromSignal(signal: AbortSignal, call: Call): void {
  const waiting = callsBySignal.get(signal);
  if (waiting === undefined) return;
  waiting.delete(call);
  if (waiting.size === 0) removeAbortListener(signal, abortAll);
}

/** In slices: a signal may abort tens of thousands of calls. */
function abortAll(this: AbortSignal): void {
  const waiting = callsBySignal.get(this) ?? new Set();
  function* calls() {
    // The iterator skips calls that earlier ones removed from the set.
    for (const call of waiting) {
      call.aborted();
      yield;
    }
  }
  slicedWork.run(calls(), noop, noop);
}

function noop(): void {}
