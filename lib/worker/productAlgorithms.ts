/**
 * The file that keeps which algorithm is the fastest for each matrix product of a GPU, so that only the
 * first start of a model on a machine times them (as TensorRT's timing cache). The device compares only
 * algorithms that return the same bits, so runs and ranks whose files differ compute the same.
 */
import { createHash, randomUUID } from 'node:crypto';
import { mkdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { log } from '../log';
import type { DeviceProperties, NativeDeviceThread } from '../native';

/** More than a file of many models has, in bytes. */
const MAX_SIZE = 16 * 2 ** 20;

/** The folder of files kept between runs; null if UNIPROC_CACHE_ROOT is empty or there is none. */
function cacheRoot(): string | null {
  const root = process.env.UNIPROC_CACHE_ROOT;
  if (root !== undefined) return root || null;
  const { XDG_CACHE_HOME: caches = '' } = process.env;
  // The XDG base directory specification ignores relative paths.
  if (path.isAbsolute(caches)) return path.join(caches, 'uniproc');
  const home = homeFolder();
  if (home !== null) return path.join(home, '.cache', 'uniproc');
  warn('has no folder, since this user has no home; products keep the choices of cuBLASLt');
  return null;
}

function homeFolder(): string | null {
  try {
    const home = os.homedir();
    return path.isAbsolute(home) ? home : null;
  } catch {
    return null; // neither HOME nor an entry for the user
  }
}

/**
 * Lets the device choose the algorithms of the products that it has run, with the file's choices, and
 * keeps new ones. Without a cache folder it keeps cuBLASLt's own choices. Never rejects for the file:
 * one that is damaged or cannot be read is replaced, and a process warning says why one cannot be
 * written.
 */
export async function chooseProductAlgorithms(
  device: NativeDeviceThread,
  { name, capability }: DeviceProperties,
): Promise<void> {
  const root = cacheRoot();
  if (root === null) return;
  const file = path.join(root, `products-${name}-${capability}.txt`.replaceAll(/[^\w.-]+/g, '-'));
  const start = performance.now();
  const known = await read(file);
  const chosen = await device.chooseProductAlgorithms(known);
  if (chosen === known) return;
  const milliseconds = Math.round(performance.now() - start);
  log('start: the products of this model were timed in %d ms, for %s', milliseconds, file);
  await write(file, chosen).catch((error: unknown) => {
    warn(`cannot be written: ${(error as Error).message}; every start times them again`);
  });
}

const digestOf = (text: string): string => createHash('sha256').update(text).digest('hex');

/** The choices in the file; empty if there is none, or it is damaged or cannot be read. */
async function read(file: string): Promise<string> {
  try {
    const status = await stat(file);
    if (!status.isFile() || status.size > MAX_SIZE) return '';
    const content = await readFile(file, 'utf8');
    const end = content.indexOf('\n');
    const choices = content.slice(end + 1);
    return content.slice(0, end) === digestOf(choices) ? choices : '';
  } catch {
    return '';
  }
}

/** Replaces the file at once, so that a process that reads it meanwhile reads a whole one. */
async function write(file: string, choices: string): Promise<void> {
  const draft = `${file}.${randomUUID()}`;
  await mkdir(path.dirname(file), { recursive: true });
  try {
    await writeFile(draft, `${digestOf(choices)}\n${choices}`);
    await rename(draft, file);
  } catch (error) {
    await rm(draft, { force: true });
    throw error;
  }
}

function warn(what: string): void {
  process.emitWarning(`the file of matrix products' algorithms ${what}`, {
    type: 'UniprocWarning',
    code: 'UNIPROC_CACHE_UNUSABLE',
    detail: 'UNIPROC_CACHE_ROOT names a folder for it, or is empty to time nothing',
  });
}
