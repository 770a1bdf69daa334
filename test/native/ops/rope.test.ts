import { Layout, makeBatch, tokensOf } from './batches';
import { cacheDtypes, cpuOps, isas } from './binding';
import { expectClose, Random, roundTo } from './reference';

const eps = 1e-6;
const maxModelLen = 60;

describe.each(isas)('ropeAndCache, %s', (isa) => {
  const ops = cpuOps(isa);

  it('without keys rotates the queries and leaves the cache', () => {
    const [numHeads, numKvHeads, headDim, numTokens] = [4, 2, 20, 9];
    const random = new Random(11);
    const layout = new Layout(4, [numTokens], random);
    const rows = [{ slot: 0, numComputed: 0, numScheduled: numTokens }];
    const requests = layout.requests(ops, [new Int32Array(numTokens)], 1);
    const batch = makeBatch(ops, rows);
    ops.prepareInputs(requests, null, 0, 4, batch);
    const width = numHeads * headDim;
    const queries = random.normals(numTokens * width, 'float32', 2);
    const half = headDim / 2;
    const angle = (position: number, i: number) => (position + 1) * Math.cos(i % half);
    const rope = Float32Array.from({ length: numTokens * headDim }, (_, i) => {
      const [position, rest] = [Math.floor(i / headDim), i % headDim];
      return rest < half ? Math.cos(angle(position, rest)) : Math.sin(angle(position, rest));
    });
    const cacheSize = layout.numBlocks * 4 * numKvHeads * headDim;
    const untouched = new Float32Array(cacheSize).fill(0.5);
    const cache = { keys: ops.floats(untouched), values: ops.floats(untouched), blockSize: 4 };
    const norm = random.normals(headDim);
    const qNorm = { data: ops.floats(norm), rows: headDim, cols: 1 };
    const tensor = ops.floats(queries);
    const shape = { numHeads, numKvHeads, headDim, slidingWindow: 0, hasKeys: false };
    ops.ropeAndCache(tensor, batch, shape, qNorm, null, eps, ops.floats(rope), cache);

    const expected = Float64Array.from(queries, (_, at) => {
      const [token, i] = [Math.floor(at / width), at % headDim];
      const head = queries.subarray(at - i, at - i + headDim);
      const squares = head.reduce((sum, value) => sum + value * value, 0);
      const normed = (j: number) => (head[j] * norm[j]) / Math.sqrt(squares / headDim + eps);
      const [cos, sin] = [Math.cos, Math.sin].map((of) => of(angle(token, i)));
      return normed(i) * cos + normed((i + half) % headDim) * (i < half ? -sin : sin);
    });
    expectClose(ops.readFloats(tensor, queries.length), expected, 1e-5);
    for (const cached of [cache.keys, cache.values]) {
      expect(ops.readFloats(cached, cacheSize)).toEqual(untouched);
    }
  });

  describe.each(cacheDtypes)('with norms and a cache in %s', (cacheDtype) => {
    const isFloat8 = cacheDtype === 'float8_e4m3';
    const dtype = isFloat8 ? 'float32' : cacheDtype;
    // Of keys and of values; some elements exceed 448 of theirs.
    const scales = isFloat8 ? [Math.fround(0.01), 1] : [1, 1];

    it.each([
      [1, 1, 8],
      [4, 2, 64],
      [3, 1, 20],
      [5, 5, 34],
    ])('rotates %i and %i heads of %i, writes keys and values', (numHeads, numKvHeads, headDim) => {
      const random = new Random(headDim);
      const lengths = [30, 60, 5];
      const layout = new Layout(4, lengths, random);
      const tokenIds = lengths.map((length) => new Int32Array(length));
      const rows = [
        { slot: 1, numComputed: 50, numScheduled: 10 },
        { slot: 2, numComputed: 0, numScheduled: 5 },
        { slot: 0, numComputed: 29, numScheduled: 1 },
      ];
      const tokens = tokensOf(rows);
      const width = (numHeads + 2 * numKvHeads) * headDim;
      const kvWidth = numKvHeads * headDim;
      const half = headDim / 2;
      const angles = random.normals(maxModelLen * half, 'float32', 3);
      const rope = Float32Array.from({ length: maxModelLen * headDim }, (_, i) => {
        const [position, rest] = [Math.floor(i / headDim), i % headDim];
        const angle = angles[position * half + (rest % half)];
        return rest < half ? Math.cos(angle) : Math.sin(angle);
      });
      const norms = [random.normals(headDim, dtype), random.normals(headDim, dtype)];
      const qkv = random.normals(tokens.length * width, 'float32', 2);

      for (const withNorms of [false, true]) {
        const expected = Float64Array.from(qkv);
        const magnitude = new Float64Array(qkv.length);
        tokens.forEach(({ position }, t) => {
          for (let head = 0; head < numHeads + numKvHeads; ++head) {
            const at = t * width + head * headDim;
            const x = Float64Array.from(qkv.subarray(at, at + headDim));
            if (withNorms) {
              const squares = x.reduce((sum, value) => sum + value * value, 0);
              const rms = Math.sqrt(squares / headDim + eps);
              x.forEach((value, i) => (x[i] = (value / rms) * norms[head < numHeads ? 0 : 1][i]));
            }
            for (let i = 0; i < half; ++i) {
              const [cos, sin] = [
                rope[position * headDim + i],
                rope[position * headDim + half + i],
              ];
              expected[at + i] = x[i] * cos - x[half + i] * sin;
              expected[at + half + i] = x[half + i] * cos + x[i] * sin;
              magnitude[at + i] = magnitude[at + half + i] = Math.abs(x[i]) + Math.abs(x[half + i]);
            }
          }
        });

        const requests = layout.requests(ops, tokenIds, 1);
        const batch = makeBatch(ops, rows);
        ops.prepareInputs(requests, null, 0, 4, batch);
        const cacheSize = layout.numBlocks * 4 * kvWidth;
        const untouched = 0.5;
        const cache = {
          keys: ops.cached(new Float32Array(cacheSize).fill(untouched), cacheDtype),
          values: ops.cached(new Float32Array(cacheSize).fill(untouched), cacheDtype),
          blockSize: 4,
          dtype,
          keyScale: scales[0],
          valueScale: scales[1],
        };
        const tensor = ops.floats(qkv);
        const norm = (i: number) =>
          withNorms ? { data: ops.floats(norms[i], dtype), rows: headDim, cols: 1 } : null;
        const shape = { numHeads, numKvHeads, headDim, slidingWindow: 0 };
        ops.ropeAndCache(tensor, batch, shape, norm(0), norm(1), eps, ops.floats(rope), cache);

        const actual = ops.readFloats(tensor, qkv.length);
        expectClose(actual, expected, (i) => magnitude[i] * 1e-6);

        // The cache has the new qkv by their scales, in its type, only in the tokens' slots.
        for (const [part, cached] of [cache.keys, cache.values].entries()) {
          const inCache = new Array<number>(cacheSize).fill(untouched);
          tokens.forEach(({ slot, position }, t) => {
            for (let i = 0; i < kvWidth; ++i) {
              const from = t * width + (numHeads + part * numKvHeads) * headDim + i;
              inCache[layout.cacheSlot(slot, position) * kvWidth + i] = roundTo(
                Math.fround(actual[from] / scales[part]),
                cacheDtype,
              );
            }
          });
          expect(Array.from(ops.readCached(cached, cacheSize, cacheDtype))).toEqual(inCache);
        }
      }
    });
  });
});
