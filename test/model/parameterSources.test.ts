import { readdirSync } from 'node:fs';
import path from 'node:path';
import { CheckpointError } from '../../lib/errors';
import { readTensorTable, type TensorTable } from '../../lib/model/safetensors';
import { llama } from '../../lib/model/families/llama';
import { parameterSources } from '../../lib/model/parameterSources';
import { type ModelSpec, native } from '../../lib/native';
import { folderWith } from '../support/folder';
import { readModel } from '../support/modelSpec';
import { plainSpec } from '../support/plainSpec';
import { fileOf } from '../worker/safetensors';

const GOLDEN = path.join(__dirname, '..', 'golden', 'checkpoints');

/** Two query heads, one key head; all dimensions differ. */
const SPEC: ModelSpec = {
  dtype: 'float32',
  vocabSize: 11,
  hiddenSize: 6,
  intermediateSize: 10,
  numLayers: 1,
  numHeads: 2,
  numKvHeads: 1,
  headDim: 4,
  rmsNormEps: 1e-6,
  ...plainSpec(1, 4),
  tieWordEmbeddings: false,
  weightFormats: {},
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

/** All tensors except one. */
function without(name: string): Shapes {
  return Object.fromEntries(Object.entries(SHAPES).filter(([each]) => each !== name));
}

/** A checkpoint of these tensors, float32 unless in `dtypes`. */
async function table(shapes: Shapes, dtypes: Record<string, string> = {}): Promise<TensorTable> {
  const tensors = Object.entries(shapes).map(([name, shape]) => [
    name,
    { dtype: dtypes[name] ?? 'F32', shape },
  ]);
  const file = fileOf(Object.fromEntries(tensors) as Parameters<typeof fileOf>[0]);
  return readTensorTable(await folderWith({ 'model.safetensors': file }));
}

const declare = (spec: ModelSpec) => native().declareParameters(spec, 0, 1);

async function complaint(spec: ModelSpec, tensors: TensorTable): Promise<string> {
  try {
    await parameterSources(declare(spec), spec, llama, tensors);
  } catch (error) {
    expect(error).toBeInstanceOf(CheckpointError);
    expect(error).toHaveProperty('code', 'CHECKPOINT_INVALID');
    expect((error as Error).message).toContain(tensors.files[0]);
    return (error as Error).message;
  }
  throw new Error('no error was thrown');
}

/** 'tensor: module.part in layer' of each source. */
async function mapping(spec: ModelSpec, tensors: TensorTable): Promise<string[]> {
  const declared = declare(spec);
  const names = new Map([...tensors.tensors].map(([name, { offset }]) => [offset, name]));
  const { sources } = await parameterSources(declared, spec, llama, tensors);
  return sources.map(({ parameter, offset }) => {
    const { layer, module, part } = declared[parameter];
    return `${names.get(offset)}: ${module}.${part} in ${layer}`;
  });
}

describe('parameterSources', () => {
  it('finds a tensor for each parameter', async () => {
    expect(await mapping(SPEC, await table(SHAPES))).toEqual([
      'model.embed_tokens.weight: embedding.weight in null',
      `${LAYER}.input_layernorm.weight: attention.norm.weight in 0`,
      `${LAYER}.self_attn.q_proj.weight: attention.q.weight in 0`,
      `${LAYER}.self_attn.k_proj.weight: attention.k.weight in 0`,
      `${LAYER}.self_attn.v_proj.weight: attention.v.weight in 0`,
      `${LAYER}.self_attn.o_proj.weight: attention.o.weight in 0`,
      `${LAYER}.post_attention_layernorm.weight: mlp.norm.weight in 0`,
      `${LAYER}.mlp.gate_proj.weight: mlp.gate.weight in 0`,
      `${LAYER}.mlp.up_proj.weight: mlp.up.weight in 0`,
      `${LAYER}.mlp.down_proj.weight: mlp.down.weight in 0`,
      'model.norm.weight: norm.weight in null',
      'lm_head.weight: head.weight in null',
    ]);
  });

  it('finds biases and head norms', async () => {
    const spec = {
      ...SPEC,
      qkvBias: true,
      outputBias: true,
      mlpBias: true,
      qkNorm: 'head' as const,
    };
    const parts = await mapping(spec, await table({ ...SHAPES, ...SWITCHED }));
    expect(parts).toHaveLength(21);
    expect(parts).toEqual(
      expect.arrayContaining([
        `${LAYER}.self_attn.q_proj.bias: attention.q.bias in 0`,
        `${LAYER}.self_attn.k_proj.bias: attention.k.bias in 0`,
        `${LAYER}.self_attn.v_proj.bias: attention.v.bias in 0`,
        `${LAYER}.self_attn.q_norm.weight: attention.qNorm.weight in 0`,
        `${LAYER}.self_attn.k_norm.weight: attention.kNorm.weight in 0`,
        `${LAYER}.self_attn.o_proj.bias: attention.o.bias in 0`,
        `${LAYER}.mlp.gate_proj.bias: mlp.gate.bias in 0`,
        `${LAYER}.mlp.up_proj.bias: mlp.up.bias in 0`,
        `${LAYER}.mlp.down_proj.bias: mlp.down.bias in 0`,
      ]),
    );
  });

  it("returns each tensor's file, offset and stored type", async () => {
    const tensors = await table(SHAPES, { 'model.norm.weight': 'BF16', 'lm_head.weight': 'F16' });
    const { files, sources, totalBytes } = await parameterSources(
      declare(SPEC),
      SPEC,
      llama,
      tensors,
    );
    expect(files).toEqual(tensors.files);
    const offset = tensors.tensors.get('model.norm.weight')?.offset;
    expect(sources[10]).toEqual({ parameter: 10, file: 0, offset, dtype: 'bfloat16' });
    expect(sources[11].dtype).toBe('float16');
    expect(sources[0].dtype).toBe('float32');
    const elements = Object.values(SHAPES).map((shape) => shape.reduce((a, b) => a * b));
    expect(totalBytes).toBe(4 * elements.reduce((a, b) => a + b) - 2 * 6 - 2 * 66);
  });

  it('needs no lm_head with tied embeddings, and ignores an existing one', async () => {
    const spec = { ...SPEC, tieWordEmbeddings: true };
    const tied = await mapping(spec, await table(without('lm_head.weight')));
    expect(tied).toHaveLength(11);
    expect(await mapping(spec, await table(SHAPES))).toEqual(tied);
  });

  it('ignores tensors of no known module', async () => {
    const extra = { [`${LAYER}.self_attn.rotary_emb.inv_freq`]: [2], 'vision.patch': [3, 3] };
    expect(await mapping(SPEC, await table({ ...SHAPES, ...extra }))).toEqual(
      await mapping(SPEC, await table(SHAPES)),
    );
  });

  it.each(Object.keys(SHAPES))('refuses a checkpoint without %s', async (name) => {
    expect(await complaint(SPEC, await table(without(name)))).toContain(
      `tensor ${name} is missing`,
    );
  });

  it('says why lm_head is required', async () => {
    expect(await complaint(SPEC, await table(without('lm_head.weight')))).toContain(
      'tie_word_embeddings',
    );
  });

  it.each(Object.keys(SHAPES))('refuses another shape of %s', async (name) => {
    const wrong = [...SHAPES[name]];
    wrong[wrong.length - 1]++;
    const message = await complaint(SPEC, await table({ ...SHAPES, [name]: wrong }));
    expect(message).toContain(
      `tensor ${name} has shape [ ${wrong.join(', ')} ]; config.json requires [ ${SHAPES[name].join(', ')} ]`,
    );
  });

  it('names the keys of config.json that contradict the weights', async () => {
    const tensors = await table(SHAPES);
    expect(await complaint({ ...SPEC, vocabSize: 12 }, tensors)).toContain(
      'vocab_size 12, hidden_size 6',
    );
    expect(await complaint({ ...SPEC, hiddenSize: 7 }, tensors)).toContain(
      'vocab_size 11, hidden_size 7',
    );
    expect(await complaint({ ...SPEC, numHeads: 3 }, tensors)).toContain(
      'num_attention_heads * head_dim 12, hidden_size 6',
    );
    expect(
      await complaint(
        { ...SPEC, numLayers: 2, slidingWindows: [0, 0], layerRopes: [0, 0] },
        tensors,
      ),
    ).toContain('tensor model.layers.1.input_layernorm.weight is missing');
  });

  it('refuses a tensor with an additional dimension', async () => {
    const message = await complaint(SPEC, await table({ ...SHAPES, 'model.norm.weight': [6, 1] }));
    expect(message).toContain('tensor model.norm.weight has shape [ 6, 1 ]');
  });

  it('refuses an unsupported type', async () => {
    const message = await complaint(SPEC, await table(SHAPES, { 'model.norm.weight': 'F64' }));
    expect(message).toContain('tensor model.norm.weight has dtype F64');
  });

  it('accepts any type for an unused tensor', async () => {
    const tensors = await table({ ...SHAPES, extra: [3] }, { extra: 'U8' });
    const { sources } = await parameterSources(declare(SPEC), SPEC, llama, tensors);
    expect(sources).toHaveLength(12);
  });

  it.each([
    ...Object.keys(SWITCHED),
    'model.layers.1.input_layernorm.weight',
    'model.layers.1.self_attn.q_proj.weight',
    'model.layers.1.mlp.down_proj.weight',
  ])('refuses %s, which the model does not declare', async (name) => {
    const shape = SWITCHED[name] ?? [6];
    const message = await complaint(SPEC, await table({ ...SHAPES, [name]: shape }));
    expect(message).toContain(`tensor ${name} is not part of the model`);
  });

  // Written by transformers: every tensor is a weight of the model.
  it.each(readdirSync(GOLDEN))('uses every tensor of the golden checkpoint %s', async (name) => {
    const folder = path.join(GOLDEN, name);
    const { spec, family, table: tensors, schemes } = await readModel(folder);
    const { sources } = await parameterSources(declare(spec), spec, family, tensors, schemes);
    // A source may be some of a tensor's rows: q, k and v of Phi's qkv_proj.
    const unused = [...tensors.tensors].filter(
      ([, { file, offset, numBytes }]) =>
        !sources.some((s) => s.file === file && s.offset >= offset && s.offset < offset + numBytes),
    );
    // Of quantized matrices: scales of activations, a shape, zero points of 8, groups in order.
    const known = /\.(input_scale|weight_shape|[kv]_scale|qzeros|g_idx)$/;
    expect(unused.map(([tensor]) => tensor).filter((tensor) => !known.test(tensor))).toEqual([]);
  });
});
