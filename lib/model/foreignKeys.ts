/**
 * Keys of config.json that change what a model computes and that no forward pass here knows. Most
 * belong to other architectures: transformers' classes for the supported ones pass over them, other
 * engines obey some. Where such a key has another value than the one that changes nothing, its
 * author and this library do not mean the same model, so it is refused by name.
 */
import { UnsupportedModelError } from '../errors';
import { show } from '../config/schema';

/** What a key may depend on. */
export interface ModelFacts {
  /** The architecture's model_type. */
  modelType: string;
  headDim: number;
  /** The architecture norms each head's query and key. */
  qkNorm: boolean;
  /** Each layer's window in tokens, 0 for none. */
  slidingWindows: readonly number[];
  /** Keys that the architecture's family reads. */
  ownKeys: readonly string[];
}

/** Whether a value changes nothing. null counts as missing, and is not asked about. */
type IsNeutral = (value: unknown, facts: ModelFacts) => boolean;

const isOff: IsNeutral = (value) => value === false || value === 0;
const isOne: IsNeutral = (value) => value === 1;
const isZero: IsNeutral = (value) => value === 0;
const never: IsNeutral = () => false;
const isClose = (value: unknown, expected: number) =>
  typeof value === 'number' && Math.abs(value - expected) <= 1e-6 * expected;

const FOREIGN_KEYS: Record<string, [IsNeutral, reason: string]> = {
  // What a token may attend to.
  use_bidirectional_attention: [isOff, 'attention is causal'],
  is_encoder_decoder: [isOff, 'there is no encoder'],
  add_cross_attention: [isOff, 'there is no cross-attention'],
  attention_chunk_size: [isZero, 'there is no chunked attention'],
  num_kv_shared_layers: [isZero, 'each layer has keys and values of its own'],
  // Positions.
  alibi: [isOff, 'positions are told by rotary embedding'],
  no_rope_layers: [
    (value) => Array.isArray(value) && value.every((usesRope) => usesRope === 1),
    'every layer has rotary embedding',
  ],
  rope_interleave: [isOff, 'rotary embedding turns halves, not neighbours'],
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
    (value, { qkNorm }) => value === false || (qkNorm && value === true),
    'norms of queries and keys are for the architecture to say',
  ],
  qk_layernorm: [isOff, 'norms of queries and keys are for the architecture to say'],
  parallel_attn: [isOff, 'attention and MLP follow each other'],
  use_parallel_residual: [isOff, 'attention and MLP follow each other'],
  num_experts: [(value) => value === 0 || value === 1, 'there are no experts'],
  num_local_experts: [(value) => value === 0 || value === 1, 'there are no experts'],
  n_routed_experts: [(value) => value === 0 || value === 1, 'there are no experts'],
  compression_config: [never, 'weights must be in float32, float16 or bfloat16'],
};

/** Throws UnsupportedModelError that names the key and its value. */
export function refuseForeignKeys(
  file: string,
  json: Readonly<Record<string, unknown>>,
  facts: ModelFacts,
): void {
  const refuse = (key: string, reason: string) => {
    throw new UnsupportedModelError(file, `${key} ${show(json[key])} is not supported: ${reason}`);
  };
  // transformers attends to all tokens where Python takes the value for false, which null is too.
  if (Object.hasOwn(json, 'is_causal') && json.is_causal !== true) {
    refuse('is_causal', 'attention is causal; only true is');
  }
  // transformers chooses the class by it, vLLM by architectures.
  const modelType = json.model_type ?? facts.modelType;
  if (modelType !== facts.modelType) {
    refuse('model_type', `with these architectures it must be ${show(facts.modelType)}`);
  }
  for (const [key, [isNeutral, reason]] of Object.entries(FOREIGN_KEYS)) {
    if (facts.ownKeys.includes(key)) continue;
    const value = Object.hasOwn(json, key) ? json[key] : null;
    if (value !== null && !isNeutral(value, facts)) refuse(key, reason);
  }
  // Qwen2 and Qwen3 read theirs. For the others the forward pass of transformers ignores it, but vLLM
  // and the KV cache of transformers do not.
  if (modelType === 'qwen2' || modelType === 'qwen3') return;
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
