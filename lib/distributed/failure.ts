/** Why a group failed, as one rank tells the others. */
import { z } from 'zod';
import { PeerLostError, RendezvousError, ScheduleMismatchError, UniprocError } from '../errors';

const digest = z.string().nullable();
const schema = z.looseObject({
  code: z.string().min(1),
  message: z.string(),
  rank: z.int().nullish(),
  reason: z.string().optional(),
  step: z.int().optional(),
  ranks: z.tuple([z.int(), z.int()]).optional(),
  digests: z.tuple([digest, digest]).optional(),
});
type Failure = z.output<typeof schema>;

export function failureToJson(error: UniprocError): Buffer {
  const failure: object = Object.assign({}, error, { message: error.message });
  return Buffer.from(JSON.stringify(failure));
}

/** The same error as `failureToJson` was given; PeerLostError for what it did not make. */
export function failureOf(json: Buffer): UniprocError {
  let failure: Failure;
  try {
    failure = schema.parse(JSON.parse(json.toString()));
  } catch (cause) {
    return new PeerLostError(null, 'a rank failed, and why cannot be read', { cause });
  }
  const { code, message } = failure;
  const { rank = null, reason = message } = failure;
  const { step = 0, ranks = [0, 0], digests = [null, null] } = failure;
  switch (code) {
    case 'PEER_LOST':
      return new PeerLostError(rank, reason);
    case 'SCHEDULE_MISMATCH':
      return new ScheduleMismatchError(step, ranks, digests);
    case 'RENDEZVOUS':
      return new RendezvousError(message);
    default:
      return new UniprocError(code, message);
  }
}
