/** This library's errors. */
import { aliasField } from './deprecation';
import type { RequestOutput } from './requestOutput';
import { UniprocError } from './uniprocError';

export {
  type CallProgress,
  QueueFullError,
  RequestAbortedError,
  RequestFailedError,
  RequestTimeoutError,
} from './callErrors';
export {
  DiskFullError,
  HubFileCorruptError,
  HubGatedError,
  HubInterruptedError,
  HubNotFoundError,
  HubUnauthorizedError,
  HubUnreachableError,
} from './hubErrors';
export { UniprocError } from './uniprocError';

/** An invalid option or combination of options. `code`: CONFIG_INVALID. */
export class ConfigError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('CONFIG_INVALID', message, options);
  }
}

/**
 * `model` is not the folder of a checkpoint, or one of its files is missing, damaged or contradicts
 * another file. `code`: CHECKPOINT_INVALID.
 */
export class CheckpointError extends UniprocError {
  constructor(
    /** Path of the invalid file, or of what `model` names. */
    readonly file: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super('CHECKPOINT_INVALID', `${file}: ${message}`, options);
  }
}

/** The chat template does not compile. `code`: CHAT_TEMPLATE_INVALID. */
export class ChatTemplateError extends UniprocError {
  constructor(
    /** The template's line with the error, from 1. */
    readonly line: number,
    reason: string,
    options?: ErrorOptions,
  ) {
    super('CHAT_TEMPLATE_INVALID', `line ${line}: ${reason}`, options);
  }
}

/** The model's architecture, quantization or another property is not supported. `code`: MODEL_UNSUPPORTED. */
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
 * An invalid prompt, option or sampling parameter; the request was not admitted. `code`:
 * REQUEST_INVALID.
 */
export class InvalidRequestError extends UniprocError {
  /** The request's id, for errors of the worker. */
  readonly requestId: string | undefined;

  constructor(message: string, options?: ErrorOptions & { requestId?: string }) {
    super('REQUEST_INVALID', message, options);
    this.requestId = options?.requestId;
  }
}

/**
 * The logits for a request's next token or prompt logprobs contain NaN. Only that request is ended.
 * `code`: LOGITS_INVALID.
 */
export class InvalidLogitsError extends UniprocError {
  constructor(
    /** The request's id. */
    readonly requestId: string,
    /** Number of NaN logits at the position; null when only the logprobs are known. */
    readonly numNans: number | null,
    /** Number of logits at a position; null when unknown. */
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

/** The call is not allowed in the current state, such as executing while asleep. `code`: INVALID_STATE. */
export class InvalidStateError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('INVALID_STATE', message, options);
  }
}

/** The call is not supported by this build or configuration. `code`: NOT_SUPPORTED. */
export class NotSupportedError extends UniprocError {
  constructor(
    readonly call: string,
    message = `${call} is not supported`,
  ) {
    super('NOT_SUPPORTED', message);
  }
}

/** The device or host has too little memory; the message has the figures. `code`: OUT_OF_MEMORY. */
export class OutOfMemoryError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('OUT_OF_MEMORY', message, options);
  }
}

/**
 * The CUDA device cannot be used: no driver or GPU, no CUDA backend or cuBLASLt, or versions that do
 * not match; the message has the reason and the remedy. `code`: CUDA_UNAVAILABLE.
 */
export class CudaUnavailableError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('CUDA_UNAVAILABLE', message, options);
  }
}

/** A sticky device error: the device's state is lost. `code`: DEVICE_FAILED. */
export class DeviceError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('DEVICE_FAILED', message, options);
  }
}

/** The executor failed permanently; `cause` is the reason. `code`: EXECUTOR_FAILED. */
export class ExecutorFailedError extends UniprocError {
  /** What a pending call had generated, as in RequestAbortedError; undefined for a later call. */
  declare readonly outputs?: readonly RequestOutput[];

  constructor(message: string, options?: ErrorOptions) {
    super('EXECUTOR_FAILED', message, options);
  }
}

/** The call was made or pending when its owner was shut down. `code`: SHUT_DOWN. */
export class ShutdownError extends UniprocError {
  /** What a pending call had generated, as in RequestAbortedError; undefined for a later call. */
  declare readonly outputs?: readonly RequestOutput[];

  constructor(message: string, options?: ErrorOptions) {
    super('SHUT_DOWN', message, options);
  }
}

/** A worker method did not return in time; a late result is dropped. `code`: RPC_TIMEOUT. */
export class RpcTimeoutError extends UniprocError {
  /** @deprecated Use `timeoutMs`. */
  declare readonly timeout: number;

  constructor(
    readonly method: string,
    readonly timeoutMs: number,
  ) {
    super('RPC_TIMEOUT', `${method} did not return within ${timeoutMs} ms`);
    aliasField(this, 'timeout', 'timeoutMs');
  }
}

/** Neither the worker nor its wrapper has the method. `code`: UNKNOWN_METHOD. */
export class UnknownMethodError extends UniprocError {
  constructor(method: string, known: readonly string[]) {
    super('UNKNOWN_METHOD', `the worker has no method ${method}; it has ${known.join(', ')}`);
  }
}

/** The wait for a future's result timed out. `code`: FUTURE_TIMEOUT. */
export class FutureTimeoutError extends UniprocError {
  constructor(timeoutMs: number) {
    super('FUTURE_TIMEOUT', `the future was not done within ${timeoutMs} ms`);
  }
}

/** The future was cancelled before it completed. `code`: CANCELLED. */
export class CancelledError extends UniprocError {
  constructor(message = 'the future was cancelled') {
    super('CANCELLED', message);
  }
}

/** No store answers at the address, or the connection to it closed. `code`: STORE_CONNECTION. */
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

/** A store server cannot listen on its address. `code`: STORE_LISTEN. */
export class StoreListenError extends UniprocError {
  constructor(
    /** The requested host:port. */
    readonly address: string,
    /** The system's error code: EADDRINUSE when the port is in use. */
    readonly reason: string,
    options?: ErrorOptions,
  ) {
    super('STORE_LISTEN', `a store cannot listen on ${address}: ${reason}`, options);
  }
}

/** A key, value or amount exceeds the store's limits; nothing was sent. `code`: STORE_REQUEST_INVALID. */
export class StoreRequestError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('STORE_REQUEST_INVALID', message, options);
  }
}

/** A store did not answer in time, often because a key was never set. `code`: STORE_TIMEOUT. */
export class StoreTimeoutError extends UniprocError {
  /** @deprecated Use `timeoutMs`. */
  declare readonly timeout: number;

  constructor(
    /** The store's host:port. */
    readonly address: string,
    /** The called method. */
    readonly operation: string,
    /** The call's keys; none for `numKeys`. */
    readonly keys: readonly string[],
    readonly timeoutMs: number,
  ) {
    const named =
      keys.slice(0, 4).join(', ') + (keys.length > 4 ? ` and ${keys.length - 4} more` : '');
    super(
      'STORE_TIMEOUT',
      `the store at ${address}: ${operation}(${named}) was not done within ${timeoutMs} ms`,
    );
    aliasField(this, 'timeout', 'timeoutMs');
  }
}

/**
 * A rank of the group failed, left or did not respond in time, so the group's work ended. `code`:
 * PEER_LOST.
 */
export class PeerLostError extends UniprocError {
  constructor(
    /** The lost rank; null when the whole group was aborted. */
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

/** This rank cannot take part in its group's collectives. `code`: COMMUNICATOR_FAILED. */
export class CommunicatorError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('COMMUNICATOR_FAILED', message, options);
  }
}

/**
 * The rendezvous failed: a rank did not join, or ranks and world sizes are inconsistent. `code`:
 * RENDEZVOUS.
 */
export class RendezvousError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('RENDEZVOUS', message, options);
  }
}

/** Two ranks scheduled the same step differently. `code`: SCHEDULE_MISMATCH. */
export class ScheduleMismatchError extends UniprocError {
  constructor(
    /** The step's number. */
    readonly step: number,
    /** The first two ranks that differ. */
    readonly ranks: readonly [number, number],
    /** Their digests in hex; null for a rank too far behind to have one. */
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

/** A rank of the launcher failed; the others were stopped. `code`: RANK_FAILED. */
export class RankFailedError extends UniprocError {
  constructor(
    /** The first failed rank; null when another node's launcher failed. */
    readonly rank: number | null,
    /** The launcher's exit code: the rank's own, or 128 plus the signal's number. */
    readonly exitCode: number,
    message: string,
    options?: ErrorOptions,
  ) {
    super('RANK_FAILED', message, options);
  }
}

/**
 * The thread that encodes, decodes or renders chat templates ended during the call; the next call starts
 * a new one. `cause` is the reason, if known. `code`: TOKENIZER_FAILED.
 */
export class TokenizerFailedError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('TOKENIZER_FAILED', message, options);
  }
}

/** The native addon, or another package's, is missing or cannot be loaded. `code`: ADDON_UNAVAILABLE. */
export class AddonUnavailableError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('ADDON_UNAVAILABLE', message, options);
  }
}

/** A bug in this library; please report it. `code`: INTERNAL. */
export class InternalError extends UniprocError {
  constructor(message: string, options?: ErrorOptions) {
    super('INTERNAL', message, options);
  }
}
