/** Serves a ThreadClient's requests on a thread. */
import { parentPort } from 'node:worker_threads';
import { CheckpointError, UniprocError } from '../errors';
import type { Failure, Methods, ThreadRequest, ThreadResponse } from './threadMessages';

/** The result of a request; the buffers of `transfer` are moved, not copied. */
export interface Reply {
  value: unknown;
  transfer?: readonly ArrayBuffer[];
}

/** Handles each request of the parent thread. */
export function serve<Requests extends Methods<Requests>>(
  handle: (request: ThreadRequest<Requests>) => Reply | Promise<Reply>,
): void {
  const port = parentPort;
  port?.on('message', (request: ThreadRequest<Requests>) => {
    const { number } = request;
    const respond = (response: ThreadResponse, transfer?: readonly ArrayBuffer[]) =>
      port.postMessage(response, transfer);
    const reply = async () => handle(request);
    reply().then(
      ({ value, transfer }) => respond({ number, value }, transfer),
      (error: unknown) => respond({ number, failure: failureOf(error) }),
    );
  });
}

export function failureOf(error: unknown): Failure {
  if (!(error instanceof Error)) return { message: String(error), code: null };
  const { message, cause } = error;
  const failure: Failure = { message, code: error instanceof UniprocError ? error.code : null };
  if (error instanceof CheckpointError) failure.file = error.file;
  if (cause instanceof Error) failure.cause = new Error(`${cause.name}: ${cause.message}`);
  return failure;
}
