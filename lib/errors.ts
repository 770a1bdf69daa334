/**
 * Every error this library throws. Each has a stable `code`, and says what was wrong, with which
 * value, in which file or request, and what to do about it.
 */
export class UniprocError extends Error {
  constructor(
    /** Stable across releases; match on this rather than on the message. */
    readonly code: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** An option, or a combination of options, that cannot work. `code`: CONFIG_INVALID. */
export class ConfigError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('CONFIG_INVALID', message, options);
  }
}

/** A checkpoint's file is missing, damaged or contradicts another. `code`: CHECKPOINT_INVALID. */
export class CheckpointError extends UniprocError {
  constructor(
    /** The path of the file at fault. */
    readonly file: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super('CHECKPOINT_INVALID', `${file}: ${message}`, options);
  }
}

/** A text that is no chat template: jinja2 would not compile it. `code`: CHAT_TEMPLATE_INVALID. */
export class ChatTemplateError extends UniprocError {
  constructor(
    /** The line of the template that is at fault, from 1. */
    readonly line: number,
    reason: string,
    options?: ErrorOptions,
  ) {
    super('CHAT_TEMPLATE_INVALID', `line ${line}: ${reason}`, options);
  }
}

/** A model this library cannot run: its architecture, its quantization. `code`: MODEL_UNSUPPORTED. */
export class UnsupportedModelError extends UniprocError {
  constructor(
    readonly file: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super('MODEL_UNSUPPORTED', `${file}: ${message}`, options);
  }
}

/**
 * A prompt or a sampling parameter out of range; nothing of the request was admitted. `code`:
 * REQUEST_INVALID.
 */
export class InvalidRequestError extends UniprocError {
  /** The request at fault, where the error comes from the worker, which knows it by its id. */
  readonly requestId: string | undefined;

  constructor(message: string, options?: ErrorOptions & { requestId?: string }) {
    super('REQUEST_INVALID', message, options);
    this.requestId = options?.requestId;
  }
}

/**
 * One request met an error while it was admitted, scheduled, computed or turned into text, and was
 * ended with its call; others went on. `cause` is the error. `code`: REQUEST_FAILED.
 */
export class RequestFailedError extends UniprocError {
  constructor(
    readonly requestId: string,
    /** What was done with it: 'admitted', 'scheduled', ... */
    stage: string,
    cause: unknown,
  ) {
    super(
      'REQUEST_FAILED',
      `request ${requestId} could not be ${stage}: ${describe(cause)}; its call was ended, others go on`,
      { cause },
    );
  }
}

/** As many requests wait as may; nothing of the call was admitted. `code`: QUEUE_FULL. */
export class QueueFullError extends UniprocError {
  constructor(
    /** The limit, `maxQueuedRequests`. */
    readonly maxQueuedRequests: number,
    /** Requests that waited. */
    readonly numWaiting: number,
    /** Requests that the call would have added, each of a prompt's samples one. */
    readonly numNew: number,
  ) {
    super(
      'QUEUE_FULL',
      `${numWaiting} requests wait and maxQueuedRequests is ${maxQueuedRequests}: there is no ` +
        `room for ${numNew} more; call again later, or with fewer prompts`,
    );
  }
}

/** A call was not done within its `timeoutMs`, and was ended. `code`: REQUEST_TIMEOUT. */
export class RequestTimeoutError extends UniprocError {
  /** Tokens that the call had generated, over all its prompts. */
  readonly numOutputTokens: number;

  constructor(
    readonly timeoutMs: number,
    progress: { numPrompts: number; numPromptsDone: number; numOutputTokens: number },
  ) {
    const { numPrompts, numPromptsDone, numOutputTokens } = progress;
    super(
      'REQUEST_TIMEOUT',
      `the call was not done within ${timeoutMs} ms: it had generated ${numOutputTokens} tokens` +
        (numPrompts > 1 ? `, and ${numPromptsDone} of ${numPrompts} prompts were done` : '') +
        '; ask for fewer tokens (maxTokens) or give it a larger timeoutMs',
    );
    this.numOutputTokens = numOutputTokens;
  }
}

/**
 * The model computed NaN where a request's next token was to be sampled from, or a prompt's logprobs
 * taken. It ends that request alone. `code`: LOGITS_INVALID.
 */
export class InvalidLogitsError extends UniprocError {
  constructor(
    /** The engine's id of the request. */
    readonly requestId: string,
    /** NaN logits of the position; null when only their logprobs, which are NaN too, are known. */
    readonly numNans: number | null,
    /** Logits of a position; null when not known. */
    readonly vocabSize: number | null,
  ) {
    const logits = vocabSize === null ? 'logits' : `of ${vocabSize} logits`;
    super(
      'LOGITS_INVALID',
      `request ${requestId}: ${numNans ?? 'some'} ${logits} are NaN, so no token can be sampled; check ` +
        "the checkpoint's weights for NaN and Infinity, and try dtype 'bfloat16' or 'float32' if " +
        'float16 overflows',
    );
  }
}

/** A call that does not fit the state: executing while asleep, `getOutput` twice. `code`: INVALID_STATE. */
export class InvalidStateError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('INVALID_STATE', message, options);
  }
}

/** A call of the executor's interface that this build does not have. `code`: NOT_SUPPORTED. */
export class NotSupportedError extends UniprocError {
  constructor(
    readonly call: string,
    message = `${call} is not supported`,
  ) {
    super('NOT_SUPPORTED', message);
  }
}

/** Not enough memory on the device or host; the message has the figures. `code`: OUT_OF_MEMORY. */
export class OutOfMemoryError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('OUT_OF_MEMORY', message, options);
  }
}

/** The device cannot go on: a sticky error, its state is lost. `code`: DEVICE_FAILED. */
export class DeviceError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('DEVICE_FAILED', message, options);
  }
}

/** The executor failed for good; `cause` is why. `code`: EXECUTOR_FAILED. */
export class ExecutorFailedError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('EXECUTOR_FAILED', message, options);
  }
}

/** The call came, or was still waiting, when its owner was shut down. `code`: SHUT_DOWN. */
export class ShutdownError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('SHUT_DOWN', message, options);
  }
}

/** A worker's method did not answer in time; a late answer is dropped. `code`: RPC_TIMEOUT. */
export class RpcTimeoutError extends UniprocError {
  constructor(
    readonly method: string,
    /** Milliseconds waited. */
    readonly timeout: number,
  ) {
    super('RPC_TIMEOUT', `${method} did not answer within ${timeout} ms`);
  }
}

/** A name that the worker and its wrapper do not have. `code`: UNKNOWN_METHOD. */
export class UnknownMethodError extends UniprocError {
  constructor(method: string, known: readonly string[]) {
    super('UNKNOWN_METHOD', `the worker has no method ${method}; it has ${known.join(', ')}`);
  }
}

/** Waiting for a future's result took longer than asked. `code`: FUTURE_TIMEOUT. */
export class FutureTimeoutError extends UniprocError {
  constructor(timeout: number) {
    super('FUTURE_TIMEOUT', `the future was not done within ${timeout} ms`);
  }
}

/** The future was cancelled before it had a result. `code`: CANCELLED. */
export class CancelledError extends UniprocError {
  constructor(message = 'the future was cancelled') {
    super('CANCELLED', message);
  }
}

/** No store answers at an address, or the connection to it has ended. `code`: STORE_CONNECTION. */
export class StoreConnectionError extends UniprocError {
  constructor(
    /** The store's host:port. */
    readonly address: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super('STORE_CONNECTION', `the store at ${address}: ${message}`, options);
  }
}

/** A store's server cannot listen where it was told to. `code`: STORE_LISTEN. */
export class StoreListenError extends UniprocError {
  constructor(
    /** The host:port that was asked for. */
    readonly address: string,
    /** The system's name of what was wrong: EADDRINUSE when another process has the port. */
    readonly reason: string,
    options?: ErrorOptions,
  ) {
    super('STORE_LISTEN', `a store cannot listen on ${address}: ${reason}`, options);
  }
}

/** A key, value or amount that a store does not take; nothing was sent. `code`: STORE_REQUEST_INVALID. */
export class StoreRequestError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('STORE_REQUEST_INVALID', message, options);
  }
}

/** A store did not answer in time: keys that nobody has set, often. `code`: STORE_TIMEOUT. */
export class StoreTimeoutError extends UniprocError {
  constructor(
    /** The store's host:port. */
    readonly address: string,
    /** The method that was called. */
    readonly operation: string,
    /** The keys it was called with; none for `numKeys`. */
    readonly keys: readonly string[],
    /** Milliseconds waited. */
    readonly timeout: number,
  ) {
    const named =
      keys.slice(0, 4).join(', ') + (keys.length > 4 ? ` and ${keys.length - 4} more` : '');
    super(
      'STORE_TIMEOUT',
      `the store at ${address}: ${operation}(${named}) was not done within ${timeout} ms`,
    );
  }
}

/**
 * A rank of the group is gone, or did not come in time, and what the group did together is over.
 * `code`: PEER_LOST.
 */
export class PeerLostError extends UniprocError {
  constructor(
    /** The rank that was lost; null where it is the group that was given up. */
    readonly rank: number | null,
    readonly reason: string,
    options?: ErrorOptions,
  ) {
    super(
      'PEER_LOST',
      `${rank === null ? 'the group' : `rank ${rank}`} is lost: ${reason}`,
      options,
    );
  }
}

/** This rank cannot take part in what its group does; the message says why. `code`: COMMUNICATOR_FAILED. */
export class CommunicatorError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('COMMUNICATOR_FAILED', message, options);
  }
}

/**
 * The ranks of a group did not find each other: one did not come, or they do not agree who they are.
 * `code`: RENDEZVOUS.
 */
export class RendezvousError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('RENDEZVOUS', message, options);
  }
}

/** Two ranks were about to do different things at the same step. `code`: SCHEDULE_MISMATCH. */
export class ScheduleMismatchError extends UniprocError {
  constructor(
    /** The number of the step. */
    readonly step: number,
    /** The first two ranks that differ. */
    readonly ranks: readonly [number, number],
    /** Their digests, in hex; null of a rank that has fallen so far behind that it has none. */
    readonly digests: readonly [string | null, string | null],
  ) {
    const [first, second] = ranks.map((rank, i) => `rank ${rank} has ${digests[i] ?? 'none'}`);
    super(
      'SCHEDULE_MISMATCH',
      `the schedules of step ${step} differ: ${first}, ${second}; every rank must be given the ` +
        'same prompts, parameters and seed in the same order',
    );
  }
}

/** A rank that the launcher had started failed; the others were stopped. `code`: RANK_FAILED. */
export class RankFailedError extends UniprocError {
  constructor(
    /** The first that failed; null when it is known only that another node's launcher gave up. */
    readonly rank: number | null,
    /** What the launcher exits with: the rank's own exit code, 128 and the signal's number. */
    readonly exitCode: number,
    message: string,
    options?: ErrorOptions,
  ) {
    super('RANK_FAILED', message, options);
  }
}

/**
 * The thread that encodes, decodes or renders chat templates ended while it worked for the call; the next
 * call has a new one. `cause` is why, where it is known. `code`: TOKENIZER_FAILED.
 */
export class TokenizerFailedError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('TOKENIZER_FAILED', message, options);
  }
}

/** The native addon, or another package's, is not there or cannot be loaded. `code`: ADDON_UNAVAILABLE. */
export class AddonUnavailableError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('ADDON_UNAVAILABLE', message, options);
  }
}

/** A fault of this library itself, which is worth a report. `code`: INTERNAL. */
export class InternalError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('INTERNAL', message, options);
  }
}

/** What was thrown, as text. Anything can be thrown, and not everything can be turned into text. */
function describe(thrown: unknown): string {
  try {
    return thrown instanceof Error ? thrown.message : String(thrown);
  } catch {
    return 'something that has no text was thrown';
  }
}

/** The typed error of a code that the native layer names. */
export function nativeError(
  code: string,
  message: string,
  file?: string,
  rank?: number,
): UniprocError {
  switch (code) {
    case 'OUT_OF_MEMORY':
      return new OutOfMemoryError(message);
    case 'DEVICE_FAILED':
      return new DeviceError(message);
    case 'REQUEST_INVALID':
      return new InvalidRequestError(message);
    case 'CHECKPOINT_INVALID':
      return new CheckpointError(file ?? 'checkpoint', message);
    case 'NOT_SUPPORTED':
      return new NotSupportedError(message, message);
    case 'SHUT_DOWN':
      return new ShutdownError(message);
    case 'INVALID_STATE':
      return new InvalidStateError(message);
    case 'CONFIG_INVALID':
      return new ConfigError(message);
    case 'ADDON_UNAVAILABLE':
      return new AddonUnavailableError(message);
    case 'PEER_LOST':
      return new PeerLostError(rank ?? null, message);
    case 'COMMUNICATOR_FAILED':
      return new CommunicatorError(message);
    case 'INTERNAL':
      return new InternalError(message);
    default:
      return new InternalError(`${message} (code ${code})`);
  }
}
