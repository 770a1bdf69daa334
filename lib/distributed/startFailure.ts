/** Reports a rank's failed start to the ranks that wait for it. */
import { setTimeout as sleep } from 'node:timers/promises';
import { PeerLostError } from '../errors';
import { startFailureOf } from './failure';
import {
  numRendezvous,
  rankFromEnvironment,
  rendezvousEndpoint,
  reportFailure,
} from './rendezvous';

/** Milliseconds during which other ranks can still receive the report. */
const REPORT_TIMEOUT = 10_000;
/** Milliseconds by which the report may delay the rejection. */
const MAX_REPORT_DELAY = 2000;

/**
 * Starts a rank of a launcher. A failure before the rendezvous is reported to the other ranks; a
 * failure that another rank reported rejects with that rank's error.
 */
export async function startAmongRanks<T>(start: () => Promise<T>): Promise<T> {
  const before = numRendezvous();
  try {
    return await start();
  } catch (error) {
    // After the rendezvous the group reports the failure.
    if (numRendezvous() === before) await reportFailedStart(error);
    throw startFailureOf(error);
  }
}

async function reportFailedStart(error: unknown): Promise<void> {
  let endpoint: ReturnType<typeof rendezvousEndpoint>;
  let own: ReturnType<typeof rankFromEnvironment>;
  try {
    own = rankFromEnvironment();
    endpoint = rendezvousEndpoint('env://');
  } catch {
    return; // Without valid variables the other ranks cannot be reached.
  }
  if (own.worldSize === 1) return;
  const reason = `it could not start: ${error instanceof Error ? error.message : String(error)}`;
  const failure = new PeerLostError(own.rank, reason, { cause: error });
  const reported = new AbortController();
  await Promise.race([
    reportFailure(endpoint, own, failure, REPORT_TIMEOUT),
    sleep(MAX_REPORT_DELAY, undefined, { signal: reported.signal }).catch(() => {}),
  ]);
  reported.abort();
}
