/**
 * GGUF's blocks in the layout in which the CPU multiplies them, against float64 arithmetic on their
 * elements and, where the instructions take it so, on x rounded to bfloat16.
 */
import type { DType } from '../../../lib/native';
import { BLOCK_TYPES } from '../../support/ggufBlocks';
import { cpuOps, type Isa, isas, type LinearWeight, type Ops } from './binding';
import { BlockMatrix } from './blockMatrix';
import { expectClose, expectSameBits, Random, roundTo } from './reference';

const CASES = isas
  .filter((isa) => isa !== 'plain')
  .flatMap((isa) => (['float32', 'bfloat16'] as const).map((dtype) => [isa, dtype] as const));

/** Where the instructions take x in bfloat16. */
const rounds = (isa: Isa, dtype: DType) => isa === 'avx512bf16' && dtype === 'bfloat16';
const toBFloat16 = (x: Float32Array) => x.map((value) => roundTo(value, 'bfloat16'));

function arranged(ops: Ops, weight: LinearWeight, sliceRows = weight.rows): LinearWeight {
  expect(ops.arrange(weight, sliceRows)).toBe(true);
  return { ...weight, isArranged: true };
}

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
    for (const [isa, dtype] of CASES) {
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
    const x = random.normals(m * k);
    for (const [isa, dtype] of CASES) {
      const withThreads = (threads: number) => {
        const ops = cpuOps(isa, threads);
        const weight = arranged(ops, matrix.onDevice(ops, dtype));
        return (begin: number, end: number) => {
          const out = ops.zeros((end - begin) * n);
          const rows = ops.floats(x.subarray(begin * k, end * k));
          ops.linear(rows, end - begin, weight, null, out);
          return ops.readFloats(out, (end - begin) * n);
        };
      };
      const all = withThreads(1)(0, m);
      const rowsOf = withThreads(3);
      for (const [begin, end] of [
        [0, m],
        [0, 1],
        [26, 27],
        [4, 12],
        [5, 20],
      ]) {
        expectSameBits(rowsOf(begin, end), all.slice(begin * n, end * n));
      }
    }
  });

  it('embeds the rows of a table that is a head too', () => {
    const [rows, cols] = [64, 512];
    const matrix = new BlockMatrix(type, rows, cols, new Random(5));
    const ids = [3, 40, 63, 32];
    const expected = Float64Array.from({ length: ids.length * cols }, (_, i) => {
      return matrix.values[ids[Math.floor(i / cols)] * cols + (i % cols)];
    });
    for (const [isa, dtype] of CASES) {
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
    for (const [isa, dtype] of CASES) {
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
