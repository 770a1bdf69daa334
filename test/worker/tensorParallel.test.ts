/**
 * What each rank of a world has of a model. Expected slices are cut from the checkpoint's whole
 * tensors, head by head and column by column, as the ranks' numbers say.
 */
import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { readTransformerConfig } from '../../lib/config/transformerConfig';
import type { TransformerSpec } from '../../lib/config/uniprocConfig';
import { ConfigError } from '../../lib/errors';
import { readTensorTable, type TensorTable } from '../../lib/worker/checkpoint';
import { divisionFault } from '../../lib/config/division';
import { shardSpec } from '../../lib/worker/tensorParallel';
import { weightParts } from '../../lib/worker/weights';
import { folderWith } from '../support/folder';
import { fileOf } from './safetensors';

const GOLDEN = path.join(__dirname, '..', 'golden', 'checkpoints');

/** Of everything some, and no two sizes the same. */
const SPEC: TransformerSpec = {
  vocabSize: 29,
  hiddenSize: 10,
  intermediateSize: 12,
  numLayers: 2,
  numHeads: 8,
  numKvHeads: 2,
  headDim: 6,
  rmsNormEps: 1e-6,
  ropeTheta: 10000,
  ropeScaling: { type: 'default' },
  slidingWindows: [0, 0],
  qkvBias: true,
  outputBias: true,
  mlpBias: true,
  qkNorm: true,
  tieWordEmbeddings: false,
};

describe('shardSpec', () => {
  it('leaves the whole model to a world of one', () => {
    const { mlpBias, ...others } = SPEC;
    expect(shardSpec(SPEC, 0, 1)).toEqual({
      ...others,
      vocabShard: { start: 0, size: 29 },
      gateUpBias: mlpBias,
      downBias: mlpBias,
    });
  });

  it('divides heads, MLP and vocabulary, and nothing else', () => {
    const { numHeads, numKvHeads, intermediateSize, vocabShard, ...others } = shardSpec(SPEC, 1, 2);
    expect({ numHeads, numKvHeads, intermediateSize }).toEqual({
      numHeads: 4,
      numKvHeads: 1,
      intermediateSize: 6,
    });
    expect(vocabShard).toEqual({ start: 15, size: 15 });
    expect(others).toMatchObject({
      vocabSize: 29,
      hiddenSize: 10,
      headDim: 6,
      numLayers: 2,
      slidingWindows: [0, 0],
      qkNorm: true,
      tieWordEmbeddings: false,
    });
  });

  it('gives every rank a key-value head where there are fewer than ranks', () => {
    const ranks = [0, 1, 2, 3].map((rank) => shardSpec(SPEC, rank, 4));
    expect(ranks.map(({ numKvHeads }) => numKvHeads)).toEqual([1, 1, 1, 1]);
    expect(ranks.map(({ numHeads }) => numHeads)).toEqual([2, 2, 2, 2]);
  });

  it('divides the vocabulary in equal shards, which may go beyond it', () => {
    const shards = (vocabSize: number) =>
      [0, 1, 2, 3].map((rank) => shardSpec({ ...SPEC, vocabSize }, rank, 4).vocabShard);
    expect(shards(29)).toEqual([0, 8, 16, 24].map((start) => ({ start, size: 8 })));
    expect(shards(28)).toEqual([0, 7, 14, 21].map((start) => ({ start, size: 7 })));
    expect(shards(5)).toEqual([0, 2, 4, 6].map((start) => ({ start, size: 2 })));
  });

  it('has what is summed over the ranks biased by one of them', () => {
    const biases = [0, 1].map((rank) => {
      const { qkvBias, outputBias, gateUpBias, downBias } = shardSpec(SPEC, rank, 2);
      return { qkvBias, outputBias, gateUpBias, downBias };
    });
    expect(biases).toEqual([
      { qkvBias: true, outputBias: true, gateUpBias: true, downBias: true },
      { qkvBias: true, outputBias: false, gateUpBias: true, downBias: false },
    ]);
    const none = { ...SPEC, qkvBias: false, outputBias: false, mlpBias: false };
    expect(shardSpec(none, 0, 2)).toMatchObject({ outputBias: false, downBias: false });
  });

  it.each<[string, number, Partial<TransformerSpec>, RegExp]>([
    ['heads', 3, { intermediateSize: 9 }, /tensorParallelSize is 3.*numHeads, 8/],
    ['the MLP', 8, {}, /tensorParallelSize is 8.*intermediateSize, 12/],
    [
      'key-value heads',
      4,
      { numHeads: 12, numKvHeads: 6 },
      /tensorParallelSize is 4.*numKvHeads, 6/,
    ],
  ])('refuses a world that %s do not divide by, with both numbers', (_, size, change, message) => {
    const spec = { ...SPEC, ...change };
    expect(divisionFault(spec, size)).toMatch(message);
    for (const rank of [0, size - 1]) {
      expect(() => shardSpec(spec, rank, size)).toThrow(ConfigError);
      expect(() => shardSpec(spec, rank, size)).toThrow(message);
    }
  });

  it('finds no fault with a world that divides', () => {
    expect([1, 2, 4].map((size) => divisionFault(SPEC, size))).toEqual([null, null, null]);
    expect(divisionFault({ ...SPEC, numKvHeads: 1 }, 2)).toBeNull();
  });
});

/** Rows of elements, each by its bits. */
type Matrix = Uint32Array[];

function bitsOf(data: Buffer, offset: number, count: number, size: number): Uint32Array {
  return Uint32Array.from({ length: count }, (_, i) => data.readUIntLE(offset + i * size, size));
}

function readFiles(table: TensorTable): Buffer[] {
  return table.files.map((file) => readFileSync(file));
}

function readTensors(table: TensorTable): Map<string, Matrix> {
  const files = readFiles(table);
  return new Map(
    [...table.tensors].map(([name, { shape, file, offset, numBytes }]) => {
      const [rows, cols = 1] = shape;
      const size = numBytes / (rows * cols);
      const row = (i: number) => bitsOf(files[file], offset + i * cols * size, cols, size);
      return [name, Array.from({ length: rows }, (_, i) => row(i))];
    }),
  );
}

/** A rank's weights by name and layer, as its parts lay them. */
function readWeights(
  spec: TransformerSpec,
  table: TensorTable,
  rank: number,
  worldSize: number,
): Record<string, Matrix> {
  const files = readFiles(table);
  const { parts, totalBytes } = weightParts(spec, table, rank, worldSize);
  const weights: Record<string, Matrix> = {};
  let bytes = 0;
  for (const { weight: name, layer, rowOffset, file, offset, rows, cols, ...part } of parts) {
    const size = part.dtype === 'float32' ? 4 : 2;
    const weight = (weights[`${name}@${layer}`] ??= []);
    expect(weight).toHaveLength(rowOffset);
    for (let row = 0; row < rows; row++) {
      weight.push(bitsOf(files[file], offset + row * part.rowStride * size, cols, size));
    }
    bytes += rows * cols * size;
  }
  expect(totalBytes).toBe(bytes);
  return weights;
}

/** The same from the whole tensors: each head, column or token on the rank whose it is. */
function expectedWeights(
  spec: TransformerSpec,
  table: TensorTable,
  rank: number,
  worldSize: number,
): Record<string, Matrix> {
  const { numHeads, numKvHeads, headDim, intermediateSize, vocabSize } = spec;
  /** Those of `count` things in a row that are this rank's when each has as many. */
  const own = (count: number) =>
    [...Array(count).keys()].filter((i) => Math.floor((i * worldSize) / count) === rank);
  const elementsOf = (heads: number[]) =>
    heads.flatMap((head) => Array.from({ length: headDim }, (_, i) => head * headDim + i));
  const queryHeads = own(numHeads);
  const q = elementsOf(queryHeads);
  // Whatever heads the queries look at.
  const kv = elementsOf([
    ...new Set(queryHeads.map((head) => Math.floor(head / (numHeads / numKvHeads)))),
  ]);
  const mlp = own(intermediateSize);
  const shardSize = Math.ceil(vocabSize / worldSize);
  const tokens = [...Array(vocabSize).keys()].filter((id) => Math.floor(id / shardSize) === rank);

  const tensors = readTensors(table);
  const tensor = (name: string) => tensors.get(name) ?? [];
  const rows = (name: string, indices: number[]) => indices.map((row) => tensor(name)[row]);
  const columns = (name: string, indices: number[]) =>
    tensor(name).map((row) => Uint32Array.from(indices, (col) => row[col]));

  const weights: Record<string, Matrix> = {
    'embedTokens@0': rows('model.embed_tokens.weight', tokens),
    'norm@0': tensor('model.norm.weight'),
  };
  if (!spec.tieWordEmbeddings) weights['lmHead@0'] = rows('lm_head.weight', tokens);
  for (let layer = 0; layer < spec.numLayers; layer++) {
    const of = (name: string) => `model.layers.${layer}.${name}`;
    const put = (name: string, matrix: Matrix) => (weights[`${name}@${layer}`] = matrix);
    const qkv = (kind: string) => [
      ...rows(of(`self_attn.q_proj.${kind}`), q),
      ...rows(of(`self_attn.k_proj.${kind}`), kv),
      ...rows(of(`self_attn.v_proj.${kind}`), kv),
    ];
    const gateUp = (kind: string) => [
      ...rows(of(`mlp.gate_proj.${kind}`), mlp),
      ...rows(of(`mlp.up_proj.${kind}`), mlp),
    ];
    put('inputNorm', tensor(of('input_layernorm.weight')));
    put('postAttentionNorm', tensor(of('post_attention_layernorm.weight')));
    put('qkv', qkv('weight'));
    put('o', columns(of('self_attn.o_proj.weight'), q));
    put('gateUp', gateUp('weight'));
    put('down', columns(of('mlp.down_proj.weight'), mlp));
    if (spec.qkvBias) put('qkvBias', qkv('bias'));
    if (spec.mlpBias) put('gateUpBias', gateUp('bias'));
    if (spec.outputBias && rank === 0) put('oBias', tensor(of('self_attn.o_proj.bias')));
    if (spec.mlpBias && rank === 0) put('downBias', tensor(of('mlp.down_proj.bias')));
    if (spec.qkNorm) {
      put('qNorm', tensor(of('self_attn.q_norm.weight')));
      put('kNorm', tensor(of('self_attn.k_norm.weight')));
    }
  }
  return weights;
}

/** That each rank's parts are what it is expected to have, and no rank has others. */
function expectSlices(spec: TransformerSpec, table: TensorTable, worldSize: number): void {
  for (let rank = 0; rank < worldSize; rank++) {
    const actual = readWeights(spec, table, rank, worldSize);
    const expected = Object.entries(expectedWeights(spec, table, rank, worldSize)).filter(
      ([, matrix]) => matrix.length > 0,
    );
    expect(Object.keys(actual).sort()).toEqual(expected.map(([name]) => name).sort());
    for (const [name, matrix] of expected) {
      const shape = (rows: Matrix) => rows.map(({ length }) => length);
      expect([name, shape(actual[name])]).toEqual([name, shape(matrix)]);
      const same = matrix.every((row, i) =>
        Buffer.from(row.buffer).equals(Buffer.from(actual[name][i].buffer)),
      );
      expect([rank, name, same]).toEqual([rank, name, true]);
    }
  }
}

/** A checkpoint of random bytes that the spec describes. */
async function randomTable(spec: TransformerSpec, dtype: 'F32' | 'BF16'): Promise<TensorTable> {
  const { vocabSize, hiddenSize: hidden, intermediateSize, headDim } = spec;
  const [q, kv] = [spec.numHeads * headDim, spec.numKvHeads * headDim];
  const shapes: Record<string, number[]> = {
    'model.embed_tokens.weight': [vocabSize, hidden],
    'model.norm.weight': [hidden],
  };
  if (!spec.tieWordEmbeddings) shapes['lm_head.weight'] = [vocabSize, hidden];
  for (let layer = 0; layer < spec.numLayers; layer++) {
    const put = (name: string, ...shape: number[]) =>
      (shapes[`model.layers.${layer}.${name}`] = shape);
    const linear = (name: string, rows: number, cols: number, bias: boolean) => {
      put(`${name}.weight`, rows, cols);
      if (bias) put(`${name}.bias`, rows);
    };
    linear('self_attn.q_proj', q, hidden, spec.qkvBias);
    linear('self_attn.k_proj', kv, hidden, spec.qkvBias);
    linear('self_attn.v_proj', kv, hidden, spec.qkvBias);
    linear('self_attn.o_proj', hidden, q, spec.outputBias);
    linear('mlp.gate_proj', intermediateSize, hidden, spec.mlpBias);
    linear('mlp.up_proj', intermediateSize, hidden, spec.mlpBias);
    linear('mlp.down_proj', hidden, intermediateSize, spec.mlpBias);
    put('input_layernorm.weight', hidden);
    put('post_attention_layernorm.weight', hidden);
    if (spec.qkNorm) put('self_attn.q_norm.weight', headDim);
    if (spec.qkNorm) put('self_attn.k_norm.weight', headDim);
  }
  const file = fileOf(
    Object.fromEntries(Object.entries(shapes).map(([name, shape]) => [name, { dtype, shape }])),
  );
  const headerBytes = 8 + Number(file.readBigUInt64LE());
  randomBytes(file.length - headerBytes).copy(file, headerBytes);
  return readTensorTable(await folderWith({ 'model.safetensors': file }));
}

describe('weightParts of a rank', () => {
  const variants: [string, Partial<TransformerSpec>][] = [
    ['biases, head norms, two key-value heads, a vocabulary that does not divide', {}],
    ['as many key-value heads as heads', { numKvHeads: 8 }],
    ['one key-value head', { numKvHeads: 1 }],
    ['tied embeddings', { tieWordEmbeddings: true }],
    ['a vocabulary that divides', { vocabSize: 32 }],
    ['a vocabulary that the last rank has nothing of', { vocabSize: 5 }],
    [
      'no biases, no head norms',
      { qkvBias: false, outputBias: false, mlpBias: false, qkNorm: false },
    ],
  ];

  describe.each(variants)('%s', (_, change) => {
    const spec = { ...SPEC, ...change };

    it.each([1, 2, 4] as const)('are its slices of the tensors, in a world of %i', async (size) => {
      expectSlices(spec, await randomTable(spec, size === 2 ? 'BF16' : 'F32'), size);
    });
  });

  it.each(readdirSync(GOLDEN))('are its slices of the golden checkpoint %s', async (name) => {
    const folder = path.join(GOLDEN, name);
    const { spec } = await readTransformerConfig(folder);
    const table = await readTensorTable(folder);
    const sizes = [1, 2, 4].filter((size) => divisionFault(spec, size) === null);
    for (const size of sizes) expectSlices(spec, table, size);
  });

  it('are of the sizes of its share of the spec, the padding apart', async () => {
    const table = await randomTable(SPEC, 'F32');
    for (let rank = 0; rank < 4; rank++) {
      const { numHeads, numKvHeads, headDim, intermediateSize, ...share } = shardSpec(
        SPEC,
        rank,
        4,
      );
      const shapes = Object.fromEntries(
        Object.entries(readWeights(SPEC, table, rank, 4)).map(([name, matrix]) => [
          name,
          [matrix.length, matrix[0].length],
        ]),
      );
      expect(shapes).toMatchObject({
        'qkv@1': [(numHeads + 2 * numKvHeads) * headDim, 10],
        'o@1': [10, numHeads * headDim],
        'gateUp@0': [2 * intermediateSize, 10],
        'down@0': [10, intermediateSize],
        'lmHead@0': [rank < 3 ? share.vocabShard.size : 5, 10],
      });
    }
  });

  it('refuse a tensor of another shape on every rank, also where they have nothing of it', async () => {
    const table = await randomTable(SPEC, 'F32');
    const tensors = new Map(table.tensors);
    const bias = 'model.layers.1.mlp.down_proj.bias';
    tensors.set(bias, { dtype: 'F32', shape: [11], file: 0, offset: 0, numBytes: 44 });
    for (const rank of [0, 1]) {
      expect(() => weightParts(SPEC, { ...table, tensors }, rank, 2)).toThrow(
        `tensor ${bias} has the shape [ 11 ], but by config.json it is [ 10 ]`,
      );
    }
  });

  it('refuse a world that does not divide the model', async () => {
    const table = await randomTable(SPEC, 'F32');
    expect(() => weightParts(SPEC, table, 0, 3)).toThrow(ConfigError);
  });
});
