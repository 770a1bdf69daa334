/**
 * A model family: how its config.json is read, and its checkpoints' names for the modules that the
 * native blocks declare (native/model/blocks).
 */
import { z } from 'zod';
import {
  integer,
  integerOrNull,
  isPositiveFloat32,
  MAX_POSITIONS,
  positive,
  positiveOrNull,
} from '../../config/schema';
import type { TransformerSpec } from '../../config/uniprocConfig';
import type { RopeJson } from '../rope';
import type { TensorTable } from '../safetensors';

/** Upper bounds on sizes and counts; their products are safe integers. */
const MAX_SIZE = 2 ** 24;
const MAX_LAYERS = 2 ** 12;
/** The bytes of all experts of a layer, each [2 * MAX_SIZE, MAX_SIZE], fit a signed 64-bit number. */
const MAX_EXPERTS = 2 ** 11;
/** Routing holds a number for each group in shared memory, for 8 tokens (native/ops/cuda/routing.cu). */
const MAX_GROUPS = 2 ** 10;

const flag = () => z.boolean().describe('true or false');
const dictionary = () => z.record(z.string(), z.unknown()).nullish().describe('an object, or null');
const dtype = () =>
  z
    .enum(['float32', 'float16', 'bfloat16'])
    .nullish()
    .describe("'float32', 'float16', 'bfloat16' or null");
/** 0 counts as missing. */
const cap = () =>
  z
    .number()
    .refine((value) => value === 0 || isPositiveFloat32(value))
    .nullish()
    .describe('0, a number above 0, within float32, or null');
const layers = () => z.array(z.int().min(0)).nullish().describe('a list of layer indices, or null');

/** One end-of-sequence id, several or none. */
export const eosTokenId = z
  .union([z.int().min(0), z.array(z.int().min(0))])
  .nullish()
  .describe('a token id, a list of them, or null');

/** The keys that are read, after the family's defaults have been applied. */
export const configSchema = z.looseObject({
  vocab_size: integer(1, MAX_SIZE),
  hidden_size: integer(1, MAX_SIZE),
  intermediate_size: integer(1, MAX_SIZE),
  num_hidden_layers: integer(1, MAX_LAYERS),
  num_attention_heads: integer(1, MAX_SIZE),
  num_key_value_heads: integerOrNull(1, MAX_SIZE),
  head_dim: integerOrNull(1, MAX_SIZE),
  hidden_act: z.string().describe('a string'),
  hidden_activation: z.string().nullish().describe('a string, or null'),
  max_position_embeddings: integer(1, MAX_POSITIONS),
  rms_norm_eps: positive(),
  tie_word_embeddings: flag(),
  attention_bias: flag(),
  mlp_bias: flag(),
  rope_theta: positiveOrNull(),
  rope_scaling: dictionary(),
  rope_parameters: dictionary(),
  partial_rotary_factor: positiveOrNull(),
  original_max_position_embeddings: integerOrNull(1, MAX_POSITIONS),
  use_sliding_window: flag(),
  sliding_window: integerOrNull(1, MAX_POSITIONS),
  max_window_layers: integer(0, MAX_POSITIONS),
  layer_types: z.array(z.string()).nullish().describe('a list of strings, or null'),
  num_experts: integerOrNull(0, MAX_EXPERTS),
  num_local_experts: integerOrNull(0, MAX_EXPERTS),
  num_experts_per_tok: integerOrNull(1, MAX_EXPERTS),
  moe_intermediate_size: integerOrNull(1, MAX_SIZE),
  decoder_sparse_step: integerOrNull(1, MAX_LAYERS),
  mlp_only_layers: layers(),
  norm_topk_prob: flag().nullish(),
  shared_expert_intermediate_size: integerOrNull(1, MAX_SIZE),
  qkv_bias: flag().nullish(),
  swiglu_limit: positiveOrNull(),
  n_routed_experts: integerOrNull(0, MAX_EXPERTS),
  n_shared_experts: integerOrNull(0, MAX_EXPERTS),
  n_group: integerOrNull(1, MAX_GROUPS),
  topk_group: integerOrNull(1, MAX_EXPERTS),
  routed_scaling_factor: positiveOrNull(),
  first_k_dense_replace: integerOrNull(0, MAX_LAYERS),
  use_qk_norm: flag().nullish(),
  no_rope_layers: z.array(z.int().min(0).max(1)).nullish().describe('a list of 0 and 1, or null'),
  no_rope_layer_interval: integerOrNull(1, MAX_LAYERS),
  intermediate_size_mlp: integerOrNull(1, MAX_SIZE),
  interleave_moe_layer_step: integerOrNull(1, MAX_LAYERS),
  moe_layers: layers(),
  attention_chunk_size: integerOrNull(1, MAX_POSITIONS),
  // Llama 4 was published with 4 for true.
  attn_temperature_tuning: z.union([flag(), z.number()]).nullish().describe('true or false'),
  attn_scale: positiveOrNull(),
  floor_scale: positiveOrNull(),
  embedding_multiplier: positiveOrNull(),
  attention_multiplier: positiveOrNull(),
  residual_multiplier: positiveOrNull(),
  logits_scaling: positiveOrNull(),
  query_pre_attn_scalar: positiveOrNull(),
  attn_logit_softcapping: cap(),
  final_logit_softcapping: cap(),
  rope_local_base_freq: positiveOrNull(),
  sliding_window_pattern: integerOrNull(1, MAX_LAYERS),
  global_head_dim: integerOrNull(1, MAX_SIZE),
  num_global_key_value_heads: integerOrNull(1, MAX_SIZE),
  attention_k_eq_v: flag().nullish(),
  hidden_size_per_layer_input: integerOrNull(0, MAX_SIZE),
  vocab_size_per_layer_input: integerOrNull(0, MAX_SIZE),
  num_kv_shared_layers: integerOrNull(0, MAX_LAYERS),
  use_double_wide_mlp: flag().nullish(),
  enable_moe_block: flag().nullish(),
  top_k_experts: integerOrNull(1, MAX_EXPERTS),
  bos_token_id: integerOrNull(0, MAX_SIZE),
  eos_token_id: eosTokenId,
  dtype: dtype(),
  torch_dtype: dtype(),
  quantization_config: dictionary(),
});
export type ConfigJson = z.output<typeof configSchema>;

/** The family-specific part of a spec. */
export interface FamilySpec extends Pick<
  TransformerSpec,
  | 'attentionSinks'
  | 'qkvBias'
  | 'outputBias'
  | 'mlpBias'
  | 'otherHeads'
  | 'qkNorm'
  | 'valueNorm'
  | 'inputNorms'
  | 'outputNorms'
  | 'layerScales'
  | 'normOffset'
  | 'embeddingScale'
  | 'roundsEmbeddingScale'
  | 'queryScaleBeta'
  | 'queryScalePeriod'
  | 'queryScaleShift'
  | 'queryScaleUnrotatedOnly'
  | 'residualScale'
  | 'logitScale'
  | 'attentionSoftcap'
  | 'logitSoftcap'
  | 'layerRopes'
  | 'interleavedRope'
  | 'slidingWindows'
  | 'chunkedWindows'
  | 'kvLayers'
  | 'doubleWideMlps'
  | 'perLayerInputSize'
  | 'experts'
> {
  /** Of the gated MLPs; missing: intermediate_size. */
  intermediateSize?: number;
  /** null: that of hidden_act. */
  activation: TransformerSpec['activation'] | null;
  /** null: 1 / sqrt(head_dim). */
  attentionScale: number | null;
  /** What the rotary embeddings of `layerRopes` are read from. */
  ropes: RopeJson[];
  /** Maximum positions; null: those of the rotary embeddings. */
  maxPositions: number | null;
}

export interface Family {
  /** config.json's model_type. */
  modelType: string;
  /** transformers' defaults for missing keys of config.json. */
  defaults: Record<string, unknown>;
  /** Keys that readSpec reads and that no other family knows (foreignKeys.ts). */
  ownKeys?: readonly string[];
  /** Throws CheckpointError and UnsupportedModelError, naming the key and the value. */
  readSpec(file: string, json: ConfigJson): FamilySpec;
  /**
   * The checkpoint's name of each module, with {layer} and {expert} for indices. A tensor's name adds
   * '.weight' or '.bias'. Modules of one name are rows of one tensor, in the order of the blocks.
   */
  modules: Readonly<Record<string, string>>;
  /**
   * The checkpoint's tensors under the names of `modules`, one for each expert. Yields between pieces of
   * work, as a large model has tens of thousands.
   */
  renameTensors?(
    table: TensorTable,
    spec: TransformerSpec,
  ): Generator<void, TensorTable['tensors']>;
  /** Keys of config.json for a spec's sizes, where they differ from CONFIG_KEYS (parameterSources.ts). */
  configKeys?: Readonly<Record<string, string>>;
}

/** transformers' defaults common to all families. */
export const COMMON_DEFAULTS = {
  hidden_size: 4096,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  hidden_act: 'silu',
  rms_norm_eps: 1e-6,
  tie_word_embeddings: false,
  attention_bias: false,
  mlp_bias: false,
  use_sliding_window: false,
  max_window_layers: 28,
};

const LAYER = 'model.layers.{layer}';

/** Module names of a dense decoder in Llama's checkpoints and those of its successors. */
export const DENSE_MODULES = {
  embedding: 'model.embed_tokens',
  norm: 'model.norm',
  head: 'lm_head',
  'attention.norm': `${LAYER}.input_layernorm`,
  'attention.q': `${LAYER}.self_attn.q_proj`,
  'attention.k': `${LAYER}.self_attn.k_proj`,
  'attention.v': `${LAYER}.self_attn.v_proj`,
  'attention.qNorm': `${LAYER}.self_attn.q_norm`,
  'attention.kNorm': `${LAYER}.self_attn.k_norm`,
  'attention.o': `${LAYER}.self_attn.o_proj`,
  'mlp.norm': `${LAYER}.post_attention_layernorm`,
  'mlp.gate': `${LAYER}.mlp.gate_proj`,
  'mlp.up': `${LAYER}.mlp.up_proj`,
  'mlp.down': `${LAYER}.mlp.down_proj`,
};

/** Llama's spec without biases: full attention and one rotary embedding in every layer. */
export function plainSpec(json: ConfigJson): FamilySpec {
  const perLayer = () => new Array<number>(json.num_hidden_layers).fill(0);
  return {
    attentionSinks: false,
    qkvBias: false,
    outputBias: false,
    mlpBias: false,
    otherHeads: null,
    qkNorm: null,
    valueNorm: false,
    inputNorms: true,
    outputNorms: false,
    layerScales: false,
    normOffset: 0,
    activation: null,
    embeddingScale: 1,
    roundsEmbeddingScale: false,
    attentionScale: null,
    queryScaleBeta: 0,
    queryScalePeriod: 1,
    queryScaleShift: 0,
    queryScaleUnrotatedOnly: false,
    residualScale: 1,
    logitScale: 1,
    attentionSoftcap: 0,
    logitSoftcap: 0,
    ropes: [json],
    maxPositions: null,
    layerRopes: perLayer(),
    interleavedRope: false,
    slidingWindows: perLayer(),
    chunkedWindows: false,
    kvLayers: null,
    doubleWideMlps: false,
    perLayerInputSize: 0,
    experts: null,
  };
}
