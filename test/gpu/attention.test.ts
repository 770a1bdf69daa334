/**
 * Attention on the GPU against the CPU, with a cache of the activations' type and in float8, over
 * rows of all kinds.
 */
import type { DType } from '../../lib/native';
import { Layout, makeBatch, type Row, tokensOf } from '../native/ops/batches';
import { dtypes, type KvCache } from '../native/ops/binding';
import { expectSameBits, Random, roundTo } from '../native/ops/reference';
import { compare, cpu, Device, gpu, normals } from './comparison';

/** Rows of one request each, and a cache with NaN in all positions that they may not attend to. */
interface AttentionCase {
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  slidingWindow: number;
  blockSize: number;
  rows: Row[];
  softcap?: number;
  withSinks?: boolean;
  /** Of a cache in float8; missing: the cache has the type of the case. */
  scales?: [key: number, value: number];
}

const decodes: Row[] = [1, 2, 16, 17, 63, 64, 65, 500, 1300].map((length, slot) => ({
  slot,
  numComputed: length - 1,
  numScheduled: 1,
}));
const prefills: Row[] = [1, 17, 64, 65, 130, 200].map((length, slot) => ({
  slot,
  numComputed: 0,
  numScheduled: length,
}));
/** Single queries and prompt chunks, as [computed tokens, tokens of the row]. */
const singles = [0, 1, 15, 63, 64, 199, 700, 3000].map((computed) => [computed, 1]);
const chunks = [
  [0, 100],
  [61, 69],
  [62, 3],
  [63, 2],
  [1100, 50],
];
const between = [
  ...singles.slice(0, 3),
  ...chunks.slice(0, 2),
  singles[3],
  ...chunks.slice(2),
  ...singles.slice(4),
];
const randomLength = new Random(7);
const many = Array.from({ length: 160 }, () => [
  randomLength.below(randomLength.below(4) ? 10 : 80),
  randomLength.below(4) ? 1 : 1 + randomLength.below(9),
]);

/** Prompts and chunks of several tiles of keys, with single queries between them. */
const long = [
  [0, 700],
  [2000, 1],
  [300, 400],
  [129, 127],
  [0, 128],
  [128, 129],
  [1500, 5],
  [0, 1],
];

/** Rows in the given order, with their requests in permuted slots. */
function rowsOf(lengths: number[][]): Row[] {
  const slots = new Random(lengths.length).permutation(lengths.length);
  return lengths.map(([numComputed, numScheduled], row) => ({
    slot: slots[row],
    numComputed,
    numScheduled,
  }));
}

function attention(device: Device, shape: AttentionCase, dtype: DType): Float32Array {
  const { ops } = device;
  const { numHeads, numKvHeads, headDim, slidingWindow, blockSize, rows } = shape;
  const kvWidth = numKvHeads * headDim;
  const lengths = new Array<number>(Math.max(...rows.map((row) => row.slot)) + 1).fill(1);
  for (const row of rows) lengths[row.slot] = row.numComputed + row.numScheduled;
  const seed = headDim + numHeads + slidingWindow;
  const layout = new Layout(blockSize, lengths, new Random(seed));
  const requests = layout.requests(
    ops,
    lengths.map((length) => new Int32Array(length)),
    1,
  );
  const batch = makeBatch(ops, rows);
  ops.prepareInputs(requests, null, 0, blockSize, batch);
  const cacheDtype = shape.scales ? 'float8_e4m3' : dtype;
  const cached = (random: Random) => {
    const numbers = normals(random, kvWidth, dtype);
    return shape.scales ? numbers.map((x) => roundTo(x, cacheDtype)) : numbers;
  };

  // A token's numbers depend on its slot and position alone, not on the batch.
  const randomAt = (slot: number, position: number, isQuery: boolean) =>
    new Random((slot * 4096 + position) * 2 + Number(isQuery) + seed);
  const keys = new Float32Array(layout.numBlocks * blockSize * kvWidth).fill(NaN);
  const values = keys.slice();
  for (const { slot, numComputed, numScheduled } of rows) {
    const first = slidingWindow ? Math.max(numComputed - slidingWindow + 1, 0) : 0;
    for (let p = first; p < numComputed + numScheduled; ++p) {
      const at = layout.cacheSlot(slot, p) * kvWidth;
      const random = randomAt(slot, p, false);
      keys.set(cached(random), at);
      values.set(cached(random), at);
    }
  }
  const cache: KvCache = {
    keys: ops.cached(keys, cacheDtype),
    values: ops.cached(values, cacheDtype),
    blockSize,
    dtype,
    keyScale: shape.scales?.[0],
    valueScale: shape.scales?.[1],
  };
  // NaN in place of the rows' own keys and values, which are read from the cache.
  const width = (numHeads + 2 * numKvHeads) * headDim;
  const qkv = new Float32Array(batch.numTokens * width).fill(NaN);
  tokensOf(rows).forEach(({ slot, position }, t) => {
    const random = randomAt(slot, position, true);
    qkv.set(normals(random, numHeads * headDim, dtype, 2), t * width);
  });
  const size = batch.numTokens * numHeads * headDim;
  const out = device.unwritten(size);
  const { softcap, withSinks } = shape;
  const sinks = {
    data: ops.floats(normals(new Random(seed), numHeads, dtype, 3), dtype),
    rows: numHeads,
    cols: 1,
  };
  ops.attention(
    device.activations(qkv),
    batch,
    {
      numHeads,
      numKvHeads,
      headDim,
      slidingWindow,
      softcap,
      sinks: withSinks ? sinks : undefined,
    },
    cache,
    requests,
    out,
  );
  return device.read(out, size);
}

describe.each(dtypes)('attention over a cache in %s', (dtype) => {
  describe.each([
    ['one query per row', decodes],
    ['whole prompts', prefills],
    ['alternating single queries and chunks', rowsOf(between)],
    ['rows of all kinds, more than threads per block', rowsOf(many)],
  ])('%s', (_, rows) => {
    it.each([
      [1, 1, 8, 0, 16],
      [4, 2, 64, 0, 16],
      [8, 1, 20, 0, 3],
      [6, 6, 34, 0, 1],
      [32, 8, 64, 0, 16],
      [6, 3, 32, 0, 16],
      [14, 2, 64, 0, 32],
      [7, 1, 128, 0, 16],
      [4, 4, 128, 0, 5],
      [6, 2, 96, 0, 16],
      [4, 1, 256, 0, 16],
      [40, 1, 16, 0, 16],
      [4, 2, 64, 30, 16],
      [8, 2, 128, 100, 16],
      [3, 1, 24, 1, 8],
      [2, 2, 128, 70, 64],
    ])(
      '%i heads over %i of %i, window %i, blocks of %i',
      (numHeads, numKvHeads, headDim, slidingWindow, blockSize) => {
        const shape = { numHeads, numKvHeads, headDim, slidingWindow, blockSize, rows };
        compare(dtype, (device) => [attention(device, shape, dtype)]);
      },
    );
  });

  it.each([
    ['before', [...singles, ...chunks]],
    ['after', [...chunks, ...singles]],
  ])('takes single queries %s chunks', (_, lengths) => {
    const shape = { numHeads: 8, numKvHeads: 2, headDim: 128, slidingWindow: 100, blockSize: 16 };
    compare(dtype, (device) => [attention(device, { ...shape, rows: rowsOf(lengths) }, dtype)]);
  });

  it.each([
    [40, 8, 64, 0, 16],
    [14, 2, 64, 90, 8],
    [28, 4, 128, 0, 16],
    [8, 2, 128, 300, 64],
    [6, 3, 128, 0, 24],
    [4, 4, 128, 0, 256],
  ])(
    'takes prompts of several tiles, %i heads over %i of %i, window %i, blocks of %i',
    (numHeads, numKvHeads, headDim, slidingWindow, blockSize) => {
      const rows = rowsOf(long);
      const shape = { numHeads, numKvHeads, headDim, slidingWindow, blockSize, rows };
      compare(dtype, (device) => [attention(device, shape, dtype)]);
    },
  );

  it.each([
    [26, 2, 64, 0],
    [6, 2, 128, 0],
    [6, 2, 128, 90],
  ])(
    'gives a prompt the same bits in any batch and in chunks, %i heads over %i of %i, window %i',
    (numHeads, numKvHeads, headDim, slidingWindow) => {
      const length = 500;
      const width = numHeads * headDim;
      const run = (rows: Row[], blockSize = 16) => {
        const shape = { numHeads, numKvHeads, headDim, slidingWindow, blockSize, rows };
        return attention(new Device(gpu, dtype), shape, dtype);
      };
      const whole: Row = { slot: 8, numComputed: 0, numScheduled: length };
      const expected = run([whole]);
      const others = rowsOf(long);
      expectSameBits(run([...others, whole]).slice(-length * width), expected);
      const chunks = [0, 61, 64, 321, 323, length];
      chunks.slice(1).forEach((end, i) => {
        const begin = chunks[i];
        const chunk = { slot: 8, numComputed: begin, numScheduled: end - begin };
        const actual = run([chunk, ...others.slice(0, 2)], 8);
        expectSameBits(
          actual.slice(0, (end - begin) * width),
          expected.slice(begin * width, end * width),
        );
      });
    },
  );

  it.each([
    ['single queries', decodes],
    ['few single queries', decodes.slice(0, 4)],
    ['whole prompts', prefills],
    ['alternating single queries and chunks', rowsOf(between)],
    ['prompts of several tiles', rowsOf(long)],
  ])('has softcaps and sinks with %s', (_, rows) => {
    for (const [numHeads, numKvHeads, headDim, slidingWindow] of [
      [8, 4, 256, 0],
      [8, 4, 128, 100],
      [16, 2, 64, 128],
      [6, 3, 32, 0],
      [4, 2, 20, 30],
    ]) {
      for (const features of [
        { softcap: 2 },
        { withSinks: true },
        { softcap: 2, withSinks: true },
      ]) {
        const shape = { numHeads, numKvHeads, headDim, slidingWindow, blockSize: 16, rows };
        compare(dtype, (device) => [attention(device, { ...shape, ...features }, dtype)]);
      }
    }
  });

  it('gives the same bits every time', () => {
    for (const rows of [decodes, rowsOf(between)]) {
      const shape = { numHeads: 8, numKvHeads: 2, headDim: 128, slidingWindow: 0, blockSize: 16 };
      const run = () => attention(new Device(gpu, dtype), { ...shape, rows }, dtype);
      expect(run()).toEqual(run());
    }
  });
});

describe.each(dtypes)('with a cache in float8 and activations in %s', (dtype) => {
  const scales: [number, number] = [0.7, 1.3];

  it.each([
    [1, 1, 8],
    [4, 2, 64],
    [3, 1, 20],
    [32, 8, 128],
  ])('ropeAndCache: %i and %i heads of %i', (numHeads, numKvHeads, headDim) => {
    const rows = [
      { slot: 1, numComputed: 50, numScheduled: 10 },
      { slot: 0, numComputed: 29, numScheduled: 1 },
    ];
    const lengths = [30, 60];
    const numTokens = tokensOf(rows).length;
    const width = (numHeads + 2 * numKvHeads) * headDim;
    // Some exceed 448 of their scale.
    const qkv = normals(new Random(headDim), numTokens * width, dtype, 256);
    const angles = normals(new Random(1), 60 * headDim, 'float32');
    const write = ({ ops, activationType }: Device, withRope: boolean) => {
      const layout = new Layout(4, lengths, new Random(3));
      const tokenIds = lengths.map((length) => new Int32Array(length));
      const requests = layout.requests(ops, tokenIds, 1);
      const batch = makeBatch(ops, rows);
      ops.prepareInputs(requests, null, 0, 4, batch);
      const size = layout.numBlocks * 4 * numKvHeads * headDim;
      const [keys, values] = [0, 0].map(() => ops.cached(new Float32Array(size), 'float8_e4m3'));
      const shape = { numHeads, numKvHeads, headDim, slidingWindow: 0 };
      const [keyScale, valueScale] = scales;
      const cache = { keys, values, blockSize: 4, dtype, keyScale, valueScale };
      const rope = withRope ? ops.floats(angles) : null;
      const tensor = ops.floats(qkv, activationType);
      ops.ropeAndCache(tensor, batch, shape, null, null, 1e-6, rope, cache);
      return [keys, values].map((each) => ops.readCached(each, size, 'float8_e4m3'));
    };
    const [onGpu, onCpu] = [new Device(gpu, dtype), new Device(cpu, 'float32')];
    write(onGpu, false).forEach((cached, i) => expectSameBits(cached, write(onCpu, false)[i]));
    // A rotated key between two numbers of float8 may be rounded to either.
    const [keys, values] = write(onGpu, true);
    const [expectedKeys, expectedValues] = write(onCpu, true);
    expectSameBits(values, expectedValues);
    keys.forEach((key, i) => {
      const distance = Math.abs(key - expectedKeys[i]);
      expect(distance).toBeLessThanOrEqual(Math.max(Math.abs(expectedKeys[i]) / 7, 2 ** -9));
    });
  });

  it.each([
    ['one query per row', decodes],
    ['few single queries', decodes.slice(0, 4)],
    ['whole prompts', prefills],
    ['alternating single queries and chunks', rowsOf(between)],
    ['prompts of several tiles', rowsOf(long)],
  ])('attention: %s', (_, rows) => {
    for (const [numHeads, numKvHeads, headDim, slidingWindow, blockSize] of [
      [4, 2, 64, 0, 16],
      [8, 1, 20, 0, 3],
      [6, 3, 32, 0, 16],
      [7, 1, 128, 0, 16],
      [6, 2, 96, 0, 16],
      [4, 1, 256, 0, 16],
      [40, 1, 16, 0, 16],
      [8, 2, 128, 100, 16],
      [2, 2, 128, 70, 64],
    ]) {
      for (const features of [{}, { softcap: 2, withSinks: true }]) {
        const shape = { numHeads, numKvHeads, headDim, slidingWindow, blockSize, rows, scales };
        compare(dtype, (device) => [attention(device, { ...shape, ...features }, dtype)]);
      }
    }
  });

  it('attention gives a prompt the same bits in any batch and in chunks', () => {
    const length = 500;
    const width = 6 * 128;
    const run = (rows: Row[], blockSize = 16) => {
      const shape = {
        numHeads: 6,
        numKvHeads: 2,
        headDim: 128,
        slidingWindow: 90,
        blockSize,
        rows,
      };
      return attention(new Device(gpu, dtype), { ...shape, scales }, dtype);
    };
    const expected = run([{ slot: 8, numComputed: 0, numScheduled: length }]);
    const others = rowsOf(long);
    for (const [begin, end] of [
      [0, 61],
      [61, 321],
      [323, length],
    ]) {
      const chunk = { slot: 8, numComputed: begin, numScheduled: end - begin };
      const actual = run([chunk, ...others], 8).slice(0, (end - begin) * width);
      expectSameBits(actual, expected.slice(begin * width, end * width));
    }
  });
});
