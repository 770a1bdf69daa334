/** Comparisons of operations on the GPU with the same on the CPU. */
import type { DType } from '../../lib/native';
import { cpuOps, cudaOps, dtypes, type Ops, type Tensor } from '../native/ops/binding';
import { Random, widen } from '../native/ops/reference';

/** A backend, and the type of its activations in this comparison. */
export class Device {
  constructor(
    readonly ops: Ops,
    readonly activationType: DType,
  ) {}

  activations(values: ArrayLike<number>): Tensor {
    return this.ops.floats(values, this.activationType);
  }

  /** Filled with NaN to detect unwritten elements. */
  unwritten(count: number, dtype = this.activationType): Tensor {
    return this.ops.floats(new Float32Array(count).fill(NaN), dtype);
  }

  read(tensor: Tensor, count: number, dtype = this.activationType): Float32Array {
    if (dtype === 'float32') return this.ops.readFloats(tensor, count);
    return Float32Array.from(this.ops.readBits(tensor, count), widen[dtype]);
  }
}

export const gpu = cudaOps();
export const cpu = cpuOps();

/** An odd number of normal values of each type, repeated for large arrays. */
const pools = Object.fromEntries(
  dtypes.map((dtype) => [dtype, new Random(dtype.length).normals(131_071, dtype)]),
);

/** Normal values of the type, times a power of two. */
export function normals(random: Random, count: number, dtype: DType, scale = 1): Float32Array {
  const pool = pools[dtype];
  const start = random.below(pool.length);
  return Float32Array.from({ length: count }, (_, i) => pool[(start + i) % pool.length] * scale);
}

/** Tolerances by type: of all elements together, and of each relative to their scale. */
const tolerances = {
  float32: { together: 3e-6, each: 3e-5 },
  float16: { together: 1.5e-3, each: 8e-3 },
  bfloat16: { together: 1e-2, each: 6e-2 },
};

const rms = (values: Float32Array) =>
  Math.sqrt(values.reduce((sum, x) => sum + x * x, 0) / values.length);

export function expectAgreement(actual: Float32Array, expected: Float32Array, dtype: DType): void {
  expect(actual.length).toBe(expected.length);
  const { together, each } = tolerances[dtype];
  const scale = rms(expected);
  expected.forEach((x, i) => {
    if (!(Math.abs(actual[i] - x) <= each * (Math.abs(x) + scale))) {
      throw new Error(`element ${i} of ${actual.length} is ${actual[i]}, not ${x}`);
    }
  });
  expect(rms(actual.map((x, i) => x - expected[i]))).toBeLessThanOrEqual(together * scale);
}

/** Computes on both devices and compares. */
export function compare(dtype: DType, compute: (device: Device) => Float32Array[]): void {
  const actual = compute(new Device(gpu, dtype));
  const expected = compute(new Device(cpu, 'float32'));
  expected.forEach((values, i) => expectAgreement(actual[i], values, dtype));
}
