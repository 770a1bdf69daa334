/** OLMo 2 (OLMo et al. 2025): norms after attention and MLP, and of the whole q and k projections. */
import { COMMON_DEFAULTS, type ConfigJson, DENSE_MODULES, type Family, plainSpec } from './family';

const LAYER = 'model.layers.{layer}';

export const olmo2: Family = {
  modelType: 'olmo2',
  defaults: {
    ...COMMON_DEFAULTS,
    vocab_size: 50304,
    intermediate_size: 11008,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-5,
    eos_token_id: 50279,
  },
  readSpec: (_, json) => olmoSpec(json),
  modules: {
    ...DENSE_MODULES,
    'attention.outputNorm': `${LAYER}.post_attention_layernorm`,
    'mlp.outputNorm': `${LAYER}.post_feedforward_layernorm`,
  },
};

export function olmoSpec(json: ConfigJson) {
  return {
    ...plainSpec(json),
    qkvBias: json.attention_bias,
    outputBias: json.attention_bias,
    qkNorm: 'projection' as const,
    inputNorms: false,
    outputNorms: true,
  };
}
