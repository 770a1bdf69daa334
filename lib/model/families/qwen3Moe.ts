/** Qwen3-MoE (Yang et al. 2025): Qwen3 with experts in all or some layers. */
import { show } from '../../config/schema';
import { CheckpointError } from '../../errors';
import type { ExpertsSpec } from '../spec';
import { COMMON_DEFAULTS, type ConfigJson, DENSE_MODULES, type Family } from './family';
import { readQwen3Spec } from './qwen3';

const DEFAULT_NUM_EXPERTS = 128;

const LAYER = 'model.layers.{layer}';

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
    experts: readExperts(file, json),
  }),
  modules: {
    ...DENSE_MODULES,
    'experts.norm': `${LAYER}.post_attention_layernorm`,
    'experts.router': `${LAYER}.mlp.gate`,
    'experts.gate': `${LAYER}.mlp.experts.{expert}.gate_proj`,
    'experts.up': `${LAYER}.mlp.experts.{expert}.up_proj`,
    'experts.down': `${LAYER}.mlp.experts.{expert}.down_proj`,
  },
};

/** transformers 5 writes num_local_experts, transformers 4 num_experts. */
function readNumExperts(file: string, json: ConfigJson): number {
  const { num_experts: count, num_local_experts: local } = json;
  if (count !== local && typeof count === 'number' && typeof local === 'number') {
    throw new CheckpointError(
      file,
      `num_experts is ${count} and num_local_experts ${local}; both name the same number`,
    );
  }
  return local ?? count ?? DEFAULT_NUM_EXPERTS;
}

/** null if no layer has experts. */
function readExperts(file: string, json: ConfigJson): ExpertsSpec | null {
  const numExperts = readNumExperts(file, json);
  const step = json.decoder_sparse_step ?? 1;
  const dense = new Set(json.mlp_only_layers);
  const layers = Array.from(
    { length: json.num_hidden_layers },
    (_, layer) => numExperts > 0 && !dense.has(layer) && (layer + 1) % step === 0,
  );
  if (!layers.includes(true)) return null;
  const required = (key: 'num_experts_per_tok' | 'moe_intermediate_size'): number => {
    const value = json[key] ?? null;
    if (value !== null) return value;
    throw new CheckpointError(file, `${key} is ${show(value)}; it must be a positive integer`);
  };
  const numExpertsPerToken = required('num_experts_per_tok');
  if (numExpertsPerToken > numExperts) {
    throw new CheckpointError(
      file,
      `num_experts_per_tok is ${numExpertsPerToken}; it must be at most num_experts, ${numExperts}`,
    );
  }
  return {
    numExperts,
    numExpertsPerToken,
    intermediateSize: required('moe_intermediate_size'),
    normTopkProb: json.norm_topk_prob ?? false,
    layers,
  };
}
