/**
 * Quantized weights in the layout in which the CPU multiplies them, against float64 products of the
 * dequantised weights and, where the instructions take it so, of x rounded to bfloat16.
 */
import { arranged, expectSameProducts, rounds, TILE_CASES, toBFloat16 } from './arrangedWeights';
import { cpuOps, isas } from './binding';
import { expectClose, Random } from './reference';
import { StoredMatrix, type StoredFormat } from './storedMatrix';

const CHANNEL = 1 << 16; // at least all columns

const FORMATS: [string, StoredFormat][] = [
  ['fp8 by channel', { type: 'float8_e4m3', groupCols: CHANNEL }],
  ['fp8 by block', { type: 'float8_e4m3', groupCols: 128, groupRows: 128 }],
  ['fp8 by blocks that end within tiles', { type: 'float8_e4m3', groupCols: 12, groupRows: 3 }],
  ['int8 by channel', { type: 'int8', groupCols: CHANNEL }],
  ['int8 in groups', { type: 'int8', groupCols: 32 }],
  ['int4 in groups of 32', { type: 'uint4', groupCols: 32 }],
  ['int4 in groups of 48', { type: 'uint4', groupCols: 48 }],
  ['int4 in groups of 128', { type: 'uint4', groupCols: 128 }],
  ['int4 by channel', { type: 'uint4', groupCols: CHANNEL }],
  ['int4 with zero points', { type: 'uint4', groupCols: 64, hasZeros: true }],
  ['int4 in act-order', { type: 'uint4', groupCols: 32, hasZeros: true, isOrdered: true }],
  ['mxfp4', { type: 'float4_e2m1', groupCols: 32 }],
];

describe.each(FORMATS)('quantized weights in tiles: %s', (_, format) => {
  it.each([
    [1, 96, 32],
    [3, 32, 1104],
    [14, 32, 520],
    [31, 32, 136],
  ])('%i rows times [%i, %i] are their float64 product', (m, n, k) => {
    const random = new Random(m * 1000 + n * 10 + k);
    const matrix = new StoredMatrix(n, k, format, random);
    const x = random.normals(m * k);
    const b = random.normals(n);
    const exact = matrix.product(x, b, m);
    const rounded = matrix.product(toBFloat16(x), b, m);
    for (const [isa, dtype] of TILE_CASES) {
      const ops = cpuOps(isa);
      const bias = { data: ops.floats(b), rows: n, cols: 1 };
      const out = ops.zeros(m * n);
      ops.linear(ops.floats(x), m, arranged(ops, matrix.onDevice(ops, dtype)), bias, out);
      const { expected, magnitude } = rounds(isa, dtype) ? rounded : exact;
      expectClose(ops.readFloats(out, m * n), expected, (i) => magnitude[i] * 2 ** -20);
    }
  });

  it('a row has the same product whatever rows are beside it, on any number of threads', () => {
    const [m, n, k] = [27, 64, 1064];
    const random = new Random(n);
    const matrix = new StoredMatrix(n, k, format, random);
    expectSameProducts(matrix, random.normals(m * k), m);
  });
});

describe.each(TILE_CASES)('quantized weights in tiles, %s, of a model in %s', (isa, dtype) => {
  const ops = cpuOps(isa);
  const operand = rounds(isa, dtype) ? toBFloat16 : (x: Float32Array) => x;

  it('every code of 8 bits is multiplied as it is', () => {
    for (const type of ['int8', 'float8_e4m3'] as const) {
      const matrix = new StoredMatrix(32, 256, { type, groupCols: CHANNEL }, new Random(1));
      matrix.scales.fill(1);
      const codes = matrix.codes.map((_, i) => i % 256);
      const weight = matrix.onDevice(ops, dtype);
      ops.copyToDevice(weight.data, codes);
      const unit = new Float32Array(256 * 256);
      for (let i = 0; i < 256; ++i) unit[i * 257] = 1;
      const out = ops.zeros(256 * 32);
      ops.linear(ops.floats(unit), 256, arranged(ops, weight), null, out);
      const products = ops.readFloats(out, 256 * 32);
      const expected = ops.zeros(256 * 32);
      const plain = matrix.onDevice(ops, 'float32');
      ops.copyToDevice(plain.data, codes);
      ops.linear(ops.floats(unit), 256, plain, null, expected);
      // NaN in E4M3 makes all of its row's products NaN, as the other terms are 0 * NaN.
      expect(products).toEqual(ops.readFloats(expected, 256 * 32));
    }
  });

  it("experts' matrices are slices of tiles", () => {
    const random = new Random(17);
    const [experts, rows, cols] = [3, 32, 160];
    const matrix = new StoredMatrix(experts * rows, cols, { type: 'uint4', groupCols: 32 }, random);
    const x = random.normals(cols);
    const routing = ops.routing(1, experts, experts);
    ops.copyToDevice(routing.expertIds, Int32Array.of(2, 0, 1));
    const out = ops.zeros(experts * rows);
    const weight = arranged(ops, matrix.onDevice(ops, dtype), rows);
    ops.expertLinear(ops.floats(x), 1, routing, weight, out);
    const { expected, magnitude } = matrix.product(operand(x), null, 1);
    const at = (i: number) => [2, 0, 1][Math.floor(i / rows)] * rows + (i % rows);
    expectClose(
      ops.readFloats(out, experts * rows),
      Float64Array.from(expected, (_, i) => expected[at(i)]),
      (i) => magnitude[at(i)] * 2 ** -20,
    );
  });
});

it.each(isas)('what has no tiles stays as it is, %s', (isa) => {
  const ops = cpuOps(isa);
  const random = new Random(3);
  const of = (rows: number, cols: number, groupCols: number) =>
    new StoredMatrix(rows, cols, { type: 'uint4', groupCols }, random).onDevice(ops, 'bfloat16');
  expect(ops.arrange(of(48, 64, 32), 48)).toBe(false);
  expect(ops.arrange(of(64, 64, 32), 16)).toBe(false);
  expect(ops.arrange(of(64, 36, CHANNEL), 64)).toBe(false);
  expect(ops.arrange(of(64, 60, 20), 64)).toBe(false);
  expect(ops.arrange(of(64, 64, 32), 64)).toBe(isa !== 'plain');
});
