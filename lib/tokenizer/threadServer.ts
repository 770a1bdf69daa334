/** A thread's end of what a ThreadClient asks. */
import { parentPort } from 'node:worker_threads';
import { CheckpointError, UniprocError } from '../errors';
import type { Answer, Failure, Methods, Question } from './threadMessages';

/** What `answer` resolves to: `transfer` goes to the other thread without a copy. */
export interface Reply {
  value: unknown;
  transfer?: readonly ArrayBuffer[];
}

/** Has `answer` answer each question of the thread that started this one. */
export function serve<Requests extends Methods<Requests>>(
  answer: (question: Question<Requests>) => Reply | Promise<Reply>,
): void {
  const port = parentPort;
  port?.on('message', (question: Question<Requests>) => {
    const { number } = question;
    const reply = async () => answer(question);
    reply().then(
      ({ value, transfer }) => port.postMessage({ number, value } satisfies Answer, transfer),
      (error: unknown) => port.postMessage({ number, failure: failureOf(error) } satisfies Answer),
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
