/** Weights in GGUF's blocks on the CPU, against float64 arithmetic on their elements. */
import { BLOCK_TYPES } from '../../support/ggufBlocks';
import { isas, openOps } from './binding';
import { BlockMatrix } from './blockMatrix';
import { expectClose, expectSameBits, Random } from './reference';

describe.each(isas)("GGUF's blocks, %s", (isa) => {
  const ops = openOps(isa);

  describe.each(BLOCK_TYPES)('%s', (type) => {
    it.each([
      [1, 5, 1280],
      [6, 14, 256],
    ])('%i rows times [%i, %i] are their float64 product', (m, n, k) => {
      const random = new Random(m * 1000 + n * 10 + k);
      const matrix = new BlockMatrix(type, n, k, random);
      const x = random.normals(m * k);
      const out = ops.zeros(m * n);
      ops.linear(ops.floats(x), m, matrix.onDevice(ops), null, out);
      const { expected, magnitude } = matrix.product(x, m);
      // The minimum of a group is subtracted after rounding, so elements may cancel.
      expectClose(ops.readFloats(out, m * n), expected, (i) => 1e-6 + magnitude[i] * 2 ** -19);
    });

    it('embeds its rows', () => {
      const [rows, cols] = [7, 512];
      const matrix = new BlockMatrix(type, rows, cols, new Random(5));
      const out = ops.zeros(3 * cols);
      ops.embed(ops.ints(Int32Array.from([3, 2, 14])), 3, matrix.onDevice(ops), 2, out);
      const expected = Float64Array.from({ length: 3 * cols }, (_, i) => {
        const row = [1, 0, -1][Math.floor(i / cols)];
        return row < 0 ? 0 : matrix.values[row * cols + (i % cols)];
      });
      expectClose(ops.readFloats(out, 3 * cols), expected, 1e-6);
    });
  });

  it('a row of x has the same product whatever rows are beside it', () => {
    const [m, n, k] = [21, 17, 768];
    const random = new Random(n);
    const weight = new BlockMatrix('q4_k', n, k, random).onDevice(ops);
    const x = random.normals(m * k);
    const product = (count: number) => {
      const out = ops.zeros(count * n);
      ops.linear(ops.floats(x.subarray(0, count * k)), count, weight, null, out);
      return ops.readFloats(out, count * n);
    };
    const all = product(m);
    for (const count of [1, 2, 4, 7, 8, 16]) {
      expectSameBits(product(count), all.slice(0, count * n));
    }
  });

  it("multiplies experts' matrices", () => {
    const random = new Random(17);
    const [tokens, experts, rows, cols] = [4, 2, 8, 256];
    const matrix = new BlockMatrix('mxfp4', experts * rows, cols, random);
    const x = random.normals(tokens * cols);
    const ids = Int32Array.from([0, 1, 1, 0]);
    const routing = {
      numTokens: tokens,
      numExperts: 2,
      topK: 1,
      firstLocal: 0,
      numLocal: experts,
      expertIds: ops.ints(ids),
      weights: ops.zeros(tokens),
    };
    const out = ops.zeros(tokens * rows);
    ops.expertLinear(ops.floats(x), 1, routing, matrix.onDevice(ops), out);
    const { expected } = matrix.product(x, tokens);
    const own = Float64Array.from({ length: tokens * rows }, (_, i) => {
      const token = Math.floor(i / rows);
      return expected[token * experts * rows + ids[token] * rows + (i % rows)];
    });
    expectClose(ops.readFloats(out, own.length), own, 1e-4);
  });
});
