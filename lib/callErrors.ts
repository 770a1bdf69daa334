/** Errors that end one call or request. */
import { messageOf } from './realm';
import type { RequestOutput } from './requestOutput';
import { UniprocError } from './uniprocError';

/**
 * A request failed while it was admitted, scheduled, computed or detokenized. Its call was ended;
 * others continue. `cause` is the error. `code`: REQUEST_FAILED.
 */
export class RequestFailedError extends UniprocError {
  constructor(
    readonly requestId: string,
    /** The failed stage: 'admitted', 'scheduled', ... */
    stage: string,
    cause: unknown,
  ) {
    super(
      'REQUEST_FAILED',
      `request ${requestId} could not be ${stage}: ${messageOf(cause)}; its call was ended, others continue`,
      { cause },
    );
  }
}

/** The queue of waiting requests is full; the call was not admitted. `code`: QUEUE_FULL. */
export class QueueFullError extends UniprocError {
  constructor(
    /** The limit, `maxQueuedRequests`. */
    readonly maxQueuedRequests: number,
    /** Waiting requests. */
    readonly numWaiting: number,
    /** Requests that the call would have added, one for each sample of a prompt. */
    readonly numNew: number,
  ) {
    super(
      'QUEUE_FULL',
      `${numWaiting} requests are waiting and maxQueuedRequests is ${maxQueuedRequests}, so ${numNew} ` +
        'more do not fit; retry later or with fewer prompts',
    );
  }
}

/** How far a call came. */
export interface CallProgress {
  readonly numPrompts: number;
  readonly numPromptsDone: number;
  readonly numOutputTokens: number;
}

function describeProgress({ numPrompts, numPromptsDone, numOutputTokens }: CallProgress): string {
  return (
    `it had generated ${numOutputTokens} tokens` +
    (numPrompts > 1 ? `, and ${numPromptsDone} of ${numPrompts} prompts were done` : '')
  );
}

/**
 * Defines `error.outputs`: computed at its first read, since it takes time that grows with the call, and
 * absent from what a console prints.
 */
export function defineOutputs(error: UniprocError, partialOutputs: () => RequestOutput[]): void {
  let outputs: RequestOutput[] | null = null;
  const get = () => (outputs ??= partialOutputs());
  Object.defineProperty(error, 'outputs', { get, configurable: true });
}

/**
 * A call was ended by its `signal`. `cause` is the signal's reason; the name is 'AbortError', as of
 * Node's own. `code`: ABORT_ERR.
 */
export class RequestAbortedError extends UniprocError {
  /** Tokens generated for all prompts of the call. */
  readonly numOutputTokens: number;
  /**
   * What was generated, by prompt, in order: complete outputs, and unfinished ones with the finishReason
   * 'abort'. An output without a token is left out. Empty if the call had not begun.
   */
  declare readonly outputs: readonly RequestOutput[];

  constructor(reason: unknown, progress: CallProgress, partialOutputs: () => RequestOutput[]) {
    super(
      'ABORT_ERR',
      `the call was aborted by its signal (${messageOf(reason)}): ${describeProgress(progress)}`,
      { cause: reason },
    );
    this.name = 'AbortError';
    this.numOutputTokens = progress.numOutputTokens;
    defineOutputs(this, partialOutputs);
  }
}

/** A call exceeded its `timeoutMs` and was ended. `code`: REQUEST_TIMEOUT. */
export class RequestTimeoutError extends UniprocError {
  /** Tokens generated for all prompts of the call. */
  readonly numOutputTokens: number;
  /** As in RequestAbortedError. */
  declare readonly outputs: readonly RequestOutput[];

  constructor(
    readonly timeoutMs: number,
    progress: CallProgress,
    partialOutputs: () => RequestOutput[] = () => [],
  ) {
    super(
      'REQUEST_TIMEOUT',
      `the call was not done within ${timeoutMs} ms: ${describeProgress(progress)}; reduce maxTokens or ` +
        'raise timeoutMs',
    );
    this.numOutputTokens = progress.numOutputTokens;
    defineOutputs(this, partialOutputs);
  }
}
