/** Mistral (Jiang et al. 2023): Llama with a sliding window. */
import { DENSE_MODULES, type Family, plainSpec } from './family';
import { llama } from './llama';

export const mistral: Family = {
  modelType: 'mistral',
  defaults: {
    ...llama.defaults,
    intermediate_size: 14336,
    num_key_value_heads: 8,
    max_position_embeddings: 131072,
    sliding_window: 4096,
  },
  readSpec: (_, json) => {
    const spec = plainSpec(json);
    spec.slidingWindows.fill(json.sliding_window ?? 0);
    return spec;
  },
  modules: DENSE_MODULES,
};
