/** Computes the number of KV cache blocks from the available memory. */
import { inspect } from 'node:util';
import type { UniprocConfig } from '../config/uniprocConfig';
import type { KVCacheConfig, KVCacheSpec } from '../contract/kvCache';
import { ConfigError } from '../errors';

const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

type LayerSpecs = ReadonlyMap<string, KVCacheSpec>;

/**
 * KV cache configs of all workers, from their layers' specs and available bytes. The workers share
 * one block table, so each gets the minimum number of blocks (vLLM's get_kv_cache_configs). Throws
 * ConfigError naming the worker.
 */
export function getKvCacheConfigs(
  config: UniprocConfig,
  specs: readonly LayerSpecs[],
  availableBytes: readonly number[],
): KVCacheConfig[] {
  const numWorkers = numEntries('getKvCacheSpecs', specs);
  const numFigures = numEntries('determineAvailableMemory', availableBytes);
  if (numWorkers === 0 || numFigures !== numWorkers) {
    throw new ConfigError(
      `the executor returned the KV cache specs of ${numWorkers} workers and the memory of ` +
        `${numFigures}; it must return both for each of at least one worker`,
    );
  }
  const counts = specs.map((spec, i) => {
    try {
      return getKvCacheConfig(config, spec, availableBytes[i]).numBlocks;
    } catch (error) {
      if (numWorkers === 1 || !(error instanceof ConfigError)) throw error;
      throw new ConfigError(`worker ${i} of ${numWorkers}: ${error.message}`, { cause: error });
    }
  });
  const numBlocks = Math.min(...counts);
  return counts.map(() => ({ numBlocks }));
}

/** Length of the list; throws ConfigError when `list` is no array. */
function numEntries(method: string, list: unknown): number {
  if (Array.isArray(list)) return list.length;
  throw new ConfigError(
    `the executor's ${method} returned ${inspect(list)}; it must return a list with one entry per worker`,
  );
}

/**
 * KV cache config of one worker. All layers share one block table. The cache holds at least one
 * request of `maxModelLen` tokens, so every admitted request can run. Throws ConfigError with the
 * figures.
 */
export function getKvCacheConfig(
  config: UniprocConfig,
  specs: LayerSpecs,
  availableBytes: number,
): KVCacheConfig {
  const { blockSize } = config.cache;
  const { maxModelLen } = config.model;
  let bytesPerBlock = 0;
  let bytesPerRequest = 0;
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
    bytesPerBlock += spec.pageSizeBytes;
    bytesPerRequest += spec.maxMemoryUsageBytes(maxModelLen);
  }
  if (!Number.isFinite(availableBytes)) {
    throw new ConfigError(
      `the worker's determineAvailableMemory returned ${String(availableBytes)}; it must return a number of bytes`,
    );
  }
  if (bytesPerBlock === 0)
    throw new ConfigError(
      "the worker's getKvCacheSpec returned no layers; it must return at least one",
    );

  const affordable = Math.floor(availableBytes / bytesPerBlock);
  const blocksPerRequest = Math.ceil(maxModelLen / blockSize);
  if (affordable < blocksPerRequest) {
    throw new ConfigError(
      `one request of maxModelLen ${maxModelLen} tokens needs ${mib(bytesPerRequest)} ` +
        `of KV cache, but ${mib(availableBytes)} are available, enough for ` +
        `${Math.max(0, affordable) * blockSize} tokens; lower maxModelLen, or raise ` +
        'kvCacheMemoryBytes or memoryUtilization',
    );
  }
  return { numBlocks: Math.min(affordable, config.scheduler.maxNumSeqs * blocksPerRequest) };
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
