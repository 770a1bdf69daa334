/** Reference results of collectives, computed with float64 and bigint in JavaScript. */
import type { CommType, ReduceOp } from '../../lib/native';

export type Values = number[] | bigint[];

const BITS = {
  float32: [24, -126, 127],
  float16: [11, -14, 15],
  bfloat16: [8, -126, 127],
} as const;

/** Rounds to a type, ties to even. */
function rounded(x: number, type: keyof typeof BITS): number {
  const [precision, minExponent, maxExponent] = BITS[type];
  if (x === 0 || !Number.isFinite(x)) return x;
  if (type === 'float32') return Math.fround(x);
  let exponent = Math.floor(Math.log2(Math.abs(x)));
  if (2 ** exponent > Math.abs(x)) exponent -= 1; // log2 may have rounded up
  const unit = 2 ** (Math.max(exponent, minExponent) - precision + 1);
  const units = Math.abs(x) / unit;
  let whole = Math.floor(units);
  if (units - whole > 0.5 || (units - whole === 0.5 && whole % 2 === 1)) whole += 1;
  const magnitude = whole * unit;
  return Math.sign(x) * (magnitude >= 2 ** (maxExponent + 1) ? Infinity : magnitude);
}

/** The bits of a number in a 16-bit type. */
function bitsOf(x: number, type: 'float16' | 'bfloat16'): number {
  const [precision, minExponent, maxExponent] = BITS[type];
  const mantissaBits = precision - 1;
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0;
  const special = (2 * maxExponent + 1) << mantissaBits;
  if (Number.isNaN(x)) return special | (1 << (mantissaBits - 1));
  const magnitude = Math.abs(x);
  if (magnitude === Infinity) return sign | special;
  const units = magnitude / 2 ** (minExponent - mantissaBits);
  if (units < 2 ** mantissaBits) return sign | units; // subnormal, or zero
  let exponent = minExponent;
  while (magnitude >= 2 ** (exponent + 1)) exponent += 1;
  const mantissa = magnitude / 2 ** (exponent - mantissaBits) - 2 ** mantissaBits;
  return sign | ((exponent + maxExponent) << mantissaBits) | mantissa;
}

/** The values as bytes of a type. */
export function encode(values: Values, type: CommType): Uint8Array {
  const bytesOf = (array: ArrayBufferView) =>
    new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  if (type === 'int64') return bytesOf(BigInt64Array.from(values as bigint[]));
  if (type === 'float32') return bytesOf(Float32Array.from(values as number[]));
  return bytesOf(Uint16Array.from(values as number[], (x) => bitsOf(x, type)));
}

/** Numbers in [0, 1) from a seed (mulberry32). */
function random(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let x = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

const LARGEST = {
  float32: (2 - 2 ** -23) * 2 ** 127,
  float16: 65504,
  bfloat16: (2 - 2 ** -7) * 2 ** 127,
};

/**
 * A rank's input: numbers of many magnitudes, so that the result depends on the order of summation,
 * including the type's extreme values.
 */
export function someValues(count: number, type: CommType, rank: number): Values {
  const next = random(1000 * rank + count);
  if (type === 'int64') {
    const edges = [2n ** 63n - 1n, -(2n ** 63n), 0n, -1n];
    const value = () => BigInt(Math.floor((next() - 0.5) * 2 ** 53)) * BigInt(1 + rank);
    return Array.from({ length: count }, (_, i) => (i % 31 < 4 ? edges[(i + rank) % 4] : value()));
  }
  const edges = [0, -0, LARGEST[type], -LARGEST[type], 2 ** BITS[type][1] / 4, Infinity, -Infinity];
  const value = () => rounded((next() - 0.5) * 2 ** (12 * next() - 4), type);
  return Array.from({ length: count }, (_, i) =>
    i % 31 < edges.length ? edges[(i + rank * (1 + (i % 3))) % edges.length] : value(),
  );
}

/** The result of reducing all ranks' values in rank order. */
export function reduced(ofRanks: Values[], type: CommType, op: ReduceOp): Values {
  const [first, ...others] = ofRanks;
  if (type === 'int64') {
    const combine = {
      sum: (a: bigint, b: bigint) => BigInt.asIntN(64, a + b),
      min: (a: bigint, b: bigint) => (b < a ? b : a),
      max: (a: bigint, b: bigint) => (b > a ? b : a),
    }[op];
    return (others as bigint[][]).reduce(
      (result, values) => result.map((x, i) => combine(x, values[i])),
      first as bigint[],
    );
  }
  // Rounding a float64 sum of two float32 to float32 equals rounding the exact sum once.
  const combine = {
    sum: (a: number, b: number) => Math.fround(a + b),
    min: (a: number, b: number) => (b < a ? b : a),
    max: (a: number, b: number) => (b > a ? b : a),
  }[op];
  return (others as number[][])
    .reduce((result, values) => result.map((x, i) => combine(x, values[i])), first as number[])
    .map((x) => (Number.isNaN(x) ? NaN : rounded(x, type)));
}

/** Repeats bytes up to `length`. */
export function repeated(bytes: Uint8Array, length: number): Uint8Array {
  const result = new Uint8Array(length);
  for (let at = 0; at < length; at += bytes.length) {
    result.set(bytes.subarray(0, length - at), at);
  }
  return result;
}

/** Index of the first element that differs, with all NaNs equal; -1 if there is none. */
export function firstDifference(actual: Uint8Array, expected: Uint8Array, type: CommType): number {
  const bits = {
    int64: (bytes: Uint8Array) => new BigUint64Array(bytes.slice().buffer),
    float32: (bytes: Uint8Array) => new Uint32Array(bytes.slice().buffer),
    float16: (bytes: Uint8Array) => new Uint16Array(bytes.slice().buffer),
    bfloat16: (bytes: Uint8Array) => new Uint16Array(bytes.slice().buffer),
  }[type];
  const infinity = { int64: NaN, float32: 0x7f800000, float16: 0x7c00, bfloat16: 0x7f80 }[type];
  const sign = { int64: NaN, float32: 0x80000000, float16: 0x8000, bfloat16: 0x8000 }[type];
  const isNaNOf = (x: number | bigint) => Number(x) % sign > infinity;
  const [a, b] = [bits(actual), bits(expected)];
  for (let i = 0; i < Math.max(a.length, b.length); i++) {
    if (a[i] !== b[i] && !(isNaNOf(a[i]) && isNaNOf(b[i]))) return i;
  }
  return -1;
}
