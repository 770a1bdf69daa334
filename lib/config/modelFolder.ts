/** Checks that `model` is the folder of a checkpoint; else says what it is and what is wanted. */
import type { Stats } from 'node:fs';
import { opendir, readFile, readlink, stat } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { CheckpointError } from '../errors';
import { type FileKind, kindOfFile, LFS_POINTER_MESSAGE } from './fileKind';
import { fileExists, reasonOf } from './jsonFile';
import { nameOnHub } from '../hub/modelName';
import { firstPartOf, isGguf } from '../model/gguf/files';

/** Entries of a folder, and folders below it, that an error looks at. */
const MAX_ENTRIES = 1000;
const MAX_FOLDERS = 200;
/** hub/models--org--name/snapshots/revision of huggingface_hub's cache. */
const MAX_DEPTH = 3;
/** Files that an error opens, and bytes of adapter_config.json that it reads. */
const MAX_OPENED = 64;
const MAX_ADAPTER_BYTES = 2 ** 20;
const MAX_NAMED = 3;

const WANTED =
  'model must be a folder with config.json, tokenizer.json and safetensors files, as on the Hugging ' +
  'Face hub, or a GGUF file';

/** What to do with a file, after its name. */
const NOT_READ: Partial<Record<FileKind['group'], string>> = {
  gguf: ', to be passed by its own path',
  pickle: ', which is not read',
  foreign: ', which is not read',
  archive: ', which must be unpacked',
};

/**
 * Resolves to the absolute path of the folder `model`, which has a config.json, or of a GGUF file:
 * `model` itself, or the only one in the folder unless that has safetensors files. Rejects with
 * CheckpointError, which says what is at the path; reads no large file for that, and opens no pipe.
 */
export async function checkModelFolder(model: string): Promise<string> {
  const folder = path.resolve(model);
  const fail = (message: string, cause?: unknown) =>
    new CheckpointError(folder, message, { cause });
  let stats: Stats;
  try {
    stats = await stat(folder);
  } catch (error) {
    throw fail(await notAccessible(model, folder, error), error);
  }
  if (!stats.isDirectory()) {
    if (await isGgufFile(folder, stats)) return folder;
    throw fail(await notFolder(folder, stats));
  }
  const config = path.join(folder, 'config.json');
  const hasConfig = await fileExists(config);
  if (hasConfig && (await hasSafetensors(folder))) return folder;
  const names = await namesOf(folder).catch((error: unknown) => {
    throw fail(`the folder cannot be read: ${reasonOf(error)}`, error);
  });
  const gguf = ggufModels(names);
  if (gguf.length === 1) return path.join(folder, gguf[0]);
  if (hasConfig) return folder;
  if (gguf.length > 1) {
    throw fail(
      `the folder holds ${gguf.length} models as GGUF files (${listed(gguf)}); pass one of them`,
    );
  }
  throw new CheckpointError(config, await withoutConfig(folder, names));
}

/** Whether the file is of a kind that is named .gguf and begins as one. */
async function isGgufFile(file: string, stats: Stats): Promise<boolean> {
  if (!stats.isFile() || !isGguf(file)) return false;
  const kind = await kindOfFile(file).catch(() => null);
  return kind?.group === 'gguf';
}

async function hasSafetensors(folder: string): Promise<boolean> {
  for (const name of ['model.safetensors', 'model.safetensors.index.json']) {
    if (await stat(path.join(folder, name)).then(Boolean, () => false)) return true;
  }
  return false;
}

/** GGUF files, of a set in parts the first alone, without those of images (mmproj). */
function ggufModels(names: readonly string[]): string[] {
  return names.filter(
    (name) => isGguf(name) && firstPartOf(name) === null && !/^mmproj/i.test(name),
  );
}

/** Names of a folder's entries, sorted; at most MAX_ENTRIES. */
async function namesOf(folder: string): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of await opendir(folder)) {
    if (names.push(name) === MAX_ENTRIES) break;
  }
  return names.sort();
}

async function notAccessible(model: string, folder: string, error: unknown): Promise<string> {
  const { code } = error as NodeJS.ErrnoException;
  if (code !== 'ENOENT' && code !== 'ENOTDIR') {
    return `it cannot be accessed: ${reasonOf(error)}; ${WANTED}`;
  }
  const target = await readlink(folder).catch(() => null);
  if (target !== null) return `it is a link to ${target}, which does not exist; ${WANTED}`;
  const parent = await nearestExisting(folder);
  if (parent !== null && !parent.isFolder) return `${parent.path} is not a folder; ${WANTED}`;
  const absent = `the folder ${folder} does not exist`;
  if (model.startsWith('~')) {
    const inHome = path.join(os.homedir(), model.replace(/^~[/\\]?/, ''));
    return `${absent}; only a shell replaces ~: write ${inHome}`;
  }
  const name = await nameOnHub(model);
  if (name !== null) {
    return (
      `${absent}; a name on the Hugging Face hub is downloaded by LLM.create alone: run uniproc pull ` +
      `${name}, then pass the path that it prints as model`
    );
  }
  if (isUrl(model)) return `it is a URL; ${WANTED}, given by its path`;
  const isNearRoot = parent === null || parent.path === path.parse(folder).root;
  return `${absent}${isNearRoot ? '' : `, but ${parent.path} does`}; download the checkpoint first`;
}

const isUrl = (model: string) => /^[a-z][\w+.-]*:\/\//i.test(model);

/** The nearest existing ancestor, with whether it is a folder; null if none can be accessed. */
async function nearestExisting(
  folder: string,
): Promise<{ path: string; isFolder: boolean } | null> {
  for (let at = path.dirname(folder); ; at = path.dirname(at)) {
    try {
      return { path: at, isFolder: (await stat(at)).isDirectory() };
    } catch {
      if (at === path.dirname(at)) return null;
    }
  }
}

async function notFolder(file: string, stats: Stats): Promise<string> {
  if (stats.isFIFO()) return `it is a named pipe; ${WANTED}`;
  if (stats.isSocket()) return `it is a socket; ${WANTED}`;
  if (!stats.isFile()) return `it is a device; ${WANTED}`;
  let kind: FileKind | null;
  try {
    kind = await kindOfFile(file);
  } catch (error) {
    return `it is a file, which cannot be read: ${reasonOf(error)}; ${WANTED}`;
  }
  const { group, name } = kind ?? { group: 'other', name: 'a file' };
  if (group === 'lfs') return `${LFS_POINTER_MESSAGE}; ${WANTED}`;
  const folder = path.dirname(file);
  const isOfCheckpoint =
    !['gguf', 'archive', 'foreign'].includes(group) &&
    (await fileExists(path.join(folder, 'config.json')).catch(() => false));
  if (isOfCheckpoint) return `it is ${name}; model must be its folder, ${folder}`;
  if (group === 'gguf') return `it is ${name}, whose name must end in .gguf`;
  return `it is ${name}${NOT_READ[group] ?? ''}; ${WANTED}`;
}

/** What is in a folder that has no config.json. */
async function withoutConfig(folder: string, names: readonly string[]): Promise<string> {
  if (names.length === 0) return `the folder is empty; ${WANTED}`;
  const missing = 'config.json is missing';
  if (names.includes('adapter_config.json')) {
    const base = await baseModelOf(path.join(folder, 'adapter_config.json'));
    return (
      `${missing}, the folder holds an adapter${base === null ? '' : ` of ${base}`}; merge it into its ` +
      'base model (merge_and_unload of peft), save that with save_pretrained and pass its folder'
    );
  }
  if (names.includes('model_index.json')) {
    return `${missing}, the folder holds a diffusion pipeline (model_index.json); ${WANTED}`;
  }
  if (names.includes('params.json')) {
    return `${missing}, the folder has the maker's own format (params.json); ${WANTED}`;
  }
  const inside = await checkpointsBelow(folder, names);
  if (inside.length > 0) {
    const which = inside.length === 1 ? 'it' : 'one of them';
    return `${missing} here; there is one in ${listed(inside)}: pass ${which} as model`;
  }
  const weights = await weightsIn(folder, names);
  if (weights !== null) return `${missing}, the folder holds ${weights}; ${WANTED}`;
  if (names.some((name) => /^(tokenizer|vocab|merges|special_tokens)/.test(name))) {
    return `${missing}, the folder holds a tokenizer only (${listed(names)}); ${WANTED}`;
  }
  return `${missing}, the folder holds ${listed(names)}; ${WANTED}`;
}

/**
 * What a folder has as weights, by its first files' bytes: 'a GGUF file, which is not read (a.gguf)'.
 * Null if none of them is of a known kind.
 */
export async function weightsIn(folder: string, given?: readonly string[]): Promise<string | null> {
  const names = given ?? (await namesOf(folder).catch(() => []));
  const byGroup = new Map<FileKind['group'], { name: string; files: string[] }>();
  for (const fileName of names.slice(0, MAX_OPENED)) {
    const kind = await kindOfFile(path.join(folder, fileName)).catch(() => null);
    if (kind === null) continue;
    const found = byGroup.get(kind.group) ?? { name: kind.name, files: [] };
    found.files.push(fileName);
    byGroup.set(kind.group, found);
  }
  for (const group of ['safetensors', 'lfs', 'gguf', 'pickle', 'foreign', 'archive'] as const) {
    const found = byGroup.get(group);
    if (found) return `${found.name}${NOT_READ[group] ?? ''} (${listed(found.files)})`;
  }
  return null;
}

/** The model that an adapter belongs to, or null. */
async function baseModelOf(file: string): Promise<string | null> {
  try {
    const stats = await stat(file);
    if (!stats.isFile() || stats.size > MAX_ADAPTER_BYTES) return null;
    const json = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown> | null;
    const base = json?.base_model_name_or_path;
    return typeof base === 'string' && base !== '' ? base : null;
  } catch {
    return null;
  }
}

/** Folders below `folder` with a config.json, the nearest first; of a cache, the latest first. */
async function checkpointsBelow(folder: string, names: readonly string[]): Promise<string[]> {
  const found: string[] = [];
  let level = names.map((name) => path.join(folder, name));
  let numFolders = 0;
  for (let depth = 0; depth < MAX_DEPTH && found.length === 0; depth++) {
    const next: string[] = [];
    for (const inner of level) {
      if (path.basename(inner).startsWith('.')) continue;
      const isFolder = await stat(inner).then(
        (stats) => stats.isDirectory(),
        () => false,
      );
      if (!isFolder || ++numFolders > MAX_FOLDERS) continue;
      const isCheckpoint = await fileExists(path.join(inner, 'config.json')).catch(() => false);
      if (isCheckpoint) found.push(inner);
      else
        next.push(...(await namesOf(inner).catch(() => [])).map((name) => path.join(inner, name)));
    }
    level = next;
  }
  return found;
}

/** The first names, and the number of others. */
function listed(names: readonly string[]): string {
  const first = names.slice(0, MAX_NAMED).join(', ');
  return names.length > MAX_NAMED ? `${first} and ${names.length - MAX_NAMED} more` : first;
}
