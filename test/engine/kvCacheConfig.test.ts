import type { UniprocConfig } from '../../lib/config/uniprocConfig';
import { getKvCacheConfig, getKvCacheConfigs } from '../../lib/engine/kvCacheConfig';
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
