/**
 * Gemma 4 (Google 2026), its text: Gemma 3 with larger and fewer key-value heads in the layers without
 * a window, whose keys may be their values too; the 26B-A4B has experts beside each MLP.
 */
import { show } from '../../config/schema';
import { CheckpointError, UnsupportedModelError } from '../../errors';
import { readActivation } from '../activations';
import type { TransformerSpec } from '../../config/uniprocConfig';
import type { TensorEntry, TensorTable } from '../safetensors';
import type { ExpertsSpec, OtherHeads } from '../spec';
import { readExperts } from './experts';
import { COMMON_DEFAULTS, type ConfigJson, type Family, plainSpec } from './family';
import { gemma2 } from './gemma2';
import { readRopes } from './gemma3';
import { windowsByLayer } from './qwen2';
import { separateStackedExperts } from './stackedExperts';

const LAYER = 'model.layers.{layer}';
const DEFAULT_GLOBAL_HEAD_DIM = 512;
/** Every sixth layer attends to all tokens. */
const PATTERN = 6;
const SCALE = /\.(layer_scalar|router\.(scale|per_expert_scale))$/;
const ROPES = {
  full_attention: { rope_type: 'proportional', partial_rotary_factor: 0.25, rope_theta: 1000000 },
  sliding_attention: { rope_type: 'default', rope_theta: 10000 },
};

export const gemma4: Family = {
  modelType: 'gemma4_text',
  defaults: {
    ...COMMON_DEFAULTS,
    vocab_size: 262144,
    hidden_size: 2304,
    intermediate_size: 9216,
    num_hidden_layers: 30,
    num_attention_heads: 8,
    num_key_value_heads: 4,
    head_dim: 256,
    hidden_activation: 'gelu_pytorch_tanh',
    max_position_embeddings: 131072,
    tie_word_embeddings: true,
    sliding_window: 512,
    bos_token_id: 2,
    eos_token_id: 1,
    global_head_dim: DEFAULT_GLOBAL_HEAD_DIM,
    vocab_size_per_layer_input: 262144,
    hidden_size_per_layer_input: 256,
  },
  ownKeys: [
    'layer_types',
    'final_logit_softcapping',
    'use_bidirectional_attention',
    'num_experts',
    'num_kv_shared_layers',
  ],
  readSpec: (file, json) => {
    refuseVariants(file, json);
    const slidingWindows = readWindows(file, json);
    const [full, sliding] = readRopes(file, {
      ...json,
      rope_parameters: json.rope_parameters ?? ROPES,
    });
    const otherHeads = readGlobalHeads(file, json, slidingWindows);
    return {
      ...plainSpec(json),
      qkvBias: json.attention_bias,
      outputBias: json.attention_bias,
      otherHeads,
      qkNorm: 'head',
      valueNorm: true,
      inputNorms: true,
      outputNorms: true,
      layerScales: true,
      activation: readActivation(
        file,
        'hidden_activation',
        json.hidden_activation ?? 'gelu_pytorch_tanh',
      ),
      embeddingScale: Math.sqrt(json.hidden_size),
      roundsEmbeddingScale: true,
      attentionScale: 1,
      logitSoftcap: json.final_logit_softcapping ?? 0,
      ropes: [{ ...full, head_dim: otherHeads.headDim }, sliding],
      layerRopes: slidingWindows.map((window) => (window > 0 ? 1 : 0)),
      slidingWindows,
      maxPositions: json.max_position_embeddings,
      experts: readGemma4Experts(file, json),
      kvLayers: readKvLayers(file, json, slidingWindows),
      doubleWideMlps: json.use_double_wide_mlp ?? false,
      perLayerInputSize: json.hidden_size_per_layer_input ?? 0,
    };
  },
  modules: {
    ...gemma2.modules,
    'layer.scale': `${LAYER}.layer_scalar`,
    'perLayer.embedding': 'model.embed_tokens_per_layer',
    'perLayer.projection': 'model.per_layer_model_projection',
    'perLayer.norm': 'model.per_layer_projection_norm',
    'perLayer.gate': `${LAYER}.per_layer_input_gate`,
    'perLayer.output': `${LAYER}.per_layer_projection`,
    'perLayer.outputNorm': `${LAYER}.post_per_layer_input_norm`,
    'dense.outputNorm': `${LAYER}.post_feedforward_layernorm_1`,
    'experts.norm': `${LAYER}.pre_feedforward_layernorm_2`,
    'experts.outputNorm': `${LAYER}.post_feedforward_layernorm_2`,
    'experts.routerNorm': `${LAYER}.router.scale`,
    'experts.router': `${LAYER}.router.proj`,
    'experts.scales': `${LAYER}.router.per_expert_scale`,
    'experts.gate': `${LAYER}.experts.{expert}.gate_proj`,
    'experts.up': `${LAYER}.experts.{expert}.up_proj`,
    'experts.down': `${LAYER}.experts.{expert}.down_proj`,
  },
  *renameTensors(table, spec) {
    const tensors = yield* usedTensors(table, spec);
    const layout = { key: 'num_experts', isTransposed: false };
    return yield* separateStackedExperts({ ...table, tensors }, spec, layout);
  },
};

/**
 * The last num_kv_shared_layers attend to the keys and values of the last layer before them of their
 * kind. null if each has its own.
 */
function readKvLayers(
  file: string,
  json: ConfigJson,
  slidingWindows: readonly number[],
): number[] | null {
  const numShared = json.num_kv_shared_layers ?? 0;
  if (numShared === 0) return null;
  const own = slidingWindows.slice(0, Math.max(slidingWindows.length - numShared, 0));
  return slidingWindows.map((window, layer) => {
    if (layer < own.length) return layer;
    const source = own.lastIndexOf(window);
    if (source >= 0) return source;
    throw new CheckpointError(
      file,
      `num_kv_shared_layers is ${numShared}; the ${own.length} layers before them must have one ` +
        `of the kind of layer ${layer}`,
    );
  });
}

/** In every layer, beside the MLP. */
function readGemma4Experts(file: string, json: ConfigJson): ExpertsSpec | null {
  if (!json.enable_moe_block) return null;
  const required = (key: 'num_experts' | 'top_k_experts'): number => {
    const value = json[key] ?? 0;
    if (value > 0) return value;
    throw new CheckpointError(
      file,
      `${key} is ${show(json[key])}; with enable_moe_block it must be a positive integer`,
    );
  };
  const numExperts = required('num_experts');
  const experts = readExperts(
    file,
    {
      ...json,
      num_local_experts: null,
      num_experts_per_tok: required('top_k_experts'),
      norm_topk_prob: true,
      decoder_sparse_step: 1,
      mlp_only_layers: null,
    },
    numExperts,
  );
  return experts && { ...experts, routerNorm: true, expertScales: true, besideMlp: true };
}

/**
 * Throws UnsupportedModelError for attention that is not causal and for another vocabulary of the
 * embeddings by layer, and CheckpointError without a rope of each kind of layer.
 */
function refuseVariants(file: string, json: ConfigJson): void {
  const refuse = (key: string, value: unknown, reason: string) => {
    throw new UnsupportedModelError(
      file,
      `${key} ${show(value)} is not supported with model_type 'gemma4_text': ${reason}`,
    );
  };
  const { vocab_size_per_layer_input: vocabSize, use_bidirectional_attention: mask } = json;
  if (json.hidden_size_per_layer_input && (vocabSize ?? json.vocab_size) !== json.vocab_size) {
    refuse('vocab_size_per_layer_input', vocabSize, `it must be vocab_size, ${json.vocab_size}`);
  }
  // 'vision' concerns images alone.
  if ((mask ?? 'vision') !== 'vision') {
    refuse('use_bidirectional_attention', mask, 'attention is causal');
  }
  if (json.rope_scaling) refuse('rope_scaling', json.rope_scaling, 'set rope_parameters');
  const { rope_parameters: ropes } = json;
  const missing = ropes && Object.keys(ROPES).find((type) => (ropes[type] ?? null) === null);
  if (missing) {
    throw new CheckpointError(file, `rope_parameters has no ${missing}; it must be an object`);
  }
}

/** As transformers, the last layer attends to all tokens. */
function readWindows(file: string, json: ConfigJson): number[] {
  const numLayers = json.num_hidden_layers;
  const types =
    json.layer_types ??
    Array.from({ length: numLayers }, (_, layer) =>
      (layer + 1) % PATTERN === 0 ? 'full_attention' : 'sliding_attention',
    );
  return windowsByLayer(file, {
    ...json,
    use_sliding_window: true,
    layer_types: types.map((type, layer) =>
      layer === numLayers - 1 && type === 'sliding_attention' ? 'full_attention' : type,
    ),
  });
}

function readGlobalHeads(
  file: string,
  json: ConfigJson,
  slidingWindows: readonly number[],
): OtherHeads {
  const numHeads = json.num_attention_heads;
  const keysAreValues = json.attention_k_eq_v ?? false;
  const numKvHeads =
    (keysAreValues ? json.num_global_key_value_heads : null) ??
    json.num_key_value_heads ??
    numHeads;
  if (numHeads % numKvHeads !== 0) {
    throw new CheckpointError(
      file,
      `num_attention_heads is ${numHeads}; it must be a multiple of num_global_key_value_heads, ` +
        `${numKvHeads}`,
    );
  }
  const headDim = json.global_head_dim ?? DEFAULT_GLOBAL_HEAD_DIM;
  if (headDim % 2 !== 0) {
    throw new CheckpointError(
      file,
      `global_head_dim is ${headDim}; rotary embedding needs an even number`,
    );
  }
  return { numKvHeads, headDim, keysAreValues, layers: slidingWindows.map((size) => size === 0) };
}

/**
 * The values of layers whose keys are their values, read from the tensors of the keys. Scales of layers
 * and routers get the suffix of a weight. Keys and values of layers that attend to another's are left out.
 */
function* usedTensors(table: TensorTable, { otherHeads, kvLayers }: TransformerSpec) {
  const tensors = new Map<string, TensorEntry>();
  for (const [name, entry] of table.tensors) {
    yield;
    const unused = /^model\.layers\.(\d+)\.self_attn\.[kv]_(proj|norm)\./.exec(name);
    if (unused && kvLayers && kvLayers[Number(unused[1])] !== Number(unused[1])) continue;
    tensors.set(SCALE.test(name) ? `${name}.weight` : name, entry);
    const key = /^(model\.layers\.(\d+)\.self_attn\.)k_proj(\.(?!k_scale$).*)$/.exec(name);
    if (key && otherHeads?.keysAreValues && otherHeads.layers[Number(key[2])]) {
      tensors.set(`${key[1]}v_proj${key[3]}`, entry);
    }
  }
  return tensors;
}
