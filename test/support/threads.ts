import { readdirSync, readFileSync } from 'node:fs';

const TASKS = '/proc/self/task';

function nameOf(threadId: string): string {
  try {
    return readFileSync(`${TASKS}/${threadId}/comm`, 'utf8').trim();
  } catch {
    return ''; // It ended meanwhile.
  }
}

/**
 * Watches for threads of the addon. The function returned gives the names, as Linux keeps them, of
 * those that were started since and run still. Threads of before do not count: what earlier tests
 * dropped is collected at any moment.
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
