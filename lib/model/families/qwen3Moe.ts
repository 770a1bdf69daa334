/** Qwen3-MoE (Yang et al. 2025): Qwen3 with experts in all or some layers. */
import { readExperts } from './experts';
import { COMMON_DEFAULTS, DENSE_MODULES, type Family } from './family';
import { readQwen3Spec } from './qwen3';

const DEFAULT_NUM_EXPERTS = 128;

const LAYER = 'model.layers.{layer}';

/** Modules of Qwen's models with experts in some layers. */
export const QWEN_MOE_MODULES = {
  ...DENSE_MODULES,
  'experts.norm': `${LAYER}.post_attention_layernorm`,
  'experts.router': `${LAYER}.mlp.gate`,
  'experts.gate': `${LAYER}.mlp.experts.{expert}.gate_proj`,
  'experts.up': `${LAYER}.mlp.experts.{expert}.up_proj`,
  'experts.down': `${LAYER}.mlp.experts.{expert}.down_proj`,
};

export const qwen3Moe: Family = {
  modelType: 'qwen3_moe',
  defaults: {
    ...COMMON_DEFAULTS,
    vocab_size: 151936,
    hidden_size: 2048,
    intermediate_size: 6144,
    num_hidden_layers: 24,
    num_key_value_heads: 4,
    max_position_embeddings: 32768,
    sliding_window: 4096,
    // The window applies to all layers or none.
    max_window_layers: 0,
    decoder_sparse_step: 1,
    moe_intermediate_size: 768,
    num_experts_per_tok: 8,
    norm_topk_prob: false,
  },
  ownKeys: ['num_experts', 'num_local_experts'],
  readSpec: (file, json) => ({
    ...readQwen3Spec(file, { ...json, max_window_layers: 0, layer_types: null }),
    experts: readExperts(file, json, DEFAULT_NUM_EXPERTS),
  }),
  modules: QWEN_MOE_MODULES,
};
