/** Makes an executor's configuration from the engine's options. */
import { inspect } from 'node:util';
import {
  createUniprocConfig as createConfig,
  type EngineArgs as Options,
} from '../config/engineArgs';
import type { UniprocConfig } from '../config/uniprocConfig';
import { ConfigError } from '../errors';
import { defaultDevice } from '../native';
import { isOptionsObject } from '../realm';
import type { Worker } from '../worker/worker';
import type { WorkerBase } from '../worker/workerBase';
import type { Executor } from './executor';
import type { ExecutorWithExternalLauncher } from './externalLauncher';
import { findExecutorClass, nameOf } from './namedClasses';
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
  if (!isOptionsObject(args) || args.device !== undefined) return createConfig(args);
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

/** Either, told apart by the objects `model` and `parallel`, which are no options. */
export type ConfigOrArgs<W extends WorkerBase = Worker> = UniprocConfig | EngineArgs<W, Executor>;

/**
 * A configuration as it is, or one made from options, for an executor of this class. Rejects with
 * ConfigError if it names another, as createUniprocConfig does, or if a module cannot be loaded.
 */
export async function configFrom(
  given: ConfigOrArgs<WorkerBase>,
  executorClass: ExecutorConstructor,
): Promise<UniprocConfig> {
  if (isConfig(given)) {
    const named = given.parallel.distributedExecutorBackend;
    // 'uni' is the default of a configuration, whatever it is made for.
    const found = named === 'uni' ? executorClass : await findExecutorClass(named);
    if (executorClass === found || isSubclass(executorClass, found)) return given;
    throw namesAnother(named, executorClass);
  }
  if (!isOptionsObject(given)) return createUniprocConfig(given);
  const { distributedExecutorBackend: named } = given;
  if (named !== undefined && (await findExecutorClass(named)) !== executorClass) {
    throw namesAnother(named, executorClass);
  }
  const backend = nameOf(executorClass) ?? executorClass;
  return createUniprocConfig<WorkerBase, Executor>({
    ...given,
    distributedExecutorBackend: backend,
  });
}

function isConfig(given: unknown): given is UniprocConfig {
  if (!isOptionsObject(given)) return false;
  return isOptionsObject(given.model) && isOptionsObject(given.parallel);
}

function isSubclass(executorClass: ExecutorConstructor, base: unknown): boolean {
  return typeof base === 'function' && executorClass.prototype instanceof base;
}

function namesAnother(named: unknown, executorClass: ExecutorConstructor): ConfigError {
  const own = nameOf(executorClass);
  return new ConfigError(
    `distributedExecutorBackend is ${inspect(named)}, which is not ${executorClass.name}; leave it ` +
      `out, or pass ${own === undefined ? 'the class' : `'${own}'`}`,
  );
}
