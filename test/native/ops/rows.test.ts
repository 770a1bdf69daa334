import { cpuOps, dtypes, isas } from './binding';
import { expectClose, expectSameBits, Random } from './reference';

const sizes = [1, 3, 16, 17, 33, 100, 259];

describe.each(isas)('%s', (isa) => {
  const ops = cpuOps(isa);

  describe('rmsNorm', () => {
    const eps = 1e-5;

    /** residual (+ x) divided by its root mean square, times the weight; and the sum. */
    const reference = (
      x: Float32Array | null,
      residual: Float32Array,
      weight: Float32Array,
      offset = 0,
    ) => {
      const size = weight.length;
      const sums = Float32Array.from(residual, (r, i) => Math.fround(r + (x ? x[i] : 0)));
      const out = new Float64Array(sums.length);
      for (let row = 0; row < sums.length; row += size) {
        let squares = 0;
        for (let i = 0; i < size; ++i) squares += sums[row + i] ** 2;
        const rms = Math.sqrt(squares / size + eps);
        for (let i = 0; i < size; ++i) out[row + i] = (sums[row + i] / rms) * (weight[i] + offset);
      }
      return { sums, out };
    };

    describe.each(dtypes)('with a weight in %s', (dtype) => {
      it.each(sizes)(
        'normalises rows of %i, and adds an optional x to the residual, an offset to the weight',
        (size) => {
          const numTokens = 5;
          const random = new Random(size);
          const weight = random.normals(size, dtype);
          const residual = random.normals(numTokens * size, 'float32', 3);
          for (const x of [null, random.normals(numTokens * size)]) {
            const offset = x ? 1 : 0;
            const expected = reference(x, residual, weight, offset);
            const [res, out] = [ops.floats(residual), ops.zeros(numTokens * size)];
            const w = { data: ops.floats(weight, dtype), rows: size, cols: 1, offset };
            ops.rmsNorm(x && ops.floats(x), res, numTokens, w, eps, out);
            expectClose(ops.readFloats(out, numTokens * size), expected.out, (i) => {
              return (Math.abs(expected.out[i]) + offset) * 1e-6;
            });
            expectSameBits(ops.readFloats(res, numTokens * size), expected.sums);
          }
        },
      );
    });

    it('can write in place of x', () => {
      const random = new Random(4);
      const [x, residual, weight] = [random.normals(66), random.normals(66), random.normals(33)];
      const [inPlace, res] = [ops.floats(x), ops.floats(residual)];
      const w = { data: ops.floats(weight), rows: 33, cols: 1 };
      ops.rmsNorm(inPlace, res, 2, w, eps, inPlace);
      const { out } = reference(x, residual, weight);
      expectClose(ops.readFloats(inPlace, 66), out, 1e-5);
    });

    it('gives a row the same bits alone, among others and on any number of threads', () => {
      const [numTokens, size] = [64, 1000];
      const random = new Random(9);
      const residual = random.normals(numTokens * size);
      const weight = random.normals(size);
      const run = (threads: number, begin: number, end: number) => {
        const some = cpuOps(isa, threads);
        const out = some.zeros((end - begin) * size);
        const res = some.floats(residual.subarray(begin * size, end * size));
        const w = { data: some.floats(weight), rows: size, cols: 1 };
        some.rmsNorm(null, res, end - begin, w, eps, out);
        return some.readFloats(out, (end - begin) * size);
      };
      const all = run(1, 0, numTokens);
      expectSameBits(run(3, 0, numTokens), all);
      for (const i of [0, 13, 63]) {
        expectSameBits(run(2, i, i + 1), all.subarray(i * size, (i + 1) * size));
      }
    });
  });

  describe('siluAndMul', () => {
    it.each(sizes)('gives silu(gate) * up over rows of %i', (size) => {
      const numTokens = 7;
      const gateUp = new Random(size).normals(numTokens * 2 * size, 'float32', 8);
      const expected = Float64Array.from({ length: numTokens * size }, (_, i) => {
        const [row, col] = [Math.floor(i / size), i % size];
        const gate = gateUp[row * 2 * size + col];
        return (gate / (1 + Math.exp(-gate))) * gateUp[row * 2 * size + size + col];
      });
      const out = ops.zeros(numTokens * size);
      ops.siluAndMul(ops.floats(gateUp), numTokens, size, out);
      expectClose(ops.readFloats(out, numTokens * size), expected, (i) => {
        return Math.abs(expected[i]) * 1e-6 + 1e-37;
      });
    });

    it('is accurate far from zero, and propagates NaN', () => {
      const gates = [-1e30, -200, -88, -1e-30, 0, 1e-30, 50, 88, 200, 1e30, NaN];
      const out = ops.zeros(gates.length);
      ops.siluAndMul(ops.floats([...gates, ...gates.map(() => 1)]), 1, gates.length, out);
      const actual = ops.readFloats(out, gates.length);
      gates.forEach((gate, i) => {
        if (Number.isNaN(gate)) expect(actual[i]).toBeNaN();
        else {
          const expected = gate < -100 ? 0 : gate / (1 + Math.exp(-gate));
          // Below e^-88 it may be 0 or inaccurate, which is negligible in sums.
          expect(Math.abs(actual[i] - expected)).toBeLessThanOrEqual(
            Math.abs(expected) * 1e-6 + 1e-8,
          );
        }
      });
    });
  });

  describe('embed', () => {
    it.each(dtypes)('returns rows of a table in %s exactly', (dtype) => {
      const [vocabSize, size] = [50, 37];
      const random = new Random(5);
      const table = random.normals(vocabSize * size, dtype);
      const ids = Int32Array.from({ length: 100 }, () => random.below(vocabSize));
      const out = ops.zeros(ids.length * size);
      const weight = { data: ops.floats(table, dtype), rows: vocabSize, cols: size };
      ops.embed(ops.ints(ids), ids.length, weight, 0, out);
      const expected = Float32Array.from({ length: ids.length * size }, (_, i) => {
        return table[ids[Math.floor(i / size)] * size + (i % size)];
      });
      expectSameBits(ops.readFloats(out, expected.length), expected);
    });

    it.each([0, 13, 40])('returns zeros for tokens outside a table that starts at %i', (first) => {
      const [rows, size] = [17, 37];
      const table = new Random(first).normals(rows * size);
      const ids = Int32Array.from({ length: 60 }, (_, id) => id);
      const out = ops.floats(new Float32Array(ids.length * size).fill(NaN));
      ops.embed(ops.ints(ids), 60, { data: ops.floats(table), rows, cols: size }, first, out);
      const expected = new Float32Array(ids.length * size);
      expected.set(table.subarray(0, Math.min(rows, 60 - first) * size), first * size);
      expectSameBits(ops.readFloats(out, expected.length), expected);
    });
  });

  describe('joinColumns', () => {
    it.each([
      [1, 1, 4, 4],
      [3, 2, 16, 32],
      [5, 4, 9, 33],
      [300, 4, 101, 401],
      [2, 4, 2, 5], // without the last part
    ])('of %i rows lays %i parts of %i side by side, up to %i', (count, numParts, part, width) => {
      const parts = new Random(width).normals(numParts * count * part);
      const out = ops.floats(new Float32Array(count * width).fill(NaN));
      ops.joinColumns(ops.floats(parts), count, part, width, out);
      const expected = Float32Array.from({ length: count * width }, (_, i) => {
        const [row, col] = [Math.floor(i / width), i % width];
        return parts[Math.floor(col / part) * count * part + row * part + (col % part)];
      });
      expectSameBits(ops.readFloats(out, expected.length), expected);
    });
  });

  describe('gatherRows', () => {
    it('returns the rows of the indices', () => {
      const x = new Random(6).normals(10 * 33);
      const index = [9, 0, 3, 3];
      const out = ops.zeros(index.length * 33);
      ops.gatherRows(ops.floats(x), ops.ints(index), index.length, 33, out);
      const expected = index.flatMap((row) => [...x.subarray(row * 33, (row + 1) * 33)]);
      expectSameBits(ops.readFloats(out, expected.length), Float32Array.from(expected));
    });
  });
});
