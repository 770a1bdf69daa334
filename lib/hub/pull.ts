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
import { ggufFilesOf } from './ggufFiles';
import { withLock } from './lock';

/**
 * organisation/name, or the name alone of a model of the hub's first years; behind a colon the tag of a
 * GGUF file.
 */
const NAME = /^([\w-][\w.-]*(?:\/[\w-][\w.-]*)?)(?::([\w.-]+))?$/;

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
interface Wanted {
  /** organisation/name. */
  repository: string;
  /** Of a GGUF file. */
  tag: string | null;
  revision: string;
}

/**
 * Resolves to the folder of `model` (organisation/name) in the cache, with the files that a model needs;
 * of organisation/name:TAG, or if there are no safetensors files, to a GGUF file, of a set the first.
 * Without a network (HF_HUB_OFFLINE, or a hub that cannot be reached) that is what an earlier pull left.
 * Several processes may pull the same model. Rejects with the errors of lib/hubErrors.ts or the signal's
 * reason.
 */
export async function pull(model: string, options: PullOptions = {}): Promise<string> {
  const { revision = 'main', signal } = options;
  const found = typeof model === 'string' ? NAME.exec(model) : null;
  if (found === null) {
    throw new ConfigError(
      `model is ${show(model)}; it must be a name on the hub, organisation/name, and may have a tag, :Q4_K_M`,
    );
  }
  const isRevision = (value: unknown) =>
    typeof value === 'string' && !/(^|\/)\.{0,2}(\/|$)|\0/.test(value);
  if (!isRevision(revision)) {
    throw new ConfigError(`revision is ${show(revision)}; it must be a branch, a tag or a commit`);
  }
  const repository = found[1];
  const tag = (found[2] as string | undefined) ?? null;
  const environment = await readEnvironment();
  const cache = new ModelCache(environment.cache, repository);
  const client = new HubClient(environment, repository, signal);
  const wanted: Wanted = { repository, tag, revision };
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
  const { files, isFolder } = choose(wanted, listing.files);
  await checkSpace(cache, files);
  log('hub: %s is commit %s, %d files', model, commit, files.length);
  await downloadAll({ client, cache, model: repository, commit, signal }, files, options);
  await cache.setCommit(revision, commit);
  const folder = cache.snapshot(commit);
  return isFolder ? folder : path.join(folder, files[0].path);
}

/** Rejects with HubNotFoundError if the cache has no whole snapshot of the revision. */
async function cached(cache: ModelCache, { repository, tag, revision }: Wanted): Promise<string> {
  const commit = await cache.commitOf(revision);
  if (commit !== null) {
    const folder = cache.snapshot(commit);
    // The reference is written last, but a commit has none.
    const isFolder = tag === null && (await sizeOf(path.join(folder, 'config.json'))) > 0;
    if (isFolder) return folder;
    const names = await readdir(folder, { recursive: true }).catch(() => []);
    const files = names.map((name) => ({ path: name.split(path.sep).join('/') }));
    if (files.some((file) => isGguf(file.path))) {
      return path.join(folder, ggufFilesOf(repository, files, tag)[0].path);
    }
  }
  throw new HubNotFoundError(
    repository,
    `the cache ${cache.root} has no ${revision}, and HF_HUB_OFFLINE is set; pull the model without it`,
  );
}

/** The files to download: of a checkpoint, which is a folder, or of a GGUF model. */
function choose(
  { repository, tag }: Wanted,
  files: readonly HubFile[],
): { files: HubFile[]; isFolder: boolean } {
  const checkpoint = filesOfModel(files);
  const has = (pattern: RegExp) => checkpoint.some((file) => pattern.test(file.path));
  const hasWeights = has(/\.safetensors$/);
  if (tag !== null || (!hasWeights && files.some((file) => isGguf(file.path)))) {
    return { files: ggufFilesOf(repository, files, tag), isFolder: false };
  }
  if (!has(/^config\.json$/)) {
    throw new HubNotFoundError(repository, 'the repository has no config.json');
  }
  if (!hasWeights) {
    throw new HubNotFoundError(repository, 'the repository has no safetensors files at its top');
  }
  return { files: checkpoint, isFolder: true };
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
