import { cpuOps, dtypes, isas, type Ops, type Weight } from './binding';
import { expectClose, expectSameBits, Random, roundTo } from './reference';

/** x [m, k] times the transpose of w [n, k], plus an optional b [n]. */
function run(ops: Ops, x: Float32Array, m: number, w: Weight, bias: Weight | null): Float32Array {
  const out = ops.zeros(m * w.rows);
  ops.linear(ops.floats(x), m, w, bias, out);
  return ops.readFloats(out, m * w.rows);
}

const shapes = [
  [1, 1, 1],
  [1, 3, 17],
  [2, 33, 100],
  [3, 5, 515],
  [4, 4, 16],
  [5, 130, 31],
  [7, 17, 1100],
  [8, 13, 2100],
  [9, 14, 1030],
  [16, 27, 64],
  [17, 30, 2050],
  [33, 65, 48],
  [130, 9, 520],
  [257, 31, 7],
  // Columns whose x exceeds the L1 cache, in one panel and in several.
  [1, 5, 8300],
  [4, 5, 16_500],
];

describe.each(isas)('matmul, %s', (isa) => {
  const ops = cpuOps(isa);

  describe.each(dtypes)('with weights in %s', (dtype) => {
    it.each(shapes)('matches float64 for [%i, %i] over %i', (m, n, k) => {
      const random = new Random(m * 1000 + n * 10 + k);
      const x = random.normals(m * k);
      const w = random.normals(n * k, dtype);
      const b = random.normals(n, dtype);
      // Instructions for products in bfloat16 take both operands in it.
      const rounds = isa === 'avx512bf16' && dtype === 'bfloat16';
      const factors = rounds ? x.map((value) => roundTo(value, dtype)) : x;
      const weight = { data: ops.floats(w, dtype), rows: n, cols: k };
      const bias = { data: ops.floats(b, dtype), rows: n, cols: 1 };
      for (const withBias of [false, true]) {
        const expected = new Float64Array(m * n);
        const magnitude = new Float64Array(m * n); // sum of the summands' magnitudes, the scale of the error
        for (let i = 0; i < m; ++i) {
          for (let j = 0; j < n; ++j) {
            let sum = withBias ? b[j] : 0;
            let size = Math.abs(sum);
            for (let l = 0; l < k; ++l) {
              sum += factors[i * k + l] * w[j * k + l];
              size += Math.abs(factors[i * k + l] * w[j * k + l]);
            }
            expected[i * n + j] = sum;
            magnitude[i * n + j] = size;
          }
        }
        const actual = run(ops, x, m, weight, withBias ? bias : null);
        expectClose(actual, expected, (i) => magnitude[i] * 2 ** -21);
      }
    });
  });

  it.each(dtypes)(
    'gives each row the same bits for any number of rows and threads, with weights in %s',
    (dtype) => {
      const [m, n, k] = [150, 258, 2085];
      const random = new Random(1);
      const x = random.normals(m * k);
      const w = random.normals(n * k);
      const b = random.normals(n);
      const withThreads = (threads: number) => {
        const some = cpuOps(isa, threads);
        const weight = { data: some.floats(w, dtype), rows: n, cols: k };
        const bias = { data: some.floats(b, dtype), rows: n, cols: 1 };
        return (begin: number, end: number) =>
          run(some, x.subarray(begin * k, end * k), end - begin, weight, bias);
      };
      const all = withThreads(1)(0, m);
      for (const threads of [1, 2, 5]) {
        const rowsOf = withThreads(threads);
        for (const [begin, end] of [
          [0, m],
          [0, 1],
          [149, 150],
          [3, 5],
          [10, 13],
          [4, 12],
          [5, 14],
          [20, 57],
          [1, 140],
        ]) {
          expectSameBits(rowsOf(begin, end), all.subarray(begin * n, end * n));
        }
      }
    },
  );

  it.each(dtypes)('propagates NaN and infinity only within their rows, in %s', (dtype) => {
    const weight = { data: ops.floats([1, 2], dtype), rows: 1, cols: 2 };
    for (const copies of [1, 6]) {
      const x = Float32Array.from(
        { length: 6 * copies },
        (_, i) => [1, NaN, 1, 1, Infinity, 1][i % 6],
      );
      const expected = Array.from({ length: copies }, () => [NaN, 3, Infinity]).flat();
      expect([...run(ops, x, 3 * copies, weight, null)]).toEqual(expected);
    }
  });
});
