/** Computes the groups of layers and the number of KV cache blocks from the available memory. */
import { inspect } from 'node:util';
import type { UniprocConfig } from '../config/uniprocConfig';
import {
  type GroupedKVCacheConfig,
  groupLayers,
  type KVCacheGroup,
  type KVCacheSpec,
  maxBlocksHeld,
} from '../contract/kvCache';
import { ConfigError } from '../errors';
import { KVCacheManager } from './kvCacheManager';

const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

type LayerSpecs = ReadonlyMap<string, KVCacheSpec>;

/**
 * KV cache configs of all workers, from their layers' specs and available bytes. The workers share
 * block tables, so they have the same groups, each of its own layers, and the minimum number of
 * blocks (vLLM's get_kv_cache_configs). Throws ConfigError naming the worker.
 */
export function getKvCacheConfigs(
  config: UniprocConfig,
  specs: readonly LayerSpecs[],
  availableBytes: readonly number[],
): GroupedKVCacheConfig[] {
  const numWorkers = numEntries('getKvCacheSpecs', specs);
  const numFigures = numEntries('determineAvailableMemory', availableBytes);
  if (numWorkers === 0 || numFigures !== numWorkers) {
    throw new ConfigError(
      `the executor returned the KV cache specs of ${numWorkers} workers and the memory of ` +
        `${numFigures}; it must return both for each of at least one worker`,
    );
  }
  const forEach = <T>(run: (spec: LayerSpecs, worker: number) => T): T[] =>
    specs.map((spec, i) => {
      try {
        return run(spec, i);
      } catch (error) {
        if (numWorkers === 1 || !(error instanceof ConfigError)) throw error;
        throw new ConfigError(`worker ${i} of ${numWorkers}: ${error.message}`, { cause: error });
      }
    });
  const layers = new Map<string, KVCacheSpec>();
  forEach((spec) => addLayers(config, spec, layers));
  const groups = groupLayers(layers);
  const configs = forEach((spec, i) => configOf(config, spec, groups, availableBytes[i]));
  const numBlocks = Math.min(...configs.map((worker) => worker.numBlocks));
  return configs.map(({ kvCacheGroups }) => ({ numBlocks, kvCacheGroups }));
}

/** Length of the list; throws ConfigError when `list` is no array. */
function numEntries(method: string, list: unknown): number {
  if (Array.isArray(list)) return list.length;
  throw new ConfigError(
    `the executor's ${method} returned ${inspect(list)}; it must return a list with one entry per worker`,
  );
}

/**
 * KV cache config of one worker. The cache holds at least one request of `maxModelLen` tokens, so
 * every admitted request can run. Throws ConfigError with the figures.
 */
export function getKvCacheConfig(
  config: UniprocConfig,
  specs: LayerSpecs,
  availableBytes: number,
): GroupedKVCacheConfig {
  return getKvCacheConfigs(config, [specs], [availableBytes])[0];
}

/** Checks a worker's specs and adds its layers to those of all workers. */
function addLayers(
  config: UniprocConfig,
  specs: LayerSpecs,
  layers: Map<string, KVCacheSpec>,
): void {
  const { blockSize } = config.cache;
  for (const [layer, spec] of entriesOf(specs)) {
    if (spec.blockSize !== blockSize) {
      throw new ConfigError(
        `${layer} has blocks of ${spec.blockSize} tokens, but blockSize is ${blockSize}`,
      );
    }
    if (!(spec.pageSizeBytes > 0)) {
      throw new ConfigError(
        `${layer} has blocks of ${String(spec.pageSizeBytes)} bytes; its spec must be a KVCacheSpec`,
      );
    }
    const { slidingWindow } = spec;
    if (slidingWindow !== null && !(Number.isInteger(slidingWindow) && slidingWindow > 0)) {
      throw new ConfigError(
        `${layer} has a slidingWindow of ${String(slidingWindow)}; it must be a positive integer, ` +
          'or null for full attention',
      );
    }
    const known = layers.get(layer) ?? spec;
    if (known.slidingWindow !== slidingWindow) {
      throw new ConfigError(
        `${layer} has a slidingWindow of ${slidingWindow}, but ${known.slidingWindow} on another worker; ` +
          'the workers share block tables, so a layer must have the same window on each',
      );
    }
    layers.set(layer, known);
  }
}

function configOf(
  config: UniprocConfig,
  specs: LayerSpecs,
  groups: readonly KVCacheGroup[],
  availableBytes: number,
): GroupedKVCacheConfig {
  const { maxModelLen } = config.model;
  const kvCacheGroups = groups.map(({ layerNames, slidingWindow }) => ({
    layerNames: layerNames.filter((layer) => specs.has(layer)),
    slidingWindow,
  }));
  if (!Number.isFinite(availableBytes)) {
    throw new ConfigError(
      `the worker's determineAvailableMemory returned ${String(availableBytes)}; it must return a number of bytes`,
    );
  }
  const bytes = bytesPerBlock(specs, kvCacheGroups);
  if (bytes === 0)
    throw new ConfigError(
      "the worker's getKvCacheSpec returned no layers; it must return at least one",
    );

  const affordable = Math.floor(availableBytes / bytes);
  const blocksPerRequest = maxBlocksOfRequest(config, kvCacheGroups, maxModelLen);
  if (affordable < blocksPerRequest) {
    throw new ConfigError(
      `one request of maxModelLen ${maxModelLen} tokens needs ${mib(blocksPerRequest * bytes)} ` +
        `of KV cache, but ${mib(availableBytes)} are available, enough for ` +
        `${longestRequest(config, kvCacheGroups, affordable)} tokens; lower maxModelLen, or raise ` +
        'kvCacheMemoryBytes or memoryUtilization',
    );
  }
  // Blocks behind windows, which a request frees as it grows, are left room to stay cached.
  const blocksPerGroup = Math.ceil(maxModelLen / config.cache.blockSize);
  const useful = config.scheduler.maxNumSeqs * kvCacheGroups.length * blocksPerGroup;
  return { numBlocks: Math.min(affordable, useful), kvCacheGroups };
}

/** Bytes of a block: the i-th layers of all groups share memory if their pages have the same bytes. */
export function bytesPerBlock(specs: LayerSpecs, groups: readonly KVCacheGroup[]): number {
  const numShared = Math.max(...groups.map(({ layerNames }) => layerNames.length), 0);
  let bytes = 0;
  for (let i = 0; i < numShared; i++) {
    const pages = groups.map(({ layerNames }) => specs.get(layerNames[i])?.pageSizeBytes ?? 0);
    bytes += [...new Set(pages)].reduce((sum, page) => sum + page);
  }
  return bytes;
}

/** The manager of a cache's blocks. */
export function makeKvCacheManager(
  config: UniprocConfig,
  { kvCacheGroups, numBlocks }: GroupedKVCacheConfig,
): KVCacheManager {
  const { blockSize, enablePrefixCaching } = config.cache;
  const windows = kvCacheGroups.map(({ slidingWindow }) => slidingWindow);
  const most = maxTokensPerStep(config);
  return new KVCacheManager(numBlocks, blockSize, enablePrefixCaching, windows, most);
}

/** Most tokens that a step computes of one request. */
function maxTokensPerStep({ scheduler }: UniprocConfig): number {
  const { longPrefillTokenThreshold, maxNumBatchedTokens } = scheduler;
  return Math.min(maxNumBatchedTokens, longPrefillTokenThreshold || Infinity);
}

/** Most blocks, of all groups, that a request of `numTokens` holds at once. */
function maxBlocksOfRequest(
  config: UniprocConfig,
  groups: readonly KVCacheGroup[],
  numTokens: number,
  tokensPerStep = maxTokensPerStep(config),
): number {
  const { blockSize } = config.cache;
  return groups.reduce((sum, { slidingWindow }) => {
    const most = maxBlocksHeld(slidingWindow, blockSize, tokensPerStep);
    return sum + Math.min(Math.ceil(numTokens / blockSize), most);
  }, 0);
}

/** The most tokens, of whole blocks, of a request that fits into `numBlocks`. */
function longestRequest(
  config: UniprocConfig,
  groups: readonly KVCacheGroup[],
  numBlocks: number,
): number {
  const { blockSize } = config.cache;
  let [fits, tooLong] = [0, Math.ceil(config.model.maxModelLen / blockSize)];
  while (tooLong - fits > 1) {
    const middle = Math.floor((fits + tooLong) / 2);
    const needed = maxBlocksOfRequest(config, groups, middle * blockSize);
    if (needed <= numBlocks) fits = middle;
    else tooLong = middle;
  }
  return fits * blockSize;
}

/**
 * Requests of maxModelLen tokens that the cache holds at once: all but the last generate, a token a
 * step, and the last may be in its prompt.
 */
export function maxFullLengthRequests(
  config: UniprocConfig,
  { kvCacheGroups, numBlocks }: GroupedKVCacheConfig,
): number {
  const { maxModelLen } = config.model;
  const first = maxBlocksOfRequest(config, kvCacheGroups, maxModelLen);
  const others = maxBlocksOfRequest(config, kvCacheGroups, maxModelLen, 1);
  const most = 1 + Math.floor((numBlocks - first) / others);
  return Math.min(config.scheduler.maxNumSeqs, most);
}

/** The specs by layer; throws ConfigError when a custom worker returned no Map. */
function entriesOf(specs: LayerSpecs): Iterable<[string, KVCacheSpec]> {
  // Duck-typed: the Map may come from another realm.
  if (typeof (specs as Partial<LayerSpecs> | null | undefined)?.entries === 'function')
    return specs;
  throw new ConfigError(
    `the worker's getKvCacheSpec returned ${inspect(specs)}; it must return a Map of KVCacheSpec by layer`,
  );
}
