/** The prompts of POST /v1/completions and /v1/embeddings. */
import type { Prompt } from '../engine/inputProcessor';
import type { Fields } from './body';
import { badRequest } from './httpError';

/** The field `name`: a text, token ids, or a list of either. Throws HttpError; the engine checks each. */
export function promptsOf(fields: Fields, name = 'prompt'): readonly Prompt[] {
  const given = fields[name];
  if (typeof given === 'string') return [given];
  if (!Array.isArray(given) || given.length === 0) {
    throw badRequest(`${name} must be a text, a list of token ids, or a list of these`, name);
  }
  return typeof given[0] === 'number' ? [given as number[]] : (given as Prompt[]);
}
