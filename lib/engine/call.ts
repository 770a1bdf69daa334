/** What one caller asked for in one go: how far it is, and what ends it before it is done. */
import type { RequestOptions } from '../config/requestOptions';
import { RequestTimeoutError } from '../errors';
import { startTimer } from '../timer';
import { slicedWork } from '../slicedWork';

/** Why a call was given up, and the error for whoever waits: of a signal, whatever its reason is. */
export type GiveUp = (why: 'abort' | 'timeout', error: unknown) => void;

export class Call {
  /** Prompts of which all samples are there. */
  numPromptsDone = 0;
  /** Tokens of the prompts computed so far, for each sample its own. */
  numPromptTokens = 0;
  /** Tokens generated so far. */
  numOutputTokens = 0;
  /** Whether a signal or its time may end it. */
  isWatched = false;
  private ended = false;
  /** What may end it before it is done; null where nothing does, and once it has ended. */
  private signal: AbortSignal | null = null;
  private stopTimer: (() => void) | null = null;
  private giveUp: GiveUp | null = null;
  private onEnd: (() => void) | null = null;

  constructor(readonly numPrompts: number) {}

  /** It is done, has failed or was given up. */
  get isEnded(): boolean {
    return this.ended;
  }

  /** Calls `giveUp` when the signal is aborted or the time is up, unless the call ends before. */
  watch({ signal, timeoutMs }: RequestOptions, giveUp: GiveUp): void {
    this.isWatched = signal !== undefined || timeoutMs !== undefined;
    this.giveUp = giveUp;
    if (timeoutMs !== undefined) {
      this.stopTimer = startTimer(timeoutMs, () =>
        giveUp('timeout', new RequestTimeoutError(timeoutMs, this)),
      );
    }
    if (signal === undefined) return;
    waitFor(signal, this);
    this.signal = signal;
  }

  /** The signal that it is watched by was aborted. */
  aborted(): void {
    this.giveUp?.('abort', this.signal?.reason);
  }

  /** Calls back when it ends, from within what ends it. */
  whenEnded(callback: () => void): void {
    this.onEnd = callback;
  }

  promptDone(): void {
    if (++this.numPromptsDone === this.numPrompts) this.end();
  }

  /** It is done or has failed: nothing watches it any more. */
  end(): void {
    if (this.ended) return;
    this.ended = true;
    this.stopTimer?.();
    this.stopTimer = null;
    const { signal } = this;
    this.signal = null;
    if (signal !== null) stopWaiting(signal, this);
    this.giveUp = null;
    this.onEnd?.();
  }
}

/** The calls that each signal may end. */
const waiters = new WeakMap<AbortSignal, Set<Call>>();

/**
 * Has the call hear when the signal is aborted. A signal has one listener of ours, however many wait:
 * a service may have one signal for hundreds of requests, and Node warns of a leak from the eleventh
 * listener on.
 */
function waitFor(signal: AbortSignal, call: Call): void {
  const waiting = waiters.get(signal) ?? new Set();
  waiters.set(signal, waiting);
  waiting.add(call);
  // Once: a listener that is there already is not added again.
  signal.addEventListener('abort', abortAll);
}

function stopWaiting(signal: AbortSignal, call: Call): void {
  const waiting = waiters.get(signal);
  if (waiting === undefined) return;
  waiting.delete(call);
  if (waiting.size === 0) signal.removeEventListener('abort', abortAll);
}

/** In slices: a signal may end tens of thousands of calls. */
function abortAll(this: AbortSignal): void {
  const waiting = waiters.get(this) ?? new Set();
  function* calls() {
    // What one of them ends is no longer in the set, and the iterator leaves it out.
    for (const call of waiting) {
      call.aborted();
      yield;
    }
  }
  slicedWork.run(calls(), noop, noop);
}

function noop(): void {}
