/** quantization_config of each method: what is read, and what is refused by which name. */
import { CheckpointError, UnsupportedModelError } from '../../lib/errors';
import { matchesAny } from '../../lib/model/modulePatterns';
import { readQuantization } from '../../lib/model/quantization';

const FILE = '/checkpoint/config.json';

const weights = { num_bits: 4, type: 'int', symmetric: true, strategy: 'group', group_size: 128 };
const group = { targets: ['Linear'], weights, input_activations: null, output_activations: null };
const compressed = {
  quant_method: 'compressed-tensors',
  format: 'pack-quantized',
  quantization_status: 'compressed',
  config_groups: { group_0: group },
  ignore: ['lm_head'],
};
const float8 = { num_bits: 8, type: 'float', symmetric: true, strategy: 'channel' };
const fp8 = {
  ...compressed,
  format: 'float-quantized',
  config_groups: { group_0: { ...group, weights: float8 } },
};
const float4 = {
  ...compressed,
  format: 'mxfp4-pack-quantized',
  config_groups: {
    group_0: { ...group, weights: { ...weights, type: 'float', group_size: 32 } },
  },
};
const awq = { quant_method: 'awq', bits: 4, group_size: 128, zero_point: true, version: 'gemm' };
const gptq = { quant_method: 'gptq', bits: 4, group_size: 128, sym: true, desc_act: false };

/** With other keys of the weights of the only group. */
const withWeights = (
  base: { config_groups: { group_0: { weights: object } } },
  changes: object,
) => ({
  ...base,
  config_groups: {
    group_0: { ...group, weights: { ...base.config_groups.group_0.weights, ...changes } },
  },
});

describe('quantization_config is read', () => {
  it.each<[string, object, object]>([
    ['int4 of compressed-tensors', compressed, { type: 'uint4', block: [1, 128], hasZeros: false }],
    [
      'with zero points and act-order',
      withWeights(compressed, { symmetric: false, actorder: 'group' }),
      { hasZeros: true, isOrdered: true },
    ],
    [
      "whose act-order 'weight' is in the scales alone",
      withWeights(compressed, { actorder: 'weight' }),
      { isOrdered: false },
    ],
    ['fp8 by channel', fp8, { type: 'float8_e4m3', block: null, tensors: 'plain' }],
    [
      'fp8 by block, in either spelling',
      withWeights(fp8, { strategy: 'block', block_structure: '128x64' }),
      { block: [128, 64] },
    ],
    [
      'int8 with quantized activations',
      {
        ...fp8,
        format: 'int-quantized',
        config_groups: {
          group_0: {
            ...group,
            weights: { ...float8, type: 'int' },
            input_activations: { num_bits: 8, type: 'int', symmetric: true, dynamic: true },
          },
        },
      },
      { type: 'int8', block: null },
    ],
    ['AWQ', awq, { type: 'uint4', tensors: 'awq', hasZeros: true, block: [1, 128] }],
    ['GPTQ', gptq, { tensors: 'gptq', hasZeros: false, isOrdered: false }],
    [
      'GPTQ version 2, asymmetric, in act-order',
      { ...gptq, sym: false, desc_act: true, checkpoint_format: 'gptq_v2' },
      { tensors: 'gptqV2', hasZeros: true, isOrdered: true },
    ],
    [
      'GPTQ by channel',
      { ...gptq, group_size: -1, desc_act: true },
      { block: null, isOrdered: false },
    ],
    [
      'modelopt',
      { quant_method: 'modelopt', quant_algo: 'FP8' },
      { type: 'float8_e4m3', block: null },
    ],
    [
      'mxfp4 of the experts',
      { quant_method: 'mxfp4', modules_to_not_convert: ['model.layers.*.self_attn', 'lm_head'] },
      { type: 'float4_e2m1', block: [1, 32], tensors: 'mxfp4' },
    ],
    ['mxfp4 of compressed-tensors', float4, { block: [1, 32], tensors: 'packed' }],
    ['fbgemm_fp8', { quant_method: 'fbgemm_fp8' }, { type: 'float8_e4m3', block: null }],
    [
      'fp8 with static activations',
      { quant_method: 'fp8', activation_scheme: 'static' },
      { block: null },
    ],
  ])('%s', (_, given, scheme) => {
    expect(readQuantization(FILE, given)).toMatchObject({ schemes: [scheme] });
  });

  const scheme = { num_bits: 8, type: 'float', strategy: 'tensor', symmetric: true };
  it.each<[string, object, string | undefined]>([
    ['a kv_cache_scheme', { ...compressed, kv_cache_scheme: scheme }, 'float8_e4m3'],
    ['none', { ...compressed, kv_cache_scheme: null }, undefined],
    [
      "modelopt's algorithm",
      { quant_method: 'modelopt', quant_algo: 'FP8', kv_cache_quant_algo: 'FP8' },
      'float8_e4m3',
    ],
    [
      "modelopt's scheme",
      { quant_method: 'modelopt', quant_algo: 'FP8', kv_cache_scheme: scheme },
      'float8_e4m3',
    ],
  ])('of the KV cache, by %s', (_, given, cacheDtype) => {
    expect(readQuantization(FILE, given)?.cacheDtype).toBe(cacheDtype);
  });

  const withActivations = (input_activations: object | null) => ({
    ...fp8,
    config_groups: { group_0: { ...group, weights: float8, input_activations } },
  });
  const ofTokens = { num_bits: 8, symmetric: true, dynamic: true };
  it.each<[string, object, boolean]>([
    ['of weights alone (W8A16)', withActivations(null), false],
    ['with float8 activations', withActivations({ ...ofTokens, type: 'float' }), true],
    ['with int8 activations', withActivations({ ...ofTokens, type: 'int' }), false],
    ['of Qwen and DeepSeek', { quant_method: 'fp8', weight_block_size: [128, 128] }, true],
    ['of fbgemm_fp8', { quant_method: 'fbgemm_fp8' }, true],
    ['of modelopt', { quant_method: 'modelopt', quant_algo: 'FP8' }, true],
    ['in int4', { ...compressed }, false],
  ])('fp8 %s: products may round tokens: %s', (_, given, roundsInput) => {
    expect(readQuantization(FILE, given)?.schemes[0].roundsInput).toBe(roundsInput);
  });

  it('of several groups, in the order of names before classes', () => {
    const attention = { ...group, targets: ['re:.*self_attn.*'], weights: float8 };
    const mixed = {
      ...compressed,
      format: 'mixed-precision',
      config_groups: {
        group_0: { ...group, format: 'pack-quantized' },
        group_1: { ...attention, format: 'float-quantized' },
      },
    };
    const { schemes } = readQuantization(FILE, mixed) ?? { schemes: [] };
    expect(schemes.map(({ type }) => type)).toEqual(['float8_e4m3', 'uint4']);
    const matches = (name: string) =>
      schemes.map(({ targets }) => targets === null || matchesAny(targets, name));
    expect(matches('model.layers.0.self_attn.q_proj')).toEqual([true, true]);
    expect(matches('model.layers.0.mlp.up_proj')).toEqual([false, true]);
  });
});

it('patterns of published checkpoints are accepted', () => {
  const ignore = [
    'lm_head',
    're:.*lm_head',
    're:.*mlp.gate$',
    're:.*self_attn\\.(q|k|v|o)_proj$',
    're:model\\.layers\\.([0-9]|[1-4][0-9])\\.mlp\\.(gate|up|down)_proj',
    're:.*layers\\.(?:0|1|2|3|4|5|6|7|8|9)\\.mlp\\.shared_experts?\\..*',
  ];
  const quantization = readQuantization(FILE, { ...compressed, ignore });
  const matches = (name: string) => matchesAny(quantization?.ignore ?? [], name);
  expect(matches('model.layers.12.mlp.up_proj')).toBe(true);
  expect(matches('model.layers.3.mlp.shared_expert.up_proj')).toBe(true);
  expect(matches('model.layers.52.mlp.up_proj')).toBe(false);
});

describe('quantization_config is refused by name', () => {
  it.each<[object, string]>([
    [{ quant_method: 'bitsandbytes', load_in_4bit: true }, "quant_method 'bitsandbytes'"],
    [{ quant_method: 'gguf' }, "quant_method 'gguf'"],
    [{ quant_method: 'hqq' }, "quant_method 'hqq'"],
    [{ quant_method: 'auto-round' }, "quant_method 'auto-round'"],
    [{ quant_method: 'modelopt', quant_algo: 'NVFP4' }, "quant_algo 'NVFP4'"],
    [{ quant_method: 'modelopt', quant_algo: 'W4A8_AWQ' }, "quant_algo 'W4A8_AWQ'"],
    [
      { quant_method: 'modelopt', quant_algo: 'FP8', kv_cache_quant_algo: 'NVFP4' },
      "kv_cache_quant_algo 'NVFP4'",
    ],
    [{ ...awq, bits: 3 }, 'bits 3'],
    [{ ...awq, version: 'gemv' }, "version 'gemv'"],
    [{ ...awq, zero_point: false }, 'zero_point false'],
    [{ ...gptq, bits: 2 }, 'bits 2'],
    [{ ...gptq, bits: 8 }, 'bits 8'],
    [{ ...gptq, checkpoint_format: 'marlin' }, "checkpoint_format 'marlin'"],
    [{ ...gptq, is_marlin_format: true }, 'is_marlin_format true'],
    [{ ...gptq, dynamic: { '-:.*down.*': {} } }, 'dynamic {'],
    [{ ...gptq, group_size: 33 }, 'group_size 33'],
    [{ ...compressed, format: 'nvfp4-pack-quantized' }, "format 'nvfp4-pack-quantized'"],
    [withWeights(float4, { group_size: 16 }), 'weights of group_size 16'],
    [withWeights(float4, { strategy: 'channel' }), "weights of strategy 'channel'"],
    [withWeights(float4, { type: 'int' }), "weights of type 'int' and num_bits 4"],
    [withWeights(compressed, { type: 'float' }), "weights of type 'float' and num_bits 4"],
    [{ ...compressed, format: 'marlin-24' }, "format 'marlin-24'"],
    [{ ...compressed, quantization_status: 'frozen' }, "quantization_status 'frozen'"],
    [{ ...compressed, sparsity_config: { format: 'sparse-24-bitmask' } }, 'sparsity_config'],
    [{ ...compressed, transform_config: { config_groups: {} } }, 'transform_config'],
    ...[
      { num_bits: 4, type: 'int' },
      { num_bits: 8, type: 'int' },
      { num_bits: 8, type: 'float', strategy: 'attn_head' },
      { num_bits: 8, type: 'float', symmetric: false },
      { num_bits: 8, type: 'float', dynamic: true },
    ].map((scheme): [object, string] => [
      { ...compressed, kv_cache_scheme: scheme },
      'kv_cache_scheme',
    ]),
    [withWeights(compressed, { num_bits: 3 }), "type 'int' and num_bits 3"],
    [withWeights(compressed, { num_bits: 8 }), "type 'int' and num_bits 8"],
    [withWeights(compressed, { type: 'float' }), "type 'float' and num_bits 4"],
    [withWeights(compressed, { strategy: 'tensor' }), "strategy 'tensor'"],
    [withWeights(compressed, { strategy: 'tensor_group' }), "strategy 'tensor_group'"],
    [withWeights(compressed, { group_size: 0 }), 'group_size 0'],
    [withWeights(compressed, { actorder: 'other' }), "actorder 'other'"],
    [withWeights(fp8, { symmetric: false }), 'symmetric false'],
    [withWeights(fp8, { strategy: 'block' }), 'block_structure undefined'],
    [
      {
        ...compressed,
        config_groups: {
          group_0: { ...group, input_activations: { num_bits: 8, type: 'int', symmetric: false } },
        },
      },
      'input_activations of symmetric false',
    ],
    [
      {
        ...compressed,
        config_groups: { group_0: { ...group, output_activations: { num_bits: 8 } } },
      },
      'output_activations',
    ],
    [{ ...compressed, ignore: ['re:(a+)+b'] }, "'re:(a+)+b', which repeats a group"],
    [{ ...compressed, ignore: ['re:.*a.*b.*c.*d'] }, 'has more than 3 repetitions'],
    [{ ...compressed, ignore: ['re:' + '.?'.repeat(40) + '#'] }, 'in too many ways'],
    [{ ...compressed, ignore: ['re:' + '(.|.)'.repeat(40) + '#'] }, 'in too many ways'],
    [{ ...compressed, ignore: ['re:.*(a|.|[a-c]|d|e|f|g).*(h|i).*'] }, 'in too many ways'],
    [{ ...compressed, ignore: ['re:(?P<x>a)'] }, 'is not a regular expression'],
  ])('%j', (given, message) => {
    expect(() => readQuantization(FILE, given)).toThrow(UnsupportedModelError);
    expect(() => readQuantization(FILE, given)).toThrow(message);
  });

  it.each<[object, string]>([
    [{ ...compressed, config_groups: {} }, 'config_groups is {}'],
    [{ ...compressed, config_groups: { group_0: { ...group, targets: [] } } }, 'targets is []'],
    [{ ...compressed, ignore: 'lm_head' }, "ignore is 'lm_head'"],
    [{ ...gptq, desc_act: 'yes' }, "desc_act is 'yes'"],
    [{ ...awq, group_size: 1.5 }, 'group_size is 1.5'],
  ])('%j as wrong', (given, message) => {
    expect(() => readQuantization(FILE, given)).toThrow(CheckpointError);
    expect(() => readQuantization(FILE, given)).toThrow(message);
  });
});
