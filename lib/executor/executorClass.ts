/** Which executor a config names. Importing this file makes all of them known. */
import type { UniprocConfig } from '../config/uniprocConfig';
import { Executor, type ExecutorClass } from './executor';
import './externalLauncher';
import './uniProcExecutor';

/** As `Executor.getClass`, for those who import no executor by its name. */
export function getExecutorClass(config: UniprocConfig): Promise<ExecutorClass> {
  return Executor.getClass(config);
}
