/**
 * Each rank's share of a model. Expected slices are cut from the checkpoint's whole tensors by head
 * and column.
 */
import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { readTensorTable, type TensorTable } from '../../lib/model/safetensors';
import { divisionFault } from '../../lib/model/division';
import { llama } from '../../lib/model/families/llama';
import { parameterSources } from '../../lib/model/parameterSources';
import { type ModelSpec, native } from '../../lib/native';
import { folderWith } from '../support/folder';
import { readModel } from '../support/modelSpec';
import { PLAIN_EXPERTS, plainSpec } from '../support/plainSpec';
import { fileOf } from '../worker/safetensors';

const GOLDEN = path.join(__dirname, '..', 'golden', 'checkpoints');

/** A model with every kind of parameter and distinct sizes. */
const SPEC: ModelSpec = {
  dtype: 'float32',
  vocabSize: 29,
  hiddenSize: 10,
  intermediateSize: 12,
  numLayers: 2,
  numHeads: 8,
  numKvHeads: 2,
  headDim: 6,
  rmsNormEps: 1e-6,
  ...plainSpec(2, 6),
  qkvBias: true,
  outputBias: true,
  mlpBias: true,
  qkNorm: 'head',
  tieWordEmbeddings: false,
  weightFormats: {},
};

const declare = (spec: ModelSpec, rank: number, worldSize: number) =>
  native().declareParameters(spec, rank, worldSize);

describe('divisionFault', () => {
  it.each<[string, number, Partial<ModelSpec>, RegExp]>([
    ['heads', 3, { intermediateSize: 9 }, /tensorParallelSize is 3.*numHeads, 8/],
    ['the MLP', 8, {}, /tensorParallelSize is 8.*intermediateSize, 12/],
    [
      'key-value heads',
      4,
      { numHeads: 12, numKvHeads: 6 },
      /tensorParallelSize is 4.*numKvHeads, 6/,
    ],
  ])('names both numbers when ranks cannot divide %s', (_, size, change, message) => {
    const spec = { ...SPEC, ...change };
    expect(divisionFault(spec, size)).toMatch(message);
    for (const rank of [0, size - 1]) {
      expect(() => declare(spec, rank, size)).toThrow(
        expect.objectContaining({ code: 'CONFIG_INVALID' }) as Error,
      );
    }
  });

  const experts = {
    numExperts: 6,
    numExpertsPerToken: 2,
    intermediateSize: 5,
    normTopkProb: true,
    ...PLAIN_EXPERTS,
  };

  it('names the number of experts and of ranks that do not divide it', () => {
    const spec = { ...SPEC, experts: { ...experts, layers: [true, true] } };
    expect(divisionFault(spec, 4)).toMatch(/tensorParallelSize is 4.*numExperts, 6/);
    expect(() => declare(spec, 0, 4)).toThrow(/numExperts, 6, must be a multiple of the 4 ranks/);
  });

  it('names the size of the shared expert and of ranks that do not divide it', () => {
    const shared = { ...experts, sharedIntermediateSize: 9, layers: [true, true] };
    const spec = { ...SPEC, experts: shared };
    expect(divisionFault(spec, 2)).toMatch(/tensorParallelSize is 2.*sharedIntermediateSize, 9/);
    expect(() => declare(spec, 0, 2)).toThrow(/sharedIntermediateSize, 9, must be a multiple/);
  });

  it.each([
    [[true, true], null],
    [[true, false], /intermediateSize, 9/],
  ])('counts the MLP if experts are in the layers %j', (layers, fault) => {
    const spec = { ...SPEC, intermediateSize: 9, experts: { ...experts, layers } };
    if (fault === null) {
      expect(divisionFault(spec, 2)).toBeNull();
      expect(declare(spec, 1, 2)).not.toEqual([]);
    } else {
      expect(divisionFault(spec, 2)).toMatch(fault);
      expect(() => declare(spec, 1, 2)).toThrow(fault);
    }
  });

  it('returns null for a valid world size', () => {
    expect([1, 2, 4].map((size) => divisionFault(SPEC, size))).toEqual([null, null, null]);
    expect(divisionFault({ ...SPEC, numKvHeads: 1 }, 2)).toBeNull();
  });
});

/** Rows of elements as bits. */
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

/** A rank's shares by module, part and layer. */
async function readShares(
  spec: ModelSpec,
  table: TensorTable,
  rank: number,
  worldSize: number,
): Promise<Record<string, Matrix>> {
  const files = readFiles(table);
  const declared = declare(spec, rank, worldSize);
  const { sources, totalBytes } = await parameterSources(declared, spec, llama, table);
  const shares: Record<string, Matrix> = {};
  let bytes = 0;
  for (const { parameter, file, offset, dtype } of sources) {
    const { module, part, layer, shape } = declared[parameter];
    const [rows, cols = { size: 1, first: 0, count: 1 }] = shape;
    const size = dtype === 'float32' ? 4 : 2;
    shares[`${module}.${part}@${layer}`] = Array.from({ length: rows.count }, (_, row) => {
      const at = (rows.first + row) * cols.size + cols.first;
      return bitsOf(files[file], offset + at * size, cols.count, size);
    });
    bytes += rows.count * cols.count * size;
  }
  expect(totalBytes).toBe(bytes);
  return shares;
}

/** Expected shares, cut from the whole tensors by head, column or token. */
function expectedShares(
  spec: ModelSpec,
  table: TensorTable,
  rank: number,
  worldSize: number,
): Record<string, Matrix> {
  const { numHeads, numKvHeads, headDim, intermediateSize, vocabSize } = spec;
  /** This rank's indices among `count` items divided evenly. */
  const own = (count: number) =>
    [...Array(count).keys()].filter((i) => Math.floor((i * worldSize) / count) === rank);
  const elementsOf = (heads: number[]) =>
    heads.flatMap((head) => Array.from({ length: headDim }, (_, i) => head * headDim + i));
  const queryHeads = own(numHeads);
  const q = elementsOf(queryHeads);
  // The key heads that the rank's query heads attend to.
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

  const shares: Record<string, Matrix> = {
    'embedding.weight@null': rows('model.embed_tokens.weight', tokens),
    'norm.weight@null': tensor('model.norm.weight'),
  };
  if (!spec.tieWordEmbeddings) shares['head.weight@null'] = rows('lm_head.weight', tokens);
  for (let layer = 0; layer < spec.numLayers; layer++) {
    const of = (name: string) => `model.layers.${layer}.${name}`;
    const put = (name: string, matrix: Matrix) => (shares[`${name}@${layer}`] = matrix);
    put('attention.norm.weight', tensor(of('input_layernorm.weight')));
    put('mlp.norm.weight', tensor(of('post_attention_layernorm.weight')));
    for (const [part, hasQkv, hasMlp] of [
      ['weight', true, true],
      ['bias', spec.qkvBias, spec.mlpBias],
    ] as const) {
      if (hasQkv) put(`attention.q.${part}`, rows(of(`self_attn.q_proj.${part}`), q));
      if (hasQkv) put(`attention.k.${part}`, rows(of(`self_attn.k_proj.${part}`), kv));
      if (hasQkv) put(`attention.v.${part}`, rows(of(`self_attn.v_proj.${part}`), kv));
      if (hasMlp) put(`mlp.gate.${part}`, rows(of(`mlp.gate_proj.${part}`), mlp));
      if (hasMlp) put(`mlp.up.${part}`, rows(of(`mlp.up_proj.${part}`), mlp));
    }
    put('attention.o.weight', columns(of('self_attn.o_proj.weight'), q));
    put('mlp.down.weight', columns(of('mlp.down_proj.weight'), mlp));
    // The bias of a sum over ranks is added by one rank.
    if (spec.outputBias && rank === 0) put('attention.o.bias', tensor(of('self_attn.o_proj.bias')));
    if (spec.mlpBias && rank === 0) put('mlp.down.bias', tensor(of('mlp.down_proj.bias')));
    if (spec.qkNorm) {
      put('attention.qNorm.weight', tensor(of('self_attn.q_norm.weight')));
      put('attention.kNorm.weight', tensor(of('self_attn.k_norm.weight')));
    }
  }
  return shares;
}

/** Expects each rank to have exactly its shares. */
async function expectSlices(spec: ModelSpec, table: TensorTable, worldSize: number): Promise<void> {
  for (let rank = 0; rank < worldSize; rank++) {
    const actual = await readShares(spec, table, rank, worldSize);
    const expected = Object.entries(expectedShares(spec, table, rank, worldSize)).filter(
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

/** A checkpoint of random bytes for the spec. */
async function randomTable(spec: ModelSpec, dtype: 'F32' | 'BF16'): Promise<TensorTable> {
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

describe('the shares of a rank', () => {
  const variants: [string, Partial<ModelSpec>][] = [
    ['biases, head norms, two key-value heads, an indivisible vocabulary', {}],
    ['as many key-value heads as heads', { numKvHeads: 8 }],
    ['one key-value head', { numKvHeads: 1 }],
    ['tied embeddings', { tieWordEmbeddings: true }],
    ['a vocabulary that divides', { vocabSize: 32 }],
    ['a vocabulary without a share for the last rank', { vocabSize: 5 }],
    [
      'no biases, no head norms',
      { qkvBias: false, outputBias: false, mlpBias: false, qkNorm: null },
    ],
  ];

  describe.each(variants)('%s', (_, change) => {
    const spec = { ...SPEC, ...change };

    it.each([1, 2, 4] as const)('are its slices of the tensors, in a world of %i', async (size) => {
      await expectSlices(spec, await randomTable(spec, size === 2 ? 'BF16' : 'F32'), size);
    });
  });

  // The others have tensors or modules of their own; tensorParallel.test.ts runs all on ranks.
  const dense = readdirSync(GOLDEN).filter(
    (name) => !/moe|fp8|phi|olmo|gemma|gpt|llama4|fbgemm|modelopt|int|mixed|awq|mxfp4/.test(name),
  );
  it.each(dense)('are its slices of the golden checkpoint %s', async (name) => {
    const { spec, table } = await readModel(path.join(GOLDEN, name));
    const sizes = [1, 2, 4].filter((size) => divisionFault(spec, size) === null);
    for (const size of sizes) await expectSlices(spec, table, size);
  });

  it('refuse a wrong shape on every rank, also without a share of the tensor', async () => {
    const table = await randomTable(SPEC, 'F32');
    const tensors = new Map(table.tensors);
    const bias = 'model.layers.1.mlp.down_proj.bias';
    tensors.set(bias, { dtype: 'F32', shape: [11], file: 0, offset: 0, numBytes: 44 });
    for (const rank of [0, 1]) {
      await expect(
        parameterSources(declare(SPEC, rank, 2), SPEC, llama, { ...table, tensors }),
      ).rejects.toThrow(`tensor ${bias} has shape [ 11 ]; config.json requires [ 10 ]`);
    }
  });
});
