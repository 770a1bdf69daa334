/** What an executor passes to a worker's constructor. */
import type { UniprocConfig } from '../config/uniprocConfig';

/** Constructor arguments of a worker (the wrapper keeps `sharedWorkerLock`). */
export interface WorkerArgs {
  config: UniprocConfig;
  localRank: number;
  rank: number;
  /** `tcp://<ip>:<port>` or `env://`. */
  distributedInitMethod: string;
  isDriverWorker: boolean;
}
