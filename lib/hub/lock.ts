/** A lock between processes: a file that its owner touches, and that counts as left behind once it is old. */
import { mkdir, open, stat, unlink, utimes } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';

const TOUCH_MS = 2000;
/** Age at which a lock's owner counts as dead; several times TOUCH_MS. */
const STALE_MS = 15_000;
const LOOK_MS = 100;

/**
 * Runs `work` while no other process holds the lock `file`. `isDone`: resolves to true if another process
 * has done the work meanwhile. Rejects with the signal's reason.
 */
export async function withLock(
  file: string,
  isDone: () => Promise<boolean>,
  work: () => Promise<void>,
  signal: AbortSignal | undefined,
): Promise<void> {
  await mkdir(path.dirname(file), { recursive: true });
  while (!(await take(file))) {
    signal?.throwIfAborted();
    if (await isDone()) return;
    if (await isStale(file)) await unlink(file).catch(() => {});
    else await pause(LOOK_MS);
  }
  const touching = setInterval(() => {
    const now = new Date();
    utimes(file, now, now).catch(() => {});
  }, TOUCH_MS);
  touching.unref();
  try {
    if (!(await isDone())) await work();
  } finally {
    clearInterval(touching);
    await unlink(file).catch(() => {});
  }
}

async function take(file: string): Promise<boolean> {
  try {
    await (await open(file, 'wx')).close();
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  }
}

async function isStale(file: string): Promise<boolean> {
  const stats = await stat(file).catch(() => null);
  return stats !== null && Date.now() - stats.mtimeMs > STALE_MS;
}
