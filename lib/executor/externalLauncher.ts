/** One rank of several processes that a launcher started (vLLM V1's ExecutorWithExternalLauncher). */
import { rendezvousEndpoint, rankFromEnvironment } from '../distributed/rendezvous';
import { startAmongRanks } from '../distributed/startFailure';
import { ConfigError } from '../errors';
import type { Worker } from '../worker/worker';
import { type CreateOptions, registerExecutorClass } from './executor';
import { PeerGroup } from './peerGroup';
import { type DistributedArgs, UniProcExecutor } from './uniProcExecutor';

/**
 * For programs started by torchrun or a launcher that sets the same variables: each process makes
 * one executor with one worker, and all work on the same prompts. The schedule is deterministic, so
 * they make the same outputs without telling each other. It is the single-process executor among
 * peers: what ranks do together is in PeerGroup.
 */
export class ExecutorWithExternalLauncher<W extends Worker = Worker> extends UniProcExecutor<W> {
  protected override readonly peers = new PeerGroup(
    this.config,
    this.maxConcurrentBatches,
    (cause) => this.fail(cause),
  );

  /** Rejects with ConfigError where the environment, or another rank's configuration, does not fit. */
  protected override initExecutor(options: CreateOptions): Promise<void> {
    return startAmongRanks(async () => {
      if (process.env.UNIPROC_ENABLE_MULTIPROCESSING === '1') {
        throw new ConfigError(
          'UNIPROC_ENABLE_MULTIPROCESSING is 1, but ranks stay in step only when each schedules in ' +
            'its own process; set it to 0',
        );
      }
      await super.initExecutor(options);
    });
  }

  /** From RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. */
  protected override distributedArgs(): Promise<DistributedArgs> {
    const distributedInitMethod = 'env://';
    const { rank, localRank, worldSize } = rankFromEnvironment();
    rendezvousEndpoint(distributedInitMethod);
    const { tensorParallelSize } = this.config.parallel;
    if (worldSize !== tensorParallelSize) {
      throw new ConfigError(
        `WORLD_SIZE is ${worldSize}, but tensorParallelSize is ${tensorParallelSize}; they must be equal`,
      );
    }
    return Promise.resolve({ distributedInitMethod, rank, localRank });
  }

  /** The least that any rank has, so that all make the same KV cache. */
  override async determineAvailableMemory(): Promise<number[]> {
    const [bytes] = await super.determineAvailableMemory();
    return this.collectiveRpc(() => this.peers.minimum(bytes));
  }
}

registerExecutorClass('external_launcher', ExecutorWithExternalLauncher);
