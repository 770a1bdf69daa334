/** Why a group failed, as one rank tells the others. */
import { PeerLostError, RendezvousError, ScheduleMismatchError, UniprocError } from '../errors';

interface Failure {
  code: string;
  message: string;
  rank?: number | null;
  reason?: string;
  step?: number;
  ranks?: [number, number];
  digests?: [string | null, string | null];
}

export function failureToJson(error: UniprocError): Buffer {
  const failure: Failure = Object.assign({}, error, { message: error.message });
  return Buffer.from(JSON.stringify(failure));
}

/** The same error as `failureToJson` was given. */
export function failureOf(json: Buffer): UniprocError {
  const failure = JSON.parse(json.toString()) as Failure;
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
