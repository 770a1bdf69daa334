/** What an engine says of itself when it has started. */
import type { GroupedKVCacheConfig, KVCacheSpec } from '../contract/kvCache';
import type { WeightBytes, WorkerSummary } from '../contract/workerSummary';
import type { CacheDType, DType } from '../config/dtype';
import type { Executor } from '../executor/executor';
import { log } from '../log';
import { bytesPerBlock, maxFullLengthRequests } from './kvCacheConfig';

/** Layers of one attention window that share a block table. */
export interface KVCacheGroupSummary {
  numLayers: number;
  /** Attention window in tokens; null: full attention. */
  slidingWindow: number | null;
}

/** An engine that has started, for a log. Bytes are of this process: of this rank's share. */
export interface StartupRecord {
  /** The checkpoint's folder, and its architecture as config.json names it. */
  model: string;
  architecture: string;
  /** 'cpu', 'cuda' or 'cuda:N', as the options name it. */
  device: string;
  /** 'cpu' or, say, 'NVIDIA H200'; null where a worker class of the user's own does not say. */
  deviceName: string | null;
  /** The instruction set of the kernels: 'avx512bf16', 'avx512', 'avx2', 'plain'; on CUDA 'sm_90'. Null likewise. */
  capability: string | null;
  /** Type that the model computes in. */
  dtype: DType;
  /** Bytes of the weights. Null likewise. */
  weightBytes: number | null;
  /** The same by the type that they are stored in: `{ float8_e4m3: 0.6e9, bfloat16: 0.3e9 }`. */
  weightFormats: WeightBytes | null;
  /** Type of keys and values in the KV cache. */
  kvCacheDtype: CacheDType;
  kvCacheBytes: number;
  /** Blocks of the KV cache, and tokens in each. */
  numKvBlocks: number;
  blockSize: number;
  /** A block belongs to one of these groups of layers at a time. */
  kvCacheGroups: KVCacheGroupSummary[];
  /** Tokens that the KV cache holds, of requests no longer than the windows. */
  numKvTokens: number;
  /** Tokens of a request at most. */
  maxModelLen: number;
  /** Requests in a step at most. */
  maxNumSeqs: number;
  /** Requests of maxModelLen tokens that the KV cache holds at once. */
  maxFullLengthRequests: number;
  /** Among the ranks that share the model, and their number. */
  rank: number;
  worldSize: number;
  /** Milliseconds that the start took, or the forming of the new group of ranks. */
  startupTimeMs: number;
}

/** The record of an engine; `specs` and `configs` are the caches of each worker. */
export async function startupRecord(
  executor: Executor,
  specs: readonly ReadonlyMap<string, KVCacheSpec>[],
  configs: readonly GroupedKVCacheConfig[],
  startTime: number,
): Promise<StartupRecord> {
  const { cache, device, model, parallel, scheduler } = executor.config;
  const workers = await summaries(executor);
  const weightFormats = workers && sumByType(workers.map(({ weightBytes }) => weightBytes));
  const first = workers?.at(0);
  const [{ numBlocks: numKvBlocks, kvCacheGroups }] = configs;
  const bytes = specs.map((layers, i) => bytesPerBlock(layers, configs[i].kvCacheGroups));
  return {
    model: model.path,
    architecture: model.transformer.architecture,
    device: device.name,
    deviceName: first?.deviceName ?? null,
    capability: first?.capability ?? null,
    dtype: model.dtype,
    weightBytes: weightFormats && Object.values(weightFormats).reduce((sum, bytes) => sum + bytes),
    weightFormats,
    kvCacheDtype: cache.dtype,
    kvCacheBytes: numKvBlocks * bytes.reduce((sum, ofWorker) => sum + ofWorker),
    numKvBlocks,
    blockSize: cache.blockSize,
    kvCacheGroups: kvCacheGroups.map(({ layerNames, slidingWindow }) => ({
      numLayers: layerNames.length,
      slidingWindow,
    })),
    numKvTokens: Math.floor(numKvBlocks / kvCacheGroups.length) * cache.blockSize,
    maxModelLen: model.maxModelLen,
    maxNumSeqs: scheduler.maxNumSeqs,
    maxFullLengthRequests: maxFullLengthRequests(executor.config, configs[0]),
    rank: first?.rank ?? 0,
    worldSize: first?.worldSize ?? parallel.tensorParallelSize,
    startupTimeMs: performance.now() - startTime,
  };
}

export function logStartup(startup: StartupRecord): void {
  log(
    'start: the KV cache holds %d tokens, %d requests of %d tokens at once',
    startup.numKvTokens,
    startup.maxFullLengthRequests,
    startup.maxModelLen,
  );
  log('started: %j', startup);
}

/** Null where the workers, or the executor, are of the user's own and have no summary. */
async function summaries(executor: Executor): Promise<WorkerSummary[] | null> {
  try {
    const all = await executor.collectiveRpc<WorkerSummary>('getSummary');
    return all.length > 0 ? all : null;
  } catch {
    // An executor that has failed says so itself; a record must not keep a start from succeeding.
    return null;
  }
}

function sumByType(all: readonly WeightBytes[]): WeightBytes {
  const sums: WeightBytes = {};
  for (const weightBytes of all) {
    for (const [type, bytes] of Object.entries(weightBytes) as [keyof WeightBytes, number][]) {
      sums[type] = (sums[type] ?? 0) + bytes;
    }
  }
  return sums;
}
