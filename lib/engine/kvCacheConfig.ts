/** How many blocks the KV cache has: what the memory gives, and no more than can be used. */
import type { UniprocConfig } from '../config/uniprocConfig';
import { ConfigError } from '../errors';
import { type KVCacheConfig, KVCacheSpec } from '../contract/kvCache';

const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

/**
 * The KV caches of all workers, each with its layers' specs and the bytes that it has for them. The
 * workers share one block table, so each has as many blocks as the one with the fewest (as vLLM's
 * get_kv_cache_configs). Throws ConfigError that names the worker.
 */
export function getKvCacheConfigs(
  config: UniprocConfig,
  specs: readonly ReadonlyMap<string, KVCacheSpec>[],
  availableBytes: readonly number[],
): KVCacheConfig[] {
  if (specs.length === 0 || availableBytes.length !== specs.length) {
    throw new ConfigError(
      `the executor gave the KV cache specs of ${specs.length} workers and the memory of ` +
        `${availableBytes.length}; it must give both of each worker, and have one at least`,
    );
  }
  const configs = specs.map((spec, i) => {
    try {
      return getKvCacheConfig(config, spec, availableBytes[i]);
    } catch (error) {
      if (specs.length === 1 || !(error instanceof ConfigError)) throw error;
      throw new ConfigError(`worker ${i} of ${specs.length}: ${error.message}`, { cause: error });
    }
  });
  const numBlocks = Math.min(...configs.map((workerConfig) => workerConfig.numBlocks));
  return configs.map((workerConfig, i) => ({
    ...workerConfig,
    numBlocks,
    kvCacheTensors: tensorsOf(specs[i], numBlocks),
  }));
}

function tensorsOf(
  specs: ReadonlyMap<string, KVCacheSpec>,
  numBlocks: number,
): KVCacheConfig['kvCacheTensors'] {
  return Array.from(specs, ([layer, spec]) => ({
    size: numBlocks * spec.pageSizeBytes,
    sharedBy: [layer],
  }));
}

/**
 * The KV cache of a worker whose layers need `specs` and that has `availableBytes` for them. All
 * layers share one block table. There is always room for at least one request of `maxModelLen`
 * tokens, so that every request that is admitted can run. Throws ConfigError with the figures.
 */
export function getKvCacheConfig(
  config: UniprocConfig,
  specs: ReadonlyMap<string, KVCacheSpec>,
  availableBytes: number,
): KVCacheConfig {
  const { blockSize } = config.cache;
  const { maxModelLen } = config.model;
  let bytesPerBlock = 0;
  for (const [layer, spec] of specs) {
    if (spec.blockSize !== blockSize) {
      throw new ConfigError(
        `${layer} has blocks of ${spec.blockSize} tokens, but blockSize is ${blockSize}`,
      );
    }
    bytesPerBlock += spec.pageSizeBytes;
  }
  if (!Number.isFinite(availableBytes)) {
    throw new ConfigError(
      `the worker's determineAvailableMemory gave ${String(availableBytes)}; it must give a number of bytes`,
    );
  }
  if (bytesPerBlock === 0) throw new ConfigError('the worker names no layer with a KV cache');

  const blocksPerRequest = Math.ceil(maxModelLen / blockSize);
  const affordable = Math.floor(availableBytes / bytesPerBlock);
  if (affordable < blocksPerRequest) {
    throw new ConfigError(
      `one request of maxModelLen ${maxModelLen} tokens needs ${mib(blocksPerRequest * bytesPerBlock)} ` +
        `of KV cache, but ${mib(availableBytes)} are available, enough for ` +
        `${Math.max(0, affordable) * blockSize} tokens; lower maxModelLen, or raise ` +
        'kvCacheMemoryBytes or memoryUtilization',
    );
  }
  const numBlocks = Math.min(affordable, config.scheduler.maxNumSeqs * blocksPerRequest);
  return {
    numBlocks,
    kvCacheTensors: tensorsOf(specs, numBlocks),
    kvCacheGroups: [
      { layerNames: [...specs.keys()], kvCacheSpec: sharedSpec([...specs.values()]) },
    ],
  };
}

/** What one block table must serve: layers that see all tokens keep them for those with a window. */
function sharedSpec(specs: readonly KVCacheSpec[]): KVCacheSpec {
  return specs.find(({ slidingWindow }) => slidingWindow === null) ?? specs[0];
}
