/** Gemma 2 (Gemma Team 2024): capped scores and logits, and a sliding window in every other layer. */
import { readActivation } from '../activations';
import {
  COMMON_DEFAULTS,
  type ConfigJson,
  DENSE_MODULES,
  type Family,
  type FamilySpec,
  plainSpec,
} from './family';
import { windowsByLayer } from './qwen2';

const LAYER = 'model.layers.{layer}';

/** What Gemma 2 and 3 have in common. */
export const GEMMA_DEFAULTS = {
  ...COMMON_DEFAULTS,
  vocab_size: 256000,
  hidden_size: 2304,
  intermediate_size: 9216,
  num_hidden_layers: 26,
  num_attention_heads: 8,
  num_key_value_heads: 4,
  head_dim: 256,
  hidden_activation: 'gelu_pytorch_tanh',
  max_position_embeddings: 8192,
  tie_word_embeddings: true,
  query_pre_attn_scalar: 256,
  sliding_window: 4096,
  bos_token_id: 2,
  eos_token_id: 1,
};

export const GEMMA_OWN_KEYS = [
  'layer_types',
  'query_pre_attn_scalar',
  'attn_logit_softcapping',
  'final_logit_softcapping',
];

export const gemma2: Family = {
  modelType: 'gemma2',
  defaults: { ...GEMMA_DEFAULTS, attn_logit_softcapping: 50, final_logit_softcapping: 30 },
  ownKeys: GEMMA_OWN_KEYS,
  readSpec: (file, json) => readGemmaSpec(file, json, 2),
  modules: {
    ...DENSE_MODULES,
    'attention.outputNorm': `${LAYER}.post_attention_layernorm`,
    'mlp.norm': `${LAYER}.pre_feedforward_layernorm`,
    'mlp.outputNorm': `${LAYER}.post_feedforward_layernorm`,
  },
};

/** Without layer_types, every layer but each `pattern`-th has the sliding window. */
export function readGemmaSpec(file: string, json: ConfigJson, pattern: number): FamilySpec {
  const layerTypes =
    json.layer_types ??
    Array.from({ length: json.num_hidden_layers }, (_, layer) =>
      (layer + 1) % pattern === 0 ? 'full_attention' : 'sliding_attention',
    );
  const { hidden_activation: activation, query_pre_attn_scalar: queryScalar } = json;
  return {
    ...plainSpec(json),
    qkvBias: json.attention_bias,
    outputBias: json.attention_bias,
    inputNorms: true,
    outputNorms: true,
    normOffset: 1,
    activation: readActivation(file, 'hidden_activation', activation ?? 'gelu_pytorch_tanh'),
    embeddingScale: Math.sqrt(json.hidden_size),
    roundsEmbeddingScale: true,
    attentionScale: 1 / Math.sqrt(queryScalar ?? GEMMA_DEFAULTS.query_pre_attn_scalar),
    attentionSoftcap: json.attn_logit_softcapping ?? 0,
    logitSoftcap: json.final_logit_softcapping ?? 0,
    slidingWindows: windowsByLayer(file, {
      ...json,
      use_sliding_window: true,
      layer_types: layerTypes,
    }),
  };
}
