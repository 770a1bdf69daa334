/** Llama (Touvron et al. 2023). */
import { COMMON_DEFAULTS, DENSE_MODULES, type Family, plainSpec } from './family';

export const llama: Family = {
  modelType: 'llama',
  defaults: {
    ...COMMON_DEFAULTS,
    vocab_size: 32000,
    intermediate_size: 11008,
    max_position_embeddings: 2048,
    bos_token_id: 1,
    eos_token_id: 2,
  },
  readSpec: (_, json) => ({
    ...plainSpec(json),
    qkvBias: json.attention_bias,
    outputBias: json.attention_bias,
    mlpBias: json.mlp_bias,
  }),
  modules: DENSE_MODULES,
};
