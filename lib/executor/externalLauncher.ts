/**
 * One rank of a group of processes started by a launcher (vLLM V1's ExecutorWithExternalLauncher).
 */
import { rendezvousEndpoint, rankFromEnvironment } from '../distributed/rendezvous';
import { startAmongRanks } from '../distributed/startFailure';
import { ConfigError } from '../errors';
import type { Worker } from '../worker/worker';
import { type CreateOptions, registerExecutorClass } from './executor';
import { PeerGroup } from './peerGroup';
import { type DistributedArgs, UniProcExecutor } from './uniProcExecutor';

/**
 * For programs started by torchrun or a launcher that sets the same variables: each process creates
 * one executor with one worker, and all run the same prompts. Scheduling is deterministic, so all
 * produce the same outputs without synchronizing. PeerGroup implements the communication between
 * ranks.
 */
export class ExecutorWithExternalLauncher<W extends Worker = Worker> extends UniProcExecutor<W> {
  protected override readonly peers = new PeerGroup(
    this.config,
    this.maxConcurrentBatches,
    (cause) => this.fail(cause),
  );

  /** Rejects with ConfigError if the environment or another rank's configuration does not match. */
  protected override initExecutor(options: CreateOptions): Promise<void> {
    return startAmongRanks(async () => {
      if (process.env.UNIPROC_ENABLE_MULTIPROCESSING === '1') {
        throw new ConfigError(
          'UNIPROC_ENABLE_MULTIPROCESSING is 1, but each rank must schedule in its own process to stay ' +
            'in lockstep; set it to 0',
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

  /** The minimum over all ranks, so all allocate the same KV cache. */
  override async determineAvailableMemory(): Promise<number[]> {
    const [bytes] = await super.determineAvailableMemory();
    return this.collectiveRpc(() => this.peers.minimum(bytes));
  }
}

registerExecutorClass('external_launcher', ExecutorWithExternalLauncher);
