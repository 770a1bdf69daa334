/** Qwen1.5-MoE and Qwen2-MoE (Yang et al. 2024): Qwen2 with experts, one of them shared by all tokens. */
import { show } from '../../config/schema';
import { CheckpointError, UnsupportedModelError } from '../../errors';
import type { ExpertsSpec } from '../spec';
import { readExperts } from './experts';
import { COMMON_DEFAULTS, type ConfigJson, type Family, plainSpec } from './family';
import { QWEN_MOE_MODULES } from './qwen3Moe';

const DEFAULT_NUM_EXPERTS = 60;

const LAYER = 'model.layers.{layer}';

export const qwen2Moe: Family = {
  modelType: 'qwen2_moe',
  defaults: {
    ...COMMON_DEFAULTS,
    vocab_size: 151936,
    hidden_size: 2048,
    intermediate_size: 5632,
    num_hidden_layers: 24,
    num_attention_heads: 16,
    num_key_value_heads: 16,
    max_position_embeddings: 32768,
    sliding_window: 4096,
    decoder_sparse_step: 1,
    moe_intermediate_size: 1408,
    shared_expert_intermediate_size: 5632,
    num_experts_per_tok: 4,
    norm_topk_prob: false,
    qkv_bias: true,
  },
  ownKeys: ['num_experts', 'num_local_experts'],
  readSpec: (file, json) => {
    // transformers and vLLM have the window in different layers.
    if (json.use_sliding_window) {
      throw new UnsupportedModelError(
        file,
        "use_sliding_window true is not supported with model_type 'qwen2_moe'",
      );
    }
    return {
      ...plainSpec(json),
      qkvBias: json.qkv_bias ?? true,
      experts: readSharedExperts(file, json),
    };
  },
  modules: {
    ...QWEN_MOE_MODULES,
    'shared.router': `${LAYER}.mlp.shared_expert_gate`,
    'shared.gate': `${LAYER}.mlp.shared_expert.gate_proj`,
    'shared.up': `${LAYER}.mlp.shared_expert.up_proj`,
    'shared.down': `${LAYER}.mlp.shared_expert.down_proj`,
  },
};

function readSharedExperts(file: string, json: ConfigJson): ExpertsSpec | null {
  const experts = readExperts(file, json, DEFAULT_NUM_EXPERTS);
  const size = json.shared_expert_intermediate_size ?? null;
  if (size === null) {
    throw new CheckpointError(
      file,
      `shared_expert_intermediate_size is ${show(size)}; it must be a positive integer`,
    );
  }
  return experts && { ...experts, sharedIntermediateSize: size, sharedGate: size > 0 };
}
