/** GLM-4.5 (GLM Team 2025): sigmoid routing as in DeepSeek-V3, and an expert shared by all tokens. */
import { show } from '../../config/schema';
import { CheckpointError } from '../../errors';
import type { TensorEntry, TensorTable } from '../safetensors';
import type { ExpertsSpec } from '../spec';
import { readExperts } from './experts';
import { COMMON_DEFAULTS, type ConfigJson, type Family, plainSpec } from './family';
import { QWEN_MOE_MODULES } from './qwen3Moe';

const DEFAULT_NUM_EXPERTS = 128;

const LAYER = 'model.layers.{layer}';
const SCORE_BIAS = 'mlp.gate.e_score_correction_bias';

export const glm4Moe: Family = {
  modelType: 'glm4_moe',
  defaults: {
    ...COMMON_DEFAULTS,
    vocab_size: 151552,
    intermediate_size: 10944,
    num_hidden_layers: 46,
    num_attention_heads: 96,
    num_key_value_heads: 8,
    max_position_embeddings: 131072,
    rms_norm_eps: 1e-5,
    partial_rotary_factor: 0.5,
    moe_intermediate_size: 1408,
    num_experts_per_tok: 8,
    n_shared_experts: 1,
    n_routed_experts: DEFAULT_NUM_EXPERTS,
    routed_scaling_factor: 1,
    n_group: 1,
    topk_group: 1,
    first_k_dense_replace: 1,
    norm_topk_prob: true,
    use_qk_norm: false,
  },
  ownKeys: ['n_routed_experts', 'use_qk_norm'],
  readSpec: (file, json) => ({
    ...plainSpec(json),
    qkvBias: json.attention_bias,
    qkNorm: json.use_qk_norm ? 'head' : null,
    experts: readGlmExperts(file, json),
  }),
  modules: {
    ...QWEN_MOE_MODULES,
    'experts.scoreBias': `${LAYER}.${SCORE_BIAS}`,
    'shared.gate': `${LAYER}.mlp.shared_experts.gate_proj`,
    'shared.up': `${LAYER}.mlp.shared_experts.up_proj`,
    'shared.down': `${LAYER}.mlp.shared_experts.down_proj`,
  },
  renameTensors: (table, { numLayers }) => withoutPrediction(table, numLayers),
  configKeys: {
    numExperts: 'n_routed_experts',
    sharedIntermediateSize: 'n_shared_experts * moe_intermediate_size',
  },
};

/** The first layers have the gated MLP. */
function readGlmExperts(file: string, json: ConfigJson): ExpertsSpec | null {
  const numExperts = json.n_routed_experts ?? DEFAULT_NUM_EXPERTS;
  const experts = readExperts(
    file,
    {
      ...json,
      num_experts: numExperts,
      num_local_experts: null,
      decoder_sparse_step: 1,
      mlp_only_layers: [...Array(json.first_k_dense_replace ?? 1).keys()],
    },
    numExperts,
  );
  if (!experts) return null;
  const [numGroups, numChosenGroups] = [json.n_group ?? 1, json.topk_group ?? 1];
  const groupSize = numExperts / numGroups;
  if (!Number.isInteger(groupSize) || numChosenGroups > numGroups) {
    throw new CheckpointError(
      file,
      `n_group is ${numGroups} and topk_group ${numChosenGroups}; n_group must divide ` +
        `n_routed_experts, ${numExperts}, and be at least topk_group`,
    );
  }
  if (experts.numExpertsPerToken > groupSize * numChosenGroups) {
    throw new CheckpointError(
      file,
      `num_experts_per_tok is ${experts.numExpertsPerToken}; topk_group, ${numChosenGroups}, ` +
        `allows ${groupSize * numChosenGroups} of n_routed_experts, ${numExperts}`,
    );
  }
  const size = json.moe_intermediate_size ?? 0;
  const sharedIntermediateSize = size * (json.n_shared_experts ?? 0);
  if (!Number.isSafeInteger(sharedIntermediateSize) || sharedIntermediateSize >= 2 ** 31) {
    throw new CheckpointError(
      file,
      `n_shared_experts is ${show(json.n_shared_experts)}; times moe_intermediate_size, ${size}, ` +
        'it must be below 2147483648',
    );
  }
  return {
    ...experts,
    sigmoidScores: true,
    scoreBias: true,
    numGroups,
    numChosenGroups,
    weightScale: json.routed_scaling_factor ?? 1,
    sharedIntermediateSize,
  };
}

/**
 * Without the layers behind the last one that predict further tokens, which no forward pass needs; they
 * have an `eh_proj`. The bias of the router's scores gets the suffix of a weight.
 */
function* withoutPrediction(table: TensorTable, numLayers: number) {
  const tensors = new Map<string, TensorEntry>();
  for (const [name, entry] of table.tensors) {
    yield;
    const layer = /^model\.layers\.(\d+)\./.exec(name);
    const isPrediction =
      layer && Number(layer[1]) >= numLayers && table.tensors.has(`${layer[0]}eh_proj.weight`);
    if (isPrediction) continue;
    tensors.set(name.endsWith(SCORE_BIAS) ? `${name}.weight` : name, entry);
  }
  return tensors;
}
