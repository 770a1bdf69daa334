/** Shared by the executor's tests: a config, JavaScript workers, child processes. */
import { spawn } from 'node:child_process';
import path from 'node:path';
import { DEFAULT_LIMITS } from '../../lib/config/limits';
import type { ParallelConfig, UniprocConfig } from '../../lib/config/uniprocConfig';
import { InvalidStateError } from '../../lib/errors';
import { type CreateOptions } from '../../lib/executor/executor';
import { UniProcExecutor } from '../../lib/executor/uniProcExecutor';
import { native } from '../../lib/native';
import { KVCacheSpec } from '../../lib/contract/kvCache';
import {
  AsyncModelRunnerOutput,
  EMPTY_MODEL_RUNNER_OUTPUT,
  type ModelRunnerOutput,
  RaggedTokenIds,
} from '../../lib/contract/modelRunnerOutput';
import { emptySchedulerOutput, type SchedulerOutput } from '../../lib/contract/schedulerOutput';
import { type StepOutput, type WorkerArgs, WorkerBase } from '../../lib/worker/workerBase';
import type { WorkerWrapper } from '../../lib/worker/workerWrapper';
import { plainSpec } from '../support/plainSpec';

export const ROOT = path.resolve(__dirname, '..', '..');

/** A config for workers without a model. */
export function testConfig({
  asyncScheduling = false,
  deviceIndex = null as number | null,
  ...parallel
}: Partial<ParallelConfig> & {
  asyncScheduling?: boolean;
  deviceIndex?: number | null;
} = {}): UniprocConfig {
  return {
    model: {
      path: '/nowhere',
      transformer: {
        architecture: 'LlamaForCausalLM',
        multimodal: null,
        pooling: null,
        gguf: null,
        spec: {
          vocabSize: 8,
          hiddenSize: 8,
          intermediateSize: 8,
          numLayers: 1,
          numHeads: 1,
          numKvHeads: 1,
          headDim: 8,
          rmsNormEps: 1e-5,
          ...plainSpec(1, 8),
          tieWordEmbeddings: false,
        },
        quantization: null,
        dtype: 'float32',
        maxPositionEmbeddings: 64,
        bosTokenId: null,
        eosTokenIds: [],
      },
      generation: {},
      dtype: 'float32',
      maxModelLen: 64,
      seed: 0,
      tokenizer: '/nowhere',
      skipTokenizerInit: true,
      enforceEager: true,
      maxLogprobs: 0,
    },
    load: { loadFormat: 'dummy' },
    cache: {
      dtype: 'float32',
      blockSize: 16,
      memoryUtilization: null,
      kvCacheMemoryBytes: null,
      enablePrefixCaching: true,
    },
    limits: DEFAULT_LIMITS,
    scheduler: {
      maxNumSeqs: 4,
      maxNumBatchedTokens: 64,
      longPrefillTokenThreshold: 0,
      policy: 'fcfs',
      maxQueuedRequests: null,
      asyncScheduling,
    },
    parallel: {
      tensorParallelSize: 1,
      distributedExecutorBackend: 'uni',
      distributedTimeoutMs: 300_000,
      disableCustomAllReduce: false,
      workerCls: PlainWorker,
      workerExtensionCls: null,
      ...parallel,
    },
    device: { kind: 'cpu', name: 'cpu', index: deviceIndex },
  };
}

/** Minimal implementation of every worker method; records the call order. */
export class PlainWorker extends WorkerBase {
  readonly calls: string[] = [];

  initDevice(): void | Promise<void> {
    this.calls.push('initDevice');
  }
  loadModel(): void | Promise<void> {
    this.calls.push('loadModel');
  }
  getKvCacheSpec(): Map<string, KVCacheSpec> {
    return new Map([['layer.0', new KVCacheSpec(16, 1, 8, 'float32', null)]]);
  }
  determineAvailableMemory(): number {
    return 4096;
  }
  initializeFromConfig(): void {
    this.calls.push('initializeFromConfig');
  }
  compileOrWarmUpModel(): number {
    return 0.25;
  }
  executeModel(schedulerOutput: SchedulerOutput): StepOutput | Promise<StepOutput> {
    return outputOf(...schedulerOutput.numScheduledTokens.keys());
  }
  sampleTokens(): StepOutput | Promise<StepOutput> {
    return EMPTY_MODEL_RUNNER_OUTPUT;
  }
  checkHealth(): void | Promise<void> {}
  shutdown(): void | Promise<void> {
    this.calls.push('shutdown');
  }
}

/** An executor typed by its worker, which need not be a Worker. */
export type ExecutorOf<W extends object> = Omit<UniProcExecutor, 'driverWorker'> & {
  readonly driverWorker: WorkerWrapper<W>;
};

/** An executor of the worker class `workerCls`; shut down by `afterEach(shutdownAll)`. */
export async function createExecutor<W extends PlainWorker>(
  workerCls: new (args: WorkerArgs) => W,
  { onProgress, ...config }: Parameters<typeof testConfig>[0] & CreateOptions = {},
): Promise<ExecutorOf<W>> {
  const executor = await UniProcExecutor.create(testConfig({ ...config, workerCls }), {
    onProgress,
  });
  created.push(executor);
  return executor as unknown as ExecutorOf<W>;
}

const created: { shutdown(): Promise<void> }[] = [];

export async function shutdownAll(): Promise<void> {
  await Promise.all(created.splice(0).map((executor) => executor.shutdown().catch(() => {})));
}

/** A step with one token per request. */
export function step(...reqIds: string[]): SchedulerOutput {
  return {
    ...emptySchedulerOutput(),
    numScheduledTokens: new Map(reqIds.map((reqId) => [reqId, 1])),
    totalNumScheduledTokens: reqIds.length,
  };
}

/** A step with structured-output requests. */
export function structuredStep(...reqIds: string[]): SchedulerOutput {
  return { ...step(...reqIds), hasStructuredOutputRequests: true };
}

/** The output of a step with these requests. */
export function outputOf(...reqIds: string[]): ModelRunnerOutput {
  return {
    ...EMPTY_MODEL_RUNNER_OUTPUT,
    reqIds,
    reqIdToIndex: new Map(reqIds.map((reqId, i) => [reqId, i])),
    sampledTokenIds: RaggedTokenIds.from(reqIds.map(() => [1])),
    numNansInLogits: new Map(),
  };
}

/** A step output that the test completes with `finish`, through a host event. */
export class HostOutput extends AsyncModelRunnerOutput {
  readonly ready = new (native().Event)();
  /** Number of reads. */
  reads = 0;

  constructor(private readonly output: ModelRunnerOutput | Error) {
    super();
  }

  finish(): void {
    this.ready.signal();
  }

  getOutput(): ModelRunnerOutput {
    if (!this.ready.done) throw new InvalidStateError('getOutput before ready');
    if (++this.reads > 1) throw new InvalidStateError('getOutput twice');
    if (this.output instanceof Error) throw this.output;
    return this.output;
  }
}

/** Returns a HostOutput for each step, kept in `launched` for the test to finish. */
export class AsyncWorker extends PlainWorker {
  readonly launched: HostOutput[] = [];

  override executeModel(schedulerOutput: SchedulerOutput): StepOutput | Promise<StepOutput> {
    const output = new HostOutput(outputOf(...schedulerOutput.numScheduledTokens.keys()));
    this.launched.push(output);
    return output;
  }
}

/** A promise with its resolve and reject. */
export function deferred<T>(): {
  promise: Promise<T>;
  resolve: (value: T) => void;
  reject: (error: unknown) => void;
} {
  let resolve!: (value: T) => void;
  let reject!: (error: unknown) => void;
  const promise = new Promise<T>((res, rej) => {
    resolve = res;
    reject = rej;
  });
  return { promise, resolve, reject };
}

/**
 * Polls until the condition holds, for example by a native thread; the test's timeout ends the
 * wait.
 */
export async function until(isSo: () => boolean): Promise<void> {
  while (!isSo()) await new Promise((resolve) => setTimeout(resolve, 1));
}

/**
 * Lets all runnable work finish, to check that something does not happen; to check that something
 * does, use `until`.
 */
export function settle(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 30));
}

/** Runs a program in a child process that can require TypeScript; kills it if it hangs. */
export function runNode(
  program: string,
  env: NodeJS.ProcessEnv = {},
): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const hook = path.join(__dirname, 'requireTypescript.js');
  const child = spawn(process.execPath, ['--require', hook, '--eval', program], {
    cwd: ROOT,
    env: { ...process.env, ...env },
    timeout: 240_000,
  });
  const output = { stdout: '', stderr: '' };
  child.stdout.on('data', (text: Buffer) => (output.stdout += text.toString()));
  child.stderr.on('data', (text: Buffer) => (output.stderr += text.toString()));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, ...output }));
  });
}
