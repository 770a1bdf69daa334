/** How many blocks the KV cache has: what the memory gives, and no more than can be used. */
import { inspect } from 'node:util';
import type { UniprocConfig } from '../config/uniprocConfig';
import type { KVCacheConfig, KVCacheSpec } from '../contract/kvCache';
import { ConfigError } from '../errors';

const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

type LayerSpecs = ReadonlyMap<string, KVCacheSpec>;

/**
 * The KV caches of all workers, however many there are, from the specs of each worker's layers and
 * the bytes that it has for them. The workers share one block table, so each has as many blocks as
 * the worker with the fewest (as vLLM's get_kv_cache_configs). Throws ConfigError that names the
 * worker.
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
      `the executor gave the KV cache specs of ${numWorkers} workers and the memory of ` +
        `${numFigures}; it must give both of each worker, and have one at least`,
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

/** Throws ConfigError when the executor's method did not give a list. */
function numEntries(method: string, list: unknown): number {
  if (Array.isArray(list)) return list.length;
  throw new ConfigError(
    `the executor's ${method} gave ${inspect(list)}; it must give a list with an entry for each worker`,
  );
}

/**
 * The KV cache of a worker whose layers need `specs` and that has `availableBytes` for them. All
 * layers share one block table. There is always room for at least one request of `maxModelLen`
 * tokens, so that every request that is admitted can run. Throws ConfigError with the figures.
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
      `the worker's determineAvailableMemory gave ${String(availableBytes)}; it must give a number of bytes`,
    );
  }
  if (bytesPerBlock === 0) throw new ConfigError('the worker names no layer with a KV cache');

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

/** Layers and their specs; throws ConfigError for what is no Map, as a worker in JavaScript may give. */
function entriesOf(specs: LayerSpecs): Iterable<[string, KVCacheSpec]> {
  // By its shape: a Map of another realm is one too.
  if (typeof (specs as Partial<LayerSpecs> | null | undefined)?.entries === 'function')
    return specs;
  throw new ConfigError(
    `the worker's getKvCacheSpec gave ${inspect(specs)}; it must give a Map of KVCacheSpec by layer`,
  );
}
