/**
 * Products of half-type activations with weights of 4 and 8 bits on the GPU, against float64
 * products of the dequantized weights. Weights that the kernels for Hopper convert are exact, so
 * that the error is that of float32 sums: at most 2^-17 of the sum of the terms' magnitudes, before
 * the output is rounded. Other shapes, many rows and older GPUs round each dequantized weight to
 * the activations' type first.
 */
import type { DType } from '../../lib/native';
import { cudaOps, type LinearWeight } from '../native/ops/binding';
import { expectClose, expectSameBits, Random, roundTo, widen } from '../native/ops/reference';
import { type StoredFormat, StoredMatrix } from '../native/ops/storedMatrix';

const gpu = cudaOps();
const onHopper = gpu.properties().capability === 'sm_90';

const CHANNEL = 1 << 16; // at least all columns

const FORMATS: [string, StoredFormat][] = [
  ['int4 in groups of 128', { type: 'uint4', groupCols: 128 }],
  ['int4 in groups of 128 with zero points', { type: 'uint4', groupCols: 128, hasZeros: true }],
  ['int4 in groups of 64', { type: 'uint4', groupCols: 64, hasZeros: true }],
  ['int4 in groups of 32', { type: 'uint4', groupCols: 32, hasZeros: true }],
  ['int4 in groups of 256', { type: 'uint4', groupCols: 256 }],
  ['int4 by channel', { type: 'uint4', groupCols: CHANNEL }],
  ['int4 in act-order', { type: 'uint4', groupCols: 128, hasZeros: true, isOrdered: true }],
  [
    "a rank's int4 in act-order, with blocks filled up",
    { type: 'uint4', groupCols: 32, hasZeros: true, isOrdered: true, numFilling: 128 },
  ],
  ['int8 by channel', { type: 'int8', groupCols: CHANNEL }],
  ['mxfp4', { type: 'float4_e2m1', groupCols: 32 }],
];

/** Half of the distance between 1 and the next number. */
const ROUNDING = { bfloat16: 2 ** -8, float16: 2 ** -11 };

const isConverted = (numTokens: number, cols: number) =>
  onHopper && cols % 128 === 0 && numTokens <= 384;

describe.each(['bfloat16', 'float16'] as const)('quantized weights times %s', (dtype) => {
  const rounding = ROUNDING[dtype];

  const product = (
    x: Float32Array,
    m: number,
    weight: LinearWeight,
    b: Float32Array | null,
    outType: DType,
  ) => {
    const n = weight.rows;
    const bias = b && { data: gpu.floats(b, dtype), rows: n, cols: 1 };
    const out = gpu.floats(new Float32Array(m * n).fill(NaN), outType); // detects unwritten ones
    gpu.linear(gpu.floats(x, dtype), m, weight, bias, out);
    if (outType === 'float32') return gpu.readFloats(out, m * n);
    return Float32Array.from(gpu.readBits(out, m * n), widen[outType]);
  };

  describe.each(FORMATS)('%s', (_, format) => {
    it.each([
      [1, 130, 512],
      [3, 1041, 256],
      [8, 96, 1024],
      [9, 40, 4352],
      [16, 300, 768],
      [2, 70, 640],
      [17, 130, 640],
      [33, 77, 4096],
      [64, 300, 512],
      [100, 1029, 256],
      [300, 129, 384],
      [600, 70, 256],
      [5, 33, 576],
      [40, 33, 544],
    ])('%i rows times [%i, %i] are their float64 product', (m, n, k) => {
      const random = new Random(m * 1000 + n * 10 + k);
      const matrix = new StoredMatrix(n, k, format, random);
      const weight = matrix.onDevice(gpu, dtype);
      const x = random.normals(m * k, dtype);
      const b = random.normals(n, dtype);
      const { expected, magnitude } = matrix.product(x, b, m);
      const error = isConverted(m, k) ? 2 ** -17 : rounding + 2 ** -17;
      expectClose(product(x, m, weight, b, 'float32'), expected, (i) => magnitude[i] * error);
      expectClose(
        product(x, m, weight, b, dtype),
        expected,
        (i) => magnitude[i] * error + (Math.abs(expected[i]) + magnitude[i] * error) * rounding,
      );
    });

    it.each([
      [1, 16, 256],
      [3, 48, 2048],
      [16, 2064, 512],
      [20, 1040, 640],
      [70, 256, 256],
    ])('linearSiluAndMul: %i rows times [%i, %i]', (m, n, k) => {
      const random = new Random(n + k);
      const weight = new StoredMatrix(n, k, format, random).onDevice(gpu, dtype);
      const x = random.normals(m * k, dtype);
      const gateUp = product(x, m, weight, null, dtype);
      const size = n / 2;
      const expected = Float64Array.from({ length: m * size }, (__, i) => {
        const at = Math.floor(i / size) * n + (i % size);
        const gate = gateUp[at];
        return roundTo(gate / (1 + Math.exp(-gate)), dtype) * gateUp[at + size];
      });
      const scratch = gpu.floats(new Float32Array(m * n).fill(NaN), dtype);
      const out = gpu.floats(new Float32Array(m * size).fill(NaN), dtype);
      gpu.linearSiluAndMul(gpu.floats(x, dtype), m, weight, scratch, out);
      // Both round gate, up and the result; a sum near the middle of two numbers may differ.
      expectClose(
        Float32Array.from(gpu.readBits(out, m * size), widen[dtype]),
        expected,
        (i) => (Math.abs(expected[i]) + 2 ** -12) * 6 * rounding,
      );
    });
  });

  // 2880 columns are those of gpt-oss; of 80, groups do not divide a row of whole vectors.
  describe.each(FORMATS.filter(([, { isOrdered }]) => !isOrdered))("experts' %s", (_, format) => {
    it.each([
      [1, 4, 34, 2880],
      [5, 2, 16, 1024],
      [3, 2, 33, 160],
      [2, 1, 7, 80],
    ])('%i tokens to %i experts of [%i, %i]', (numTokens, topK, rows, cols) => {
      const [numExperts, numLocal, firstLocal] = [8, 5, 2];
      const random = new Random(rows + cols);
      const matrix = new StoredMatrix(numLocal * rows, cols, format, random);
      const ids = Int32Array.from({ length: numTokens }).reduce<number[]>((all) => {
        all.push(...random.permutation(numExperts).subarray(0, topK));
        return all;
      }, []);
      const routing = {
        ...gpu.routing(numTokens, numExperts, topK),
        firstLocal,
        numLocal,
        expertIds: gpu.ints(Int32Array.from(ids)),
      };
      const weight = matrix.onDevice(gpu, dtype);
      for (const rowsPerToken of [1, topK]) {
        const x = random.normals(numTokens * rowsPerToken * cols, dtype);
        const numPairs = numTokens * topK;
        const out = gpu.floats(new Float32Array(numPairs * rows).fill(NaN), dtype);
        gpu.expertLinear(gpu.floats(x, dtype), rowsPerToken, routing, weight, out);
        const { expected, magnitude } = matrix.product(x, null, numTokens * rowsPerToken);
        const at = (i: number) => {
          const pair = Math.floor(i / rows);
          const expert = ids[pair] - firstLocal;
          const input = Math.floor(pair / (topK / rowsPerToken));
          const isLocal = expert >= 0 && expert < numLocal;
          return isLocal ? (input * numLocal + expert) * rows + (i % rows) : -1;
        };
        const sums = Float64Array.from(
          { length: numPairs * rows },
          (__, i) => expected[at(i)] ?? 0,
        );
        expectClose(
          Float32Array.from(gpu.readBits(out, sums.length), widen[dtype]),
          sums,
          (i) => (magnitude[at(i)] ?? 0) * 2 ** -17 + Math.abs(sums[i]) * rounding,
        );
      }
    });
  });

  (onHopper ? it : it.skip).each([
    [1024, 4096],
    [3000, 1024],
    [520, 8192],
  ])('[%i, %i] gives a row the same bits among as many rows as a kernel takes', (n, k) => {
    const random = new Random(n);
    const format: StoredFormat = { type: 'uint4', groupCols: 128, hasZeros: true };
    const weight = new StoredMatrix(n, k, format, random).onDevice(gpu, dtype);
    const x = random.normals(300 * k, dtype);
    const some = (first: number, count: number) =>
      product(x.subarray(first * k, (first + count) * k), count, weight, null, 'float32');
    for (const [most, counts] of [
      [16, [1, 2, 8, 9, 15]],
      [32, [17, 31]],
      [64, [33, 50]],
      [300, [65, 128, 129, 200]],
    ] as const) {
      const all = some(0, most);
      for (const count of counts) {
        const first = most - count;
        expectSameBits(some(first, count), all.slice(first * n, most * n));
      }
    }
  });
});
