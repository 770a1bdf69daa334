/**
 * The engine: one loop that schedules steps, has the executor run them and hands out what they
 * bring. What it does depends on the order in which requests came and on what steps gave back,
 * never on which of two things happened to be quicker.
 */
import { setImmediate as nextTurnOfEventLoop } from 'node:timers/promises';
import type { LoadProgress, UniprocConfig } from '../config/uniprocConfig';
import { ExecutorFailedError, InvalidStateError, ShutdownError } from '../errors';
import { Executor } from '../executor/executor';
import type { Future } from '../executor/future';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { ModelRunnerOutput } from '../worker/outputs';
import type { SchedulerOutput } from '../worker/schedulerOutput';
import type { EngineInput } from './inputProcessor';
import { getKvCacheConfig } from './kvCacheConfig';
import { KVCacheManager } from './kvCacheManager';
import { type OutputReceiver, RequestOutputCollector } from './outputCollector';
import { OutputProcessor, ParentRequest } from './outputProcessor';
import type { OutputStream, RequestOutput } from './outputs';
import { Request } from './request';
import { Scheduler } from './scheduler';
import { requestSeed, sampleSeed } from './seeds';

export interface EngineOptions {
  /** Text for users; null: they get token ids only. */
  tokenizer: Tokenizer | null;
  /** Told how far the load of the weights is. */
  onProgress?: (progress: LoadProgress) => void;
  /** Gives the start up: what was made is shut down, and `create` rejects with its reason. */
  signal?: AbortSignal;
}

/** What happened between two steps, in order. */
type Arrival = { add: Request } | { abort: string } | { resetPrefixCache: true };

interface StepInFlight {
  step: SchedulerOutput;
  output: Future<ModelRunnerOutput | null>;
}

export class LLMEngine {
  readonly config: UniprocConfig;
  private readonly outputProcessor: OutputProcessor;
  private readonly arrivals: Arrival[] = [];
  private numRequests = 0;
  /** Why nothing runs any more. */
  private error: Error | null = null;
  /** Ends the loop's wait for an arrival. */
  private wake: (() => void) | null = null;

  private constructor(
    readonly executor: Executor,
    tokenizer: Tokenizer | null,
  ) {
    this.config = executor.config;
    this.outputProcessor = new OutputProcessor(tokenizer);
  }

  /**
   * Starts the executor, sizes the KV cache, warms the model up. Rejects with what the executor
   * rejects with, and with ConfigError when the cache cannot hold one request; what was made is shut
   * down before.
   */
  static async create(config: UniprocConfig, options: EngineOptions): Promise<LLMEngine> {
    const { tokenizer, onProgress, signal } = options;
    signal?.throwIfAborted();
    const executorClass = await Executor.getClass(config);
    const executor = await executorClass.create(config, { onProgress });
    try {
      const engine = new LLMEngine(executor, tokenizer);
      await engine.start(signal);
      return engine;
    } catch (error) {
      // The first error is the one to report, whatever the clearing up meets.
      await executor.shutdown().catch(() => {});
      throw error;
    }
  }

  private async start(signal: AbortSignal | undefined): Promise<void> {
    const { config, executor } = this;
    executor.registerFailureCallback((error) => this.stop(error));
    signal?.throwIfAborted();
    const specs = await executor.getKvCacheSpecs();
    const availableBytes = await executor.determineAvailableMemory();
    signal?.throwIfAborted();
    const kvCacheConfigs = specs.map((spec, i) =>
      getKvCacheConfig(config, spec, availableBytes[i]),
    );
    await executor.initializeFromConfig(kvCacheConfigs);
    signal?.throwIfAborted();
    await executor.compileOrWarmUpModel();
    signal?.throwIfAborted();

    const { numBlocks } = kvCacheConfigs[0];
    const { blockSize, enablePrefixCaching } = config.cache;
    const kvCacheManager = new KVCacheManager(numBlocks, blockSize, enablePrefixCaching);
    void this.run(new Scheduler(config.scheduler, kvCacheManager), kvCacheManager);
  }

  /**
   * A prompt's outputs, complete. Rejects with ExecutorFailedError or ShutdownError, and with
   * InvalidStateError while the executor sleeps.
   */
  generate(input: EngineInput): Promise<RequestOutput> {
    return new Promise((finished, failed) => {
      this.addRequest(input, { finished, failed });
    });
  }

  /**
   * A prompt's outputs as they grow, from the first read on; leaving the loop ends the request.
   * `makeInput` is called at the first read, which rejects with what it throws, or as `generate`.
   */
  stream(makeInput: () => EngineInput): OutputStream {
    return new RequestOutputCollector((receiver) => {
      const requestIds = this.addRequest(makeInput(), receiver);
      return () => {
        this.abortRequests(requestIds);
      };
    });
  }

  /** Samples that were asked for and are not complete. */
  get numUnfinishedRequests(): number {
    return this.outputProcessor.numUnfinishedRequests;
  }

  /** Returns the ids of the prompt's samples. */
  private addRequest(input: EngineInput, receiver: OutputReceiver): string[] {
    if (this.error !== null) throw this.error;
    if (this.executor.isSleeping) throw asleep();
    const { prompt, promptTokenIds, samplingParams } = input;
    const { maxModelLen, seed: engineSeed } = this.config.model;
    const count = this.numRequests++;
    const parentId = String(count);
    const parent = new ParentRequest(parentId, prompt, promptTokenIds, samplingParams, receiver);
    const seed =
      samplingParams.seed === null ? requestSeed(engineSeed, count) : BigInt(samplingParams.seed);
    return Array.from({ length: samplingParams.n }, (_, index) => {
      const requestId = samplingParams.n === 1 ? parentId : `${parentId}-${index}`;
      const request = new Request({
        requestId,
        promptTokenIds,
        samplingParams,
        stopTokenIds: input.stopTokenIds,
        badWordsTokenIds: input.badWordsTokenIds,
        seed: sampleSeed(seed, index),
        maxModelLen,
      });
      this.outputProcessor.addRequest(request, parent, index);
      this.arrive({ add: request });
      return requestId;
    });
  }

  /** Requests that come after this find nothing in the KV cache that was computed before it. */
  resetPrefixCache(): void {
    this.arrive({ resetPrefixCache: true });
  }

  private abortRequests(requestIds: readonly string[]): void {
    for (const requestId of requestIds) this.arrive({ abort: requestId });
  }

  private arrive(arrival: Arrival): void {
    this.arrivals.push(arrival);
    this.wake?.();
  }

  /** Runs until the engine stops. With nothing to do it waits for an arrival, and keeps no process alive. */
  private async run(scheduler: Scheduler, kvCacheManager: KVCacheManager): Promise<void> {
    const { executor } = this;
    let numSleeps = 0;
    const inFlight: StepInFlight[] = [];
    try {
      while (this.error === null) {
        if (numSleeps !== executor.numSleeps) kvCacheManager.resetPrefixCache();
        numSleeps = executor.numSleeps;
        this.takeArrivals(scheduler, kvCacheManager);
        if (inFlight.length < executor.maxConcurrentBatches) {
          const step = scheduler.schedule();
          if (step.totalNumScheduledTokens > 0) {
            inFlight.push({ step, output: executor.executeModel(step, { nonBlock: true }) });
            continue;
          }
          this.tellWorker(step);
        }
        const oldest = inFlight.shift();
        if (oldest !== undefined) {
          const output = await this.outputOf(oldest);
          // No await from here to the next launch: a caller hears of its outputs after the worker does.
          this.update(scheduler, oldest.step, output);
        } else if (!scheduler.hasUnfinishedRequests()) {
          await new Promise<void>((resolve) => (this.wake = resolve));
        } else {
          throw new InvalidStateError('the worker gave back fewer tokens than were scheduled');
        }
      }
    } catch (error) {
      this.stop(asExecutorFailure(error));
    }
  }

  /** A step without tokens may still hold requests whose state the worker is to free; nothing waits for it. */
  private tellWorker(step: SchedulerOutput): void {
    if (step.finishedReqIds.length === 0 && step.preemptedReqIds.length === 0) return;
    const output = this.executor.executeModel(step, { nonBlock: true });
    output.then(null, (error: unknown) => this.stop(asExecutorFailure(error)));
  }

  private takeArrivals(scheduler: Scheduler, kvCacheManager: KVCacheManager): void {
    const aborted: string[] = [];
    const abort = () => {
      if (aborted.length === 0) return;
      scheduler.finishRequests(aborted, 'abort');
      this.outputProcessor.abortRequests(aborted);
      aborted.length = 0;
    };
    for (const arrival of this.arrivals) {
      if ('abort' in arrival) {
        aborted.push(arrival.abort);
        continue;
      }
      abort();
      if ('resetPrefixCache' in arrival) {
        kvCacheManager.resetPrefixCache();
        continue;
      }
      // The executor may have fallen asleep since the request was made.
      if (this.executor.isSleeping) this.outputProcessor.failRequest(arrival.add, asleep());
      else scheduler.addRequest(arrival.add);
    }
    abort();
    this.arrivals.length = 0;
  }

  private async outputOf({ output }: StepInFlight): Promise<ModelRunnerOutput> {
    // A worker that is always done already would keep timers and sockets from ever being served.
    if (output.done()) await nextTurnOfEventLoop();
    const modelRunnerOutput = await output;
    if (modelRunnerOutput !== null) return modelRunnerOutput;
    throw new InvalidStateError('executeModel gave null for a step without grammars');
  }

  private update(scheduler: Scheduler, step: SchedulerOutput, output: ModelRunnerOutput): void {
    if (this.error !== null) return;
    const outputs = scheduler.updateFromOutput(step, output);
    const stopped = this.outputProcessor.processOutputs(outputs);
    scheduler.finishRequests(stopped, 'stop');
  }

  /** From now on nothing runs: whoever waits, and whoever comes, gets the error. */
  private stop(error: Error): void {
    if (this.error !== null) return;
    this.error = error;
    this.arrivals.length = 0;
    this.outputProcessor.failAll(error);
  }

  /** Pending requests reject with ShutdownError; then the executor shuts down. Idempotent. */
  shutdown(): Promise<void> {
    this.stop(new ShutdownError('the engine was shut down'));
    return this.executor.shutdown();
  }
}

function asleep(): InvalidStateError {
  return new InvalidStateError('the executor is asleep; call executor.wakeUp() first');
}

function asExecutorFailure(error: unknown): Error {
  if (error instanceof ExecutorFailedError || error instanceof ShutdownError) return error;
  return new ExecutorFailedError(`a step failed: ${String(error)}`, { cause: error });
}
