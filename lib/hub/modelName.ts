/** Which values of `model` name a model on the Hugging Face hub. */
import { stat } from 'node:fs/promises';
import { hubNameOf } from '../config/modelFolder';

/**
 * organisation/name, of a GGUF file organisation/name:TAG, if `model` is that or its address, and no
 * path that exists or could be meant.
 */
export async function nameOnHub(model: string): Promise<string | null> {
  const exists = await stat(model).then(Boolean, () => false);
  return exists ? null : hubNameOf(model);
}
