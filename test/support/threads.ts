import { readdirSync, readFileSync } from 'node:fs';

const TASKS = '/proc/self/task';

function nameOf(threadId: string): string {
  try {
    return readFileSync(`${TASKS}/${threadId}/comm`, 'utf8').trim();
  } catch {
    return ''; // It has exited.
  }
}

/**
 * Watches for threads of the addon. The returned function gives the names, as in Linux, of threads that
 * started since and still run. Earlier threads do not count, since garbage collection may end them at
 * any time.
 */
export function watchThreads(): () => string[] {
  const before = new Set(readdirSync(TASKS));
  return () =>
    readdirSync(TASKS)
      .filter((threadId) => !before.has(threadId))
      .map(nameOf)
      .filter((name) => name.startsWith('Worker'))
      .sort();
}
