import { readdirSync } from 'node:fs';
import path from 'node:path';
import { readTransformerConfig } from '../../lib/config/transformerConfig';
import type { TransformerSpec } from '../../lib/config/uniprocConfig';
import { CheckpointError } from '../../lib/errors';
import { readTensorTable, type TensorTable } from '../../lib/worker/checkpoint';
import { weightParts } from '../../lib/worker/weights';
import { folderWith } from '../support/folder';
import { fileOf } from './safetensors';

const GOLDEN = path.join(__dirname, '..', 'golden', 'checkpoints');

/** Two query heads, one key head; every dimension its own size. */
const SPEC: TransformerSpec = {
  vocabSize: 11,
  hiddenSize: 6,
  intermediateSize: 10,
  numLayers: 1,
  numHeads: 2,
  numKvHeads: 1,
  headDim: 4,
  rmsNormEps: 1e-6,
  ropeTheta: 10000,
  ropeScaling: { type: 'default' },
  slidingWindows: [0],
  qkvBias: false,
  outputBias: false,
  mlpBias: false,
  qkNorm: false,
  tieWordEmbeddings: false,
};

type Shapes = Record<string, number[]>;

const LAYER = 'model.layers.0';
const SHAPES: Shapes = {
  'model.embed_tokens.weight': [11, 6],
  [`${LAYER}.input_layernorm.weight`]: [6],
  [`${LAYER}.self_attn.q_proj.weight`]: [8, 6],
  [`${LAYER}.self_attn.k_proj.weight`]: [4, 6],
  [`${LAYER}.self_attn.v_proj.weight`]: [4, 6],
  [`${LAYER}.self_attn.o_proj.weight`]: [6, 8],
  [`${LAYER}.post_attention_layernorm.weight`]: [6],
  [`${LAYER}.mlp.gate_proj.weight`]: [10, 6],
  [`${LAYER}.mlp.up_proj.weight`]: [10, 6],
  [`${LAYER}.mlp.down_proj.weight`]: [6, 10],
  'model.norm.weight': [6],
  'lm_head.weight': [11, 6],
};
const SWITCHED: Shapes = {
  [`${LAYER}.self_attn.q_proj.bias`]: [8],
  [`${LAYER}.self_attn.k_proj.bias`]: [4],
  [`${LAYER}.self_attn.v_proj.bias`]: [4],
  [`${LAYER}.self_attn.q_norm.weight`]: [4],
  [`${LAYER}.self_attn.k_norm.weight`]: [4],
  [`${LAYER}.self_attn.o_proj.bias`]: [6],
  [`${LAYER}.mlp.gate_proj.bias`]: [10],
  [`${LAYER}.mlp.up_proj.bias`]: [10],
  [`${LAYER}.mlp.down_proj.bias`]: [6],
};

/** All the tensors but one. */
function without(name: string): Shapes {
  return Object.fromEntries(Object.entries(SHAPES).filter(([each]) => each !== name));
}

/** A checkpoint of these tensors; float32 where `dtypes` says nothing else. */
async function table(shapes: Shapes, dtypes: Record<string, string> = {}): Promise<TensorTable> {
  const tensors = Object.entries(shapes).map(([name, shape]) => [
    name,
    { dtype: dtypes[name] ?? 'F32', shape },
  ]);
  const file = fileOf(Object.fromEntries(tensors) as Parameters<typeof fileOf>[0]);
  return readTensorTable(await folderWith({ 'model.safetensors': file }));
}

function complaint(spec: TransformerSpec, tensors: TensorTable): string {
  try {
    weightParts(spec, tensors);
  } catch (error) {
    expect(error).toBeInstanceOf(CheckpointError);
    expect(error).toHaveProperty('code', 'CHECKPOINT_INVALID');
    expect((error as Error).message).toContain(tensors.files[0]);
    return (error as Error).message;
  }
  throw new Error('no error was thrown');
}

/** 'weight@layer: rows x cols at rowOffset' of each part. */
function layout(spec: TransformerSpec, tensors: TensorTable): string[] {
  return weightParts(spec, tensors).parts.map(
    ({ weight, layer, rows, cols, rowOffset }) =>
      `${weight}@${layer}: ${rows} x ${cols} at ${rowOffset}`,
  );
}

describe('weightParts', () => {
  it('lays q, k and v, and gate and up, one below the other', async () => {
    expect(layout(SPEC, await table(SHAPES))).toEqual([
      'embedTokens@0: 11 x 6 at 0',
      'inputNorm@0: 6 x 1 at 0',
      'qkv@0: 8 x 6 at 0',
      'qkv@0: 4 x 6 at 8',
      'qkv@0: 4 x 6 at 12',
      'o@0: 6 x 8 at 0',
      'postAttentionNorm@0: 6 x 1 at 0',
      'gateUp@0: 10 x 6 at 0',
      'gateUp@0: 10 x 6 at 10',
      'down@0: 6 x 10 at 0',
      'norm@0: 6 x 1 at 0',
      'lmHead@0: 11 x 6 at 0',
    ]);
  });

  it('finds biases and head norms where the model has them', async () => {
    const spec = { ...SPEC, qkvBias: true, outputBias: true, mlpBias: true, qkNorm: true };
    const parts = layout(spec, await table({ ...SHAPES, ...SWITCHED }));
    expect(parts).toHaveLength(21);
    expect(parts).toEqual(
      expect.arrayContaining([
        'qkvBias@0: 8 x 1 at 0',
        'qkvBias@0: 4 x 1 at 8',
        'qkvBias@0: 4 x 1 at 12',
        'qNorm@0: 4 x 1 at 0',
        'kNorm@0: 4 x 1 at 0',
        'oBias@0: 6 x 1 at 0',
        'gateUpBias@0: 10 x 1 at 0',
        'gateUpBias@0: 10 x 1 at 10',
        'downBias@0: 6 x 1 at 0',
      ]),
    );
  });

  it('says where in which file each part is, in the type it is stored in', async () => {
    const tensors = await table(SHAPES, { 'model.norm.weight': 'BF16', 'lm_head.weight': 'F16' });
    const { files, parts, totalBytes } = weightParts(SPEC, tensors);
    expect(files).toEqual(tensors.files);
    const entry = tensors.tensors.get('model.norm.weight');
    expect(parts.find(({ weight }) => weight === 'norm')).toEqual({
      weight: 'norm',
      layer: 0,
      rowOffset: 0,
      file: 0,
      offset: entry?.offset,
      rows: 6,
      cols: 1,
      rowStride: 1,
      dtype: 'bfloat16',
    });
    expect(parts.find(({ weight }) => weight === 'lmHead')?.dtype).toBe('float16');
    expect(parts[0].dtype).toBe('float32');
    const elements = Object.values(SHAPES).map((shape) => shape.reduce((a, b) => a * b));
    expect(totalBytes).toBe(4 * elements.reduce((a, b) => a + b) - 2 * 6 - 2 * 66);
  });

  it('needs no lm_head with tied embeddings, and leaves alone one that is there', async () => {
    const spec = { ...SPEC, tieWordEmbeddings: true };
    const tied = layout(spec, await table(without('lm_head.weight')));
    expect(tied).toHaveLength(11);
    expect(layout(spec, await table(SHAPES))).toEqual(tied);
  });

  it('leaves alone tensors that no layer knows', async () => {
    const extra = { [`${LAYER}.self_attn.rotary_emb.inv_freq`]: [2], 'vision.patch': [3, 3] };
    expect(layout(SPEC, await table({ ...SHAPES, ...extra }))).toEqual(
      layout(SPEC, await table(SHAPES)),
    );
  });

  it.each(Object.keys(SHAPES))('refuses a checkpoint without %s', async (name) => {
    expect(complaint(SPEC, await table(without(name)))).toContain(`tensor ${name} is missing`);
  });

  it('says what lm_head is missing for', async () => {
    expect(complaint(SPEC, await table(without('lm_head.weight')))).toContain(
      'tie_word_embeddings',
    );
  });

  it.each(Object.keys(SHAPES))('refuses another shape of %s', async (name) => {
    const wrong = [...SHAPES[name]];
    wrong[wrong.length - 1]++;
    const message = complaint(SPEC, await table({ ...SHAPES, [name]: wrong }));
    expect(message).toContain(
      `tensor ${name} has the shape [ ${wrong.join(', ')} ], but by config.json it is [ ${SHAPES[name].join(', ')} ]`,
    );
  });

  it('names what in config.json contradicts the weights', async () => {
    const tensors = await table(SHAPES);
    expect(complaint({ ...SPEC, vocabSize: 12 }, tensors)).toContain(
      'vocab_size 12, hidden_size 6',
    );
    expect(complaint({ ...SPEC, hiddenSize: 7 }, tensors)).toContain(
      'vocab_size 11, hidden_size 7',
    );
    expect(complaint({ ...SPEC, numHeads: 3 }, tensors)).toContain(
      'num_attention_heads * head_dim 12, hidden_size 6',
    );
    expect(complaint({ ...SPEC, numLayers: 2 }, tensors)).toContain(
      'tensor model.layers.1.input_layernorm.weight is missing',
    );
  });

  it('refuses a tensor with a dimension more', async () => {
    const message = complaint(SPEC, await table({ ...SHAPES, 'model.norm.weight': [6, 1] }));
    expect(message).toContain('tensor model.norm.weight has the shape [ 6, 1 ]');
  });

  it('refuses a type that weights cannot have', async () => {
    const message = complaint(SPEC, await table(SHAPES, { 'model.norm.weight': 'F64' }));
    expect(message).toContain('tensor model.norm.weight has the dtype F64');
  });

  it('lets a tensor that is not used have any type', async () => {
    const tensors = await table({ ...SHAPES, extra: [3] }, { extra: 'U8' });
    expect(weightParts(SPEC, tensors).parts).toHaveLength(12);
  });

  it.each([
    ...Object.keys(SWITCHED),
    'model.layers.1.input_layernorm.weight',
    'model.layers.1.self_attn.q_proj.weight',
    'model.layers.1.mlp.down_proj.weight',
  ])('refuses %s, which the model of config.json has no place for', async (name) => {
    const shape = SWITCHED[name] ?? [6];
    const message = complaint(SPEC, await table({ ...SHAPES, [name]: shape }));
    expect(message).toContain(`tensor ${name} has no place in the model`);
  });

  // Written by transformers: each of their tensors is a weight of the model.
  it.each(readdirSync(GOLDEN))('uses every tensor of the golden checkpoint %s', async (name) => {
    const folder = path.join(GOLDEN, name);
    const { spec } = await readTransformerConfig(folder);
    const tensors = await readTensorTable(folder);
    const { parts } = weightParts(spec, tensors);
    const used = parts.map(({ file, offset }) => `${file}:${offset}`);
    const all = [...tensors.tensors.values()].map(({ file, offset }) => `${file}:${offset}`);
    expect(used.sort()).toEqual(all.sort());
  });
});
