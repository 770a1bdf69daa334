/** One call: its progress, and the signal and timeout that may end it early. */
import { abortReason, addAbortListener, removeAbortListener } from '../abortSignal';
import type { RequestOptions } from '../config/requestOptions';
import { RequestAbortedError, RequestTimeoutError, type UniprocError } from '../errors';
import { startTimer } from '../timer';
import { slicedWork } from '../slicedWork';
import type { RequestOutput } from './outputs';

/** Called with why the call ends early, and the error for its caller. */
export type OnAbort = (why: 'abort' | 'timeout', error: UniprocError) => void;

/** A prompt whose outputs are not complete. */
export interface UnfinishedPrompt {
  readonly requestId: string;
  /** Called once the call has ended. */
  partialOutput(): RequestOutput;
}

export class Call {
  /** Prompts with all samples complete. */
  numPromptsDone = 0;
  /** Prompt tokens computed so far, summed over samples. */
  numPromptTokens = 0;
  /** Tokens generated so far. */
  numOutputTokens = 0;
  /** Whether a signal or a timeout may end it. */
  isWatched = false;
  /** Prompts in progress, by request id. */
  private readonly unfinished = new Map<string, UnfinishedPrompt>();
  private ended = false;
  /** Null without a signal, and once the call has ended. */
  private signal: AbortSignal | null = null;
  private stopTimer: (() => void) | null = null;
  private onAbort: OnAbort | null = null;
  private partialOutputs: () => RequestOutput[] = () => [];
  private onEnd: (() => void) | null = null;

  constructor(readonly numPrompts: number) {}

  /** Done, failed or aborted. */
  get isEnded(): boolean {
    return this.ended;
  }

  /**
   * Calls `onAbort` when the signal is aborted or the timeout expires, unless the call ends first.
   * `partialOutputs` returns what the call's prompts have generated.
   */
  watch(
    { signal, timeoutMs }: RequestOptions,
    partialOutputs: () => RequestOutput[],
    onAbort: OnAbort,
  ): void {
    this.isWatched = signal !== undefined || timeoutMs !== undefined;
    this.onAbort = onAbort;
    if (timeoutMs !== undefined) {
      this.stopTimer = startTimer(timeoutMs, () =>
        onAbort('timeout', new RequestTimeoutError(timeoutMs, this, partialOutputs)),
      );
    }
    if (signal === undefined) return;
    addToSignal(signal, this);
    this.signal = signal;
    this.partialOutputs = partialOutputs;
  }

  /** The call's signal was aborted. */
  aborted(): void {
    const { signal } = this;
    if (signal === null) return;
    const error = new RequestAbortedError(abortReason(signal), this, this.partialOutputs);
    this.onAbort?.('abort', error);
  }

  /** Registers the callback that `end` calls synchronously. */
  whenEnded(callback: () => void): void {
    this.onEnd = callback;
  }

  /** A prompt's requests begin. */
  addUnfinished(prompt: UnfinishedPrompt): void {
    this.unfinished.set(prompt.requestId, prompt);
  }

  /** What an unfinished prompt had generated when the call ended; null if no request of it had begun. */
  partialOutput(requestId: string): RequestOutput | null {
    return this.unfinished.get(requestId)?.partialOutput() ?? null;
  }

  /** A prompt's outputs are complete. */
  removeUnfinished(requestId: string): void {
    this.unfinished.delete(requestId);
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
    this.partialOutputs = () => [];
    this.onEnd?.();
  }
}

interface Watchers {
  calls: Set<Call>;
  listener: () => void;
}

/** Calls in progress, by signal. */
const watchersBySignal = new WeakMap<AbortSignal, Watchers>();

/**
 * Registers the call with its signal. Each signal has one listener, however many calls share it: a
 * service may pass one signal to hundreds of calls, and Node warns of a leak at the eleventh
 * listener.
 */
function addToSignal(signal: AbortSignal, call: Call): void {
  let watchers = watchersBySignal.get(signal);
  if (watchers === undefined) {
    const calls = new Set<Call>();
    watchers = { calls, listener: () => abortAll(calls) };
    watchersBySignal.set(signal, watchers);
  }
  // Adds the listener only once: registering it again has no effect.
  addAbortListener(signal, watchers.listener);
  watchers.calls.add(call);
}

function removeFromSignal(signal: AbortSignal, call: Call): void {
  const watchers = watchersBySignal.get(signal);
  if (watchers === undefined) return;
  watchers.calls.delete(call);
  if (watchers.calls.size === 0) removeAbortListener(signal, watchers.listener);
}

/** In slices: a signal may abort tens of thousands of calls. */
function abortAll(calls: ReadonlySet<Call>): void {
  function* aborts() {
    // The iterator skips calls that earlier ones removed from the set.
    for (const call of calls) {
      call.aborted();
      yield;
    }
  }
  slicedWork.run(aborts(), noop, noop);
}

function noop(): void {}
