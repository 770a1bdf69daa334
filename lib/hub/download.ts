/** Downloads one file into the cache: resumed, verified, and visible only when it is whole. */
import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { type FileHandle, open, rename, unlink } from 'node:fs/promises';
import { setTimeout as pause } from 'node:timers/promises';
import { DiskFullError, HubFileCorruptError, HubInterruptedError } from '../errors';
import { type ModelCache, sizeOf } from './cache';
import { bodyOf, type HubClient, isNetworkError } from './client';
import type { HubFile } from './files';

/** Cuts in a row without a byte between them that end a download. */
const MAX_CUTS = 5;
const WAIT_MS = 200;

export interface DownloadTask {
  client: HubClient;
  cache: ModelCache;
  model: string;
  commit: string;
  /** Called with the bytes that arrive; those of an earlier attempt, too. */
  onBytes: (bytes: number) => void;
  signal: AbortSignal | undefined;
}

/** Rejects with the hub's errors, HubInterruptedError, HubFileCorruptError or DiskFullError. */
export async function download(task: DownloadTask, file: HubFile): Promise<void> {
  const { cache, model } = task;
  // Not Python's name: its process may download the same file, and appends without knowing of us.
  const partial = `${cache.blob(file)}.uniproc.incomplete`;
  const hash = await append(task, file, partial);
  const found = hash.digest('hex');
  const size = await sizeOf(partial);
  if (size !== file.size || found !== file.id) {
    await unlink(partial);
    const message =
      size === file.size
        ? `has the ${file.hash} hash ${found}, not ${file.id}`
        : `has ${size} bytes, not ${file.size}`;
    throw new HubFileCorruptError(model, file.path, message);
  }
  await rename(partial, cache.blob(file));
}

/** Appends what is missing; returns the hash of the whole. */
async function append(task: DownloadTask, file: HubFile, partial: string): Promise<Hash> {
  const { model, onBytes, signal } = task;
  const handle = await open(partial, 'a');
  try {
    let { size: bytes } = await handle.stat();
    let hash = hashOf(file);
    // An earlier attempt's bytes are part of the hash.
    if (bytes > file.size) await handle.truncate((bytes = 0));
    if (bytes > 0) await hashFile(partial, hash, signal);
    onBytes(bytes);
    for (let numCuts = 0; bytes < file.size;) {
      const before = bytes;
      let cause: unknown;
      try {
        const response = await task.client.file(task.commit, file, bytes, signal);
        if (response.status !== 206 && bytes > 0) {
          // The server sends the whole file.
          onBytes(-bytes);
          await handle.truncate((bytes = 0));
          hash = hashOf(file);
        }
        for await (const chunk of bodyOf(response, signal) as AsyncIterable<Uint8Array>) {
          await writeAll(handle, chunk, task, file.size - bytes);
          hash.update(chunk);
          bytes += chunk.byteLength;
          onBytes(chunk.byteLength);
          // What is too long is refused as such.
          if (bytes > file.size) return hash;
        }
      } catch (error) {
        signal?.throwIfAborted();
        if (!isNetworkError(error)) throw error;
        cause = error;
      }
      if (bytes === file.size) break;
      // Cut, or ended early without an error.
      numCuts = bytes > before ? 1 : numCuts + 1;
      if (numCuts === MAX_CUTS) {
        throw new HubInterruptedError(model, file.path, bytes, file.size, { cause });
      }
      await pause(WAIT_MS * numCuts);
    }
    return hash;
  } finally {
    await handle.close();
  }
}

/** Git's id of a blob is the SHA-1 of a header and its bytes. */
function hashOf({ hash, size }: HubFile): Hash {
  return hash === 'sha256' ? createHash('sha256') : createHash('sha1').update(`blob ${size}\0`);
}

async function hashFile(file: string, hash: Hash, signal: AbortSignal | undefined): Promise<void> {
  for await (const chunk of createReadStream(file, { signal })) hash.update(chunk as Buffer);
}

async function writeAll(
  handle: FileHandle,
  chunk: Uint8Array,
  { cache }: DownloadTask,
  neededBytes: number,
): Promise<void> {
  try {
    for (let start = 0; start < chunk.byteLength;) {
      start += (await handle.write(chunk, start)).bytesWritten;
    }
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== 'ENOSPC' && code !== 'EDQUOT') throw error;
    const free = (await cache.freeBytes()) ?? 0;
    throw new DiskFullError(cache.root, neededBytes, free, { cause: error });
  }
}
