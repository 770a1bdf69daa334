/** PagedModel as a worker, and an engine over it. */
import path from 'node:path';
import { createUniprocConfig, type EngineArgs } from '../../lib/config/engineArgs';
import type { RequestOptions } from '../../lib/config/requestOptions';
import { SamplingParams, type SamplingParamsOptions } from '../../lib/config/samplingParams';
import { type EngineOptions, LLMEngine } from '../../lib/engine/engine';
import { encodedInputs, type EngineInput } from '../../lib/engine/callInputs';
import type { OutputStream, RequestOutput } from '../../lib/engine/outputs';
import { type KVCacheConfig, KVCacheSpec } from '../../lib/contract/kvCache';
import type { ModelRunnerOutput } from '../../lib/contract/modelRunnerOutput';
import type { SchedulerOutput } from '../../lib/contract/schedulerOutput';
import { type StepOutput, WorkerBase } from '../../lib/worker/workerBase';
import { PagedModel } from './pagedModel';

/** A checkpoint for its config only: a vocabulary of 320 tokens, EOS 2. */
const CHECKPOINT = path.join(__dirname, '..', 'golden', 'checkpoints', 'llama2');

/** Completes each step when launched. */
export class PagedWorker extends WorkerBase {
  static numBlocks = 1024;

  readonly calls: string[] = [];
  readonly steps: SchedulerOutput[] = [];
  model!: PagedModel;

  private get spec(): KVCacheSpec {
    return new KVCacheSpec(this.args.config.cache.blockSize, 1, 1, 'float32', null);
  }

  initDevice(): void {
    this.calls.push('initDevice');
  }
  loadModel(): void {
    this.calls.push('loadModel');
  }
  getKvCacheSpec(): Map<string, KVCacheSpec> {
    this.calls.push('getKvCacheSpec');
    return new Map([['layer', this.spec]]);
  }
  determineAvailableMemory(): number {
    this.calls.push('determineAvailableMemory');
    return (this.constructor as typeof PagedWorker).numBlocks * this.spec.pageSizeBytes;
  }
  initializeFromConfig({ numBlocks }: KVCacheConfig): void {
    this.calls.push(`initializeFromConfig ${numBlocks}`);
    const { cache, scheduler } = this.args.config;
    this.model = new PagedModel({ numBlocks, blockSize: cache.blockSize, ...scheduler });
  }
  compileOrWarmUpModel(): number {
    this.calls.push('compileOrWarmUpModel');
    return 0;
  }
  executeModel(step: SchedulerOutput): StepOutput | Promise<StepOutput> {
    return this.run(step);
  }
  protected run(step: SchedulerOutput): ModelRunnerOutput {
    this.steps.push(step);
    return this.model.step(step);
  }
  sampleTokens(): StepOutput {
    return null;
  }
  checkHealth(): void {}
  shutdown(): void {
    this.calls.push('shutdown');
  }
}

/** Runs steps in order, each taking at least one turn of the event loop. */
export class SlowPagedWorker extends PagedWorker {
  override executeModel(step: SchedulerOutput): Promise<StepOutput> {
    const output = this.run(step);
    return new Promise((resolve) => setTimeout(() => resolve(output), 1));
  }
}

/** Completes a step when the test says so. */
export class ManualPagedWorker extends PagedWorker {
  readonly complete: (() => void)[] = [];

  override executeModel(step: SchedulerOutput): Promise<StepOutput> {
    const output = this.run(step);
    return new Promise((resolve) => this.complete.push(() => resolve(output)));
  }
}

const engines: LLMEngine[] = [];

/** A small engine over a worker class; shut down after the test. */
export class TestEngine<W extends PagedWorker> {
  private constructor(
    readonly engine: LLMEngine,
    readonly worker: W,
  ) {}

  static async create<W extends PagedWorker>(
    workerCls: new (...args: ConstructorParameters<typeof PagedWorker>) => W,
    args: EngineArgs = {},
    options: Partial<EngineOptions> = {},
  ): Promise<TestEngine<W>> {
    const config = await createUniprocConfig({
      model: CHECKPOINT,
      skipTokenizerInit: true,
      blockSize: 4,
      maxModelLen: 64,
      maxNumSeqs: 8,
      maxNumBatchedTokens: 64,
      ...args,
      workerCls,
    });
    const engine = await LLMEngine.create(config, { tokenizer: Promise.resolve(null), ...options });
    engines.push(engine);
    const { driverWorker } = engine.executor as unknown as { driverWorker: { worker: W } };
    return new TestEngine(engine, driverWorker.worker);
  }

  async generate(
    prompt: readonly number[],
    params: SamplingParamsOptions = {},
    options: RequestOptions = {},
  ): Promise<RequestOutput> {
    const inputs = encodedInputs([this.input(prompt, params)]);
    return (await this.engine.generate(inputs, options))[0];
  }

  /** Several prompts in one call. */
  generateAll(
    prompts: readonly (readonly number[])[],
    params: SamplingParamsOptions = {},
    options: RequestOptions = {},
  ): Promise<RequestOutput[]> {
    return this.engine.generate(
      encodedInputs(prompts.map((prompt) => this.input(prompt, params))),
      options,
    );
  }

  stream(
    prompt: readonly number[],
    params: SamplingParamsOptions = {},
    options: RequestOptions = {},
  ): OutputStream {
    return this.engine.stream(() => encodedInputs([this.input(prompt, params)]), options);
  }

  private input(prompt: readonly number[], options: SamplingParamsOptions): EngineInput {
    const samplingParams = new SamplingParams({ ignoreEos: true, ...options });
    return {
      prompt: null,
      promptTokenIds: Int32Array.from(prompt),
      samplingParams,
      stopTokenIds: samplingParams.stopTokenIds,
      badWordsTokenIds: [],
    };
  }
}

export async function shutdownEngines(): Promise<void> {
  await Promise.all(engines.splice(0).map((engine) => engine.shutdown().catch(() => {})));
}

/** Resolves after all pending event loop work has run. */
export async function turns(count = 3): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
}
