/** Weights in the tiles in which the CPU multiplies them, with each instruction set that has tiles. */
import type { DType } from '../../../lib/native';
import { cpuOps, type Isa, isas, type LinearWeight, type Ops } from './binding';
import { expectSameBits, roundTo } from './reference';

/** Instruction sets with tiles, and the model's type. */
export const TILE_CASES = isas
  .filter((isa) => isa !== 'plain')
  .flatMap((isa) => (['float32', 'bfloat16'] as const).map((dtype) => [isa, dtype] as const));

/** Where the instructions take x in bfloat16. */
export const rounds = (isa: Isa, dtype: DType) => isa === 'avx512bf16' && dtype === 'bfloat16';
export const toBFloat16 = (x: Float32Array) => x.map((value) => roundTo(value, 'bfloat16'));

/** The weight in tiles. */
export function arranged(ops: Ops, weight: LinearWeight, sliceRows = weight.rows): LinearWeight {
  expect(ops.arrange(weight, sliceRows)).toBe(true);
  return { ...weight, isArranged: true };
}

interface Matrix {
  rows: number;
  cols: number;
  onDevice(ops: Ops, dtype: DType): LinearWeight;
}

/** Each row of x [m, cols] has the same product whatever rows are beside it, on 1 and 3 threads. */
export function expectSameProducts(matrix: Matrix, x: Float32Array, m: number): void {
  const { rows: n, cols: k } = matrix;
  for (const [isa, dtype] of TILE_CASES) {
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
      [m - 1, m],
      [3, 5],
      [4, 12],
      [5, 20],
    ]) {
      expectSameBits(rowsOf(begin, end), all.slice(begin * n, end * n));
    }
  }
}
