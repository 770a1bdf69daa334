import type { DType } from '../../../lib/native';
import { Layout, makeBatch } from './batches';
import { cpuOps, dtypes, isas } from './binding';
import { expectSameBits, float8ToNumber, Random, roundTo, widen } from './reference';

const halfTypes = ['float16', 'bfloat16'] as const;

describe.each(isas)('upload, %s', (isa) => {
  const ops = cpuOps(isa);

  it.each(halfTypes)('widens each of the 65536 numbers of %s exactly', (dtype) => {
    const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const out = ops.zeros(65536);
    ops.upload(out, bits, dtype);
    const actual = ops.readFloats(out, 65536);
    for (let i = 0; i < 65536; ++i) {
      if (!Object.is(actual[i], widen[dtype](i))) {
        throw new Error(`bits ${i.toString(16)} became ${actual[i]}, not ${widen[dtype](i)}`);
      }
    }
  });

  it.each(halfTypes)('narrows to %s: to the nearest, ties to even', (dtype) => {
    const random = new Random(7);
    const view = new DataView(new ArrayBuffer(4));
    const values: number[] = [0, -0, NaN, Infinity, -Infinity, 3.4028234663852886e38, 1e-45];
    for (let i = 0; i < 65536; ++i) {
      // Each number of the type, the midpoint to the next, and the midpoint's neighbours.
      const number = widen[dtype](i);
      const next = widen[dtype](i + 1);
      if (!Number.isFinite(number) || !Number.isFinite(next)) continue;
      view.setFloat32(0, (number + next) / 2);
      const middle = view.getUint32(0);
      values.push(number);
      for (const word of [middle - 1, middle, middle + 1]) {
        view.setUint32(0, word);
        values.push(view.getFloat32(0));
      }
    }
    // The boundary between the largest number and infinity, and random bits.
    for (const x of [65504, 65519.996, 65520, 65536, 3.3895313892515355e38, 3.396e38]) {
      values.push(Math.fround(x), -Math.fround(x));
    }
    for (let i = 0; i < 20000; ++i) {
      view.setUint32(0, random.word());
      values.push(view.getFloat32(0));
    }
    const host = Float32Array.from(values);
    const actual = ops.readBits(ops.floats(host, dtype), host.length);
    for (let i = 0; i < host.length; ++i) {
      const expected = roundTo(host[i], dtype);
      if (!Object.is(widen[dtype](actual[i]), expected)) {
        throw new Error(`${host[i]} became ${widen[dtype](actual[i])}, not ${expected}`);
      }
    }
  });

  it('converts between all types, at any alignment and length', () => {
    const random = new Random(3);
    for (const from of dtypes) {
      for (const to of dtypes) {
        for (const count of [0, 1, 3, 15, 16, 17, 1023, 1025, 33001]) {
          const values = random.normals(count, from, 3);
          const host = bytesOf(values, from);
          const shifted = new Uint8Array(host.length + 1).subarray(1);
          shifted.set(host);
          const out = ops.zeros(count, to);
          ops.upload(out, shifted, from);
          const actual =
            to === 'float32'
              ? ops.readFloats(out, count)
              : Array.from(ops.readBits(out, count), widen[to]);
          const expected = Float32Array.from(values, (x) => roundTo(x, to));
          expectSameBits(Float32Array.from(actual), expected);
        }
      }
    }
  });

  it.each([
    [1, 5, 5],
    [7, 3, 3],
    [1000, 33, 71],
    [2, 40_001, 50_000],
    [500, 1, 3],
  ])('takes %i rows of %i that lie %i apart, and nothing between', (rows, cols, rowStride) => {
    const span = (rows - 1) * rowStride + cols;
    for (const [from, to] of [
      ['float32', 'float32'],
      ['bfloat16', 'bfloat16'],
      ['float16', 'bfloat16'],
    ] as const) {
      const values = new Random(rows).normals(span, from);
      const kept = values.map((x, i) => (i % rowStride < cols ? x : NaN));
      const out = ops.zeros(rows * cols, to);
      ops.upload(out, bytesOf(kept, from), from, cols, rowStride);
      const actual =
        to === 'float32'
          ? ops.readFloats(out, rows * cols)
          : Float32Array.from(ops.readBits(out, rows * cols), widen[to]);
      const expected = Float32Array.from({ length: rows * cols }, (_, i) =>
        roundTo(values[Math.floor(i / cols) * rowStride + (i % cols)], to),
      );
      expectSameBits(actual, expected);
    }
  });
});

test.each(isas)(
  'keys enter a float8 cache rounded to the nearest, ties to even, at most 448, %s',
  (isa) => {
    const ops = cpuOps(isa);
    const positive = [0, 1e-45, 448, 464, 465, 480, 1e9, Infinity, NaN];
    for (let bits = 0; bits < 0x7e; ++bits) {
      const middle = (float8ToNumber(bits) + float8ToNumber(bits + 1)) / 2;
      positive.push(float8ToNumber(bits), middle, middle * (1 - 2 ** -23), middle * (1 + 2 ** -23));
    }
    const values = positive.flatMap((x) => [x, -x]).map(Math.fround);
    const headDim = 2 * Math.ceil(values.length / 2);
    const layout = new Layout(1, [1], new Random(1));
    const requests = layout.requests(ops, [new Int32Array(1)], 1);
    const batch = makeBatch(ops, [{ slot: 0, numComputed: 0, numScheduled: 1 }]);
    ops.prepareInputs(requests, null, 0, 1, batch);
    const [keys, vs] = [0, 0].map(() => ops.cached(new Float32Array(headDim), 'float8_e4m3'));
    const cache = { keys, values: vs, blockSize: 1, dtype: 'float32' as const };
    const qkv = new Float32Array(3 * headDim);
    qkv.set(values, headDim);
    const shape = { numHeads: 1, numKvHeads: 1, headDim, slidingWindow: 0 };
    ops.ropeAndCache(ops.floats(qkv), batch, shape, null, null, 1, null, cache);
    const expected = values.map((x) => roundTo(x, 'float8_e4m3'));
    const actual = Array.from(ops.readCached(keys, headDim, 'float8_e4m3')).slice(0, values.length);
    expect(actual).toEqual(expected);
  },
);

/** Encodes values of the type. */
function bytesOf(values: Float32Array, dtype: DType): Uint8Array {
  if (dtype === 'float32') return new Uint8Array(values.buffer);
  const bits = Uint16Array.from(values, (x) => {
    const [word] = new Uint32Array(Float32Array.of(x).buffer);
    if (dtype === 'bfloat16') return word >>> 16;
    // By search: float16 numbers of one sign are ordered as their bits.
    let [low, high] = [0, 0x7c00];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (widen.float16(middle) < Math.abs(x)) low = middle + 1;
      else high = middle;
    }
    return low | (Object.is(Math.sign(x), -1) || Object.is(x, -0) ? 0x8000 : 0);
  });
  return new Uint8Array(bits.buffer);
}
