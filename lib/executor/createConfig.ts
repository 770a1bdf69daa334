/** Makes an executor's configuration from the engine's options. */
import {
  createUniprocConfig as createConfig,
  type EngineArgs as Options,
} from '../config/engineArgs';
import type { ExecutorReference, UniprocConfig } from '../config/uniprocConfig';
import { ConfigError } from '../errors';
import { defaultDevice } from '../native';
import type { Worker } from '../worker/worker';
import type { WorkerBase } from '../worker/workerBase';
import type { Executor } from './executor';
import type { ExecutorWithExternalLauncher } from './externalLauncher';
import type { UniProcExecutor } from './uniProcExecutor';

/**
 * The engine's options, all optional (docs/options.md). `W`: the worker's class; `E`: the class
 * given as `distributedExecutorBackend`.
 */
export type EngineArgs<
  W extends WorkerBase = Worker,
  E extends Executor = UniProcExecutor<W>,
> = Options<W, E>;

/**
 * The validated, frozen configuration; default device: a GPU, if one can be opened, else the CPU.
 * Rejects with ConfigError, CheckpointError or UnsupportedModelError.
 */
export async function createUniprocConfig<
  W extends WorkerBase = Worker,
  E extends Executor = UniProcExecutor<W>,
>(args: EngineArgs<W, E> = {}): Promise<UniprocConfig> {
  if (!isObject(args) || args.device !== undefined) return createConfig(args);
  return createConfig({ ...args, device: await defaultDevice() });
}

export type ExecutorConstructor = new (config: UniprocConfig) => Executor;

/** An executor of class `C`, typed by its worker's class if `C` is one of the library's. */
export type CreatedExecutor<C extends ExecutorConstructor, W extends WorkerBase> =
  UniProcExecutor<WorkerBase> extends InstanceType<C>
    ? UniProcExecutor<W>
    : ExecutorWithExternalLauncher<WorkerBase> extends InstanceType<C>
      ? ExecutorWithExternalLauncher<W>
      : InstanceType<C>;

/** Either, told apart by `parallel`, which is no option. */
export type ConfigOrArgs<W extends WorkerBase = Worker> = UniprocConfig | EngineArgs<W, Executor>;

/**
 * A configuration as it is, or one made from options for an executor class. `backend`: the class or
 * its name. Rejects with ConfigError if the options name another.
 */
export async function configFrom(
  given: ConfigOrArgs<WorkerBase>,
  backend: ExecutorReference<Executor>,
): Promise<UniprocConfig> {
  if (isObject(given) && 'parallel' in given) return given;
  if (!isObject(given)) return createUniprocConfig(given);
  const { distributedExecutorBackend: named = backend } = given;
  if (named === backend) {
    return createUniprocConfig<WorkerBase, Executor>({
      ...given,
      distributedExecutorBackend: backend,
    });
  }
  const own = typeof backend === 'string' ? `'${backend}'` : 'its own class';
  throw new ConfigError(
    `distributedExecutorBackend names another executor; leave it out, or pass ${own}`,
  );
}

function isObject(given: unknown): given is object {
  return typeof given === 'object' && given !== null && !Array.isArray(given);
}
