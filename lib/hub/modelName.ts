/** Which values of `model` name a model on the Hugging Face hub. */
import { stat } from 'node:fs/promises';
import { ConfigError } from '../errors';
import { firstPartOf, isGguf } from '../model/gguf/files';

/** What a name or an address on the hub says. */
export interface HubName {
  /** organisation/name, or the name alone of a model of the hub's first years. */
  repository: string;
  /** Of a GGUF file; null without one. */
  tag: string | null;
  /** An address's GGUF file, of a set the first; null for the repository. */
  file: string | null;
  /** An address's revision; null if it has none. */
  revision: string | null;
}

const NAME = /^([\w-][\w.-]*(?:\/[\w-][\w.-]*)?)(?::([\w.-]+))?$/;
const ADDRESS = /^(?:https?:\/\/(?:www\.)?(?:huggingface\.co|hf\.co)|hf:\/)\/([^?#]+)/i;
/** organisation/name, then the revision of a folder or file, which may have slashes, then its path. */
const PAGE =
  /^([^/]+\/[^/]+?)(?:\/(tree|blob|resolve)\/(refs\/(?:pr|convert)\/[^/]+|[^/]+)(?:\/(.+))?)?\/*$/;

/**
 * The name or address of a model, organisation/name or organisation/name:TAG, its page, the page of a
 * revision, or of a GGUF file; null if `model` is neither. Throws ConfigError for another page of the hub.
 */
export function parseHubName(model: string): HubName | null {
  const page = ADDRESS.exec(model)?.[1];
  if (page === undefined) {
    const [, repository, tag] = NAME.exec(model) ?? [];
    return repository ? { repository, tag: tag || null, file: null, revision: null } : null;
  }
  const [, name = '', kind, revision, path] = (PAGE.exec(page) ?? []).map(decoded);
  const [, repository, tag] = NAME.exec(name) ?? [];
  const isFile = kind === 'blob' || kind === 'resolve';
  if (!repository || (kind === 'tree' && path) || (isFile && !(path && isGguf(path)))) {
    throw new ConfigError(
      `model is ${model}, which is no model: an address is that of a repository, of a revision of it ` +
        '(/tree/main) or of a GGUF file (/blob/main/model.gguf)',
    );
  }
  return {
    repository,
    tag: tag || null,
    file: isFile ? (firstPartOf(path) ?? path) : null,
    revision: revision || null,
  };
}

/** A part of an address without its %-escapes; the groups of a match may be undefined. */
function decoded(part: string | undefined): string {
  try {
    return decodeURIComponent(part ?? '');
  } catch {
    return part ?? '';
  }
}

/**
 * `model`, if it is organisation/name, of a GGUF file organisation/name:TAG, or an address on the hub, and
 * no path that exists or, below an existing folder, could be meant; else null. Rejects as parseHubName.
 */
export async function nameOnHub(model: string): Promise<string | null> {
  const exists = (file: string) => stat(file).then(Boolean, () => false);
  if (await exists(model)) return null;
  if (ADDRESS.test(model)) return parseHubName(model) && model;
  const isName = model.includes('/') && parseHubName(model) !== null;
  return isName && !(await exists(model.slice(0, model.indexOf('/')))) ? model : null;
}
