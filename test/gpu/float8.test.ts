/**
 * Products with float8 weights on the GPU, in each of the ways of native/ops/cuda/linear.h, beside
 * float64 products of the dequantised weights. From 17 tokens on the tokens are e4m3 numbers too,
 * where the weight's format allows it.
 */
import type { DType } from '../../lib/native';
import { cudaOps, type LinearWeight, type Tensor } from '../native/ops/binding';
import { BlockScaledMatrix, float8ToNumber, Random, roundTo, widen } from '../native/ops/reference';

const gpu = cudaOps();
type Half = 'bfloat16' | 'float16';
/** Tokens, rows, columns, rows and columns of a scale; the weight allows to round tokens. */
type Case = [number, number, number, number, number, boolean];

/** Relative errors of all elements together. */
const OF_PRODUCTS: Record<Half, number> = { bfloat16: 3e-3, float16: 1.2e-3 };
/** Of products whose tokens are quantised, beside exact tokens. */
const OF_QUANTIZED = 0.03;
const LEAST_QUANTIZED = 17;

/** Mostly normal values, and some that are larger by two orders of magnitude, as activations have. */
function activations(random: Random, count: number, dtype: Half): Float32Array {
  return random.normals(count, dtype).map((x, i) => (i % 511 === 7 ? roundTo(100 * x, dtype) : x));
}

const POSITIVE_FLOAT8 = Array.from({ length: 0x7f }, (_, code) => float8ToNumber(code));

/** The nearest float8 E4M3, ties to even. */
function roundToFloat8(x: number): number {
  const size = Math.min(Math.abs(x), 448);
  const next = POSITIVE_FLOAT8.findIndex((value) => value >= size);
  if (next === 0) return 0;
  const [below, above] = [POSITIVE_FLOAT8[next - 1], POSITIVE_FLOAT8[next]];
  const isBelow = size - below === above - size ? next % 2 === 1 : size - below < above - size;
  return Math.sign(x) * (isBelow ? below : above);
}

/** Tokens as float8 numbers times a scale for each `group` columns: the largest becomes 448. */
function quantized(x: Float32Array, group: number): Float64Array {
  const result = new Float64Array(x.length);
  for (let first = 0; first < x.length; first += group) {
    const values = x.subarray(first, first + group);
    const most = values.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    const scale = most === 0 ? 1 : Math.fround(most / 448);
    const inverse = Math.fround(1 / scale);
    values.forEach((value, i) => {
      result[first + i] = scale * roundToFloat8(Math.fround(value * inverse));
    });
  }
  return result;
}

function product(x: ArrayLike<number>, m: number, matrix: BlockScaledMatrix, bias: Float32Array) {
  const { rows, cols, values } = matrix;
  const out = new Float64Array(m * rows);
  for (let i = 0; i < m; ++i) {
    for (let j = 0; j < rows; ++j) {
      let sum = bias[j];
      for (let k = 0; k < cols; ++k) sum += x[i * cols + k] * values[j * cols + k];
      out[i * rows + j] = sum;
    }
  }
  return out;
}

function relativeError(actual: Float32Array, expected: Float64Array): number {
  let [error, size] = [0, 0];
  expected.forEach((value, i) => {
    error += (actual[i] - value) ** 2;
    size += value ** 2;
  });
  return Math.sqrt(error / size);
}

function weightOf(matrix: BlockScaledMatrix, dtype: DType, roundsInput = true): LinearWeight {
  const { rows, cols, scaleRows, scaleCols } = matrix;
  const data = gpu.allocate(rows * cols, 'float8_e4m3', 'a test');
  gpu.upload(data, matrix.codes, 'float8_e4m3');
  const scales = gpu.floats(matrix.scales);
  return { data, rows, cols, scales, scaleRows, scaleCols, dtype, roundsInput };
}

/** Filled with NaN to detect unwritten elements. */
const unwritten = (count: number, dtype: DType) =>
  gpu.floats(new Float32Array(count).fill(NaN), dtype);

function read(tensor: Tensor, count: number, dtype: DType): Float32Array {
  if (dtype === 'float32') return gpu.readFloats(tensor, count);
  return Float32Array.from(gpu.readBits(tensor, count), widen[dtype]);
}

describe.each(['bfloat16', 'float16'] as const)('float8 weights in %s', (dtype) => {
  const cases = [1, 3, 8, 9, 16, 17, 32, 33, 64, 65, 130].flatMap((m): Case[] => [
    [m, 96, 384, 128, 128, true],
    [m, 304, 1024, 128, 128, true],
    [m, 304, 1024, 128, 128, false],
    [m, 208, 1536, 1, 1536, true],
    [m, 208, 1536, 1, 1536, false],
    [m, 48, 512, 8, 256, true],
    [m, 40, 656, 48, 24, true],
  ]);
  const name = '%i tokens times [%i, %i], a scale for %i x %i, tokens may be rounded: %s';
  it.each(cases)(name, (m, n, k, sr, sc, roundsInput) => {
    const random = new Random(m * 1000 + n);
    const matrix = new BlockScaledMatrix(n, k, sr, sc, random);
    const x = activations(random, m * k, dtype);
    const bias = random.normals(n, dtype);
    const weight = weightOf(matrix, dtype, roundsInput);
    const exact = product(x, m, matrix, bias);
    const byBlock = sr === 128 && sc === 128 && k % 512 === 0;
    const isQuantized = roundsInput && m >= LEAST_QUANTIZED && (byBlock || sc === k);
    // With a scale for each block, a multiple of four tokens is quantised.
    const count = isQuantized ? (byBlock ? m - (m % 4) : m) : 0;
    const tokens = Float64Array.from(x);
    tokens.set(quantized(x.subarray(0, count * k), byBlock ? 128 : k));
    const expected = product(tokens, m, matrix, bias);
    for (const outType of [dtype, 'float32' as const]) {
      const out = unwritten(m * n, outType);
      gpu.linear(
        gpu.floats(x, dtype),
        m,
        weight,
        { data: gpu.floats(bias, dtype), rows: n, cols: 1 },
        out,
      );
      const actual = read(out, m * n, outType);
      const bound = OF_PRODUCTS[dtype];
      expect(relativeError(actual, expected)).toBeLessThan(bound);
      expect(relativeError(actual, exact)).toBeLessThan(isQuantized ? OF_QUANTIZED : bound);
    }
  });

  it.each([
    [1, 64, 256],
    [16, 96, 640],
    [32, 160, 384],
    [64, 544, 512],
    [65, 64, 512],
  ])('SiLU: %i tokens times [%i, %i] give what separate operations give', (m, n, k) => {
    const random = new Random(m + n);
    const matrix = new BlockScaledMatrix(n, k, 16, 128, random);
    // Small, so that the product of gate and up stays within float16.
    const x = random.normals(m * k, dtype).map((value) => roundTo(value / 64, dtype));
    const weight = weightOf(matrix, dtype);
    const gateUp = unwritten(m * n, dtype);
    const [fused, separate] = [unwritten((m * n) / 2, dtype), unwritten((m * n) / 2, dtype)];
    gpu.linearSiluAndMul(gpu.floats(x, dtype), m, weight, gateUp, fused);
    gpu.linear(gpu.floats(x, dtype), m, weight, null, gateUp);
    gpu.siluAndMul(gateUp, m, n / 2, separate);
    const expected = Float64Array.from(read(separate, (m * n) / 2, dtype));
    const actual = read(fused, (m * n) / 2, dtype);
    expect(relativeError(actual, expected)).toBeLessThan(OF_PRODUCTS[dtype]);
  });

  it.each([
    [4, 1],
    [8, 5],
    [16, 9],
  ])('a token has the same bits among %i tokens and among %i', (many, few) => {
    const [n, k] = [272, 1152];
    const random = new Random(many);
    const weight = weightOf(new BlockScaledMatrix(n, k, 128, 128, random), dtype);
    const x = activations(random, many * k, dtype);
    const bits = (m: number) => {
      const out = unwritten(m * n, 'float32');
      gpu.linear(gpu.floats(x.subarray(0, m * k), dtype), m, weight, null, out);
      return gpu.readFloats(out, m * n);
    };
    expect(bits(few)).toEqual(bits(many).subarray(0, few * n));
  });

  it('a token that is not finite gives NaN, and leaves the others as they are', () => {
    const [n, k] = [64, 512];
    const random = new Random(5);
    const weight = weightOf(new BlockScaledMatrix(n, k, 128, 128, random), dtype);
    for (const m of [4, 40, 80]) {
      for (const bad of [NaN, Infinity, -Infinity]) {
        const x = activations(random, m * k, dtype);
        const outputs = [x, x.slice().fill(bad, 2 * k + 100, 2 * k + 101)].map((tokens) => {
          const out = unwritten(m * n, dtype);
          gpu.linear(gpu.floats(tokens, dtype), m, weight, null, out);
          return read(out, m * n, dtype);
        });
        const [good, mixed] = outputs;
        const isBad = (i: number) => Math.floor(i / n) === 2;
        expect(
          mixed.every((value, i) => (isBad(i) ? !Number.isFinite(value) : value === good[i])),
        ).toBe(true);
      }
    }
  });
});
