/** A rank's part of the tests of Ops.sumRmsNorm, on any device. */
import { createHash } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import type { DType } from '../../lib/native';
import type { Communicator, Ops, Tensor } from '../native/ops/binding';
import { Random } from '../native/ops/reference';

const EPS = 1e-5;
const BYTES: Record<DType, number> = { float32: 4, float16: 2, bfloat16: 2 };
/** Larger cases are compared with the separate operations alone. */
const MOST_ELEMENTS_OF_REFERENCE = 300_000;

export interface Case {
  numTokens: number;
  size: number;
}

export interface Result extends Case {
  /** Number of launches after which the bits differ from those of allReduce, then rmsNorm. */
  numDifferent: number;
  /** ‖out - reference‖ / ‖reference‖ against float64; 0 for large cases. */
  error: number;
  /** SHA-256 of all outputs, to compare ranks. */
  digest: string;
}

export interface Options {
  rank: number;
  worldSize: number;
  /** Type of x, residual and out. */
  activations: DType;
  weights: DType;
  cases: Case[];
  /** Launches of a graph of all cases, with two inputs in turn and a different rank late. */
  numLaunches: number;
}

/** Runs sumRmsNorm beside allReduce and rmsNorm; all ranks must call. */
export async function checkSumRmsNorm(
  ops: Ops,
  communicator: Communicator,
  { rank, worldSize, activations, weights, cases, numLaunches }: Options,
): Promise<Result[]> {
  const first = ops.ints([0]);
  const checks = cases.map(({ numTokens, size }, i) => {
    const count = numTokens * size;
    const random = new Random(1 + i);
    const weight = random.normals(size, weights);
    const residual = random.normals(count, activations, 3);
    const termOf = (input: number, ofRank: number): Float32Array =>
      new Random(1000 * i + 100 * input + ofRank).normals(count, activations);
    const zeros = (): Tensor => ops.zeros(count, activations);
    return {
      numTokens,
      size,
      count,
      weight,
      residual,
      termOf,
      w: { data: ops.floats(weight, weights), rows: size, cols: 1 },
      given: ops.floats(residual, activations),
      inputs: [0, 1].map((input) => ops.floats(termOf(input, rank), activations)),
      fused: { x: zeros(), residual: zeros() },
      separate: { x: zeros(), residual: zeros() },
      hash: createHash('sha256'),
      numDifferent: 0,
      error: 0,
    };
  });

  const bytesOf = (tensor: Tensor, count: number): Uint8Array => {
    const bytes = new Uint8Array(count * BYTES[activations]);
    ops.copyToHost(bytes, tensor);
    return bytes;
  };
  const graphs = ops.makeGraphs();
  for (let launch = 0; launch < numLaunches; launch++) {
    const input = launch % 2;
    if (launch % worldSize === rank) await pause(launch % 4);
    ops.launchGraph(graphs, 1 + input, () => {
      for (const { numTokens, count, w, given, inputs, fused, separate } of checks) {
        for (const { x, residual } of [fused, separate]) {
          ops.gatherRows(inputs[input], first, 1, count, x);
          ops.gatherRows(given, first, 1, count, residual);
        }
        ops.sumRmsNorm(communicator, fused.x, fused.residual, numTokens, w, EPS, fused.x);
        ops.allReduce(communicator, separate.x);
        ops.rmsNorm(separate.x, separate.residual, numTokens, w, EPS, separate.x);
      }
    });
    for (const check of checks) {
      const [fused, separate] = [check.fused, check.separate].map(({ x, residual }) =>
        Buffer.concat([bytesOf(x, check.count), bytesOf(residual, check.count)]),
      );
      check.hash.update(fused);
      if (Buffer.compare(fused, separate) !== 0) check.numDifferent++;
      if (launch > 1 || check.count > MOST_ELEMENTS_OF_REFERENCE) continue;
      const terms = Array.from({ length: worldSize }, (_, of) => check.termOf(input, of));
      const expected = reference(terms, check.residual, check.weight);
      const error = distance(floatsIn(bytesOf(check.fused.x, check.count), activations), expected);
      check.error = Math.max(check.error, error);
    }
  }
  ops.dropGraphs(graphs);
  return checks.map(({ numTokens, size, numDifferent, error, hash }) => ({
    numTokens,
    size,
    numDifferent,
    error,
    digest: hash.digest('hex'),
  }));
}

/** Rows of residual + the sum of the terms, divided by their root mean square, times the weight. */
function reference(terms: Float32Array[], residual: Float32Array, weight: Float32Array) {
  const sums = Float64Array.from(residual, (r, i) => terms.reduce((sum, term) => sum + term[i], r));
  const size = weight.length;
  for (let row = 0; row < sums.length; row += size) {
    const squares = sums.subarray(row, row + size).reduce((sum, x) => sum + x * x, 0);
    const rms = Math.sqrt(squares / size + EPS);
    for (let i = 0; i < size; i++) sums[row + i] *= weight[i] / rms;
  }
  return sums;
}

function distance(got: ArrayLike<number>, expected: Float64Array): number {
  let [differences, squares] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    differences += (got[i] - expected[i]) ** 2;
    squares += expected[i] ** 2;
  }
  return Math.sqrt(differences / squares);
}

function floatsIn(bytes: Uint8Array, dtype: DType): ArrayLike<number> {
  const { buffer, byteOffset, length } = bytes;
  if (dtype === 'float32') return new Float32Array(buffer, byteOffset, length / 4);
  const bits = new Uint16Array(buffer, byteOffset, length / 2);
  if (dtype === 'bfloat16') {
    return new Float32Array(Uint32Array.from(bits, (b) => b << 16).buffer);
  }
  return Float64Array.from(bits, (b) => {
    const [sign, exponent, mantissa] = [b >> 15 ? -1 : 1, (b >> 10) & 31, b & 1023];
    if (exponent === 31) return NaN;
    return sign * (exponent ? (1024 + mantissa) * 2 ** (exponent - 25) : mantissa * 2 ** -24);
  });
}
