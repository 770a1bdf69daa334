/** Serialises the error that a group failed with, to send it to the other ranks. */
import { z } from 'zod';
import {
  CheckpointError,
  PeerLostError,
  RendezvousError,
  ScheduleMismatchError,
  UniprocError,
  UnsupportedModelError,
} from '../errors';
import { nativeError } from '../nativeError';

interface Failure {
  code: string;
  message: string;
  rank?: number | null;
  reason?: string;
  step?: number;
  ranks?: [number, number];
  digests?: [string | null, string | null];
  file?: string;
  /** The failed rank's own error. */
  cause?: Failure;
}

const digest = z.string().nullable();
const schema: z.ZodType<Failure> = z.object({
  code: z.string().min(1),
  message: z.string(),
  rank: z.int().nullish(),
  reason: z.string().optional(),
  step: z.int().optional(),
  ranks: z.tuple([z.int(), z.int()]).optional(),
  digests: z.tuple([digest, digest]).optional(),
  file: z.string().optional(),
  cause: z.lazy(() => schema).optional(),
});

export function failureToJson(error: UniprocError): Buffer {
  return Buffer.from(JSON.stringify(toFailure(error)));
}

function toFailure(error: UniprocError): Failure {
  const { message, cause } = error;
  return Object.assign({}, error, {
    message,
    cause: cause instanceof UniprocError ? toFailure(cause) : undefined,
  });
}

/** Inverse of `failureToJson`; PeerLostError for malformed JSON. */
export function failureOf(json: Buffer): UniprocError {
  let failure: Failure;
  try {
    failure = schema.parse(JSON.parse(json.toString()));
  } catch (cause) {
    return new PeerLostError(null, 'a rank failed, and the message with the reason is malformed', {
      cause,
    });
  }
  return fromFailure(failure);
}

function fromFailure({ code, message, file, cause, ...more }: Failure): UniprocError {
  const { rank = null, reason = message } = more;
  const { step = 0, ranks = [0, 0], digests = [null, null] } = more;
  switch (code) {
    case 'PEER_LOST':
      return new PeerLostError(rank, reason, cause && { cause: fromFailure(cause) });
    case 'SCHEDULE_MISMATCH':
      return new ScheduleMismatchError(step, ranks, digests);
    default:
      return typedError(code, message, file);
  }
}

/**
 * When a rank's start failed because another rank could not start: the other rank's error, with the
 * same code and naming that rank; `cause` is the PeerLostError. Returns any other error unchanged.
 */
export function startFailureOf(error: unknown): unknown {
  const lost = error instanceof PeerLostError ? error : (error as Error | null)?.cause;
  if (!(lost instanceof PeerLostError) || !(lost.cause instanceof UniprocError)) return error;
  const { code, message, file } = lost.cause as UniprocError & { file?: string };
  const where = `(rank ${lost.rank} could not start)`;
  return Object.assign(typedError(code, `${message} ${where}`, file), { cause: lost });
}

/** Makes an error of the class with this code; `message` is complete, the file's name included. */
function typedError(code: string, message: string, file?: string): UniprocError {
  if (code === 'RENDEZVOUS') return new RendezvousError(message);
  if (file === undefined) return nativeError(code, message);
  // These constructors prepend the file's name.
  const withoutFile = message.replace(`${file}: `, '');
  if (code === 'CHECKPOINT_INVALID') return new CheckpointError(file, withoutFile);
  if (code === 'MODEL_UNSUPPORTED') return new UnsupportedModelError(file, withoutFile);
  return nativeError(code, message);
}
