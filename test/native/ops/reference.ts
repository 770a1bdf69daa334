/** Float64 references of the tests: number types, random data, comparisons. */
import type { CacheDType, DType } from '../../../lib/config/dtype';

/** The value of a float16's bits: (-1)^sign 2^(exponent - 15) 1.mantissa, or a subnormal. */
export function float16ToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const mantissa = bits & 0x3ff;
  if (exponent === 0x1f) return mantissa ? NaN : sign * Infinity;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  return sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
}

/** The value of a bfloat16's bits. */
export function bfloat16ToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 7) & 0xff;
  const mantissa = bits & 0x7f;
  if (exponent === 0xff) return mantissa ? NaN : sign * Infinity;
  if (exponent === 0) return sign * mantissa * 2 ** -133;
  return sign * (1 + mantissa / 128) * 2 ** (exponent - 127);
}

export const widen: Record<Exclude<DType, 'float32'>, (bits: number) => number> = {
  float16: float16ToNumber,
  bfloat16: bfloat16ToNumber,
};

const formats = {
  float16: { mantissaBits: 10, minExponent: -14, max: 65504 },
  bfloat16: { mantissaBits: 7, minExponent: -126, max: 3.3895313892515355e38 },
  float8_e4m3: { mantissaBits: 3, minExponent: -6, max: 448 },
};

/** Rounds x to the type, ties to even; beyond the largest number to infinity, of float8 to that number. */
export function roundTo(x: number, dtype: CacheDType): number {
  if (dtype === 'float32') return Math.fround(x);
  if (Number.isNaN(x) || x === 0) return x;
  const { mantissaBits, minExponent, max } = formats[dtype];
  const beyond = dtype === 'float8_e4m3' ? max : Infinity;
  if (!Number.isFinite(x)) return Math.sign(x) * beyond;
  const exponent = Math.max(exponentOf(x), minExponent);
  const unit = 2 ** (exponent - mantissaBits);
  const scaled = Math.abs(x) / unit; // exact
  const floor = Math.floor(scaled);
  const rest = scaled - floor;
  const up = rest > 0.5 || (rest === 0.5 && floor % 2 === 1);
  const rounded = (floor + (up ? 1 : 0)) * unit;
  return Math.sign(x) * (rounded > max ? beyond : rounded);
}

const view = new DataView(new ArrayBuffer(8));

function exponentOf(x: number): number {
  view.setFloat64(0, x);
  return ((view.getUint16(0) >> 4) & 0x7ff) - 1023;
}

/** A seeded generator (xorshift, Marsaglia 2003) for reproducible data. */
export class Random {
  private state: number;

  constructor(seed: number) {
    this.state = (seed * 2654435761) >>> 0 || 1;
    for (let i = 0; i < 8; ++i) this.word();
  }

  /** 32 random bits. */
  word(): number {
    let x = this.state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.state = x >>> 0;
    return this.state;
  }

  /** In [0, 1). */
  uniform(): number {
    return this.word() / 2 ** 32;
  }

  /** An integer in [0, end). */
  below(end: number): number {
    return Math.floor(this.uniform() * end);
  }

  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  /** Normally distributed numbers, rounded to the type. */
  normals(count: number, dtype: CacheDType = 'float32', std = 1): Float32Array {
    return Float32Array.from({ length: count }, () => roundTo(this.normal() * std, dtype));
  }

  /** 0 .. count - 1 in random order. */
  permutation(count: number): Int32Array {
    const order = Int32Array.from({ length: count }, (_, i) => i);
    for (let i = count - 1; i > 0; --i) {
      const j = this.below(i + 1);
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }
}

/** Fails if a number differs from the expected one by more than its tolerance. */
export function expectClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: number | ((i: number) => number),
): void {
  expect(actual.length).toBe(expected.length);
  for (let i = 0; i < actual.length; ++i) {
    const allowed = typeof tolerance === 'number' ? tolerance : tolerance(i);
    if (!(Math.abs(actual[i] - expected[i]) <= allowed)) {
      throw new Error(`element ${i} is ${actual[i]}, not ${expected[i]} within ${allowed}`);
    }
  }
}

/** Fails unless the bits are equal. */
export function expectSameBits(actual: Float32Array, expected: Float32Array): void {
  const bits = (x: Float32Array) => new Uint32Array(x.buffer, x.byteOffset, x.length);
  expect(actual.length).toBe(expected.length);
  const [a, b] = [bits(actual), bits(expected)];
  for (let i = 0; i < a.length; ++i) {
    if (a[i] !== b[i]) throw new Error(`element ${i} is ${actual[i]}, not the very ${expected[i]}`);
  }
}

/** The value of a float8 E4M3's bits, which have no infinities. */
export function float8ToNumber(bits: number): number {
  const sign = bits & 0x80 ? -1 : 1;
  const exponent = (bits >> 3) & 0xf;
  const mantissa = bits & 7;
  if ((bits & 0x7f) === 0x7f) return NaN;
  if (exponent === 0) return sign * mantissa * 2 ** -9;
  return sign * (1 + mantissa / 8) * 2 ** (exponent - 7);
}

/** The bits of a float8 E4M3 number. */
export function float8Bits(value: number): number {
  const size = Math.abs(value);
  if (Number.isNaN(size)) return 0x7f;
  const exponent = Math.max(-6, Math.floor(Math.log2(size)));
  // Numbers of one exponent are equidistant, and the bits beyond them follow.
  const bits = (exponent + 6) * 8 + (size / 2 ** exponent) * 8;
  return bits | (value < 0 || Object.is(value, -0) ? 0x80 : 0);
}

/** A float8 matrix with a scale per block, and its elements in float64. */
export class BlockScaledMatrix {
  readonly codes: Uint8Array;
  readonly scales: Float32Array;
  readonly values: Float64Array;

  constructor(
    readonly rows: number,
    readonly cols: number,
    readonly scaleRows: number,
    readonly scaleCols: number,
    random: Random,
  ) {
    const scaleColumns = Math.ceil(cols / scaleCols);
    // Each code except NaN.
    this.codes = Uint8Array.from({ length: rows * cols }, () => {
      const code = random.below(256);
      return (code & 0x7f) === 0x7f ? 0 : code;
    });
    this.scales = Float32Array.from(
      { length: Math.ceil(rows / scaleRows) * scaleColumns },
      () => 0.001 + 0.01 * random.uniform(),
    );
    this.values = Float64Array.from(this.codes, (code, i) => {
      const row = Math.floor(i / cols);
      const block = Math.floor(row / scaleRows) * scaleColumns;
      return float8ToNumber(code) * this.scales[block + Math.floor((i % cols) / scaleCols)];
    });
  }
}

/** cap * tanh(x / cap); x without a cap. */
export function softcap(x: number, cap = 0): number {
  return cap > 0 ? cap * Math.tanh(x / cap) : x;
}
