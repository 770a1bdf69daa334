import type { DType } from '../../../lib/native';
import { Layout, makeBatch, tokensOf, type Row } from './batches';
import { backends, dtypes, openOps, type AttentionShape, type Ops } from './binding';
import { expectClose, expectSameBits, Random, roundTo, softcap, widen } from './reference';

const EPS = 1e-6;

interface Features {
  softcap?: number;
  normOffset?: number;
  withSinks?: boolean;
  /** Of the shape. */
  isChunked?: boolean;
  hasKeys?: boolean;
}

/** Decodes of requests with random qkv and caches, under a rope of random angles. */
class Decodes {
  readonly width: number;
  readonly kvWidth: number;
  readonly rows: Row[];
  readonly qkv: Float32Array;
  readonly rope: Float32Array;
  readonly norms: Float32Array[];
  readonly keys: Float32Array[];
  readonly values: Float32Array[];
  readonly sinks: Float32Array;

  constructor(
    readonly lengths: number[],
    readonly shape: AttentionShape,
    readonly dtype: DType,
    readonly withNorms: boolean,
    readonly withRope = true,
    readonly features: Features = {},
  ) {
    const { numHeads, numKvHeads, headDim } = shape;
    const random = new Random(numHeads * headDim + lengths.length);
    this.width = (numHeads + (shape.hasKeys === false ? 0 : 2 * numKvHeads)) * headDim;
    this.kvWidth = numKvHeads * headDim;
    const slots = random.permutation(lengths.length);
    this.rows = lengths.map((length, row) => ({
      slot: slots[row],
      numComputed: length - 1,
      numScheduled: 1,
    }));
    this.qkv = random.normals(lengths.length * this.width, dtype, 2);
    const half = headDim / 2;
    const angles = random.normals(Math.max(...lengths) * half, 'float32', 3);
    this.rope = Float32Array.from({ length: 2 * angles.length }, (_, i) => {
      const [position, rest] = [Math.floor(i / headDim), i % headDim];
      const angle = angles[position * half + (rest % half)];
      return rest < half ? Math.cos(angle) : Math.sin(angle);
    });
    this.norms = [random.normals(headDim, dtype), random.normals(headDim, dtype)];
    this.keys = lengths.map((length) => random.normals(length * this.kvWidth, dtype));
    this.values = lengths.map((length) => random.normals(length * this.kvWidth, dtype));
    this.sinks = random.normals(numHeads, dtype, 3);
  }

  /** The outputs and caches of some of the rows; NaN where no key is. */
  run(ops: Ops, activations: DType, fused: boolean, isDecode = true, rows = this.rows) {
    const { numHeads, headDim } = this.shape;
    const blockSize = 16;
    const lengths = this.rows.map(({ slot }) => slot).map(() => 1);
    this.rows.forEach(({ slot }, row) => (lengths[slot] = this.lengths[row]));
    const layout = new Layout(blockSize, lengths, new Random(1));
    const tokenIds = lengths.map((length) => new Int32Array(length));
    const requests = layout.requests(ops, tokenIds, 1);
    const batch = { ...makeBatch(ops, rows), isDecode };
    ops.prepareInputs(requests, null, 0, blockSize, batch);

    const size = layout.numBlocks * blockSize * this.kvWidth;
    const caches = [this.keys, this.values].map((content) => {
      const cache = new Float32Array(size).fill(NaN);
      this.rows.forEach(({ slot, numComputed }, row) => {
        // Without keys of its own, a row's are another layer's, the last too.
        for (let p = 0; p < numComputed + (this.shape.hasKeys === false ? 1 : 0); ++p) {
          const entry = content[row].subarray(p * this.kvWidth, (p + 1) * this.kvWidth);
          cache.set(entry, layout.cacheSlot(slot, p) * this.kvWidth);
        }
      });
      return ops.floats(cache, this.dtype);
    });
    const cache = { keys: caches[0], values: caches[1], blockSize };
    const qkv = ops.floats(
      rows.flatMap((row) => {
        const at = this.rows.indexOf(row) * this.width;
        return [...this.qkv.subarray(at, at + this.width)];
      }),
      activations,
    );
    const [qNorm, kNorm] = this.norms.map((norm) =>
      this.withNorms
        ? {
            data: ops.floats(norm, this.dtype),
            rows: headDim,
            cols: 1,
            offset: this.features.normOffset,
          }
        : null,
    );
    const { softcap, withSinks } = this.features;
    const sinks = { data: ops.floats(this.sinks, this.dtype), rows: numHeads, cols: 1 };
    const shape = { ...this.shape, softcap, sinks: withSinks ? sinks : undefined };
    const rope = this.withRope ? ops.floats(this.rope) : null;
    const count = rows.length * numHeads * headDim;
    const out = ops.floats(new Float32Array(count).fill(NaN), activations);
    if (fused) {
      ops.ropeAndAttention(qkv, batch, shape, qNorm, kNorm, EPS, rope, cache, requests, out);
    } else {
      ops.ropeAndCache(qkv, batch, shape, qNorm, kNorm, EPS, rope, cache);
      ops.attention(qkv, batch, shape, cache, requests, out);
    }
    const read = (tensor: typeof out, length: number, type: DType) =>
      type === 'float32'
        ? ops.readFloats(tensor, length)
        : Float32Array.from(ops.readBits(tensor, length), widen[type]);
    return [
      read(out, count, activations),
      read(cache.keys, size, this.dtype),
      read(cache.values, size, this.dtype),
    ];
  }

  /** In float64, with q and k rounded to `activations` and the cache's k to its type. */
  reference(activations: DType): Float64Array {
    const { numHeads, numKvHeads, headDim, slidingWindow, isChunked } = this.shape;
    const { normOffset = 0, withSinks = false } = this.features;
    const scale = this.shape.scale ?? 1 / Math.sqrt(headDim);
    const half = headDim / 2;
    const out = new Float64Array(this.rows.length * numHeads * headDim);
    tokensOf(this.rows).forEach(({ position }, row) => {
      const own = (head: number, norm: number | null) => {
        const at = row * this.width + head * headDim;
        const x = Float64Array.from(this.qkv.subarray(at, at + headDim));
        if (norm === null) return x;
        if (this.withNorms) {
          const squares = x.reduce((sum, value) => sum + value * value, 0);
          const rms = Math.sqrt(squares / headDim + EPS);
          x.forEach((value, i) => (x[i] = (value / rms) * (this.norms[norm][i] + normOffset)));
        }
        return x.map((value, i) => {
          if (!this.withRope) return roundTo(value, activations);
          const cos = this.rope[position * headDim + (i % half)];
          const sin = this.rope[position * headDim + half + (i % half)];
          const other = x[(i + half) % headDim];
          return roundTo(value * cos + (i < half ? -other : other) * sin, activations);
        });
      };
      const slid = slidingWindow ? Math.max(position - slidingWindow + 1, 0) : 0;
      const first = isChunked ? position - (position % slidingWindow) : slid;
      for (let head = 0; head < numHeads; ++head) {
        const kvHead = Math.floor(head / (numHeads / numKvHeads));
        const at = (p: number) => p * this.kvWidth + kvHead * headDim;
        const query = own(head, 0);
        const hasKeys = this.shape.hasKeys ?? true;
        const key = hasKeys
          ? own(numHeads + kvHead, 1).map((value) => roundTo(value, this.dtype))
          : null;
        const value = hasKeys ? own(numHeads + numKvHeads + kvHead, null) : null;
        const vectors = (past: Float32Array, p: number, last: Float64Array | null) =>
          p === position && last ? last : past.subarray(at(p), at(p) + headDim);
        const scores: number[] = [];
        for (let p = first; p <= position; ++p) {
          const k = vectors(this.keys[row], p, key);
          const score = scale * query.reduce((sum, q, i) => sum + q * k[i], 0);
          scores.push(softcap(score, this.features.softcap));
        }
        const max = Math.max(...scores);
        const weights = scores.map((score) => Math.exp(score - max));
        const sink = withSinks ? Math.exp(this.sinks[head] - max) : 0;
        const total = weights.reduce((a, b) => a + b, sink);
        weights.forEach((weight, j) => {
          const v = vectors(this.values[row], first + j, value);
          for (let i = 0; i < headDim; ++i) {
            out[(row * numHeads + head) * headDim + i] += (weight / total) * v[i];
          }
        });
      }
    });
    return out;
  }
}

/** Of numbers up to 1; larger ones are rounded by more. */
const tolerances = { float32: 2e-5, float16: 4e-3, bfloat16: 3e-2 };

function expectWithin(actual: Float32Array, expected: Float64Array, type: DType): void {
  expectClose(actual, expected, (i) => tolerances[type] * Math.max(1, Math.abs(expected[i])));
}

/** Around the sizes of blocks, strips and chunks of the kernels. */
const lengths = [1, 2, 16, 17, 64, 127, 129, 300];

// The CPU's default composition is the same for all instruction sets.
describe.each(backends.slice(-1))('ropeAndAttention, %s', (backend) => {
  const ops = openOps(backend);
  const activationsOf = (dtype: DType) => (backend === 'cuda' ? dtype : 'float32');

  describe.each(dtypes)('over a cache in %s', (dtype) => {
    it.each([
      // heads, KV heads, head size, window, with norms
      [4, 1, 16, 0, false],
      [8, 2, 64, 0, false],
      [7, 1, 128, 0, true],
      [4, 2, 128, 200, true],
      [20, 1, 32, 0, false],
      [2, 1, 96, 0, true],
      [2, 1, 256, 40, true],
      [2, 2, 20, 0, true],
    ])(
      '%i heads over %i of %i, window %i, norms %s: as in float64, and bitwise as its parts',
      (numHeads, numKvHeads, headDim, slidingWindow, withNorms) => {
        const shape = { numHeads, numKvHeads, headDim, slidingWindow };
        const activations = activationsOf(dtype);
        for (const rows of [lengths, [1030], [...lengths, 5]]) {
          const decodes = new Decodes(rows, shape, dtype, withNorms);
          const fused = decodes.run(ops, activations, true);
          const parts = decodes.run(ops, activations, false);
          fused.forEach((tensor, i) => expectSameBits(tensor, parts[i]));
          expectWithin(fused[0], decodes.reference(activations), activations);
        }
      },
    );
  });

  describe.each(dtypes)('over a cache in %s', (dtype) => {
    it.each([
      // heads, KV heads, head size, window, features
      [8, 4, 256, 200, { softcap: 2, normOffset: 1 }],
      [8, 4, 128, 0, { softcap: 5 }],
      [16, 2, 64, 128, { withSinks: true }],
      [8, 2, 128, 200, { isChunked: true }],
      [4, 2, 20, 0, { softcap: 2, normOffset: 1, withSinks: true }],
      [20, 1, 32, 0, { softcap: 2, normOffset: 1, withSinks: true }],
    ] as const)(
      '%i heads over %i of %i, window %i, with %j: as in float64, and bitwise as its parts',
      (numHeads, numKvHeads, headDim, slidingWindow, features) => {
        const isChunked = 'isChunked' in features;
        const shape = { numHeads, numKvHeads, headDim, slidingWindow, isChunked };
        const activations = activationsOf(dtype);
        for (const rows of [lengths, [1030]]) {
          const decodes = new Decodes(rows, shape, dtype, 'normOffset' in features, true, features);
          const fused = decodes.run(ops, activations, true);
          const parts = decodes.run(ops, activations, false);
          fused.forEach((tensor, i) => expectSameBits(tensor, parts[i]));
          expectClose(fused[0], decodes.reference(activations), tolerances[activations]);
        }
      },
    );
  });

  describe.each(dtypes)("without keys, over another layer's cache in %s", (dtype) => {
    it.each([
      [4, 1, 16, 0, false],
      [8, 1, 256, 40, true],
      [4, 2, 128, 0, true],
      [16, 2, 64, 128, true],
      [2, 2, 20, 0, true],
    ])(
      '%i heads over %i of %i, window %i, norms %s: as in float64, and leaves the cache',
      (numHeads, numKvHeads, headDim, slidingWindow, withNorms) => {
        const shape = { numHeads, numKvHeads, headDim, slidingWindow, hasKeys: false };
        const activations = activationsOf(dtype);
        const decodes = new Decodes(lengths, shape, dtype, withNorms);
        for (const isDecode of [true, false]) {
          const [out, ...caches] = decodes.run(ops, activations, true, isDecode);
          expectWithin(out, decodes.reference(activations), activations);
          const given = (entries: Float32Array[]) =>
            entries.flatMap((entry) => [...entry]).sort((a, b) => a - b);
          expect([...caches[0]].filter((x) => !Number.isNaN(x)).sort((a, b) => a - b)).toEqual(
            given(decodes.keys),
          );
          expect([...caches[1]].filter((x) => !Number.isNaN(x)).sort((a, b) => a - b)).toEqual(
            given(decodes.values),
          );
        }
      },
    );
  });

  it.each(dtypes)('without rope and with a scale, cache in %s', (dtype) => {
    const shape = { numHeads: 8, numKvHeads: 2, headDim: 64, slidingWindow: 0, scale: 0.03 };
    const activations = activationsOf(dtype);
    for (const withNorms of [false, true]) {
      const decodes = new Decodes(lengths, shape, dtype, withNorms, /* withRope */ false);
      const fused = decodes.run(ops, activations, true);
      const parts = decodes.run(ops, activations, false);
      fused.forEach((tensor, i) => expectSameBits(tensor, parts[i]));
      expectWithin(fused[0], decodes.reference(activations), activations);
    }
  });

  it('gives a row the same bits alone and among others, with few keys', () => {
    const dtype = 'bfloat16';
    const shape = { numHeads: 16, numKvHeads: 8, headDim: 16, slidingWindow: 0 };
    const size = shape.numHeads * shape.headDim;
    const decodes = new Decodes([480, 130, 1, 512, 64, 200, 17, 333], shape, dtype, false);
    const [all] = decodes.run(ops, activationsOf(dtype), true);
    for (const [first, count] of [
      [0, 1],
      [3, 1],
      [1, 3],
      [2, 4],
    ]) {
      const rows = decodes.rows.slice(first, first + count);
      const [some] = decodes.run(ops, activationsOf(dtype), true, true, rows);
      expectSameBits(some, all.slice(first * size, (first + count) * size));
    }
  });

  it.each(dtypes)('of a batch that is no decode, cache in %s, is as its parts', (dtype) => {
    const shape = { numHeads: 4, numKvHeads: 2, headDim: 64, slidingWindow: 0 };
    const decodes = new Decodes(lengths, shape, dtype, true);
    const activations = activationsOf(dtype);
    const parts = decodes.run(ops, activations, false, false);
    const fused = decodes.run(ops, activations, true, false);
    fused.forEach((tensor, i) => expectSameBits(tensor, parts[i]));
  });
});
