/**
 * Keys of config.json that change the forward pass and are not supported. Most belong to other
 * architectures: transformers ignores them for the supported ones, other engines do not ignore all.
 * A key with a value that would change the model is refused by name.
 */
import { UnsupportedModelError } from '../errors';
import { show } from '../config/schema';
import type { ModelSpec } from './spec';

/** Properties of the model that decide whether a value is neutral. */
export interface ModelFacts {
  /** The architecture's model_type. */
  modelType: string;
  headDim: number;
  /** What the architecture normalizes of queries and keys. */
  qkNorm: ModelSpec['qkNorm'];
  /** Sliding window of each layer in tokens; 0: none. */
  slidingWindows: readonly number[];
  /** Keys that the architecture's family reads. */
  ownKeys: readonly string[];
}

/** Whether a value leaves the model unchanged. null counts as missing and is not checked. */
type IsNeutral = (value: unknown, facts: ModelFacts) => boolean;

const isOff: IsNeutral = (value) => value === false || value === 0;
const isOne: IsNeutral = (value) => value === 1;
const isZero: IsNeutral = (value) => value === 0;
const never: IsNeutral = () => false;
const isClose = (value: unknown, expected: number) =>
  typeof value === 'number' && Math.abs(value - expected) <= 1e-6 * expected;

const FOREIGN_KEYS: Record<string, [IsNeutral, reason: string]> = {
  // Attention mask.
  use_bidirectional_attention: [isOff, 'attention is causal'],
  is_encoder_decoder: [isOff, 'there is no encoder'],
  add_cross_attention: [isOff, 'there is no cross-attention'],
  attention_chunk_size: [isZero, 'there is no chunked attention'],
  per_layer_config: [never, 'layers differ by global_head_dim and num_global_key_value_heads'],
  num_kv_shared_layers: [isZero, 'each layer has keys and values of its own'],
  // Positions.
  alibi: [isOff, 'positions use rotary embedding'],
  no_rope_layers: [
    (value) => Array.isArray(value) && value.every((usesRope) => usesRope === 1),
    'every layer has rotary embedding',
  ],
  rope_interleave: [isOff, 'rotary embedding pairs halves, not neighbours'],
  attn_temperature_tuning: [isOff, 'attention has one temperature'],
  llama_4_scaling: [never, 'attention has one temperature'],
  // Scales and limits.
  attn_logit_softcapping: [isZero, 'attention is not capped'],
  final_logit_softcapping: [isZero, 'logits are not capped'],
  query_pre_attn_scalar: [(value, { headDim }) => isClose(value, headDim), 'the scale is head_dim'],
  attention_multiplier: [
    (value, { headDim }) => isClose(value, 1 / Math.sqrt(headDim)),
    'the scale is 1 / sqrt(head_dim)',
  ],
  embedding_multiplier: [isOne, 'embeddings are not scaled'],
  scale_emb: [isOne, 'embeddings are not scaled'],
  residual_multiplier: [isOne, 'residuals are not scaled'],
  scale_depth: [never, 'residuals are not scaled'],
  logits_scaling: [isOne, 'logits are not scaled'],
  logit_scale: [isOne, 'logits are not scaled'],
  lm_head_multiplier: [isOne, 'logits are not scaled'],
  clip_qkv: [never, 'queries, keys and values are not clipped'],
  // Layers.
  use_qk_norm: [
    (value, { qkNorm }) => value === false || (qkNorm !== null && value === true),
    'the architecture decides whether queries and keys are normalized',
  ],
  qk_layernorm: [isOff, 'the architecture decides whether queries and keys are normalized'],
  parallel_attn: [isOff, 'attention and MLP run in sequence'],
  use_parallel_residual: [isOff, 'attention and MLP run in sequence'],
  num_experts: [(value) => value === 0 || value === 1, 'there are no experts'],
  num_local_experts: [(value) => value === 0 || value === 1, 'there are no experts'],
  n_routed_experts: [(value) => value === 0 || value === 1, 'there are no experts'],
  compression_config: [never, 'weights must be in float32, float16 or bfloat16'],
};

/** Throws UnsupportedModelError naming the key and its value. */
export function refuseForeignKeys(
  file: string,
  json: Readonly<Record<string, unknown>>,
  facts: ModelFacts,
): void {
  const refuse = (key: string, reason: string) => {
    throw new UnsupportedModelError(file, `${key} ${show(json[key])} is not supported: ${reason}`);
  };
  // transformers attends to all tokens if the value is falsy in Python, null included.
  if (Object.hasOwn(json, 'is_causal') && json.is_causal !== true) {
    refuse('is_causal', 'attention is causal; it must be true');
  }
  // transformers chooses the class by model_type, vLLM by architectures.
  const modelType = json.model_type ?? facts.modelType;
  if (modelType !== facts.modelType) {
    refuse('model_type', `with these architectures it must be ${show(facts.modelType)}`);
  }
  for (const [key, [isNeutral, reason]] of Object.entries(FOREIGN_KEYS)) {
    if (facts.ownKeys.includes(key)) continue;
    const value = Object.hasOwn(json, key) ? json[key] : null;
    if (value !== null && !isNeutral(value, facts)) refuse(key, reason);
  }
  // transformers' model ignores layer_types of families that do not read it; vLLM and transformers'
  // KV cache do not.
  if (facts.ownKeys.includes('layer_types')) return;
  const types: unknown[] = Array.isArray(json.layer_types) ? json.layer_types : [];
  const isOther = types.some(
    (type, layer) =>
      type !== ((facts.slidingWindows[layer] ?? 0) > 0 ? 'sliding_attention' : 'full_attention'),
  );
  if (isOther) {
    const all = facts.slidingWindows[0] > 0 ? 'sliding_attention' : 'full_attention';
    refuse('layer_types', `all layers of this architecture are ${show(all)}`);
  }
}
