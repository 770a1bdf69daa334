/** The language model of multimodal checkpoints. */
import path from 'node:path';
import { LLM } from '../../lib';
import { CheckpointError, UnsupportedModelError } from '../../lib/errors';
import { languageModelOf } from '../../lib/model/languageModel';
import { readTensorTable } from '../../lib/model/safetensors';
import { parseTransformerConfig } from '../../lib/model/transformerConfig';
import { folderWith } from '../support/folder';
import { fileOf } from '../worker/safetensors';

const FILE = '/checkpoint/config.json';

/** config.json of mistralai/Mistral-Small-3.1-24B-Instruct-2503. */
const MISTRAL_SMALL = {
  architectures: ['Mistral3ForConditionalGeneration'],
  image_token_index: 10,
  model_type: 'mistral3',
  multimodal_projector_bias: false,
  projector_hidden_act: 'gelu',
  spatial_merge_size: 2,
  text_config: {
    attention_dropout: 0.0,
    head_dim: 128,
    hidden_act: 'silu',
    hidden_size: 5120,
    initializer_range: 0.02,
    intermediate_size: 32768,
    max_position_embeddings: 131072,
    model_type: 'mistral',
    num_attention_heads: 32,
    num_hidden_layers: 40,
    num_key_value_heads: 8,
    rms_norm_eps: 1e-5,
    rope_theta: 1000000000.0,
    sliding_window: null,
    use_cache: true,
    vocab_size: 131072,
  },
  torch_dtype: 'bfloat16',
  transformers_version: '4.50.0.dev0',
  vision_config: {
    attention_dropout: 0.0,
    head_dim: 64,
    hidden_act: 'gelu',
    hidden_size: 1024,
    image_size: 1540,
    intermediate_size: 4096,
    model_type: 'pixtral',
    num_attention_heads: 16,
    num_channels: 3,
    num_hidden_layers: 24,
    patch_size: 14,
    rope_theta: 10000.0,
  },
  vision_feature_layer: -1,
};

const parse = (changes: object, languageModelOnly = true) =>
  parseTransformerConfig(FILE, { ...MISTRAL_SMALL, ...changes }, languageModelOnly);

describe('config.json of a multimodal model', () => {
  it('is that of its language model with languageModelOnly', () => {
    const { architecture, multimodal, dtype, maxPositionEmbeddings, spec } = parse({});
    expect({ architecture, multimodal, dtype, maxPositionEmbeddings }).toEqual({
      architecture: 'MistralForCausalLM',
      multimodal: 'Mistral3ForConditionalGeneration',
      dtype: 'bfloat16',
      maxPositionEmbeddings: 131072,
    });
    expect(spec).toMatchObject({
      hiddenSize: 5120,
      numLayers: 40,
      headDim: 128,
      ropes: [{ theta: 1e9, rotaryDim: 128 }],
      tieWordEmbeddings: false,
    });
  });

  it('of Gemma 3 4B leaves most keys to the defaults', () => {
    // config.json of google/gemma-3-4b-it, without its vision_config.
    const gemma = {
      architectures: ['Gemma3ForConditionalGeneration'],
      boi_token_index: 255999,
      eoi_token_index: 256000,
      eos_token_id: [1, 106],
      image_token_index: 262144,
      initializer_range: 0.02,
      mm_tokens_per_image: 256,
      model_type: 'gemma3',
      text_config: {
        hidden_size: 2560,
        intermediate_size: 10240,
        model_type: 'gemma3_text',
        num_hidden_layers: 34,
        rope_scaling: { factor: 8.0, rope_type: 'linear' },
        sliding_window: 1024,
      },
      torch_dtype: 'bfloat16',
      transformers_version: '4.50.0.dev0',
    };
    const config = parseTransformerConfig(FILE, gemma, true);
    expect(config).toMatchObject({
      architecture: 'Gemma3ForCausalLM',
      dtype: 'bfloat16',
      eosTokenIds: [1, 106],
      maxPositionEmbeddings: 131072,
    });
    expect(config.spec).toMatchObject({
      numHeads: 8,
      numKvHeads: 4,
      headDim: 256,
      vocabSize: 262208,
      ropes: [
        { theta: 1000000, scaling: { type: 'linear', factor: 8 } },
        { theta: 10000, scaling: { type: 'default' } },
      ],
    });
    expect(config.spec.layerRopes.slice(0, 7)).toEqual([1, 1, 1, 1, 1, 0, 1]);
  });

  it('is refused without languageModelOnly, and the option is named', () => {
    expect(() => parse({}, false)).toThrow(UnsupportedModelError);
    expect(() => parse({}, false)).toThrow(
      /Mistral3ForConditionalGeneration takes images.*languageModelOnly/,
    );
  });

  it('is found by model_type without architectures', () => {
    expect(parse({ architectures: undefined }).multimodal).toBe('Mistral3ForConditionalGeneration');
  });

  it('ties embeddings as the whole model says', () => {
    expect(parse({ tie_word_embeddings: true }).spec.tieWordEmbeddings).toBe(true);
  });

  it.each<[object, RegExp]>([
    [{ text_config: null }, /text_config is null/],
    [{ text_config: [] }, /text_config is \[\]/],
    [{ text_config: { ...MISTRAL_SMALL.text_config, vocab_size: 0 } }, /vocab_size is 0/],
  ])('with %j is refused by name', (changes, message) => {
    expect(() => parse(changes)).toThrow(CheckpointError);
    expect(() => parse(changes)).toThrow(message);
  });

  it.each<[object, RegExp]>([
    [{ model_type: 'llava' }, /model_type 'llava'/],
    [{ quantization_config: { quant_method: 'hqq' } }, /'hqq'/],
    [{ text_config: { ...MISTRAL_SMALL.text_config, model_type: 'mamba' } }, /model_type 'mamba'/],
    [
      { text_config: { ...MISTRAL_SMALL.text_config, attn_logit_softcapping: 30 } },
      /attn_logit_softcapping 30/,
    ],
  ])('with %j is not supported', (changes, message) => {
    expect(() => parse(changes)).toThrow(UnsupportedModelError);
    expect(() => parse(changes)).toThrow(message);
  });
});

describe('the tensors of a language model', () => {
  const F32 = { dtype: 'F32', shape: [2] };

  it.each<[string, string[]]>([
    [
      'as published',
      [
        'language_model.model.layers.0.mlp.up_proj.weight',
        'language_model.lm_head.weight',
        'vision_tower.a.weight',
        'vision_tower.b.weight',
        'multi_modal_projector.norm.weight',
      ],
    ],
    [
      'of transformers 5',
      [
        'model.language_model.layers.0.mlp.up_proj.weight',
        'lm_head.weight',
        'model.vision_tower.a.weight',
        'model.vision_tower.b.weight',
        'model.multi_modal_projector.norm.weight',
      ],
    ],
  ])('have the names of a text model, %s', async (_, names) => {
    const file = fileOf(Object.fromEntries(names.map((name) => [name, F32])));
    const whole = await readTensorTable(await folderWith({ 'model.safetensors': file }));
    const { table, leftOut } = await languageModelOf(whole);
    expect([...table.tensors.keys()].sort()).toEqual([
      'lm_head.weight',
      'model.layers.0.mlp.up_proj.weight',
    ]);
    expect([...leftOut].map(([name, count]) => [name.replace('model.', ''), count]).sort()).toEqual(
      [
        ['multi_modal_projector', 1],
        ['vision_tower', 2],
      ],
    );
  });
});

describe('LLM.create', () => {
  const model = path.join(__dirname, '..', 'golden', 'checkpoints', 'mistral3');
  const args = { model, skipTokenizerInit: true, kvCacheMemoryBytes: 2 ** 22 };

  it('refuses a multimodal model', async () => {
    await expect(LLM.create(args)).rejects.toThrow(UnsupportedModelError);
  });

  it('with languageModelOnly warns of what is left out', async () => {
    const emitWarning = jest.spyOn(process, 'emitWarning').mockImplementation(() => {});
    const llm = await LLM.create({ ...args, languageModelOnly: true });
    await llm.shutdown();
    expect(emitWarning.mock.calls).toEqual([
      [
        expect.stringContaining(
          'the language model of Mistral3ForConditionalGeneration is loaded alone; ' +
            'left out: multi_modal_projector (1 tensors), vision_tower (1 tensors)',
        ),
        { type: 'CheckpointWarning', code: 'UNIPROC_LANGUAGE_MODEL_ONLY' },
      ],
    ]);
    emitWarning.mockRestore();
  });
});
