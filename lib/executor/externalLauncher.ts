/**
 * One rank of a group of processes started by a launcher (vLLM V1's ExecutorWithExternalLauncher).
 */
import { rendezvousEndpoint, rankFromEnvironment } from '../distributed/rendezvous';
import { startAmongRanks } from '../distributed/startFailure';
import { ConfigError } from '../errors';
import type { Worker } from '../worker/worker';
import type { WorkerBase } from '../worker/workerBase';
import type { ConfigOrArgs, CreatedExecutor, ExecutorConstructor } from './createConfig';
import type { CreateOptions } from './executor';
import { registerExecutorClass } from './namedClasses';
import { PeerGroup } from './peerGroup';
import { type DistributedArgs, UniProcExecutor } from './uniProcExecutor';

/**
 * For programs started by torchrun or a launcher that sets the same variables: each process creates
 * one executor with one worker, and all run the same prompts. Scheduling is deterministic, so all
 * produce the same outputs without synchronizing. PeerGroup implements the communication between
 * ranks.
 */
export class ExecutorWithExternalLauncher<
  W extends WorkerBase = Worker,
> extends UniProcExecutor<W> {
  /** @internal */
  protected override readonly peers = new PeerGroup(
    this.config,
    this.maxConcurrentBatches,
    (cause) => this.fail(cause),
  );

  /** Also reports a failure to the other ranks. */
  static override create<
    W extends WorkerBase = Worker,
    C extends ExecutorConstructor = ExecutorConstructor,
  >(this: C, given?: ConfigOrArgs<W>, options?: CreateOptions): Promise<CreatedExecutor<C, W>> {
    type Create = (given?: ConfigOrArgs<W>, options?: CreateOptions) => Promise<unknown>;
    const create = (UniProcExecutor.create as Create).bind(this);
    const created = startAmongRanks(() => create(given, options));
    return created as Promise<CreatedExecutor<C, W>>;
  }

  /** Rejects with ConfigError if the environment or another rank's configuration does not match. */
  protected override async initExecutor(options: CreateOptions): Promise<void> {
    if (process.env.UNIPROC_ENABLE_MULTIPROCESSING === '1') {
      throw new ConfigError(
        'UNIPROC_ENABLE_MULTIPROCESSING is 1, but each rank must schedule in its own process to stay ' +
          'in lockstep; set it to 0',
      );
    }
    await super.initExecutor(options);
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
