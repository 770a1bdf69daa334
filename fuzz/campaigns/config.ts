/** config.json and generation_config.json: refused by name, or valid values. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { parseGenerationConfig } from '../../lib/config/generationConfig';
import { decodeText, parseJsonObject } from '../../lib/config/jsonFile';
import { SamplingParams } from '../../lib/config/samplingParams';
import { parseTransformerConfig } from '../../lib/model/transformerConfig';
import type { TransformerConfig } from '../../lib/config/uniprocConfig';
import { unusableConstants } from '../../test/support/ropeTable';
import { type BytesTarget, type Campaign, expect } from '../campaign';
import { ROOT } from '../cases';
import { accepted } from './typed';

const FILE = '/checkpoint/config.json';
const GENERATION_FILE = '/checkpoint/generation_config.json';
const VOCAB_SIZE = 320;
/** MappedFile and the buffers count elements with 64 bits; JavaScript with 53. */
const MAX_SIZE = 2 ** 31;

const SMALL = {
  vocab_size: VOCAB_SIZE,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 512,
};

/** Configurations of each family, in the styles of transformers 4 and 5. */
const CONFIGS = [
  JSON.parse(readFileSync(path.join(ROOT, 'models', 'stories', 'config.json'), 'utf8')) as object,
  { architectures: ['LlamaForCausalLM'], ...SMALL },
  {
    architectures: ['LlamaForCausalLM'],
    ...SMALL,
    rope_theta: 500000,
    rope_scaling: {
      rope_type: 'llama3',
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 128,
    },
    eos_token_id: [1, 2],
    torch_dtype: 'bfloat16',
  },
  { architectures: ['MistralForCausalLM'], ...SMALL, sliding_window: 16, head_dim: 32 },
  {
    architectures: ['Qwen2ForCausalLM'],
    ...SMALL,
    use_sliding_window: true,
    sliding_window: 16,
    max_window_layers: 1,
    rope_scaling: { type: 'yarn', factor: 4, mscale: 1, mscale_all_dim: 0.5 },
  },
  {
    architectures: ['Qwen3ForCausalLM'],
    ...SMALL,
    head_dim: 16,
    layer_types: ['full_attention', 'full_attention'],
    rope_parameters: { rope_type: 'linear', factor: 2, rope_theta: 1e6 },
    dtype: 'float16',
    tie_word_embeddings: true,
  },
];

const WORDS = [
  'architectures', 'LlamaForCausalLM', 'MistralForCausalLM', 'Qwen2ForCausalLM', 'Qwen3ForCausalLM',
  'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
  'num_key_value_heads', 'head_dim', 'hidden_act', 'silu', 'gelu', 'max_position_embeddings',
  'rms_norm_eps', 'tie_word_embeddings', 'attention_bias', 'mlp_bias', 'rope_theta', 'rope_scaling',
  'rope_parameters', 'rope_type', 'type', 'default', 'linear', 'dynamic', 'yarn', 'llama3', 'longrope',
  'factor', 'attention_factor', 'beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim', 'truncate',
  'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings', 'partial_rotary_factor',
  'use_sliding_window', 'sliding_window', 'max_window_layers', 'layer_types', 'full_attention',
  'sliding_attention', 'bos_token_id', 'eos_token_id', 'dtype', 'torch_dtype', 'float32', 'float16',
  'bfloat16', 'quantization_config', 'quant_method', 'is_causal',
]; // prettier-ignore

function checkConfig({ spec, ...config }: TransformerConfig): void {
  const isCount = (n: number, least = 1) => Number.isSafeInteger(n) && n >= least && n <= MAX_SIZE;
  for (const name of [
    'vocabSize',
    'hiddenSize',
    'intermediateSize',
    'numLayers',
    'numHeads',
    'numKvHeads',
    'headDim',
  ] as const) {
    expect(isCount(spec[name]), () => `${name} is ${spec[name]}`);
  }
  expect(spec.numHeads % spec.numKvHeads === 0, 'heads are not divided among the groups');
  expect(spec.headDim % 2 === 0, 'rotary embedding of an odd size');
  expect(spec.slidingWindows.length === spec.numLayers, 'not a window for each layer');
  expect(
    spec.slidingWindows.every((window) => isCount(window, 0)),
    'a window that is none',
  );
  expect(isCount(config.maxPositionEmbeddings), () => `positions: ${config.maxPositionEmbeddings}`);
  // Used in float32: a non-finite value makes every logit NaN.
  const floats = [spec, ...spec.ropes, ...spec.ropes.map(({ scaling }) => scaling)];
  for (const [name, value] of floats.flatMap((each) => Object.entries(each))) {
    if (typeof value !== 'number') continue;
    expect(Number.isFinite(Math.fround(value)), () => `${name} is ${value}, not finite in float32`);
  }
  expect(Math.fround(spec.rmsNormEps) > 0, () => `eps is ${spec.rmsNormEps}`);
  const isLayerRope = (rope: number) => isCount(rope, -1) && rope < spec.ropes.length;
  expect(
    spec.layerRopes.length === spec.numLayers && spec.layerRopes.every(isLayerRope),
    'not a rotary embedding for each layer',
  );
  const wrong = spec.ropes.flatMap((rope) => unusableConstants(rope, config.maxPositionEmbeddings));
  expect(wrong.length === 0, () => `not usable in float32: ${wrong.slice(0, 3).join()}`);
  const ids = [...config.eosTokenIds, config.bosTokenId ?? 0];
  expect(
    ids.every((id) => isCount(id, 0) && id < spec.vocabSize),
    () => `token ids ${ids.join()}`,
  );
  for (const name of [
    'qkvBias',
    'outputBias',
    'mlpBias',
    'inputNorms',
    'outputNorms',
    'tieWordEmbeddings',
  ] as const) {
    expect(typeof spec[name] === 'boolean', () => `${name} is ${String(spec[name])}`);
  }
}

/** Parses the JSON object in these bytes. */
function objectOf(file: string, bytes: Buffer): Record<string, unknown> {
  return parseJsonObject(file, decodeText(file, bytes));
}

export const config: Campaign = {
  name: 'config',
  about: 'config.json: refused by name, or sizes and constants that can be computed with',
  open() {
    const counts = { accepted: 0 };
    const target: BytesTarget = {
      kind: 'bytes',
      counts,
      seeds: CONFIGS.map((json) => Buffer.from(JSON.stringify(json))),
      words: WORDS,
      jsonFrom: 0,
      check(bytes) {
        const parsed = accepted(FILE, () => parseTransformerConfig(FILE, objectOf(FILE, bytes)));
        if (parsed === null) return;
        counts.accepted++;
        checkConfig(parsed);
      },
    };
    return Promise.resolve(target);
  },
};

export const generationConfig: Campaign = {
  name: 'generation-config',
  about: 'generation_config.json: refused by name, or defaults that a request may have',
  open() {
    const counts = { accepted: 0 };
    const target: BytesTarget = {
      kind: 'bytes',
      counts,
      seeds: [
        { bos_token_id: 1, eos_token_id: [2, 3], do_sample: true, temperature: 0.6, top_p: 0.9 },
        { eos_token_id: 2, top_k: 20, min_p: 0.05, repetition_penalty: 1.1, max_new_tokens: 64 },
        { temperature: null, top_k: -1, top_p: 1, transformers_version: '5.0.0' },
      ].map((json) => Buffer.from(JSON.stringify(json))),
      words: [
        'eos_token_id', 'bos_token_id', 'temperature', 'top_p', 'top_k', 'min_p', 'repetition_penalty',
        'max_new_tokens', 'max_length', 'do_sample',
      ], // prettier-ignore
      jsonFrom: 0,
      check(bytes) {
        const parsed = accepted(GENERATION_FILE, () =>
          parseGenerationConfig(GENERATION_FILE, objectOf(GENERATION_FILE, bytes), VOCAB_SIZE),
        );
        if (parsed === null) return;
        counts.accepted++;
        const { defaults, eosTokenIds } = parsed;
        expect(
          (eosTokenIds ?? []).every((id) => Number.isInteger(id) && id >= 0 && id < VOCAB_SIZE),
          'an end of sequence outside the vocabulary',
        );
        // A default out of range must be refused as an error of the file.
        SamplingParams.fromDefaults(defaults);
      },
    };
    return Promise.resolve(target);
  },
};
