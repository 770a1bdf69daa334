/** Resolves a config's executor class; importing this file registers the built-in classes. */
import type { UniprocConfig } from '../config/uniprocConfig';
import { Executor, type ExecutorClass } from './executor';
import './externalLauncher';
import './uniProcExecutor';

/** As `Executor.getClass`, with the built-in classes registered. */
export function getExecutorClass(config: UniprocConfig): Promise<ExecutorClass> {
  return Executor.getClass(config);
}
