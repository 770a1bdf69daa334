/**
 * GGUF's blocks in the layout in which the CPU multiplies them, against float64 arithmetic on their
 * elements and, where the instructions take it so, on x rounded to bfloat16.
 */
import { BLOCK_TYPES } from '../../support/ggufBlocks';
import { arranged, expectSameProducts, rounds, TILE_CASES, toBFloat16 } from './arrangedWeights';
import { cpuOps, isas } from './binding';
import { BlockMatrix } from './blockMatrix';
import { expectClose, Random } from './reference';

describe.each(BLOCK_TYPES)("GGUF's blocks in tiles: %s", (type) => {
  it.each([
    [1, 96, 256],
    [3, 32, 1280],
    [14, 32, 512],
    [31, 64, 768],
  ])('%i rows times [%i, %i] are their float64 product', (m, n, k) => {
    const random = new Random(m * 1000 + n * 10 + k);
    const matrix = new BlockMatrix(type, n, k, random);
    const x = random.normals(m * k);
    const exact = matrix.product(x, m);
    const rounded = matrix.product(toBFloat16(x), m);
    for (const [isa, dtype] of TILE_CASES) {
      const ops = cpuOps(isa);
      const out = ops.zeros(m * n);
      ops.linear(ops.floats(x), m, arranged(ops, matrix.onDevice(ops, dtype)), null, out);
      const { expected, magnitude } = rounds(isa, dtype) ? rounded : exact;
      // The minimum of a group is subtracted after rounding, so elements may cancel.
      expectClose(ops.readFloats(out, m * n), expected, (i) => 1e-6 + magnitude[i] * 2 ** -19);
    }
  });

  it('a row has the same product whatever rows are beside it, on any number of threads', () => {
    const [m, n, k] = [27, 64, 1280];
    const random = new Random(n);
    const matrix = new BlockMatrix(type, n, k, random);
    expectSameProducts(matrix, random.normals(m * k), m);
  });

  it('embeds the rows of a table that is a head too', () => {
    const [rows, cols] = [64, 512];
    const matrix = new BlockMatrix(type, rows, cols, new Random(5));
    const ids = [3, 40, 63, 32];
    const expected = Float64Array.from({ length: ids.length * cols }, (_, i) => {
      return matrix.values[ids[Math.floor(i / cols)] * cols + (i % cols)];
    });
    for (const [isa, dtype] of TILE_CASES) {
      const ops = cpuOps(isa);
      const out = ops.zeros(ids.length * cols);
      const table = arranged(ops, matrix.onDevice(ops, dtype));
      ops.embed(ops.ints(Int32Array.from(ids)), ids.length, table, 0, out);
      expectClose(ops.readFloats(out, ids.length * cols), expected, 1e-6);
    }
  });

  it("experts' matrices are slices of tiles", () => {
    const [experts, rows, cols] = [3, 32, 256];
    const matrix = new BlockMatrix(type, experts * rows, cols, new Random(17));
    const x = new Random(18).normals(cols);
    const at = (i: number) => [2, 0, 1][Math.floor(i / rows)] * rows + (i % rows);
    for (const [isa, dtype] of TILE_CASES) {
      const ops = cpuOps(isa);
      const routing = ops.routing(1, experts, experts);
      ops.copyToDevice(routing.expertIds, Int32Array.of(2, 0, 1));
      const out = ops.zeros(experts * rows);
      const weight = arranged(ops, matrix.onDevice(ops, dtype), rows);
      ops.expertLinear(ops.floats(x), 1, routing, weight, out);
      const operand = rounds(isa, dtype) ? toBFloat16(x) : x;
      const { expected, magnitude } = matrix.product(operand, 1);
      expectClose(
        ops.readFloats(out, experts * rows),
        Float64Array.from(expected, (_, i) => expected[at(i)]),
        (i) => 1e-6 + magnitude[at(i)] * 2 ** -19,
      );
    }
  });
});

it.each(isas)('rows that are no whole tiles stay as they are, %s', (isa) => {
  const ops = cpuOps(isa);
  const of = (rows: number) => new BlockMatrix('q4_k', rows, 256, new Random(3)).onDevice(ops);
  expect(ops.arrange(of(48), 48)).toBe(false);
  expect(ops.arrange(of(64), 16)).toBe(false);
  expect(ops.arrange(of(64), 64)).toBe(isa !== 'plain');
});
