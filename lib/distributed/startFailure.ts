/** A rank's start that fails: what the ranks that wait for it are told. */
import { setTimeout as sleep } from 'node:timers/promises';
import { PeerLostError } from '../errors';
import { startFailureOf } from './failure';
import { meetingPlace, numRendezvous, rankFromEnvironment, tellFailure } from './rendezvous';

/** Milliseconds for the others to come and hear of it; and those of them that the start's end waits. */
const TELLING_TIMEOUT = 10_000;
const TELLING_DELAY = 2000;

/**
 * Starts a rank of a launcher. A start that fails before this rank has met the others is told to
 * them; one that fails because another's did rejects with that one's error.
 */
export async function startAmongRanks<T>(start: () => Promise<T>): Promise<T> {
  const before = numRendezvous();
  try {
    return await start();
  } catch (error) {
    // Once they have met, the group has told them.
    if (numRendezvous() === before) await tellFailedStart(error);
    throw startFailureOf(error);
  }
}

async function tellFailedStart(error: unknown): Promise<void> {
  let place: ReturnType<typeof meetingPlace>;
  let own: ReturnType<typeof rankFromEnvironment>;
  try {
    own = rankFromEnvironment();
    place = meetingPlace('env://');
  } catch {
    return; // It does not know whom to tell.
  }
  if (own.worldSize === 1) return;
  const reason = `it could not start: ${error instanceof Error ? error.message : String(error)}`;
  const failure = new PeerLostError(own.rank, reason, { cause: error });
  const given = new AbortController();
  await Promise.race([
    tellFailure(place, own, failure, TELLING_TIMEOUT),
    sleep(TELLING_DELAY, undefined, { signal: given.signal }).catch(() => {}),
  ]);
  given.abort();
}
