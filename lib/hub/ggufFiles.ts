/** Which of a repository's GGUF files `organisation/name:TAG` names. */
import path from 'node:path';
import { HubNotFoundError } from '../errors';
import { firstPartOf, isGguf, partsOfSet } from '../model/gguf/files';

/** Images' and calibration files beside the models. */
const NO_MODEL = /^(?:mmproj|imatrix)/i;
/** A name's part that says how the model is quantised: Q4_K_M, UD-Q4_K_XL, IQ2_XXS, MXFP4, BF16. */
const TAG = /[-._]((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|F32))$/i;
const MAX_NAMED = 12;

/**
 * The files of one model, in the order of their parts: of the one that `tag` names, by the end of its
 * name (Q4_K_M, in any case) or by its whole name; without a tag of the only one. `repository`:
 * organisation/name. Throws HubNotFoundError, which lists the tags, if there is none or several, or if
 * a part is missing.
 */
export function ggufFilesOf<File extends { path: string }>(
  repository: string,
  files: readonly File[],
  tag: string | null,
): File[] {
  const models = files.map((file) => file.path).filter(isModel);
  const named = models.filter((model) => tag === null || isNamed(nameOf(model), tag));
  // Q4_K_M is not UD-Q4_K_M if there are both.
  const exact = named.filter((model) => tagOf(model).toLowerCase() === tag?.toLowerCase());
  const found = exact.length === 1 ? exact : named;
  if (found.length !== 1) throw new HubNotFoundError(repository, ambiguity(models, found, tag));
  return partsOf(repository, files, found[0]);
}

/** The files of the model whose first or only one is `first`. Throws HubNotFoundError if one is missing. */
export function partsOf<File extends { path: string }>(
  repository: string,
  files: readonly File[],
  first: string,
): File[] {
  const byPath = new Map(files.map((file) => [file.path, file]));
  return partsOfSet(first).map((part) => {
    const file = byPath.get(part);
    if (file === undefined) throw new HubNotFoundError(repository, `the file ${part} is missing`);
    return file;
  });
}

/** How the model in `file` is quantised, by the file's name; the name if it does not say. */
export function tagOf(file: string): string {
  const name = nameOf(file);
  return TAG.exec(name)?.[1] ?? name;
}

/** Whether `file` is a GGUF model, of a set in parts the first. */
function isModel(file: string): boolean {
  return isGguf(file) && firstPartOf(file) === null && !NO_MODEL.test(path.posix.basename(file));
}

/** The file's name without its ending and the number of its part. */
function nameOf(file: string): string {
  return path.posix.basename(file).replace(/(?:-\d{5}-of-\d{5})?\.gguf$/i, '');
}

function isNamed(name: string, tag: string): boolean {
  const [given, wanted] = [name.toLowerCase(), nameOf(tag).toLowerCase()];
  const before = given.at(-wanted.length - 1);
  return given === wanted || (given.endsWith(wanted) && /[-._]/.test(before ?? ''));
}

function ambiguity(models: readonly string[], found: readonly string[], tag: string | null) {
  if (models.length === 0) return 'the repository has no GGUF files';
  const several = found.length > 0 ? found : models;
  const names = several.map(tagOf);
  const isClear = new Set(names).size === names.length;
  const listed = (isClear ? names : several.map(nameOf)).slice(0, MAX_NAMED).join(', ');
  const more = several.length > MAX_NAMED ? ` and ${several.length - MAX_NAMED} more` : '';
  if (tag === null) {
    return `the repository has ${several.length} models as GGUF files (${listed}${more}); name one behind a colon`;
  }
  if (found.length === 0) return `no GGUF file has the name ${tag}; there are ${listed}${more}`;
  return `${found.length} GGUF files have the name ${tag} (${listed}${more}); write more of it`;
}
