/** Why a group failed, as one rank tells the others. */
import { z } from 'zod';
import {
  CheckpointError,
  nativeError,
  PeerLostError,
  RendezvousError,
  ScheduleMismatchError,
  UniprocError,
  UnsupportedModelError,
} from '../errors';

interface Failure {
  code: string;
  message: string;
  rank?: number | null;
  reason?: string;
  step?: number;
  ranks?: [number, number];
  digests?: [string | null, string | null];
  file?: string;
  /** What the rank failed with itself. */
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

/** The same error as `failureToJson` was given; PeerLostError for what it did not make. */
export function failureOf(json: Buffer): UniprocError {
  let failure: Failure;
  try {
    failure = schema.parse(JSON.parse(json.toString()));
  } catch (cause) {
    return new PeerLostError(null, 'a rank failed, and why cannot be read', { cause });
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
 * What a rank's start failed with, where the reason is that another rank could not start: that one's
 * error, of the same code, which names the rank; its cause is the PeerLostError. Any other error as it is.
 */
export function startFailureOf(error: unknown): unknown {
  const lost = error instanceof PeerLostError ? error : (error as Error | null)?.cause;
  if (!(lost instanceof PeerLostError) || !(lost.cause instanceof UniprocError)) return error;
  const { code, message, file } = lost.cause as UniprocError & { file?: string };
  const where = `(rank ${lost.rank} could not start)`;
  return Object.assign(typedError(code, `${message} ${where}`, file), { cause: lost });
}

/** Of the class that has this code; `message` is the whole of it. */
function typedError(code: string, message: string, file?: string): UniprocError {
  if (code === 'RENDEZVOUS') return new RendezvousError(message);
  if (file === undefined) return nativeError(code, message);
  // These put the file's name first by themselves.
  const ofFile = message.replace(`${file}: `, '');
  if (code === 'CHECKPOINT_INVALID') return new CheckpointError(file, ofFile);
  if (code === 'MODEL_UNSUPPORTED') return new UnsupportedModelError(file, ofFile);
  return nativeError(code, message);
}
