/** Brings a model from the Hugging Face hub into the cache. */
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import { ConfigError, DiskFullError, HubNotFoundError, HubUnreachableError } from '../errors';
import { show } from '../config/schema';
import { log } from '../log';
import { isGguf } from '../model/gguf/files';
import { ModelCache, sizeOf } from './cache';
import { HubClient } from './client';
import { download, type DownloadTask } from './download';
import { readEnvironment } from './environment';
import { filesOfModel, type HubFile } from './files';
import { ggufFilesOf, partsOf } from './ggufFiles';
import { withLock } from './lock';
import { type HubName, parseHubName } from './modelName';

/** Files downloaded at once. */
const NUM_PARALLEL = 4;

export interface PullProgress {
  /** Bytes in the cache, of `totalBytes`. */
  bytes: number;
  totalBytes: number;
  /** Whole files, of `totalFiles`. */
  files: number;
  totalFiles: number;
}

export interface PullOptions {
  /** A branch, tag or commit; default 'main'. */
  revision?: string;
  onProgress?: (progress: PullProgress) => void;
  /** Ends the download; what has arrived is kept. */
  signal?: AbortSignal;
}

/** What `pull` is called with. */
type Wanted = HubName & { revision: string };

/**
 * Resolves to the folder of `model` (organisation/name, or its address) in the cache, with the files that a
 * model needs; of organisation/name:TAG, of a GGUF file's address, or if there are no safetensors files, to
 * a GGUF file, of a set the first. Without a network (HF_HUB_OFFLINE, or a hub that cannot be reached) that
 * is what an earlier pull left. Several processes may pull the same model. Rejects with ConfigError, the
 * errors of lib/hubErrors.ts or the signal's reason.
 */
export async function pull(model: string, options: PullOptions = {}): Promise<string> {
  const { signal } = options;
  const wanted = wantedOf(model, options);
  const { repository, revision } = wanted;
  const environment = await readEnvironment();
  const cache = new ModelCache(environment.cache, repository);
  const client = new HubClient(environment, repository, signal);
  if (environment.isOffline) return cached(cache, wanted);
  let listing;
  try {
    listing = await client.revision(revision);
  } catch (error) {
    if (!(error instanceof HubUnreachableError)) throw error;
    return await cached(cache, wanted).catch(() => {
      throw error;
    });
  }
  const { commit } = listing;
  const { files, modelPath } = choose(wanted, listing.files);
  await checkSpace(cache, files);
  log('hub: %s is commit %s, %d files', model, commit, files.length);
  await downloadAll({ client, cache, model: repository, commit, signal }, files, options);
  await cache.setCommit(revision, commit);
  return path.join(cache.snapshot(commit), modelPath);
}

/** Throws ConfigError. */
function wantedOf(model: unknown, { revision }: PullOptions): Wanted {
  const name = typeof model === 'string' ? parseHubName(model) : null;
  if (name === null) {
    throw new ConfigError(
      `model is ${show(model)}; it must be a name on the hub, organisation/name, and may have a tag, :Q4_K_M`,
    );
  }
  const wanted = revision ?? name.revision ?? 'main';
  if (typeof wanted !== 'string' || /(^|\/)\.{0,2}(\/|$)|\0/.test(wanted)) {
    throw new ConfigError(`revision is ${show(wanted)}; it must be a branch, a tag or a commit`);
  }
  if (wanted !== (name.revision ?? wanted)) {
    throw new ConfigError(
      `revision is ${show(wanted)}, but the address has ${show(name.revision)}`,
    );
  }
  return { ...name, revision: wanted };
}

/** Rejects with HubNotFoundError if the cache has no whole snapshot of the revision. */
async function cached(cache: ModelCache, wanted: Wanted): Promise<string> {
  const { repository, revision } = wanted;
  const commit = await cache.commitOf(revision);
  const folder = commit === null ? null : cache.snapshot(commit);
  const files = folder === null ? [] : await filesIn(folder);
  if (folder === null || files.length === 0) {
    throw new HubNotFoundError(
      repository,
      `the cache ${cache.root} has no ${revision}, and HF_HUB_OFFLINE is set; pull the model without it`,
    );
  }
  return path.join(folder, choose(wanted, files).modelPath);
}

/** What a snapshot holds, without links to blobs that are gone. */
async function filesIn(folder: string): Promise<{ path: string }[]> {
  const names = await readdir(folder, { recursive: true }).catch(() => []);
  const sizes = await Promise.all(names.map((name) => sizeOf(path.join(folder, name))));
  return names
    .filter((_, i) => sizes[i] >= 0)
    .map((name) => ({ path: name.split(path.sep).join('/') }));
}

/** The files that the model needs, and its path among them: '' for a checkpoint, which is the folder. */
function choose<File extends { path: string }>(
  { repository, tag, file }: Wanted,
  files: readonly File[],
): { files: File[]; modelPath: string } {
  if (file !== null) return { files: partsOf(repository, files, file), modelPath: file };
  const checkpoint = filesOfModel(files);
  const has = (pattern: RegExp) => checkpoint.some((each) => pattern.test(each.path));
  const hasWeights = has(/\.safetensors$/);
  if (tag !== null || (!hasWeights && files.some((each) => isGguf(each.path)))) {
    const parts = ggufFilesOf(repository, files, tag);
    return { files: parts, modelPath: parts[0].path };
  }
  if (!has(/^config\.json$/)) {
    throw new HubNotFoundError(repository, 'the repository has no config.json');
  }
  if (!hasWeights) {
    throw new HubNotFoundError(repository, 'the repository has no safetensors files at its top');
  }
  return { files: checkpoint, modelPath: '' };
}

/** Rejects with DiskFullError before anything is downloaded in vain. */
async function checkSpace(cache: ModelCache, files: readonly HubFile[]): Promise<void> {
  let needed = 0;
  for (const file of files) {
    if (await cache.hasBlob(file)) continue;
    const partial = await sizeOf(`${cache.blob(file)}.uniproc.incomplete`);
    needed += file.size - Math.max(0, partial);
  }
  const free = await cache.freeBytes();
  if (free !== null && needed > free) throw new DiskFullError(cache.root, needed, free);
}

async function downloadAll(
  task: Omit<DownloadTask, 'onBytes'>,
  files: readonly HubFile[],
  { onProgress }: PullOptions,
): Promise<void> {
  const { cache, commit } = task;
  const progress: PullProgress = {
    bytes: 0,
    totalBytes: files.reduce((sum, { size }) => sum + size, 0),
    files: 0,
    totalFiles: files.length,
  };
  // The first failure ends the others.
  const controller = new AbortController();
  const abort = () => controller.abort(task.signal?.reason);
  task.signal?.addEventListener('abort', abort, { once: true });
  const { signal } = controller;
  const one = async (file: HubFile) => {
    let bytes = 0;
    const onBytes = (count: number) => {
      bytes += count;
      progress.bytes += count;
      try {
        onProgress?.({ ...progress });
      } catch (error) {
        // Else it could count as a cut of the connection.
        controller.abort(error);
      }
    };
    const lock = path.join(cache.root, '.locks', path.basename(cache.folder), `${file.id}.uniproc`);
    const isDone = () => cache.hasBlob(file);
    if (!(await isDone())) {
      await withLock(lock, isDone, () => download({ ...task, signal, onBytes }, file), signal);
    }
    await cache.link(commit, file);
    progress.files++;
    onBytes(file.size - bytes);
    signal.throwIfAborted();
  };
  const waiting = [...files];
  const worker = async () => {
    for (let file = waiting.shift(); file !== undefined; file = waiting.shift()) {
      signal.throwIfAborted();
      await one(file);
    }
  };
  try {
    task.signal?.throwIfAborted();
    const workers = Array.from({ length: NUM_PARALLEL }, worker);
    for (const each of workers) each.catch((error: unknown) => controller.abort(error));
    const outcomes = await Promise.allSettled(workers);
    if (outcomes.some(({ status }) => status === 'rejected')) throw signal.reason;
  } finally {
    task.signal?.removeEventListener('abort', abort);
  }
}
