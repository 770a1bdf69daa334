/** The architectures of GGUF files that are supported, by llama.cpp's names. */
import { type GgufArchitecture, type ModelFacts, requiredOfLayers } from './architecture';

const BLOCK = 'blk.{layer}';

/** Gemma's largest models scale queries by the size of a head that hidden_size would have. */
const GEMMA_27B_LAYERS: Readonly<Record<string, number>> = { gemma2: 46, gemma3: 62 };

/** More are refused once config.json's keys are read. */
const MAX_LAYERS = 4096;

const windowOf = ({ metadata, name }: ModelFacts) =>
  metadata.number(`${name}.attention.sliding_window`) || null;

/** Experts' keys. Layers without a router have the gated MLP. */
function experts(facts: ModelFacts, numLayers: unknown) {
  const { metadata, name, tensors } = facts;
  const layers = Array.from({ length: Math.min(Number(numLayers), MAX_LAYERS) }, (_, i) => i);
  const dense = layers.filter((layer) => !tensors.has(`blk.${layer}.ffn_gate_inp.weight`));
  const down = [...tensors].find(([tensor]) => tensor.endsWith('.ffn_down_exps.weight'));
  return {
    num_experts: metadata.requiredNumber(`${name}.expert_count`),
    num_experts_per_tok: metadata.requiredNumber(`${name}.expert_used_count`),
    decoder_sparse_step: 1,
    mlp_only_layers: dense,
    moe_intermediate_size:
      metadata.number(`${name}.expert_feed_forward_length`) ??
      down?.[1].shape[2] ??
      requiredOfLayers(facts, 'feed_forward_length'),
  };
}

const gemmaScale = (facts: ModelFacts, common: Record<string, unknown>) => {
  const { hidden_size: hidden, num_attention_heads: heads, head_dim: headDim } = common;
  const scale = facts.metadata.number(`${facts.name}.attention.scale`);
  if (scale !== undefined) return scale ** -2;
  const isLargest = common.num_hidden_layers === GEMMA_27B_LAYERS[facts.name];
  return isLargest ? Number(hidden) / Number(heads) : Number(headDim);
};

/** Sliding windows in most layers, whose positions are not scaled. */
function olmo3Config(facts: ModelFacts, common: Record<string, unknown>) {
  const { metadata, name } = facts;
  const numLayers = Math.min(Number(common.num_hidden_layers), MAX_LAYERS);
  const isSliding = metadata.layersOf(`${name}.attention.sliding_window_pattern`, numLayers);
  // transformers' attention_factor.
  const scale = metadata.positive(`${name}.rope.scaling.attn_factor`);
  const scaling = common.rope_scaling as Record<string, unknown> | null;
  return {
    sliding_window: windowOf(facts),
    layer_types: isSliding?.map((is) => (is ? 'sliding_attention' : 'full_attention')),
    rope_scaling: null,
    rope_parameters: {
      full_attention: scaling ? { ...scaling, attention_factor: scale } : PLAIN_ROPE,
      sliding_attention: PLAIN_ROPE,
    },
  };
}

const PLAIN_ROPE = { rope_type: 'default' };

/** The growth of queries in long contexts (Ministral 3); 0: none. */
const temperatureOf = ({ metadata, name }: ModelFacts) =>
  metadata.number(`${name}.attention.temperature_scale`) ?? 0;

function withTemperature(facts: ModelFacts, scaling: object | null): object | null {
  const beta = temperatureOf(facts);
  if (beta === 0) return scaling;
  const original = facts.metadata.number(`${facts.name}.rope.scaling.original_context_length`);
  const plain = original && { ...PLAIN_ROPE, original_max_position_embeddings: original };
  return { ...(scaling ?? plain ?? PLAIN_ROPE), llama_4_scaling_beta: beta };
}

export const ARCHITECTURES: ReadonlyMap<string, GgufArchitecture> = new Map<
  string,
  GgufArchitecture
>([
  [
    'llama',
    {
      architecture: (facts) =>
        (facts.metadata.number('llama.expert_count') ?? 0) > 0
          ? 'MixtralForCausalLM'
          : windowOf(facts) === null
            ? 'LlamaForCausalLM'
            : 'MistralForCausalLM',
      config: (facts, common) => {
        const { metadata } = facts;
        const numExperts = metadata.number('llama.expert_count') ?? 0;
        return numExperts === 0
          ? { sliding_window: windowOf(facts) }
          : {
              num_local_experts: numExperts,
              num_experts_per_tok: metadata.requiredNumber('llama.expert_used_count'),
              intermediate_size: common.intermediate_size,
            };
      },
      isInterleaved: true,
    },
  ],
  ['qwen2', { architecture: () => 'Qwen2ForCausalLM' }],
  [
    'qwen2moe',
    {
      architecture: () => 'Qwen2MoeForCausalLM',
      config: (facts, { num_hidden_layers: numLayers }) => ({
        ...experts(facts, numLayers),
        shared_expert_intermediate_size:
          facts.metadata.number('qwen2moe.expert_shared_feed_forward_length') ??
          facts.tensors.get('blk.0.ffn_gate_shexp.weight')?.shape[0],
        norm_topk_prob: facts.metadata.flag('qwen2moe.expert_weights_norm') ?? false,
        qkv_bias: true,
      }),
    },
  ],
  ['qwen3', { architecture: () => 'Qwen3ForCausalLM' }],
  [
    'qwen3moe',
    {
      architecture: () => 'Qwen3MoeForCausalLM',
      config: (facts, { num_hidden_layers: numLayers }) => ({
        ...experts(facts, numLayers),
        norm_topk_prob: facts.metadata.flag('qwen3moe.expert_weights_norm') ?? true,
      }),
    },
  ],
  [
    'gemma2',
    {
      architecture: () => 'Gemma2ForCausalLM',
      config: (facts, common) => ({
        sliding_window: windowOf(facts) ?? 4096,
        query_pre_attn_scalar: gemmaScale(facts, common),
        attn_logit_softcapping: facts.metadata.number('gemma2.attn_logit_softcapping') ?? 50,
        final_logit_softcapping: facts.metadata.number('gemma2.final_logit_softcapping') ?? 30,
      }),
      addsOneToNorms: true,
    },
  ],
  [
    'gemma3',
    {
      architecture: () => 'Gemma3ForCausalLM',
      config: (facts, common) => ({
        sliding_window: windowOf(facts),
        query_pre_attn_scalar: gemmaScale(facts, common),
        final_logit_softcapping: facts.metadata.number('gemma3.final_logit_softcapping') ?? null,
        rope_local_base_freq: facts.metadata.number('gemma3.rope.freq_base_swa') ?? 10000,
        sliding_window_pattern:
          windowOf(facts) === null
            ? 1
            : (facts.metadata.number('gemma3.attention.sliding_window_pattern') ?? 6),
      }),
      addsOneToNorms: true,
    },
  ],
  [
    'phi3',
    {
      architecture: () => 'Phi3ForCausalLM',
      config: (facts, common) => ({
        sliding_window: windowOf(facts),
        original_max_position_embeddings:
          facts.metadata.number('phi3.rope.scaling.original_context_length') ??
          common.max_position_embeddings,
      }),
      modules: {
        'attention.q': `${BLOCK}.attn_qkv`,
        'attention.k': `${BLOCK}.attn_qkv`,
        'attention.v': `${BLOCK}.attn_qkv`,
        'mlp.gate': `${BLOCK}.ffn_up`,
        'mlp.up': `${BLOCK}.ffn_up`,
      },
    },
  ],
  [
    'olmo2',
    {
      architecture: (facts) => (windowOf(facts) === null ? 'Olmo2ForCausalLM' : 'Olmo3ForCausalLM'),
      config: (facts, common) => (windowOf(facts) === null ? {} : olmo3Config(facts, common)),
    },
  ],
  [
    'mistral3',
    {
      architecture: (facts) =>
        temperatureOf(facts) === 0 ? 'MistralForCausalLM' : 'Ministral3ForCausalLM',
      config: (facts, common) => ({
        sliding_window: windowOf(facts),
        rope_scaling: withTemperature(facts, common.rope_scaling as object | null),
      }),
      isInterleaved: true,
    },
  ],
  [
    'granite',
    {
      architecture: () => 'GraniteForCausalLM',
      config: ({ metadata }) => ({
        embedding_multiplier: metadata.number('granite.embedding_scale') ?? 1,
        residual_multiplier: metadata.number('granite.residual_scale') ?? 1,
        attention_multiplier: metadata.requiredNumber('granite.attention.scale'),
        logits_scaling: metadata.number('granite.logit_scale') ?? 1,
      }),
      isInterleaved: true,
    },
  ],
  ['smollm3', { architecture: () => 'SmolLM3ForCausalLM', isInterleaved: true }],
  [
    'gpt-oss',
    {
      architecture: () => 'GptOssForCausalLM',
      config: (facts, common) => {
        const {
          num_experts: numExperts,
          moe_intermediate_size: size,
          ...others
        } = experts(facts, common.num_hidden_layers);
        const scaling = common.rope_scaling as Record<string, unknown> | null;
        return {
          ...others,
          num_local_experts: numExperts,
          intermediate_size: size,
          sliding_window: windowOf(facts) ?? 128,
          // As the published model has it.
          rope_scaling: scaling && { ...scaling, truncate: false },
        };
      },
      modules: { 'experts.norm': `${BLOCK}.post_attention_norm` },
    },
  ],
  [
    'glm4moe',
    {
      architecture: () => 'Glm4MoeForCausalLM',
      config: (facts, { num_hidden_layers: numLayers }) => {
        const { num_experts: numExperts, ...others } = experts(facts, numLayers);
        const { metadata, tensors } = facts;
        if ((metadata.number('glm4moe.expert_gating_func') || 2) !== 2) {
          throw metadata.fail('glm4moe.expert_gating_func', '2, the sigmoid');
        }
        return {
          ...others,
          n_routed_experts: numExperts,
          n_shared_experts: metadata.requiredNumber('glm4moe.expert_shared_count'),
          first_k_dense_replace: metadata.number('glm4moe.leading_dense_block_count') ?? 0,
          routed_scaling_factor: metadata.number('glm4moe.expert_weights_scale') ?? 1,
          norm_topk_prob: metadata.flag('glm4moe.expert_weights_norm') ?? true,
          use_qk_norm: tensors.has('blk.0.attn_q_norm.weight'),
          n_group: metadata.number('glm4moe.expert_group_count') ?? 1,
          topk_group: metadata.number('glm4moe.expert_group_used_count') ?? 1,
        };
      },
      modules: {
        'mlp.norm': `${BLOCK}.post_attention_norm`,
        'experts.norm': `${BLOCK}.post_attention_norm`,
      },
    },
  ],
]);
