import { readFileSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { readTransformerConfig } from '../../lib/model/transformerConfig';
import type { TransformerConfig } from '../../lib/config/uniprocConfig';
import type { RopeSpec } from '../../lib/native';
import { folderWith } from '../support/folder';
import { ropeFrequency } from '../support/ropeTable';
import { LLAMA, rejection } from './checkpointFolder';

/** Recorded from Hugging Face transformers by make_expected.py. */
interface Expected {
  name: string;
  config: { architectures: string[] };
  expected: {
    spec: Omit<TransformerConfig['spec'], 'ropes' | 'layerRopes'> & {
      layerRopes: ((RopeSpec & { inverseFrequencies: number[] | null }) | null)[];
    };
    dtype: string | null;
    bosTokenId: number | null;
    eosTokenIds: number[];
  };
}
const EXPECTED = JSON.parse(
  readFileSync(path.join(__dirname, 'expected.json'), 'utf8'),
) as Expected[];

const read = async (config: unknown) =>
  readTransformerConfig(await folderWith({ 'config.json': config }));

async function complaint(config: unknown) {
  const folder = await folderWith({ 'config.json': config });
  const error = await rejection(readTransformerConfig(folder));
  expect(error).toHaveProperty('file', path.join(folder, 'config.json'));
  expect(error.message).toContain(path.join(folder, 'config.json'));
  return error;
}

describe('readTransformerConfig', () => {
  describe('reads the same values as transformers', () => {
    it.each(EXPECTED.map((each) => [each.name, each] as const))(
      '%s',
      async (_, { config, expected: { spec, ...rest } }) => {
        const transformer = await read(config);
        expect(transformer).toMatchObject({ ...rest, architecture: config.architectures[0] });
        const { ropes, layerRopes, attentionScale, logitScale, ...others } = transformer.spec;
        const {
          layerRopes: expectedRopes,
          attentionScale: expectedScale,
          logitScale: expectedLogitScale,
          ...expected
        } = spec;
        expect(others).toEqual({ ...expected, poolsLastToken: false });
        expect(attentionScale).toBeCloseTo(expectedScale, 7);
        expect(logitScale).toBeCloseTo(expectedLogitScale, 7);
        expect(layerRopes).toHaveLength(expectedRopes.length);
        layerRopes.forEach((index, layer) => {
          const expectedRope = expectedRopes[layer];
          expect(index < 0).toBe(expectedRope === null);
          if (expectedRope === null) return;
          const { inverseFrequencies, ...parameters } = expectedRope;
          expect(ropes[index]).toMatchObject(parameters);
          inverseFrequencies?.forEach((frequency, i) => {
            const ours = ropeFrequency(ropes[index], transformer.maxPositionEmbeddings, i);
            expect(Math.abs(ours - frequency)).toBeLessThanOrEqual(5e-6 * frequency);
          });
        });
      },
    );
  });

  describe('derives the maximum positions from', () => {
    it.each([
      ['max_position_embeddings', {}, 512],
      [
        'the same with llama3, whose scaling is in it',
        { rope_type: 'llama3', factor: 8, low_freq_factor: 1, high_freq_factor: 4 },
        512,
      ],
      ['the stretched ones with linear', { type: 'linear', factor: 4 }, 2048],
      ['no more than 32 bits count', { type: 'linear', factor: 1e9 }, 2 ** 31 - 1],
      ['no more with yarn either', { type: 'yarn', factor: 1e9 }, 2 ** 31 - 1],
      [
        'the stretched ones with yarn',
        { type: 'yarn', factor: 8, original_max_position_embeddings: 128 },
        1024,
      ],
      [
        'max_position_embeddings with yarn, where they are stretched already',
        { type: 'yarn', factor: 4, original_max_position_embeddings: 128 },
        512,
      ],
    ])('%s', async (_, rope, maxPositionEmbeddings) => {
      expect(await read({ ...LLAMA, rope_scaling: rope })).toMatchObject({ maxPositionEmbeddings });
    });
  });

  it('chooses the first supported architecture', async () => {
    const config = { ...LLAMA, architectures: ['Unheard', 'MistralForCausalLM'] };
    expect((await read(config)).architecture).toBe('MistralForCausalLM');
  });

  it('chooses the architecture by model_type if there is none', async () => {
    const config = { ...LLAMA, architectures: undefined, model_type: 'qwen3' };
    expect((await read(config)).architecture).toBe('Qwen3ForCausalLM');
  });

  it('reports a missing folder', async () => {
    const folder = path.join(await folderWith({}), 'no', 'such');
    const error = await rejection(readTransformerConfig(folder));
    expect(error.code).toBe('CHECKPOINT_INVALID');
    expect(error.message).toContain(`the folder ${folder} does not exist`);
  });

  it('reports a missing file', async () => {
    const folder = await folderWith({});
    const error = await rejection(readTransformerConfig(folder));
    expect(error.code).toBe('CHECKPOINT_INVALID');
    expect(error.message).toBe(`${path.join(folder, 'config.json')}: the file is missing`);
  });

  it('reports that the file is a folder', async () => {
    const folder = await folderWith({});
    await mkdir(path.join(folder, 'config.json'));
    const error = await rejection(readTransformerConfig(folder));
    expect(error.code).toBe('CHECKPOINT_INVALID');
    expect(error.message).toContain('EISDIR');
  });

  it.each([
    ['{"a": x}', "unexpected 'x' at line 1, column 7 (position 6)"],
    ['{\n  "a": 1,\n  "b" 2\n}', "unexpected '2' at line 3, column 7 (position 18)"],
    ['{"a": [1, 2', 'it ends at line 1, column 12 (position 11)'],
    ['{"a": "text', "unexpected '\"' at line 1, column 7 (position 6)"],
    ['{"a": 1} {', "unexpected '{' at line 1, column 10 (position 9)"],
    ['', 'it ends at line 1, column 1 (position 0)'],
    ['['.repeat(100000), 'not JSON'],
  ])('gives the position where %j is not JSON', async (text, place) => {
    const error = await complaint(text);
    expect(error.code).toBe('CHECKPOINT_INVALID');
    expect(error.message).toContain('not JSON');
    expect(error.message).toContain(place);
  });

  it.each([['[]'], ['7'], ['null'], ['"text"']])(
    'refuses %s in place of an object',
    async (text) => {
      const error = await complaint(text);
      expect(error.code).toBe('CHECKPOINT_INVALID');
      expect(error.message).toContain('must hold a JSON object');
    },
  );

  describe('refuses unsupported values by key', () => {
    it.each([
      ['an architecture', { architectures: ['GPT2LMHeadModel'] }, 'GPT2LMHeadModel'],
      ['an architecture', { architectures: ['GPT2LMHeadModel'] }, 'LlamaForCausalLM, Llama4'],
      ['quantized weights', { quantization_config: { quant_method: 'hqq' } }, "'hqq'"],
      ['quantized weights of no method', { quantization_config: {} }, 'quant_method undefined'],
      ['an activation', { hidden_act: 'relu2' }, "hidden_act 'relu2'"],
      ['a rope type', { rope_scaling: { type: 'xdrope', alpha: 2 } }, "'xdrope'"],
      [
        'a rope for each kind of layer',
        { rope_parameters: { full_attention: { rope_type: 'default' } } },
        'full_attention',
      ],
      [
        'a kind of layer',
        {
          architectures: ['Qwen2ForCausalLM'],
          layer_types: ['linear_attention', 'full_attention'],
        },
        "layer_types[0] is 'linear_attention'",
      ],
    ])('%s: %j', async (_, keys, message) => {
      const error = await complaint({ ...LLAMA, ...keys });
      expect(error.code).toBe('MODEL_UNSUPPORTED');
      expect(error.message).toContain(message);
    });
  });

  describe('refuses invalid values', () => {
    it.each([
      [{ architectures: undefined }, 'architectures is undefined'],
      [{ architectures: 'LlamaForCausalLM' }, "architectures is 'LlamaForCausalLM'"],
      [{ architectures: [7] }, 'architectures is [ 7 ]'],
      [{ vocab_size: '320' }, "vocab_size is '320'; it must be an integer from 1 to 16777216"],
      [{ vocab_size: 0 }, 'vocab_size is 0'],
      [{ hidden_size: -64 }, 'hidden_size is -64'],
      [{ hidden_size: 64.5 }, 'hidden_size is 64.5'],
      [{ hidden_size: 1e300 }, 'hidden_size is 1e+300'],
      [{ hidden_size: null }, 'hidden_size is null'],
      [{ intermediate_size: [96] }, 'intermediate_size is [ 96 ]'],
      [{ num_hidden_layers: 0 }, 'num_hidden_layers is 0'],
      [{ num_hidden_layers: 1e9 }, 'num_hidden_layers is 1000000000'],
      [{ num_attention_heads: true }, 'num_attention_heads is true'],
      [{ num_key_value_heads: 0 }, 'num_key_value_heads is 0'],
      [{ head_dim: 16.5 }, 'head_dim is 16.5'],
      [{ max_position_embeddings: -1 }, 'max_position_embeddings is -1'],
      [{ rms_norm_eps: 0 }, 'rms_norm_eps is 0'],
      [
        { rms_norm_eps: 1e-46 },
        'rms_norm_eps is 1e-46; it must be a number above 0, within float32',
      ],
      [{ rms_norm_eps: '1e-5' }, "rms_norm_eps is '1e-5'"],
      [{ tie_word_embeddings: 'no' }, "tie_word_embeddings is 'no'"],
      [{ attention_bias: 1 }, 'attention_bias is 1'],
      [{ rope_theta: -10000 }, 'rope_theta is -10000'],
      [{ rope_theta: 1e39 }, 'rope_theta is 1e+39; it must be a number above 0, within float32'],
      [{ rope_scaling: { type: 'linear', factor: 1e300 } }, 'rope_scaling: factor is 1e+300'],
      [{ rope_scaling: 'linear' }, "rope_scaling is 'linear'"],
      [{ rope_scaling: { type: 7 } }, 'rope_scaling: type is 7'],
      [{ rope_scaling: { type: 'linear' } }, 'rope_scaling: factor is undefined'],
      [{ rope_scaling: { type: 'linear', factor: 0 } }, 'rope_scaling: factor is 0'],
      [{ rope_scaling: { type: 'yarn' } }, 'rope_scaling: factor is missing'],
      [
        { rope_parameters: { rope_type: 'llama3', factor: 8, high_freq_factor: 4 } },
        'rope_parameters: low_freq_factor is undefined',
      ],
      [{ dtype: 'int8' }, "dtype is 'int8'; it must be 'float32', 'float16', 'bfloat16' or null"],
      [{ torch_dtype: 'float64' }, "torch_dtype is 'float64'"],
      [{ eos_token_id: 2.5 }, 'eos_token_id is 2.5'],
      [{ eos_token_id: [1, '2'] }, "eos_token_id is [ 1, '2' ]; it must be a token id"],
      [{ bos_token_id: [1] }, 'bos_token_id is [ 1 ]'],
    ])('%j', async (keys, message) => {
      const error = await complaint({ ...LLAMA, ...keys });
      expect(error.code).toBe('CHECKPOINT_INVALID');
      expect(error.message).toContain(message);
    });

    it.each([
      [{ sliding_window: 0 }, 'sliding_window is 0'],
      [{ sliding_window: '4096' }, "sliding_window is '4096'"],
      [{ max_window_layers: -1 }, 'max_window_layers is -1'],
      [{ layer_types: 'full_attention' }, "layer_types is 'full_attention'"],
    ])('%j of Qwen', async (keys, message) => {
      const error = await complaint({ ...LLAMA, architectures: ['Qwen2ForCausalLM'], ...keys });
      expect(error.code).toBe('CHECKPOINT_INVALID');
      expect(error.message).toContain(message);
    });
  });

  describe('refuses values that contradict each other', () => {
    it.each([
      [
        { num_attention_heads: 4, num_key_value_heads: 3 },
        'num_attention_heads is 4; it must be a multiple of num_key_value_heads, 3',
      ],
      [
        { num_attention_heads: 5, num_key_value_heads: 5 },
        'hidden_size is 64; without head_dim it must be a multiple of num_attention_heads, 5',
      ],
      [{ head_dim: 15 }, 'head_dim is 15; rotary embedding needs an even number'],
      [{ eos_token_id: [2, 320] }, 'eos_token_id is 320; it must be below vocab_size, 320'],
      [{ bos_token_id: 999 }, 'bos_token_id is 999; it must be below vocab_size, 320'],
      [
        { rope_scaling: { type: 'llama3', factor: 8, low_freq_factor: 4, high_freq_factor: 1 } },
        'high_freq_factor is 1; it must be at least low_freq_factor, 4',
      ],
      [
        { architectures: ['Qwen3ForCausalLM'], layer_types: ['full_attention'] },
        'layer_types has 1 entries, but num_hidden_layers is 2',
      ],
      [
        {
          architectures: ['Qwen3ForCausalLM'],
          sliding_window: 16,
          layer_types: ['full_attention', 'sliding_attention'],
        },
        "layer_types[1] is 'sliding_attention', but use_sliding_window is false",
      ],
    ])('%j', async (keys, message) => {
      const error = await complaint({ ...LLAMA, ...keys });
      expect(error.code).toBe('CHECKPOINT_INVALID');
      expect(error.message).toContain(message);
    });
  });
});
