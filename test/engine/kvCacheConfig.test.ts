import type { UniprocConfig } from '../../lib/config/uniprocConfig';
import {
  getKvCacheConfig,
  getKvCacheConfigs,
  maxFullLengthRequests,
} from '../../lib/engine/kvCacheConfig';
import { ConfigError } from '../../lib/errors';
import { KVCacheSpec } from '../../lib/contract/kvCache';

const MIB = 2 ** 20;

function config(limits: { maxModelLen: number; maxNumSeqs: number }): UniprocConfig {
  return {
    model: { maxModelLen: limits.maxModelLen },
    cache: { blockSize: 16 },
    scheduler: { maxNumSeqs: limits.maxNumSeqs },
  } as UniprocConfig;
}

/** Keys and values of 16 tokens, 8 heads of 64, two bytes: 32 KiB a block and layer. */
const layer = () => new KVCacheSpec(16, 8, 64, 'bfloat16', null);
const specs = new Map([
  ['layers.0', layer()],
  ['layers.1', layer()],
]);

test('the bytes are divided into blocks over all layers', () => {
  const { numBlocks } = getKvCacheConfig(
    config({ maxModelLen: 160, maxNumSeqs: 64 }),
    specs,
    MIB - 1,
  );
  expect(numBlocks).toBe(15);
});

test('there are no more blocks than maxNumSeqs requests of maxModelLen tokens can fill', () => {
  const { numBlocks } = getKvCacheConfig(
    config({ maxModelLen: 33, maxNumSeqs: 4 }),
    specs,
    1024 * MIB,
  );
  expect(numBlocks).toBe(4 * 3);
});

test('a cache too small for one request is an error with the figures', () => {
  const tooLong = config({ maxModelLen: 1024, maxNumSeqs: 4 });
  expect(() => getKvCacheConfig(tooLong, specs, 1.5 * MIB)).toThrow(ConfigError);
  // 64 blocks of 64 KiB are needed; 24 are available.
  expect(() => getKvCacheConfig(tooLong, specs, 1.5 * MIB)).toThrow(
    /1024 .*4\.0 MiB.*1\.5 MiB.*384/,
  );
  expect(
    getKvCacheConfig(config({ maxModelLen: 384, maxNumSeqs: 1 }), specs, 1.5 * MIB),
  ).toMatchObject({ numBlocks: 24 });
});

test('no memory at all is the same error', () => {
  expect(() => getKvCacheConfig(config({ maxModelLen: 16, maxNumSeqs: 1 }), specs, -5)).toThrow(
    ConfigError,
  );
});

test('a spec with another block size is an error that names the layer', () => {
  const other = new Map([['layers.0', new KVCacheSpec(32, 8, 64, 'bfloat16', null)]]);
  expect(() => getKvCacheConfig(config({ maxModelLen: 64, maxNumSeqs: 1 }), other, MIB)).toThrow(
    /layers\.0 .*32.*16/,
  );
});

describe('several workers', () => {
  const limits = config({ maxModelLen: 160, maxNumSeqs: 64 });

  test('have as many blocks as the worker with the fewest, whatever their layers', () => {
    const half = new Map([['layers.1', layer()]]);
    const configs = getKvCacheConfigs(limits, [specs, half, specs], [4 * MIB, MIB, 3 * MIB]);
    // 64 KiB a block, 32 KiB, 64 KiB: 64, 32 and 48 blocks.
    expect(configs.map(({ numBlocks }) => numBlocks)).toEqual([32, 32, 32]);
  });

  test('with too little memory on one are an error that names it', () => {
    expect(() => getKvCacheConfigs(limits, [specs, specs], [4 * MIB, 1])).toThrow(
      /^worker 1 of 2: one request of maxModelLen 160 /,
    );
    expect(() => getKvCacheConfigs(limits, [specs, specs], [NaN, MIB])).toThrow(
      /^worker 0 of 2: .*determineAvailableMemory returned NaN/,
    );
  });

  test.each([
    ['no Map', undefined, 'worker 1 of 2: .*getKvCacheSpec returned undefined'],
    [
      'layers of another block size',
      new Map([['layers.0', new KVCacheSpec(32, 8, 64, 'float32', null)]]),
      'worker 1 of 2: layers.0 has blocks of 32',
    ],
    [
      'no layer',
      new Map<string, KVCacheSpec>(),
      "worker 1 of 2: the worker's getKvCacheSpec returned no layers",
    ],
  ])('of which one gives %s are refused by its name', (_, theirs, message) => {
    const workerSpecs = [specs, theirs as unknown as typeof specs];
    const making = () => getKvCacheConfigs(limits, workerSpecs, [MIB, MIB]);
    expect(making).toThrow(ConfigError);
    expect(making).toThrow(new RegExp(message));
  });

  test('are refused if the executor returns no list', () => {
    const bytes = MIB as unknown as number[];
    expect(() => getKvCacheConfigs(limits, [specs], bytes)).toThrow(
      /determineAvailableMemory returned 1048576; it must return a list/,
    );
  });

  test.each([
    ['none at all', [], []],
    ['memory of fewer than specs', [specs, specs], [MIB]],
  ])('with %s are refused', (_, workerSpecs, bytes) => {
    expect(() => getKvCacheConfigs(limits, workerSpecs, bytes)).toThrow(ConfigError);
  });
});

describe('layers with windows', () => {
  const PAGE = layer().pageSizeBytes;
  const windowed = (slidingWindow: number | null) =>
    new KVCacheSpec(16, 8, 64, 'bfloat16', slidingWindow);
  /** Three layers with a window of 64 tokens for each one with full attention. */
  const mixed = new Map(
    Array.from({ length: 8 }, (_, i) => [`layers.${i}`, windowed(i % 4 === 3 ? null : 64)]),
  );
  const limits = (maxModelLen: number, maxNumBatchedTokens = 128, threshold = 0) =>
    ({
      model: { maxModelLen },
      cache: { blockSize: 16 },
      scheduler: { maxNumSeqs: 64, maxNumBatchedTokens, longPrefillTokenThreshold: threshold },
    }) as UniprocConfig;

  test('are groups of two layers, so a block takes the bytes of two', () => {
    const { numBlocks, kvCacheGroups } = getKvCacheConfig(limits(1600), mixed, 10_000 * 2 * PAGE);
    expect(kvCacheGroups).toEqual([
      { layerNames: ['layers.0', 'layers.1'], slidingWindow: 64 },
      { layerNames: ['layers.2', 'layers.4'], slidingWindow: 64 },
      { layerNames: ['layers.5', 'layers.6'], slidingWindow: 64 },
      { layerNames: ['layers.3', 'layers.7'], slidingWindow: null },
    ]);
    expect(numBlocks).toBe(10_000);
  });

  test('need memory for their window and a step, and the others for all tokens', () => {
    // 100 blocks of full attention; 63 + 128 tokens in 13 blocks of each group with a window.
    const least = 100 + 3 * 13;
    expect(getKvCacheConfig(limits(1600), mixed, least * 2 * PAGE)).toMatchObject({
      numBlocks: least,
    });
    const making = () => getKvCacheConfig(limits(1600), mixed, least * 2 * PAGE - 1);
    // With 138 blocks a request has 99 blocks of full attention.
    expect(making).toThrow(/1600 tokens needs 8\.7 MiB .*8\.7 MiB are available, .* 1584 tokens/);
    // A request computes 32 tokens a step at most: 63 + 32 tokens in 7 blocks.
    const fewer = 100 + 3 * 7;
    expect(getKvCacheConfig(limits(1600, 128, 32), mixed, fewer * 2 * PAGE)).toMatchObject({
      numBlocks: fewer,
    });
  });

  test('let more requests of full length run: each beyond the first needs its windows alone', () => {
    const configOf = (blocks: number) => getKvCacheConfig(limits(1600), mixed, blocks * 2 * PAGE);
    // A request that generates has 63 + 1 tokens of a window, in 5 blocks.
    const [first, others] = [100 + 3 * 13, 100 + 3 * 5];
    for (const [blocks, requests] of [
      [first, 1],
      [first + others - 1, 1],
      [first + others, 2],
      [first + 9 * others, 10],
      [first + 100 * others, 64],
    ]) {
      expect(maxFullLengthRequests(limits(1600), configOf(blocks))).toBe(requests);
    }
    // Four groups of full attention would hold 4 * 100 blocks for each.
    expect(Math.floor((first + 9 * others) / 400)).toBe(2);
  });

  test('shorter than which no request is are held whole', () => {
    const { numBlocks } = getKvCacheConfig(limits(48), mixed, 4 * 3 * 2 * PAGE);
    expect(numBlocks).toBe(12);
  });

  test('may be all', () => {
    const all = new Map([
      ['layers.0', windowed(64)],
      ['layers.1', windowed(64)],
    ]);
    const config = getKvCacheConfig(limits(1600), all, 13 * 2 * PAGE);
    expect(config).toEqual({
      numBlocks: 13,
      kvCacheGroups: [{ layerNames: ['layers.0', 'layers.1'], slidingWindow: 64 }],
    });
  });

  test('may have heads of other sizes, whose layers have memory of their own', () => {
    const specs = new Map([
      ['layers.0', new KVCacheSpec(16, 8, 64, 'bfloat16', 64)],
      ['layers.1', new KVCacheSpec(16, 4, 512, 'bfloat16', null)],
    ]);
    const { numBlocks } = getKvCacheConfig(limits(160), specs, 1000 * 5 * PAGE - 1);
    expect(numBlocks).toBe(999);
  });

  test('of several workers have the same groups, each with its own layers', () => {
    const specs = [0, 2].map(
      (i) =>
        new Map([
          [`layers.${i}`, windowed(64)],
          [`layers.${i + 1}`, windowed(null)],
        ]),
    );
    const configs = getKvCacheConfigs(limits(1600), specs, [200 * PAGE, 500 * PAGE]);
    expect(configs).toEqual(
      [0, 2].map((i) => ({
        numBlocks: 200,
        kvCacheGroups: [
          { layerNames: [`layers.${i}`], slidingWindow: 64 },
          { layerNames: [`layers.${i + 1}`], slidingWindow: null },
        ],
      })),
    );
  });

  test('are refused if a layer has another window on another worker', () => {
    const specs = [new Map([['a', windowed(64)]]), new Map([['a', windowed(null)]])];
    expect(() => getKvCacheConfigs(limits(160), specs, [MIB, MIB])).toThrow(
      /worker 1 of 2: a has a slidingWindow of null, but 64 on another worker/,
    );
  });

  test.each([0, -1, 1.5, NaN])('of %d tokens are refused', (window) => {
    expect(() => getKvCacheConfig(limits(160), new Map([['a', windowed(window)]]), MIB)).toThrow(
      /a has a slidingWindow of .*; it must be a positive integer, or null/,
    );
  });
});
