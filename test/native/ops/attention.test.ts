import type { CacheDType } from '../../../lib/config/dtype';
import { Layout, makeBatch, tokensOf, type Row } from './batches';
import { cacheDtypes, cpuOps, isas, type AttentionShape, type Isa } from './binding';
import { expectClose, expectSameBits, Random, softcap } from './reference';

/** A head's features besides its shape. */
interface Features {
  softcap?: number;
  /** [numHeads] */
  sinks?: Float32Array;
  /** Of a cache in float8. */
  keyScale?: number;
  valueScale?: number;
}

/** Requests with their queries, keys and values at every position. */
class Sequences {
  readonly queries: Float32Array[];
  readonly keys: Float32Array[];
  readonly values: Float32Array[];

  constructor(
    readonly lengths: number[],
    readonly shape: AttentionShape,
    readonly dtype: CacheDType,
    random: Random,
    readonly features: Features = {},
  ) {
    const { numHeads, numKvHeads, headDim } = shape;
    this.queries = lengths.map((n) => random.normals(n * numHeads * headDim, 'float32', 2));
    this.keys = lengths.map((n) => random.normals(n * numKvHeads * headDim, dtype));
    this.values = lengths.map((n) => random.normals(n * numKvHeads * headDim, dtype));
  }

  firstKey(position: number): number {
    const { slidingWindow, isChunked } = this.shape;
    if (isChunked) return position - (position % slidingWindow);
    return slidingWindow ? Math.max(position - slidingWindow + 1, 0) : 0;
  }

  /** Runs attention over a cache with NaN in all positions that these rows may not attend to. */
  attend(rows: Row[], isa: Isa, threads = 2, blockSize = 16): Float32Array {
    const ops = cpuOps(isa, threads);
    const { numHeads, numKvHeads, headDim } = this.shape;
    const kvWidth = numKvHeads * headDim;
    const layout = new Layout(blockSize, this.lengths, new Random(rows.length + blockSize));
    const requests = layout.requests(
      ops,
      this.lengths.map((length) => new Int32Array(length)),
      1,
    );
    const batch = makeBatch(ops, rows);
    ops.prepareInputs(requests, null, 0, blockSize, batch);

    const keys = new Float32Array(layout.numBlocks * blockSize * kvWidth).fill(NaN);
    const values = keys.slice();
    for (const { slot, numComputed, numScheduled } of rows) {
      for (let p = this.firstKey(numComputed); p < numComputed + numScheduled; ++p) {
        const to = layout.cacheSlot(slot, p) * kvWidth;
        keys.set(this.keys[slot].subarray(p * kvWidth, (p + 1) * kvWidth), to);
        values.set(this.values[slot].subarray(p * kvWidth, (p + 1) * kvWidth), to);
      }
    }
    const modelDtype = this.dtype === 'float8_e4m3' ? 'float32' : this.dtype;
    const cache = {
      keys: ops.cached(keys, this.dtype),
      values: ops.cached(values, this.dtype),
      blockSize,
      dtype: modelDtype,
      keyScale: this.features.keyScale,
      valueScale: this.features.valueScale,
    };
    // NaN in place of the rows' own keys and values, which are read from the cache.
    const width = (numHeads + (this.shape.hasKeys === false ? 0 : 2 * numKvHeads)) * headDim;
    const qkv = new Float32Array(batch.numTokens * width).fill(NaN);
    tokensOf(rows).forEach(({ slot, position }, t) => {
      const size = numHeads * headDim;
      qkv.set(this.queries[slot].subarray(position * size, (position + 1) * size), t * width);
    });
    const out = ops.zeros(batch.numTokens * numHeads * headDim);
    const { softcap, sinks } = this.features;
    const shape = {
      ...this.shape,
      softcap,
      sinks: sinks && { data: ops.floats(sinks, modelDtype), rows: numHeads, cols: 1 },
    };
    ops.attention(ops.floats(qkv), batch, shape, cache, requests, out);
    return ops.readFloats(out, batch.numTokens * numHeads * headDim);
  }

  /** softmax(q k / sqrt(headDim)) v in float64. */
  reference(rows: Row[]): Float64Array {
    const { keyScale = 1, valueScale = 1 } = this.features;
    const { numHeads, numKvHeads, headDim } = this.shape;
    const tokens = tokensOf(rows);
    const out = new Float64Array(tokens.length * numHeads * headDim);
    tokens.forEach(({ slot, position }, t) => {
      for (let head = 0; head < numHeads; ++head) {
        const kvHead = Math.floor(head / (numHeads / numKvHeads));
        const at = (p: number) => (p * numKvHeads + kvHead) * headDim;
        const q = (position * numHeads + head) * headDim;
        const scores: number[] = [];
        for (let p = this.firstKey(position); p <= position; ++p) {
          let sum = 0;
          for (let i = 0; i < headDim; ++i) {
            sum += this.queries[slot][q + i] * this.keys[slot][at(p) + i];
          }
          scores.push(softcap((keyScale * sum) / Math.sqrt(headDim), this.features.softcap));
        }
        const max = Math.max(...scores);
        const weights = scores.map((score) => Math.exp(score - max));
        const sink = this.features.sinks?.[head] ?? -Infinity;
        const total = weights.reduce((a, b) => a + b, Math.exp(sink - max));
        weights.forEach((weight, j) => {
          const v = at(this.firstKey(position) + j);
          for (let i = 0; i < headDim; ++i) {
            out[(t * numHeads + head) * headDim + i] +=
              (weight / total) * valueScale * this.values[slot][v + i];
          }
        });
      }
    });
    return out;
  }
}

// Prefills, chunks and decodes with lengths around tile and block boundaries.
const lengths = [1, 17, 64, 65, 100, 130, 200, 33];
const rows: Row[] = [
  { slot: 6, numComputed: 199, numScheduled: 1 },
  { slot: 0, numComputed: 0, numScheduled: 1 },
  { slot: 4, numComputed: 0, numScheduled: 100 },
  { slot: 5, numComputed: 61, numScheduled: 69 },
  { slot: 2, numComputed: 63, numScheduled: 1 },
  { slot: 3, numComputed: 62, numScheduled: 3 },
  { slot: 1, numComputed: 16, numScheduled: 1 },
];

/** Heads, KV heads, head size, window, block size. */
const shapes = [
  [4, 2, 64, 0, 16],
  [8, 1, 20, 0, 3],
  [2, 2, 128, 70, 64],
  [1, 1, 8, 0, 16],
  [6, 6, 33, 0, 1],
  [40, 1, 16, 0, 16],
  [4, 2, 64, 30, 16],
  [3, 1, 24, 1, 8],
];

describe.each(cacheDtypes)('attention over a cache in %s', (dtype) => {
  describe.each(dtype === 'float8_e4m3' ? shapes.slice(0, 3) : shapes)(
    '%i heads over %i of %i, window %i, blocks of %i',
    (h, kv, headDim, window, blockSize) => {
      const shape = { numHeads: h, numKvHeads: kv, headDim, slidingWindow: window };
      const sequences = new Sequences(lengths, shape, dtype, new Random(h * headDim + window));
      let expected: Float64Array;
      beforeAll(() => (expected = sequences.reference(rows)));

      it.each(isas)('matches float64, %s', (isa) => {
        expectClose(sequences.attend(rows, isa, 2, blockSize), expected, 1e-5);
      });
    },
  );
});

describe.each(cacheDtypes)('attention over a cache in %s', (dtype) => {
  // Sinks far below and above all scores too.
  const sinks = Float32Array.of(0, 2, -3, 60, -200, 200);
  it.each<[string, number, Features, boolean?]>([
    ['a softcap', 0, { softcap: 2 }],
    ['a softcap and a window', 30, { softcap: 0.5 }],
    ['sinks', 0, { sinks }],
    ['sinks and a window', 30, { sinks }],
    ['a softcap and sinks', 0, { softcap: 3, sinks }],
    ['chunks', 30, {}, true],
    ['chunks of a tile, and sinks', 64, { sinks }, true],
  ])('matches float64 with %s', (_, slidingWindow, features, isChunked = false) => {
    const shape = { numHeads: 6, numKvHeads: 2, headDim: 24, slidingWindow, isChunked };
    const sequences = new Sequences(lengths, shape, dtype, new Random(7), features);
    const expected = sequences.reference(rows);
    for (const isa of isas) expectClose(sequences.attend(rows, isa), expected, 1e-5);
  });
});

it.each(cacheDtypes)('attention of queries alone over a cache in %s matches float64', (dtype) => {
  const shape = { numHeads: 6, numKvHeads: 2, headDim: 24, slidingWindow: 30, hasKeys: false };
  const sequences = new Sequences(lengths, shape, dtype, new Random(9));
  const expected = sequences.reference(rows);
  for (const isa of isas) expectClose(sequences.attend(rows, isa), expected, 1e-5);
});

describe('attention over a cache in float8_e4m3 with scales', () => {
  it.each<[string, Features]>([
    ['no other feature', {}],
    ['a softcap and sinks', { softcap: 3, sinks: Float32Array.of(0, 2, -3, 60, -200, 200) }],
  ])('matches float64 with %s', (_, others) => {
    const shape = { numHeads: 6, numKvHeads: 2, headDim: 24, slidingWindow: 30 };
    const features = { ...others, keyScale: Math.fround(0.3), valueScale: Math.fround(0.07) };
    const sequences = new Sequences(lengths, shape, 'float8_e4m3', new Random(8), features);
    const expected = sequences.reference(rows);
    for (const isa of isas) expectClose(sequences.attend(rows, isa), expected, 1e-6);
  });
});

describe.each(isas)('attention, %s', (isa) => {
  it.each([
    [0, false],
    [90, false],
    [90, true],
  ])(
    'gives each token the same bits in any batch, chunk, layout and number of threads, window %i, chunked %s',
    (slidingWindow, isChunked) => {
      const shape = { numHeads: 6, numKvHeads: 2, headDim: 40, slidingWindow, isChunked };
      const sequences = new Sequences(lengths, shape, 'float32', new Random(2));
      const width = shape.numHeads * shape.headDim;
      const length = 200;
      const whole: Row = { slot: 6, numComputed: 0, numScheduled: length };
      const expected = sequences.attend([whole], isa, 1);
      expectSameBits(sequences.attend([whole], isa, 5, 1), expected);
      expectSameBits(
        sequences.attend([...rows.slice(1), whole], isa).slice(-length * width),
        expected,
      );
      for (const size of [1, 7, 64, 71]) {
        for (let begin = 0; begin < length; begin += size * 3) {
          const end = Math.min(begin + size, length);
          const chunk = { slot: 6, numComputed: begin, numScheduled: end - begin };
          const actual = sequences.attend([chunk, rows[3]], isa, 3, 5);
          expectSameBits(
            actual.subarray(0, (end - begin) * width),
            expected.subarray(begin * width, end * width),
          );
        }
      }
    },
  );

  it('is accurate for scores so far apart that one weight dominates, and for long contexts', () => {
    const shape = { numHeads: 2, numKvHeads: 1, headDim: 16, slidingWindow: 0 };
    const sequences = new Sequences([3000], shape, 'float32', new Random(3));
    sequences.queries[0].forEach(
      (q, i) => (sequences.queries[0][i] = q * (i < 16 * 5990 ? 1 : 300)),
    );
    const last = [{ slot: 0, numComputed: 2990, numScheduled: 10 }];
    expectClose(sequences.attend(last, isa), sequences.reference(last), 1e-4);
  });
});
