/** The executor classes that options name. */
import { loadClass } from '../worker/loadClass';
import type { ExecutorClass } from './executor';

export type ExecutorName = 'uni' | 'external_launcher';

const classesByName = new Map<unknown, ExecutorClass>();

/**
 * Registers a class under the name that options use. Each class registers itself in its own file:
 * the file of Executor cannot import subclasses of its own class.
 */
export function registerExecutorClass(name: ExecutorName, executorClass: ExecutorClass): void {
  classesByName.set(name, executorClass);
}

export function nameOf(executorClass: unknown): ExecutorName | undefined {
  const found = [...classesByName].find(([, named]) => named === executorClass);
  return found?.[0] as ExecutorName | undefined;
}

/** The class of that name or reference, which may be no executor; undefined if it is neither. */
export async function findExecutorClass(reference: unknown) {
  return classesByName.get(reference) ?? (await loadClass(reference));
}
