/** One rank of several processes that a launcher started (vLLM V1's ExecutorWithExternalLauncher). */
import { ConfigError, NotSupportedError } from '../errors';
import type { Worker } from '../worker/worker';
import type { CreateOptions } from './executor';
import { type DistributedArgs, UniProcExecutor } from './uniProcExecutor';

/**
 * For programs started by torchrun or a launcher that sets the same variables: each process makes
 * one executor with one worker, and all work on the same prompts. The schedule is deterministic, so
 * they make the same outputs without telling each other.
 */
export class ExecutorWithExternalLauncher<W extends Worker = Worker> extends UniProcExecutor<W> {
  /** Rejects with ConfigError where the environment does not fit. */
  protected override async initExecutor(options: CreateOptions): Promise<void> {
    if (process.env.UNIPROC_ENABLE_MULTIPROCESSING === '1') {
      throw new ConfigError(
        'UNIPROC_ENABLE_MULTIPROCESSING is 1, but ranks stay in step only when each schedules in ' +
          'its own process; set it to 0',
      );
    }
    await super.initExecutor(options);
  }

  /** From RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. */
  protected override distributedArgs(): Promise<DistributedArgs> {
    const worldSize = integer('WORLD_SIZE', 1);
    const rank = integer('RANK', 0, worldSize - 1);
    const localRank = integer('LOCAL_RANK', 0);
    integer('MASTER_PORT', 1, 65535);
    text('MASTER_ADDR');
    const { tensorParallelSize } = this.config.parallel;
    if (worldSize !== tensorParallelSize) {
      throw new ConfigError(
        `WORLD_SIZE is ${worldSize}, but tensorParallelSize is ${tensorParallelSize}; they must be equal`,
      );
    }
    if (worldSize > 1) {
      throw new NotSupportedError(
        'ExecutorWithExternalLauncher',
        `WORLD_SIZE is ${worldSize}, but more than one rank is not supported yet`,
      );
    }
    return Promise.resolve({ distributedInitMethod: 'env://', rank, localRank });
  }

  /** The least that any rank has, so that all make the same KV cache. */
  override async determineAvailableMemory(): Promise<number[]> {
    return [Math.min(...(await super.determineAvailableMemory()))];
  }
}

/** A variable that the launcher sets. */
function text(name: string): string {
  const value = process.env[name];
  if (value === undefined || value === '') {
    throw new ConfigError(`${name} is not set; start this program with torchrun or set it`);
  }
  return value;
}

function integer(name: string, least: number, most = Number.MAX_SAFE_INTEGER): number {
  const value = text(name);
  const number = Number(value);
  if (!/^\d+$/.test(value) || number < least || number > most) {
    const range = most === Number.MAX_SAFE_INTEGER ? `${least} or more` : `${least} to ${most}`;
    throw new ConfigError(`${name} is ${value}; it must be a whole number, ${range}`);
  }
  return number;
}
