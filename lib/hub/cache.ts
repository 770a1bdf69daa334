/**
 * A model's folder in the cache of Python's huggingface_hub, which both share:
 * models--ORG--NAME/{refs/REVISION, blobs/ID, snapshots/COMMIT/FILE -> ../../blobs/ID}.
 */
import { randomUUID } from 'node:crypto';
import {
  mkdir,
  readFile,
  rename,
  stat,
  statfs,
  symlink,
  unlink,
  writeFile,
} from 'node:fs/promises';
import path from 'node:path';
import { isGguf } from '../model/gguf/files';
import type { HubFile } from './files';
import { tagOf } from './ggufFiles';

const COMMIT = /^[0-9a-f]{40}$/;

export class ModelCache {
  readonly folder: string;

  constructor(
    readonly root: string,
    model: string,
  ) {
    this.folder = path.join(root, `models--${model.replaceAll('/', '--')}`);
  }

  snapshot(commit: string): string {
    return path.join(this.folder, 'snapshots', commit);
  }

  blob({ id }: Pick<HubFile, 'id'>): string {
    return path.join(this.folder, 'blobs', id);
  }

  async hasBlob(file: HubFile): Promise<boolean> {
    return (await sizeOf(this.blob(file))) === file.size;
  }

  /** The commit that the cache has for a revision; null if it has none. */
  async commitOf(revision: string): Promise<string | null> {
    if (COMMIT.test(revision)) return revision;
    const text = await readFile(this.ref(revision), 'utf8').catch(() => '');
    const commit = text.trim();
    return COMMIT.test(commit) ? commit : null;
  }

  async setCommit(revision: string, commit: string): Promise<void> {
    if (COMMIT.test(revision)) return;
    await replaceFile(this.ref(revision), commit);
  }

  private ref(revision: string): string {
    return path.join(this.folder, 'refs', ...revision.split('/'));
  }

  /** Puts a blob into a snapshot. Another process may have done so. */
  async link(commit: string, file: HubFile): Promise<void> {
    const place = path.join(this.snapshot(commit), ...file.path.split('/'));
    if ((await sizeOf(place)) === file.size) return;
    await mkdir(path.dirname(place), { recursive: true });
    const target = path.relative(path.dirname(place), this.blob(file));
    await replace(place, (temporary) => symlink(target, temporary));
  }

  /** Bytes that this user may write to the cache's disk; null if the system does not say. */
  async freeBytes(): Promise<number | null> {
    await mkdir(path.join(this.folder, 'blobs'), { recursive: true });
    const found = await statfs(this.folder).catch(() => null);
    return found === null ? null : found.bavail * found.bsize;
  }
}

/**
 * The name of the model that is a snapshot's folder in such a cache, organisation/name, or a GGUF file in
 * it, organisation/name:TAG; else null.
 */
export function nameOfSnapshot(model: string): string | null {
  const found = /(?:^|\/)models--([^/]+)\/snapshots\/[0-9a-f]{40}(\/.+)?$/.exec(model);
  if (found === null) return null;
  const name = found[1].replace('--', '/');
  const file = found[2] as string | undefined;
  if (file === undefined) return name;
  return isGguf(file) ? `${name}:${tagOf(file)}` : null;
}

/** A file's bytes, or of what it links to; -1 if it does not exist. */
export async function sizeOf(file: string): Promise<number> {
  const stats = await stat(file).catch(() => null);
  return stats?.size ?? -1;
}

/** Writes a whole file, which readers see as before or as after. */
async function replaceFile(file: string, text: string): Promise<void> {
  await mkdir(path.dirname(file), { recursive: true });
  await replace(file, (temporary) => writeFile(temporary, text));
}

/** Makes a file under a name that no other call has, then renames it to `file`. */
async function replace(file: string, make: (temporary: string) => Promise<void>): Promise<void> {
  const temporary = `${file}.${randomUUID()}`;
  try {
    await make(temporary);
    await rename(temporary, file);
  } catch (error) {
    await unlink(temporary).catch(() => {});
    throw error;
  }
}
