/** Scales, sums and projection norms, and attention without rotation, against float64. */
import { activate } from '../decoder';
import { Layout, makeBatch, tokensOf } from './batches';
import { backends, dtypes, openOps, type Weight } from './binding';
import { expectClose, Random, roundTo, softcap, widen } from './reference';

/** Types of activations: the CPU computes in float32. */
const activationTypes = (backend: string) => (backend === 'cuda' ? dtypes : (['float32'] as const));

/** Half a unit in the last place of a value of this type, relative. */
const EPSILON = { float32: 2 ** -23, float16: 2 ** -10, bfloat16: 2 ** -7 };

const sizes = [1, 7, 8, 64, 333, 4096];

describe.each(backends.flatMap((backend) => activationTypes(backend).map((t) => [backend, t])))(
  '%s in %s',
  (backend, type) => {
    const dtype = type as keyof typeof EPSILON;
    const ops = openOps(backend as (typeof backends)[number]);
    const epsilon = EPSILON[dtype];
    const tiny = dtype === 'float16' ? 2 ** -24 : 1e-37; // of subnormal numbers
    const read = (tensor: ReturnType<typeof ops.floats>, count: number) =>
      dtype === 'float32'
        ? ops.readFloats(tensor, count)
        : Float32Array.from(ops.readBits(tensor, count), widen[dtype]);

    it.each(
      sizes.flatMap((size) => [false, true].map((isTanh): [number, boolean] => [size, isTanh])),
    )('multiplies rows of %i by the GELU of gates, by tanh: %s', (size, isTanh) => {
      const numTokens = 3;
      const gateUp = new Random(size).normals(numTokens * 2 * size, dtype, 3);
      const out = ops.zeros(numTokens * size, dtype);
      ops.geluAndMul(ops.floats(gateUp, dtype), numTokens, size, isTanh, out);
      const up = (i: number) => gateUp[(2 * Math.floor(i / size) + 1) * size + (i % size)];
      const gate = (i: number) => gateUp[2 * Math.floor(i / size) * size + (i % size)];
      const expected = Float64Array.from({ length: numTokens * size }, (_, i) => {
        return activate(gate(i), isTanh ? 'geluTanh' : 'gelu') * up(i);
      });
      // 1 + erf(x) cancels far below 0.
      expectClose(read(out, expected.length), expected, (i) => {
        return Math.abs(expected[i]) * 2 * epsilon + Math.abs(gate(i) * up(i)) * 4e-7 + 16 * tiny;
      });
    });

    it.each([
      // size, elements between rows of gates and of ups, the first row's of ups
      [256, 256, 35 * 256, 3 * 256],
      [256, 264, 1000, 8],
      [16, 48, 20, 4],
      [12, 12, 5 * 12, 2 * 12],
      [333, 333, 700, 1],
    ])('multiplies rows of %i, %i and %i apart', (size, gateStride, upStride, upStart) => {
      const numTokens = 5;
      const random = new Random(size);
      const gates = random.normals(numTokens * gateStride, dtype, 3);
      const ups = random.normals(upStart + numTokens * upStride, dtype);
      const gate = (i: number) => gates[Math.floor(i / size) * gateStride + (i % size)];
      const up = (i: number) => ups[upStart + Math.floor(i / size) * upStride + (i % size)];
      for (const [activation, name] of [
        [0, 'silu'],
        [2, 'geluTanh'],
      ] as const) {
        const out = ops.floats(new Float32Array(numTokens * size).fill(NaN), dtype);
        const [g, u] = [ops.floats(gates, dtype), ops.floats(ups, dtype)];
        ops.activateAndMulRows(
          g,
          gateStride,
          u,
          upStart,
          upStride,
          numTokens,
          size,
          activation,
          out,
        );
        const expected = Float64Array.from(
          { length: numTokens * size },
          (_, i) => activate(gate(i), name) * up(i),
        );
        expectClose(read(out, expected.length), expected, (i) => {
          return Math.abs(expected[i]) * 2 * epsilon + Math.abs(gate(i) * up(i)) * 4e-7 + 16 * tiny;
        });
      }
    });

    it.each(sizes)('scales %i elements', (count) => {
      const x = new Random(count).normals(count, dtype);
      const tensor = ops.floats(x, dtype);
      ops.scale(tensor, count, 0.22);
      const expected = Float64Array.from(x, (value) => value * 0.22);
      expectClose(read(tensor, count), expected, (i) => Math.abs(expected[i]) * epsilon + tiny);
    });

    it.each(sizes)('caps %i elements', (count) => {
      const x = new Random(count).normals(count, 'float32', 40);
      [x[0], x[count - 1]] = [1e30, -200];
      const tensor = ops.floats(x);
      ops.softcap(tensor, count, 30);
      const expected = Float64Array.from(x, (value) => softcap(value, 30));
      expectClose(ops.readFloats(tensor, count), expected, 30 * 2 ** -21);
    });

    it.each(sizes)('adds %i elements', (count) => {
      const random = new Random(count);
      const [residual, x] = [random.normals(count, dtype), random.normals(count, dtype)];
      const tensor = ops.floats(residual, dtype);
      ops.add(tensor, ops.floats(x, dtype), count);
      const expected = Float64Array.from(residual, (value, i) => value + x[i]);
      expectClose(read(tensor, count), expected, (i) => Math.abs(expected[i]) * epsilon + tiny);
    });

    it.each(sizes)('adds rows of %i, scaled by the sigmoid of a gate', (width) => {
      const numTokens = 5;
      const random = new Random(width);
      const [out, x] = [1, 2].map(() => random.normals(numTokens * width, dtype));
      const gate = random.normals(numTokens, dtype, 3);
      const tensor = ops.floats(out, dtype);
      ops.addGated(ops.floats(x, dtype), ops.floats(gate, dtype), numTokens, width, tensor);
      const terms = Float64Array.from(x, (value, i) => {
        return value / (1 + Math.exp(-gate[Math.floor(i / width)]));
      });
      const expected = Float64Array.from(out, (value, i) => value + terms[i]);
      expectClose(read(tensor, out.length), expected, (i) => {
        return (Math.abs(expected[i]) + 2 * Math.abs(terms[i])) * epsilon + 2 * tiny;
      });
    });

    it.each([
      [1, 1, 8, 1],
      [4, 2, 20, 3],
      [32, 8, 128, 2],
    ])('norms projections of %i and %i heads of %i', (numHeads, numKvHeads, headDim, numTokens) => {
      const random = new Random(headDim);
      const shape = { numHeads, numKvHeads, headDim, slidingWindow: 0 };
      const [qWidth, kWidth] = [numHeads * headDim, numKvHeads * headDim];
      const rowWidth = qWidth + 2 * kWidth;
      const qkv = random.normals(numTokens * rowWidth, dtype, 2);
      const weights = [random.normals(qWidth, dtype), random.normals(kWidth, dtype)];
      const [q, k] = weights.map((weight): Weight => ({
        data: ops.floats(weight, dtype),
        rows: weight.length,
        cols: 1,
      }));
      const tensor = ops.floats(qkv, dtype);
      const sums = ops.floats(new Float32Array(2 * numTokens).fill(NaN));
      const eps = 1e-5;
      ops.sumSquares(tensor, numTokens, shape, sums);
      // As on two ranks with the same sums.
      ops.scale(sums, 2 * numTokens, 2);
      ops.normProjections(tensor, numTokens, shape, sums, q, k, 2 * qWidth, 2 * kWidth, eps);

      const expected = Float64Array.from(qkv);
      for (let token = 0; token < numTokens; token++) {
        for (const [first, width, weight] of [
          [token * rowWidth, qWidth, weights[0]],
          [token * rowWidth + qWidth, kWidth, weights[1]],
        ] as const) {
          const x = expected.subarray(first, first + width);
          const meanSquare = x.reduce((sum, value) => sum + value * value, 0) / width;
          x.forEach((value, i) => (x[i] = (value / Math.sqrt(meanSquare + eps)) * weight[i]));
        }
      }
      expectClose(read(tensor, qkv.length), expected, (i) => {
        return Math.abs(expected[i]) * Math.max(epsilon, 4e-6) + tiny;
      });
    });

    it.each([6, 20, 512])('normalizes each value of heads of %i, without weights', (headDim) => {
      const [numTokens, numHeads, numKvHeads, eps] = [5, 4, 2, 1e-3];
      const shape = { numHeads, numKvHeads, headDim, slidingWindow: 0 };
      const width = (numHeads + 2 * numKvHeads) * headDim;
      const qkv = new Random(headDim).normals(numTokens * width, dtype);
      const tensor = ops.floats(qkv, dtype);
      ops.normValues(tensor, numTokens, shape, eps);
      const expected = Float64Array.from(qkv);
      for (let token = 0; token < numTokens; token++) {
        for (let head = numHeads + numKvHeads; head < numHeads + 2 * numKvHeads; head++) {
          const first = token * width + head * headDim;
          const x = expected.subarray(first, first + headDim);
          const meanSquare = x.reduce((sum, value) => sum + value * value, 0) / headDim;
          x.forEach((value, i) => (x[i] = value / Math.sqrt(meanSquare + eps)));
        }
      }
      expectClose(read(tensor, qkv.length), expected, (i) => {
        return Math.abs(expected[i]) * Math.max(epsilon, 4e-6) + tiny;
      });
    });

    it.each([1, 37, 4096])('scales %i elements by a parameter', (count) => {
      const x = new Random(count).normals(count, dtype);
      const tensor = ops.floats(x, dtype);
      const factor = { data: ops.floats([0.75], dtype), rows: 1, cols: 1 };
      ops.scaleBy(tensor, count, factor);
      const expected = Float64Array.from(x, (value) => 0.75 * value);
      expectClose(read(tensor, count), expected, (i) => Math.abs(expected[i]) * 2 * epsilon + tiny);
    });

    it.each([7, 16])('scales queries of heads of %i by their position', (headDim) => {
      const [numHeads, numKvHeads, beta, period, shift] = [3, 1, 0.5, 4, headDim === 7 ? 0 : 1];
      const shape = { numHeads, numKvHeads, headDim, slidingWindow: 0 };
      const rows = [
        { slot: 1, numComputed: 11, numScheduled: 3 },
        { slot: 0, numComputed: 2, numScheduled: 1 },
      ];
      const tokens = tokensOf(rows);
      const random = new Random(headDim);
      const layout = new Layout(4, [16, 16], random);
      const requests = layout.requests(ops, [new Int32Array(16), new Int32Array(16)], 1);
      const batch = makeBatch(ops, rows);
      ops.prepareInputs(requests, null, 0, 4, batch);
      const width = (numHeads + 2 * numKvHeads) * headDim;
      const qkv = random.normals(tokens.length * width, dtype);
      const tensor = ops.floats(qkv, dtype);
      ops.scaleQueries(tensor, batch, shape, beta, period, shift);
      const expected = Float64Array.from(qkv, (value, i) => {
        if (i % width >= numHeads * headDim) return value;
        const { position } = tokens[Math.floor(i / width)];
        return value * (1 + beta * Math.log(1 + Math.floor((position + shift) / period)));
      });
      expectClose(
        read(tensor, qkv.length),
        expected,
        (i) => Math.abs(expected[i]) * 2 * epsilon + tiny,
      );
    });

    it.each([false, true])('writes keys and values without a rotation, head norms: %s', (norms) => {
      const [numHeads, numKvHeads, headDim] = [4, 2, 16];
      const shape = { numHeads, numKvHeads, headDim, slidingWindow: 0 };
      const random = new Random(3);
      const layout = new Layout(4, [9], random);
      const rows = [{ slot: 0, numComputed: 4, numScheduled: 5 }];
      const numTokens = tokensOf(rows).length;
      const requests = layout.requests(ops, [new Int32Array(9)], 1);
      const batch = makeBatch(ops, rows);
      ops.prepareInputs(requests, null, 0, 4, batch);
      const rowWidth = (numHeads + 2 * numKvHeads) * headDim;
      const qkv = random.normals(numTokens * rowWidth, dtype);
      const weight = random.normals(headDim, dtype);
      const norm = norms ? { data: ops.floats(weight, dtype), rows: headDim, cols: 1 } : null;
      const cacheSize = layout.numBlocks * 4 * numKvHeads * headDim;
      const cache = {
        keys: ops.zeros(cacheSize, dtype),
        values: ops.zeros(cacheSize, dtype),
        blockSize: 4,
      };
      const tensor = ops.floats(qkv, dtype);
      ops.ropeAndCache(tensor, batch, shape, norm, norm, 1e-6, null, cache);

      const expected = Float64Array.from(qkv);
      for (let at = 0; norms && at < qkv.length; at += headDim) {
        if ((at % rowWidth) / headDim >= numHeads + numKvHeads) continue; // a value
        const head = expected.subarray(at, at + headDim);
        const meanSquare = head.reduce((sum, value) => sum + value * value, 0) / headDim;
        head.forEach((value, i) => {
          head[i] = roundTo(value / Math.sqrt(meanSquare + 1e-6), dtype) * weight[i];
        });
      }
      const kvWidth = numKvHeads * headDim;
      const slots = ops.readInts(batch.cacheSlots, numTokens);
      const [keys, values] = [read(cache.keys, cacheSize), read(cache.values, cacheSize)];
      const close = (actual: Float32Array, first: number, width: number) =>
        expectClose(actual, expected.subarray(first, first + width), (i) => {
          return Math.abs(expected[first + i]) * Math.max(2 * epsilon, 4e-6) + tiny;
        });
      const all = read(tensor, qkv.length);
      for (let token = 0; token < numTokens; token++) {
        const first = token * rowWidth;
        const at = slots[token] * kvWidth;
        close(all.subarray(first, first + numHeads * headDim), first, numHeads * headDim);
        close(keys.subarray(at, at + kvWidth), first + numHeads * headDim, kvWidth);
        close(values.subarray(at, at + kvWidth), first + numHeads * headDim + kvWidth, kvWidth);
      }
    });
  },
);
