/** Mixtral (Jiang et al. 2024): Mistral with experts in every layer. */
import { readLocalExperts } from './experts';
import { DENSE_MODULES, type Family } from './family';
import { mistral } from './mistral';

const DEFAULT_NUM_EXPERTS = 8;

const LAYER = 'model.layers.{layer}';
const MOE = `${LAYER}.block_sparse_moe`;

export const mixtral: Family = {
  modelType: 'mixtral',
  defaults: {
    ...mistral.defaults,
    rms_norm_eps: 1e-5,
    rope_theta: 1000000,
    sliding_window: null,
    num_experts_per_tok: 2,
  },
  ownKeys: ['num_experts', 'num_local_experts'],
  readSpec: (file, json) => ({
    ...mistral.readSpec(file, json),
    experts: readLocalExperts(file, json, DEFAULT_NUM_EXPERTS),
  }),
  modules: {
    ...DENSE_MODULES,
    'experts.norm': `${LAYER}.post_attention_layernorm`,
    'experts.router': `${MOE}.gate`,
    'experts.gate': `${MOE}.experts.{expert}.w1`,
    'experts.up': `${MOE}.experts.{expert}.w3`,
    'experts.down': `${MOE}.experts.{expert}.w2`,
  },
  configKeys: { numExperts: 'num_local_experts', expertIntermediateSize: 'intermediate_size' },
};
