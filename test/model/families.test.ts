/** What the families of config.json refuse, by name, and what of published ones they read. */
import { UniprocError } from '../../lib/errors';
import { parseTransformerConfig } from '../../lib/model/transformerConfig';
import { type ModelSpec, native } from '../../lib/native';
import { STORED_BYTES, type WeightFormat } from '../../lib/model/spec';
import { LLAMA } from './checkpointFolder';

const MXFP4: WeightFormat = {
  type: 'float4_e2m1',
  scaleRows: 1,
  scaleCols: 32,
  hasZeros: false,
  isOrdered: false,
  roundsInput: false,
};

function complaint(architecture: string, keys: object): string {
  const config = { bos_token_id: 1, eos_token_id: 2, ...LLAMA, ...keys };
  try {
    parseTransformerConfig('/checkpoint/config.json', { ...config, architectures: [architecture] });
  } catch (error) {
    expect(error).toBeInstanceOf(UniprocError);
    return (error as UniprocError).message;
  }
  throw new Error('config.json was accepted');
}

const BLOCKS = { quantization_config: { quant_method: 'fp8', weight_block_size: [128, 128] } };
const inBlocks = (target: string, rows: number) => ({
  targets: [target],
  weights: { num_bits: 8, type: 'float', strategy: 'block', block_structure: [rows, 128] },
});
/** Heads of 96 do not divide the blocks of the second group. */
const TWO_BLOCKS = {
  quantization_config: {
    quant_method: 'compressed-tensors',
    format: 'float-quantized',
    config_groups: { mlp: inBlocks('re:.*mlp.*', 96), attention: inBlocks('re:.*attn.*', 128) },
  },
};
/** Gemma 4 without embeddings by layer. */
const DENSE = { hidden_size_per_layer_input: 0 };
const LONG = { type: 'longrope', short_factor: [1, 1, 1, 1, 1, 1, 1, 1] };

describe('config.json is refused', () => {
  it.each<[string, object, string]>([
    ['Phi3ForCausalLM', { rope_scaling: { type: 'linear', factor: 2 } }, "rope type 'linear'"],
    ['Phi3ForCausalLM', { rope_scaling: LONG }, 'long_factor is undefined'],
    ['Phi3ForCausalLM', { rope_scaling: { ...LONG, long_factor: [1, 2] } }, 'a list of 8 numbers'],
    [
      'Phi3ForCausalLM',
      { rope_scaling: { ...LONG, long_factor: LONG.short_factor, long_mscale: 1.2 } },
      'long_mscale is 1.2',
    ],
    ['Phi3ForCausalLM', BLOCKS, "blocks of 128 rows are not supported with model_type 'phi3'"],
    ['LlamaForCausalLM', { ...BLOCKS, head_dim: 96, partial_rotary_factor: 0.5 }, 'head_dim, 96'],
    [
      'LlamaForCausalLM',
      { ...TWO_BLOCKS, head_dim: 96, partial_rotary_factor: 0.5 },
      'blocks of 128 rows are not supported with a partial_rotary_factor',
    ],
    ['LlamaForCausalLM', { partial_rotary_factor: 0.2 }, 'partial_rotary_factor is 0.2; of a head'],
    ['LlamaForCausalLM', { partial_rotary_factor: 1.5 }, 'partial_rotary_factor is 1.5'],
    [
      'LlamaForCausalLM',
      { rope_scaling: { type: 'dynamic', factor: 2, alpha: 1000 } },
      'alpha is 1000',
    ],
    ['LlamaForCausalLM', { model_type: 'phi3' }, "model_type 'phi3'"],
    ['SmolLM3ForCausalLM', { no_rope_layers: [1] }, 'no_rope_layers has 1 entries'],
    ['SmolLM3ForCausalLM', { no_rope_layers: [2, 1] }, 'no_rope_layers[0] is 2'],
    ['GraniteForCausalLM', { logits_scaling: 0 }, 'logits_scaling is 0'],
    ['GraniteForCausalLM', { logits_scaling: 1e-44 }, 'logits_scaling is 1e-44; its inverse'],
    ['GraniteForCausalLM', { residual_multiplier: -1 }, 'residual_multiplier is -1'],
    ['Olmo2ForCausalLM', { clip_qkv: 8 }, 'clip_qkv 8'],
    ['Olmo3ForCausalLM', { rope_theta: 10000 }, 'rope_theta 10000'],
    ['Olmo3ForCausalLM', { rope_parameters: {} }, 'full_attention is undefined'],
    ['Olmo3ForCausalLM', { sliding_window: null }, "layer_types[0] is 'sliding_attention'"],
    ['Gemma2ForCausalLM', { attn_logit_softcapping: -1 }, 'attn_logit_softcapping is -1'],
    ['Gemma2ForCausalLM', { hidden_activation: 'relu' }, "hidden_activation 'relu'"],
    ['Gemma2ForCausalLM', { use_bidirectional_attention: true }, 'use_bidirectional_attention'],
    ['Gemma2ForCausalLM', { sliding_window: null }, "layer_types[0] is 'sliding_attention'"],
    ['Gemma3ForCausalLM', { rope_parameters: { rope_theta: 1 } }, 'rope_parameters has rope_theta'],
    [
      'Gemma3ForCausalLM',
      { rope_parameters: { full_attention: 3 } },
      'full_attention is 3; it must be an object',
    ],
    ['Gemma4ForCausalLM', { vocab_size_per_layer_input: 8 }, 'vocab_size_per_layer_input 8'],
    ['Gemma4ForCausalLM', { ...DENSE, enable_moe_block: true }, 'num_experts is undefined'],
    [
      'Gemma4ForCausalLM',
      { ...DENSE, enable_moe_block: true, num_experts: 8, moe_intermediate_size: 8 },
      'top_k_experts is undefined',
    ],
    ['Gemma4ForCausalLM', { ...DENSE, num_kv_shared_layers: 99 }, 'num_kv_shared_layers is 99'],
    ['Gemma4ForCausalLM', { ...DENSE, per_layer_config: {} }, 'per_layer_config {}'],
    ['Gemma4ForCausalLM', { ...DENSE, use_bidirectional_attention: 'all' }, "attention 'all'"],
    ['Gemma4ForCausalLM', { ...DENSE, global_head_dim: 33 }, 'global_head_dim is 33'],
    [
      'Gemma4ForCausalLM',
      { ...DENSE, attention_k_eq_v: true, num_global_key_value_heads: 3 },
      'multiple of num_global_key_value_heads, 3',
    ],
    ['Gemma4ForCausalLM', { ...DENSE, rope_scaling: { factor: 2 } }, 'rope_scaling'],
    [
      'Gemma4ForCausalLM',
      { ...DENSE, rope_parameters: { sliding_attention: { rope_theta: 10000 } } },
      'rope_parameters has no full_attention',
    ],
    [
      'Gemma4ForCausalLM',
      {
        ...DENSE,
        rope_parameters: {
          full_attention: { rope_type: 'proportional', partial_rotary_factor: 0.001 },
          sliding_attention: { rope_type: 'default' },
        },
      },
      'it rotates 0 elements',
    ],
    ['Llama4ForCausalLM', { num_experts_per_tok: 2 }, 'num_experts_per_tok 2 is not supported'],
    ['Llama4ForCausalLM', { attention_chunk_size: null }, 'attention_chunk_size is null'],
    ['Llama4ForCausalLM', { layer_types: ['chunked_attention'] }, 'layer_types has 1 entries'],
    [
      'Llama4ForCausalLM',
      { layer_types: ['sliding_attention', 'full_attention'] },
      "layer_types[0] is 'sliding_attention'",
    ],
    ['Llama4ForCausalLM', { no_rope_layers: [1] }, 'no_rope_layers has 1 entries'],
    ['Llama4ForCausalLM', { rope_scaling: { type: 'yarn', factor: 2 } }, "rope type 'yarn'"],
    ['Llama4ForCausalLM', { partial_rotary_factor: 0.5 }, 'partial_rotary_factor 0.5'],
    ['Llama4ForCausalLM', { attn_scale: -1 }, 'attn_scale is -1'],
    ['Llama4ForCausalLM', { ...BLOCKS, head_dim: 96 }, "with model_type 'llama4_text'"],
    ['LlamaForCausalLM', { attention_chunk_size: 8192 }, 'attention_chunk_size 8192'],
    ['GptOssForCausalLM', { swiglu_limit: 8 }, 'swiglu_limit 8'],
    ['GptOssForCausalLM', { num_local_experts: 0 }, 'num_local_experts is 0'],
    [
      'GptOssForCausalLM',
      { quantization_config: { quant_method: 'mxfp4', modules_to_not_convert: 'lm_head' } },
      "modules_to_not_convert is 'lm_head'",
    ],
    ['Glm4MoeForCausalLM', { head_dim: 16, n_group: 3 }, 'n_group is 3 and topk_group 1'],
    ['Glm4MoeForCausalLM', { head_dim: 16, topk_group: 2 }, 'n_group is 1 and topk_group 2'],
    [
      'Glm4MoeForCausalLM',
      { head_dim: 16, n_group: 32 },
      'num_experts_per_tok is 8; topk_group, 1',
    ],
    ['Glm4MoeForCausalLM', { head_dim: 16, n_routed_experts: 4 }, 'num_experts_per_tok is 8'],
    ['MixtralForCausalLM', { num_local_experts: 0 }, 'num_local_experts is 0'],
    ['MixtralForCausalLM', { num_experts_per_tok: 9 }, 'num_experts_per_tok is 9'],
    ['Qwen2MoeForCausalLM', { use_sliding_window: true }, 'use_sliding_window true'],
    [
      'Qwen2MoeForCausalLM',
      { shared_expert_intermediate_size: null },
      'shared_expert_intermediate_size is null',
    ],
    ['Ministral3ForCausalLM', { rope_parameters: { type: 'default' } }, 'llama_4_scaling_beta'],
    ['MinistralForCausalLM', { layer_types: ['chunked_attention', 'x'] }, 'chunked_attention'],
  ])('of %s with %j', (architecture, keys, message) => {
    expect(complaint(architecture, keys)).toContain(message);
  });
});

describe('the config.json of openai/gpt-oss', () => {
  // Word for word, but for the list of layer_types, which alternate.
  const published = (numLayers: number, numExperts: number) => ({
    architectures: ['GptOssForCausalLM'],
    attention_bias: true,
    attention_dropout: 0.0,
    eos_token_id: 200002,
    experts_per_token: 4,
    head_dim: 64,
    hidden_act: 'silu',
    hidden_size: 2880,
    initial_context_length: 4096,
    initializer_range: 0.02,
    intermediate_size: 2880,
    layer_types: Array.from({ length: numLayers }, (_, layer) =>
      layer % 2 === 0 ? 'sliding_attention' : 'full_attention',
    ),
    max_position_embeddings: 131072,
    model_type: 'gpt_oss',
    num_attention_heads: 64,
    num_experts_per_tok: 4,
    num_hidden_layers: numLayers,
    num_key_value_heads: 8,
    num_local_experts: numExperts,
    output_router_logits: false,
    pad_token_id: 199999,
    quantization_config: {
      modules_to_not_convert: [
        'model.layers.*.self_attn',
        'model.layers.*.mlp.router',
        'model.embed_tokens',
        'lm_head',
      ],
      quant_method: 'mxfp4',
    },
    rms_norm_eps: 1e-5,
    rope_scaling: {
      beta_fast: 32.0,
      beta_slow: 1.0,
      factor: 32.0,
      original_max_position_embeddings: 4096,
      rope_type: 'yarn',
      truncate: false,
    },
    rope_theta: 150000,
    router_aux_loss_coef: 0.9,
    sliding_window: 128,
    swiglu_limit: 7.0,
    tie_word_embeddings: false,
    transformers_version: '4.55.0.dev0',
    use_cache: true,
    vocab_size: 201088,
  });

  it.each([
    ['20b', 24, 32, 20.9e9, 12.8e9],
    ['120b', 36, 128, 116.8e9, 60.8e9],
  ])('%s is read, with its experts in 4.25 bits', (_, numLayers, numExperts, count, bytes) => {
    const config = parseTransformerConfig(
      '/checkpoint/config.json',
      published(numLayers, numExperts),
    );
    expect(config).toMatchObject({
      architecture: 'GptOssForCausalLM',
      eosTokenIds: [200002],
      quantization: { method: 'mxfp4' },
      spec: {
        slidingWindows: Array.from({ length: numLayers }, (__, i) => (i % 2 === 0 ? 128 : 0)),
        experts: { numExperts, numExpertsPerToken: 4, intermediateSize: 2880, bias: true },
      },
    });
    // As published: 20.9 billion parameters in 12.8 GiB, and 116.8 billion in 60.8 GiB.
    const spec: ModelSpec = { ...config.spec, dtype: 'bfloat16', weightFormats: {} };
    for (let layer = 0; layer < numLayers; layer++) {
      for (const part of ['gate', 'up', 'down']) {
        spec.weightFormats[`layers.${layer}.experts.${part}`] = MXFP4;
      }
    }
    let elements = 0;
    let size = 0;
    for (const { part, shape, experts, format } of native().declareParameters(spec, 0, 1)) {
      const numElements = shape.reduce((n, dimension) => n * dimension.size, experts?.size ?? 1);
      if (part !== 'scales') elements += numElements;
      size +=
        numElements * (part === 'scales' ? 1 : part === 'weight' ? STORED_BYTES[format.type] : 2);
    }
    expect(elements / count).toBeCloseTo(1, 2);
    expect(size / 2 ** 30 / (bytes / 1e9)).toBeCloseTo(1, 2);
  });
});
