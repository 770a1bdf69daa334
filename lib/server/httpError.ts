/** Errors of the server: status and body of each, as vLLM's server has them. */
import { SAMPLING_NAMES } from '../config/samplingParams';
import {
  ExecutorFailedError,
  InvalidRequestError,
  InvalidStateError,
  NotSupportedError,
  OutOfMemoryError,
  QueueFullError,
  RequestAbortedError,
  RequestTimeoutError,
  ShutdownError,
  UniprocError,
} from '../errors';
import { codeOf, log } from '../log';

/** Names of errors by status, as vLLM writes them in `type`. */
const TYPES: Readonly<Partial<Record<number, string>>> = {
  400: 'BadRequestError',
  401: 'UnauthorizedError',
  404: 'NotFoundError',
  405: 'MethodNotAllowedError',
  413: 'RequestTooLargeError',
  415: 'UnsupportedMediaTypeError',
  499: 'ClientClosedRequestError',
  500: 'InternalServerError',
  501: 'NotImplementedError',
  503: 'ServiceUnavailableError',
  504: 'GatewayTimeoutError',
};

/** Seconds after which a client may try again when the queue is full. */
const RETRY_AFTER_S = 1;

/** An error with its HTTP status. */
export class HttpError extends Error {
  constructor(
    readonly status: number,
    message: string,
    /** The field of the request that is at fault; null for none. */
    readonly param: string | null = null,
    readonly headers: Readonly<Record<string, string>> = {},
  ) {
    super(message);
  }

  get type(): string {
    return TYPES[this.status] ?? 'Error';
  }
}

export function badRequest(message: string, param: string | null = null): HttpError {
  return new HttpError(400, message, param);
}

/** A field or value that this server does not support. */
export function notSupported(param: string, reason = 'is not supported'): HttpError {
  return badRequest(`${param} ${reason}`, param);
}

/** The error to answer with; unexpected ones become status 500. */
export function httpErrorOf(error: unknown): HttpError {
  if (error instanceof HttpError) return error;
  if (error instanceof InvalidRequestError) return invalid(error);
  if (error instanceof QueueFullError) {
    return new HttpError(503, error.message, null, { 'retry-after': String(RETRY_AFTER_S) });
  }
  if (error instanceof RequestTimeoutError) return new HttpError(504, error.message);
  if (error instanceof RequestAbortedError) return new HttpError(499, error.message);
  if (error instanceof NotSupportedError) return new HttpError(501, error.message);
  if (
    error instanceof ShutdownError ||
    error instanceof InvalidStateError ||
    error instanceof OutOfMemoryError
  ) {
    return new HttpError(503, error.message);
  }
  log('server: a request failed: %s', codeOf(error));
  if (error instanceof ExecutorFailedError) return new HttpError(500, error.message);
  // Other messages may quote paths and internals.
  const message = error instanceof UniprocError ? error.message : 'internal server error';
  return new HttpError(500, message);
}

/** Option names that a request writes in snake case. */
const OPTION_NAMES = [
  ...SAMPLING_NAMES,
  'cacheSalt',
  'dimensions',
  'truncatePromptTokens',
  'addSpecialTokens',
  'addGenerationPrompt',
  'continueFinalMessage',
  'chatTemplate',
  'chatTemplateKwargs',
  'toolChoice',
  'parallelToolCalls',
  'jsonObject',
  'structuralTag',
  'whitespacePattern',
  'disableAdditionalProperties',
];

const NAMED = new RegExp(`\\b(${OPTION_NAMES.join('|')})\\b`, 'g');

export function snakeCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** The engine's message with its options' names as the request has them. */
function invalid({ message }: InvalidRequestError): HttpError {
  // The rest of such a message has paths of the client's schema.
  if (/^structuredOutputs\b/.test(message)) {
    const text = message.replace(/^structuredOutputs(?:\.\w+)?/, snakeCase);
    return badRequest(text, 'structured_outputs');
  }
  // Of the choice among tools, and of a tool's schema.
  const tools = /^(?:toolChoice|tools)\b/.exec(message);
  if (tools !== null) {
    return badRequest(message.replace(/^\w+/, snakeCase), snakeCase(tools[0]));
  }
  const named = /^(?:sampling parameters|options): (.*)$/s.exec(message);
  if (named === null) return badRequest(message);
  const text = named[1].replace(NAMED, snakeCase);
  const [param = null] = /^\w+/.exec(text) ?? [];
  return badRequest(text, param);
}

export interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: number };
}

/** OpenAI's form, with vLLM's types and codes. */
export function openAiErrorBody({ message, type, param, status }: HttpError): ErrorBody {
  return { error: { message, type, param, code: status } };
}

/** Anthropic's error types by status. */
const ANTHROPIC_TYPES: Readonly<Partial<Record<number, string>>> = {
  400: 'invalid_request_error',
  401: 'authentication_error',
  404: 'not_found_error',
  413: 'request_too_large',
  503: 'overloaded_error',
  504: 'timeout_error',
};

/** The form of Anthropic's API. */
export function anthropicErrorBody({ message, status }: HttpError): object {
  const type = ANTHROPIC_TYPES[status] ?? (status < 500 ? 'invalid_request_error' : 'api_error');
  return { type: 'error', error: { type, message } };
}
