/** Keys of config.json that change the forward pass are refused by name unless their value is neutral. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { readTransformerConfig } from '../../lib/model/transformerConfig';
import { folderWith } from '../support/folder';
import { LLAMA, rejection } from './checkpointFolder';

// hidden_size 64 in 4 heads: head_dim 16, a scale of 0.25.
const QWEN3 = { ...LLAMA, architectures: ['Qwen3ForCausalLM'], head_dim: 16 };
const QWEN2 = { ...LLAMA, architectures: ['Qwen2ForCausalLM'] };
const MISTRAL = { ...LLAMA, architectures: ['MistralForCausalLM'] };
const [FULL, SLIDING] = ['full_attention', 'sliding_attention'];

const folderOf = (config: object | string) => folderWith({ 'config.json': config });

const REFUSED: [key: string, value: unknown][] = [
  ['is_causal', false],
  ['is_causal', null], // false in Python
  ['is_causal', 0],
  ['use_bidirectional_attention', true],
  ['use_bidirectional_attention', 'all'],
  ['is_encoder_decoder', true],
  ['add_cross_attention', true],
  ['attention_chunk_size', 128],
  ['num_kv_shared_layers', 1],
  ['alibi', true],
  ['no_rope_layers', [1, 0]],
  ['rope_interleave', true],
  ['attn_temperature_tuning', 4],
  ['llama_4_scaling', { beta: 0.1 }],
  ['attn_logit_softcapping', 50],
  ['final_logit_softcapping', 30.0],
  ['query_pre_attn_scalar', 144],
  ['attention_multiplier', 0.0078125],
  ['embedding_multiplier', 12],
  ['scale_emb', 12],
  ['residual_multiplier', 0.22],
  ['scale_depth', 1.4],
  ['logits_scaling', 8],
  ['logit_scale', 0.0625],
  ['lm_head_multiplier', 0.04],
  ['clip_qkv', 8],
  ['use_qk_norm', true],
  ['qk_layernorm', true],
  ['parallel_attn', true],
  ['use_parallel_residual', true],
  ['num_experts', 8],
  ['num_local_experts', 8],
  ['n_routed_experts', 64],
  ['compression_config', { format: 'pack-quantized' }],
  ['quantization_config', { quant_method: 'hqq' }],
  ['hidden_act', 'relu2'],
  ['model_type', 'gemma2'],
  ['layer_types', [FULL, SLIDING]],
  ['layer_types', ['chunked_attention', FULL]],
];

describe('docs/checkpoints.md', () => {
  it('names every refused key', () => {
    const docs = readFileSync(path.join(__dirname, '..', '..', 'docs', 'checkpoints.md'), 'utf8');
    expect(REFUSED.map(([key]) => key).filter((key) => !docs.includes(`\`${key}\``))).toEqual([]);
  });
});

describe('config.json', () => {
  it.each(REFUSED)('with %s %j is refused by that name', async (key, value) => {
    const folder = await folderOf({ ...LLAMA, [key]: value });
    const error = await rejection(readTransformerConfig(folder));
    expect(error).toMatchObject({
      code: 'MODEL_UNSUPPORTED',
      file: path.join(folder, 'config.json'),
    });
    expect(error.message).toContain(`${key} `);
  });

  it.each<[object, string]>([
    [{ ...QWEN2, model_type: 'qwen3' }, "model_type 'qwen3' is not supported"],
    [{ ...QWEN2, is_causal: false }, 'is_causal false is not supported'],
    [{ ...QWEN3, qk_layernorm: true }, 'qk_layernorm true'],
    [{ ...MISTRAL, layer_types: [FULL, SLIDING] }, 'layer_types'],
    [{ ...MISTRAL, layer_types: [FULL, FULL], sliding_window: 16 }, 'layer_types'],
    [{ ...MISTRAL, layer_types: [SLIDING, SLIDING], sliding_window: null }, 'layer_types'],
    [
      { ...LLAMA, rope_parameters: { rope_type: 'default', llama_4_scaling_beta: 0.1 } },
      'llama_4_scaling_beta 0.1',
    ],
    [{ ...LLAMA, rope_scaling: { rope_type: 'xdrope' } }, "rope type 'xdrope'"],
  ])('%j is refused', async (config, message) => {
    const error = await rejection(readTransformerConfig(await folderOf(config)));
    expect(error.code).toBe('MODEL_UNSUPPORTED');
    expect(error.message).toContain(message);
  });

  it.each<[object, object]>([
    [LLAMA, { is_causal: true }],
    [LLAMA, { model_type: 'llama' }],
    [LLAMA, { model_type: null, clip_qkv: null, scale_depth: null }],
    [LLAMA, { hidden_act: 'swish' }], // PyTorch's and TensorFlow's names of one function
    [LLAMA, { pretraining_tp: 8, use_cache: false, attention_dropout: 0.5, is_decoder: true }],
    [LLAMA, { is_encoder_decoder: false, add_cross_attention: false, alibi: false }],
    [LLAMA, { attn_logit_softcapping: null, final_logit_softcapping: 0 }],
    [LLAMA, { query_pre_attn_scalar: 16, attention_multiplier: 0.25 }],
    [LLAMA, { logits_scaling: 1.0, residual_multiplier: 1, embedding_multiplier: 1.0 }],
    [LLAMA, { no_rope_layers: [1, 1], num_experts: 0, num_local_experts: 1 }],
    [LLAMA, { layer_types: [FULL, FULL] }],
    [MISTRAL, { layer_types: [SLIDING, SLIDING], sliding_window: 16 }],
    [MISTRAL, { layer_types: [FULL, FULL], sliding_window: null }],
    [QWEN2, { use_qk_norm: false }],
    [QWEN3, { use_qk_norm: true }],
  ])('%j is accepted with the neutral %j', async (config, keys) => {
    const { sliding_window: window } = keys as { sliding_window?: number | null };
    const plain = window === undefined ? config : { ...config, sliding_window: window };
    const expected = await readTransformerConfig(await folderOf(plain));
    expect(await readTransformerConfig(await folderOf({ ...config, ...keys }))).toEqual(expected);
  });

  it.each(['rms_norm_eps', 'rope_theta', 'hidden_size', 'num_key_value_heads'])(
    'with a non-finite %s is refused by key',
    async (key) => {
      for (const value of ['NaN', 'Infinity', '-Infinity']) {
        const text = JSON.stringify({ ...LLAMA, [key]: '?' }).replace('"?"', value);
        const error = await rejection(readTransformerConfig(await folderOf(text)));
        expect(error.code).toBe('CHECKPOINT_INVALID');
        expect(error.message).toContain(`${key} is ${value}; it must be`);
      }
    },
  );

  it('accepts non-finite numbers in keys that are not read', async () => {
    const text = JSON.stringify({ ...LLAMA, initializer_range: '?' }).replace('"?"', 'NaN');
    expect(await readTransformerConfig(await folderOf(`\ufeff${text}`))).toEqual(
      await readTransformerConfig(await folderOf(LLAMA)),
    );
  });
});
