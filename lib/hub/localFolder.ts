/** The folder of a model that is named by its path or by its name on the Hugging Face hub. */
import { ConfigError } from '../errors';
import { nameOnHub } from './modelName';
import { pull, type PullOptions } from './pull';

/**
 * `model`, if it is not a name on the hub, else its folder in the cache, after a download of what is
 * missing. Rejects as `pull`, or with ConfigError for a revision of a folder.
 */
export async function localFolder(model: unknown, options: PullOptions): Promise<unknown> {
  // Other values are refused with the engine's options.
  const name = typeof model === 'string' ? await nameOnHub(model) : null;
  if (name !== null) return pull(name, options);
  if (options.revision === undefined) return model;
  throw new ConfigError('revision is set; it is for a model named by its name on the hub');
}
