/** Errors of downloading models from the Hugging Face hub. */
import { UniprocError } from './uniprocError';

/** The hub has no such model, revision or file, or keeps it from this token. `code`: HUB_NOT_FOUND. */
export class HubNotFoundError extends UniprocError {
  constructor(
    /** organisation/name. */
    readonly model: string,
    message: string,
  ) {
    super('HUB_NOT_FOUND', `${model}: ${message}`);
  }
}

/** The model's licence must be accepted on its page first. `code`: HUB_GATED. */
export class HubGatedError extends UniprocError {
  constructor(
    readonly model: string,
    /** The page to visit. */
    readonly page: string,
    hasToken: boolean,
  ) {
    const token = hasToken
      ? 'the token in use has no access yet'
      : 'then set HF_TOKEN or run hf auth login';
    super('HUB_GATED', `${model} is gated: ask for access on ${page}; ${token}`);
  }
}

/** The hub asks for a token, or refuses the one in use. `code`: HUB_UNAUTHORIZED. */
export class HubUnauthorizedError extends UniprocError {
  constructor(
    readonly model: string,
    hasToken: boolean,
  ) {
    super(
      'HUB_UNAUTHORIZED',
      hasToken
        ? `${model}: the hub refuses the token; make a new one and set HF_TOKEN or run hf auth login`
        : `${model} does not exist or is private; check the name, or set HF_TOKEN or run hf auth login`,
    );
  }
}

/** The hub cannot be reached or does not serve the request. `code`: HUB_UNREACHABLE. */
export class HubUnreachableError extends UniprocError {
  constructor(
    readonly model: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super('HUB_UNREACHABLE', `${model}: ${message}`, options);
  }
}

/** A download was cut too often; what has arrived is kept, and the next attempt resumes. `code`: HUB_INTERRUPTED. */
export class HubInterruptedError extends UniprocError {
  constructor(
    readonly model: string,
    readonly file: string,
    /** Bytes that have arrived, of `totalBytes`. */
    readonly bytes: number,
    readonly totalBytes: number,
    options?: ErrorOptions,
  ) {
    super(
      'HUB_INTERRUPTED',
      `${model}: the download of ${file} was cut at ${bytes} of ${totalBytes} bytes; try again: it resumes there`,
      options,
    );
  }
}

/** A downloaded file has another size or hash than the hub says; it was deleted. `code`: HUB_FILE_CORRUPT. */
export class HubFileCorruptError extends UniprocError {
  constructor(
    readonly model: string,
    readonly file: string,
    message: string,
  ) {
    super('HUB_FILE_CORRUPT', `${model}: ${file} ${message}; it was deleted, try again`);
  }
}

/** The cache's disk has too little space; the message has the figures. `code`: DISK_FULL. */
export class DiskFullError extends UniprocError {
  constructor(
    readonly folder: string,
    readonly neededBytes: number,
    readonly freeBytes: number,
    options?: ErrorOptions,
  ) {
    super(
      'DISK_FULL',
      `${folder} has ${freeBytes} bytes free, and ${neededBytes} are to be downloaded; free some, or set ` +
        'HF_HUB_CACHE to a folder on another disk',
      options,
    );
  }
}
