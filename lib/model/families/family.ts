/**
 * A model family: how its config.json is read, and its checkpoints' names for the modules that the
 * native blocks declare (native/model/blocks).
 */
import { z } from 'zod';
import {
  integer,
  integerOrNull,
  MAX_POSITIONS,
  positive,
  positiveOrNull,
} from '../../config/schema';
import type { TransformerSpec } from '../../config/uniprocConfig';

/** Upper bounds on sizes and counts; their products are safe integers. */
const MAX_SIZE = 2 ** 24;
const MAX_LAYERS = 2 ** 12;
/** The bytes of all experts of a layer, each [2 * MAX_SIZE, MAX_SIZE], fit a signed 64-bit number. */
const MAX_EXPERTS = 2 ** 11;

const flag = () => z.boolean().describe('true or false');
const dictionary = () => z.record(z.string(), z.unknown()).nullish().describe('an object, or null');
const dtype = () =>
  z
    .enum(['float32', 'float16', 'bfloat16'])
    .nullish()
    .describe("'float32', 'float16', 'bfloat16' or null");
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
  bos_token_id: integerOrNull(0, MAX_SIZE),
  eos_token_id: eosTokenId,
  dtype: dtype(),
  torch_dtype: dtype(),
  quantization_config: dictionary(),
});
export type ConfigJson = z.output<typeof configSchema>;

/** The family-specific part of a spec. */
export type FamilySpec = Pick<
  TransformerSpec,
  'qkvBias' | 'outputBias' | 'mlpBias' | 'qkNorm' | 'slidingWindows' | 'experts'
>;

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
   * '.weight' or '.bias'.
   */
  modules: Readonly<Record<string, string>>;
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

/** No biases, no query and key norms, no experts, full attention in every layer. */
export function plainSpec({ num_hidden_layers }: ConfigJson): FamilySpec {
  return {
    qkvBias: false,
    outputBias: false,
    mlpBias: false,
    qkNorm: false,
    slidingWindows: new Array<number>(num_hidden_layers).fill(0),
    experts: null,
  };
}
