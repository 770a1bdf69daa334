/**
 * Llama 4 (Meta 2025), its text: layers with rotary embedding attend within chunks, the others to all
 * tokens with a temperature; one expert for each token, whose input is scaled, beside a shared one.
 */
import { show } from '../../config/schema';
import { CheckpointError, UnsupportedModelError } from '../../errors';
import type { ExpertsSpec } from '../spec';
import { readExperts } from './experts';
import { COMMON_DEFAULTS, type ConfigJson, DENSE_MODULES, type Family, plainSpec } from './family';
import { readHasRope } from './smolLm3';
import { separateStackedExperts } from './stackedExperts';

const DEFAULT_NUM_EXPERTS = 16;
/** Scalings that leave the length of queries and keys as it is. */
const ROPE_TYPES = ['default', 'linear', 'dynamic', 'llama3'];

const LAYER = 'model.layers.{layer}';
const MLP = `${LAYER}.feed_forward`;

export const llama4: Family = {
  modelType: 'llama4_text',
  defaults: {
    ...COMMON_DEFAULTS,
    vocab_size: 202048,
    hidden_size: 5120,
    intermediate_size: 8192,
    intermediate_size_mlp: 16384,
    num_hidden_layers: 48,
    num_attention_heads: 40,
    num_key_value_heads: 8,
    head_dim: 128,
    max_position_embeddings: 131072,
    rms_norm_eps: 1e-5,
    rope_theta: 500000,
    bos_token_id: 1,
    eos_token_id: 2,
    num_experts_per_tok: 1,
    interleave_moe_layer_step: 1,
    use_qk_norm: true,
    no_rope_layer_interval: 4,
    attention_chunk_size: 8192,
    attn_temperature_tuning: true,
    floor_scale: 8192,
    attn_scale: 0.1,
  },
  ownKeys: [
    'attention_chunk_size',
    'attn_temperature_tuning',
    'layer_types',
    'no_rope_layers',
    'num_experts',
    'num_local_experts',
    'use_qk_norm',
  ],
  readSpec: (file, json) => {
    refuseRope(file, json);
    // An empty list counts as missing.
    const noRopeLayers = json.no_rope_layers?.length ? json.no_rope_layers : null;
    const hasRope = readHasRope(file, { ...json, no_rope_layers: noRopeLayers });
    return {
      ...plainSpec(json),
      intermediateSize: json.intermediate_size_mlp ?? json.intermediate_size,
      qkvBias: json.attention_bias,
      outputBias: json.attention_bias,
      qkNorm: json.use_qk_norm ? 'unweighted' : null,
      interleavedRope: true,
      layerRopes: hasRope.map((has) => (has ? 0 : -1)),
      slidingWindows: readChunks(file, json, hasRope),
      chunkedWindows: true,
      queryScaleBeta: json.attn_temperature_tuning ? (json.attn_scale ?? 0) : 0,
      queryScalePeriod: json.floor_scale ?? 1,
      queryScaleShift: 1,
      queryScaleUnrotatedOnly: true,
      experts: readLlama4Experts(file, json),
    };
  },
  modules: {
    ...DENSE_MODULES,
    'mlp.gate': `${MLP}.gate_proj`,
    'mlp.up': `${MLP}.up_proj`,
    'mlp.down': `${MLP}.down_proj`,
    'experts.norm': `${LAYER}.post_attention_layernorm`,
    'experts.router': `${MLP}.router`,
    'experts.gate': `${MLP}.experts.{expert}.gate_proj`,
    'experts.up': `${MLP}.experts.{expert}.up_proj`,
    'experts.down': `${MLP}.experts.{expert}.down_proj`,
    'shared.gate': `${MLP}.shared_expert.gate_proj`,
    'shared.up': `${MLP}.shared_expert.up_proj`,
    'shared.down': `${MLP}.shared_expert.down_proj`,
  },
  renameTensors: (table, spec) =>
    separateStackedExperts(table, spec, { key: 'num_local_experts', isTransposed: true }),
  configKeys: {
    intermediateSize: 'intermediate_size_mlp',
    expertIntermediateSize: 'intermediate_size',
    sharedIntermediateSize: 'intermediate_size',
    numExperts: 'num_local_experts',
  },
};

/** The norm of queries and keys is behind the rotation, which must not change their length. */
function refuseRope(file: string, json: ConfigJson): void {
  const rope = { ...json.rope_parameters, ...json.rope_scaling };
  const type = rope.rope_type ?? rope.type ?? 'default';
  if (!ROPE_TYPES.includes(type as string)) {
    throw new UnsupportedModelError(
      file,
      `rope type ${show(type)} is not supported with model_type 'llama4_text'; ` +
        `supported: ${ROPE_TYPES.join(', ')}`,
    );
  }
  const partial = rope.partial_rotary_factor ?? json.partial_rotary_factor ?? 1;
  if (partial !== 1) {
    throw new UnsupportedModelError(
      file,
      `partial_rotary_factor ${show(partial)} is not supported with model_type 'llama4_text'`,
    );
  }
}

/** The chunk of each layer; 0: it attends to all tokens. */
function readChunks(file: string, json: ConfigJson, hasRope: readonly boolean[]): number[] {
  const types =
    json.layer_types ?? hasRope.map((has) => (has ? 'chunked_attention' : 'full_attention'));
  if (types.length !== json.num_hidden_layers) {
    throw new CheckpointError(
      file,
      `layer_types has ${types.length} entries, but num_hidden_layers is ${json.num_hidden_layers}`,
    );
  }
  return types.map((type, layer) => {
    if (type === 'full_attention') return 0;
    if (type !== 'chunked_attention') {
      throw new UnsupportedModelError(
        file,
        `layer_types[${layer}] is ${show(type)}; only 'full_attention' and 'chunked_attention' are supported`,
      );
    }
    const size = json.attention_chunk_size ?? null;
    if (size !== null) return size;
    throw new CheckpointError(
      file,
      `layer_types[${layer}] is 'chunked_attention', but attention_chunk_size is null; ` +
        'it must be a positive integer',
    );
  });
}

/** Every `interleave_moe_layer_step`-th layer has experts, or those of `moe_layers`. */
function readLlama4Experts(file: string, json: ConfigJson): ExpertsSpec | null {
  const experts = readExperts(
    file,
    {
      ...json,
      moe_intermediate_size: json.intermediate_size,
      norm_topk_prob: false,
      decoder_sparse_step: json.moe_layers ? 1 : json.interleave_moe_layer_step,
      mlp_only_layers: json.moe_layers
        ? [...Array(json.num_hidden_layers).keys()].filter((i) => !json.moe_layers?.includes(i))
        : null,
    },
    DEFAULT_NUM_EXPERTS,
  );
  if (experts && experts.numExpertsPerToken !== 1) {
    throw new UnsupportedModelError(
      file,
      `num_experts_per_tok ${experts.numExpertsPerToken} is not supported with model_type ` +
        "'llama4_text', which scales the input of each expert; it must be 1",
    );
  }
  return (
    experts && {
      ...experts,
      sigmoidScores: true,
      scalesInput: true,
      sharedIntermediateSize: experts.intermediateSize,
    }
  );
}
