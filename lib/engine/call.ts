/** What one caller asked for in one go: how far it is, and what ends it before it is done. */
import type { RequestOptions } from '../config/requestOptions';
import { RequestTimeoutError } from '../errors';
import { startTimer } from '../timer';
import { slicedWork } from './slicedWork';

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
  private unwatch: (() => void) | null = null;
  private onEnd: (() => void) | null = null;

  constructor(readonly numPrompts: number) {}

  /** It is done, has failed or was given up. */
  get isEnded(): boolean {
    return this.ended;
  }

  /** Calls `giveUp` when the signal is aborted or the time is up, unless the call ends before. */
  watch({ signal, timeoutMs }: RequestOptions, giveUp: GiveUp): void {
    this.isWatched = signal !== undefined || timeoutMs !== undefined;
    const ignore = signal && onAbort(signal, () => giveUp('abort', signal.reason));
    const stopTimer = startTimer(timeoutMs, () =>
      giveUp('timeout', new RequestTimeoutError(timeoutMs as number, this)),
    );
    this.unwatch = () => {
      ignore?.();
      stopTimer();
    };
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
    this.unwatch?.();
    this.unwatch = null;
    this.onEnd?.();
  }
}

/** Who waits for each signal that is waited for. */
const waiters = new WeakMap<AbortSignal, Set<() => void>>();

/**
 * Calls back when the signal is aborted, until the function returned is called. A signal has one
 * listener of ours, however many wait: a service may have one signal for hundreds of requests, and
 * Node warns of a leak from the eleventh listener on.
 */
function onAbort(signal: AbortSignal, callback: () => void): () => void {
  const waiting = waiters.get(signal) ?? new Set();
  waiters.set(signal, waiting);
  waiting.add(callback);
  // Once: a listener that is there already is not added again.
  signal.addEventListener('abort', callAll);
  return () => {
    waiting.delete(callback);
    if (waiting.size === 0) signal.removeEventListener('abort', callAll);
  };
}

/** In slices: a signal may end tens of thousands of calls. */
function callAll(this: AbortSignal): void {
  const waiting = waiters.get(this) ?? new Set();
  function* calls() {
    // What one of them ends is no longer in the set, and the iterator leaves it out.
    for (const callback of waiting) {
      callback();
      yield;
    }
  }
  slicedWork.run(calls(), noop, noop);
}

function noop(): void {}
