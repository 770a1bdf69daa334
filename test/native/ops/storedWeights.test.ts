/**
 * Linear layers with weights in each quantized format, against float64 products of the dequantised
 * weights.
 */
import { backends, openOps } from './binding';
import { expectClose, expectSameBits, Random } from './reference';
import { StoredMatrix, type StoredFormat } from './storedMatrix';

const CHANNEL = 1 << 16; // at least all columns

const FORMATS: [string, StoredFormat][] = [
  ['fp8 by channel', { type: 'float8_e4m3', groupCols: CHANNEL }],
  ['fp8 by block', { type: 'float8_e4m3', groupCols: 48, groupRows: 3 }],
  ['int8 by channel', { type: 'int8', groupCols: CHANNEL }],
  ['int8 in groups', { type: 'int8', groupCols: 32 }],
  ['int4 in groups of 32', { type: 'uint4', groupCols: 32 }],
  ['int4 in groups of 128', { type: 'uint4', groupCols: 128 }],
  ['int4 by channel', { type: 'uint4', groupCols: CHANNEL }],
  ['int4 with zero points', { type: 'uint4', groupCols: 64, hasZeros: true }],
  [
    "int4 in a rank's act-order, with blocks filled up",
    { type: 'uint4', groupCols: 32, hasZeros: true, isOrdered: true, numFilling: 96 },
  ],
  ['mxfp4', { type: 'float4_e2m1', groupCols: 32 }],
];

describe.each(backends)('quantized weights, %s', (backend) => {
  const ops = openOps(backend);

  describe.each(FORMATS)('%s', (_, format) => {
    it.each([
      [1, 1, 32],
      [1, 65, 1024],
      [3, 130, 288],
      [5, 40, 4160],
      [9, 33, 514],
      [70, 24, 640],
    ])('%i rows times [%i, %i] are their float64 product', (m, n, k) => {
      const random = new Random(m * 1000 + n * 10 + k);
      const matrix = new StoredMatrix(n, k, format, random);
      const x = random.normals(m * k);
      const b = random.normals(n);
      const bias = { data: ops.floats(b), rows: n, cols: 1 };
      const out = ops.zeros(m * n);
      ops.linear(ops.floats(x), m, matrix.onDevice(ops), bias, out);
      const { expected, magnitude } = matrix.product(x, b, m);
      expectClose(ops.readFloats(out, m * n), expected, (i) => magnitude[i] * 2 ** -20);
    });

    it('a row of x has the same product whatever rows are beside it', () => {
      const [m, n, k] = [21, 37, 576];
      const random = new Random(n);
      const weight = new StoredMatrix(n, k, format, random).onDevice(ops);
      const x = random.normals(m * k);
      const product = (rows: Float32Array, count: number) => {
        const out = ops.zeros(count * n);
        ops.linear(ops.floats(rows), count, weight, null, out);
        return ops.readFloats(out, count * n);
      };
      const all = product(x, m);
      for (const count of [1, 2, 3, 4, 7, 8, 16]) {
        const some = product(x.subarray(0, count * k), count);
        if (backend === 'cuda') expectClose(some, all.subarray(0, count * n), 1e-4);
        else expectSameBits(some, all.slice(0, count * n));
      }
    });
  });

  it.each(FORMATS.filter(([, { isOrdered }]) => !isOrdered))(
    "experts' matrices: %s",
    (_, format) => {
      const random = new Random(17);
      const [tokens, experts, rows, cols, topK] = [5, 3, 12, 160, 2];
      const matrix = new StoredMatrix(experts * rows, cols, format, random);
      const x = random.normals(tokens * cols);
      const ids = Int32Array.from({ length: tokens * topK }, (__, i) => (i * 7 + (i >> 2)) % 4);
      const routing = {
        numTokens: tokens,
        numExperts: 4,
        topK,
        firstLocal: 1,
        numLocal: experts,
        expertIds: ops.ints(ids),
        weights: ops.zeros(tokens * topK),
      };
      const out = ops.zeros(tokens * topK * rows);
      ops.expertLinear(ops.floats(x), 1, routing, matrix.onDevice(ops), out);
      const { expected } = matrix.product(x, null, tokens);
      const ofExperts = Float64Array.from({ length: tokens * topK * rows }, (__, i) => {
        const pair = Math.floor(i / rows);
        const expert = ids[pair] - 1;
        if (expert < 0) return 0;
        const token = Math.floor(pair / topK);
        return expected[token * experts * rows + expert * rows + (i % rows)];
      });
      expectClose(ops.readFloats(out, ofExperts.length), ofExperts, 2e-3);
    },
  );
});
