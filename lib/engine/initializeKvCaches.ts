/** Prepares the workers for steps (vLLM's _initialize_kv_caches). */
import { throwIfAborted } from '../abortSignal';
import type { Executor } from '../executor/executor';
import { log } from '../log';
import { getKvCacheConfigs, makeKvCacheManager } from './kvCacheConfig';
import type { KVCacheManager } from './kvCacheManager';
import { logStartup, type StartupRecord, startupRecord } from './startupRecord';

/** Sizes and allocates the workers' KV caches and warms up the model. */
export async function initializeKvCaches(
  executor: Executor,
  startTime: number,
  signal?: AbortSignal,
): Promise<{ kvCacheManager: KVCacheManager; startup: StartupRecord }> {
  const { config } = executor;
  throwIfAborted(signal);
  const specs = await executor.getKvCacheSpecs();
  const availableBytes = await executor.determineAvailableMemory();
  log('start: %j bytes for the KV cache', availableBytes);
  throwIfAborted(signal);
  const kvCacheConfigs = getKvCacheConfigs(config, specs, availableBytes);
  await executor.initializeFromConfig(kvCacheConfigs);
  throwIfAborted(signal);
  log('start: the KV cache is allocated');
  await executor.compileOrWarmUpModel();
  throwIfAborted(signal);
  log('start: the model is warm');
  const startup = await startupRecord(executor, specs, kvCacheConfigs, startTime);
  throwIfAborted(signal);
  logStartup(startup);
  return { kvCacheManager: makeKvCacheManager(config, kvCacheConfigs[0]), startup };
}
