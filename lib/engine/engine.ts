/**
 * The engine: one loop that schedules steps, has the executor run them and hands out what they
 * bring. What it does depends on the order in which requests came and on what steps gave back,
 * never on which of two things happened to be quicker.
 */
import { EventEmitter } from 'node:events';
import type { ReconfigureDistributedRequest } from '../config/reconfigureRequest';
import type { RequestOptions } from '../config/requestOptions';
import type { LoadProgress, UniprocConfig } from '../config/uniprocConfig';
import { InvalidStateError, ShutdownError } from '../errors';
import type { Executor } from '../executor/executor';
import { getExecutorClass } from '../executor/executorClass';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';
import { Admission } from './admission';
import { Call } from './call';
import type { CallInputs } from './callInputs';
import { getKvCacheConfigs } from './kvCacheConfig';
import { KVCacheManager } from './kvCacheManager';
import { type Lockstep, RankLockstep, SingleRank } from './lockstep';
import { emit, type EngineEvents, EngineMetrics } from './metrics';
import { RequestOutputCollector } from './outputCollector';
import { CallOutputs, rejecting } from './callOutputs';
import { OutputProcessor } from './outputProcessor';
import type { OutputStream, RequestOutput } from './outputs';
import type { CallReceiver } from './pendingCall';
import { Scheduler } from './scheduler';
import { EventLoopTurn } from '../slicedWork';
import type { EngineStats } from './stats';
import { asExecutorFailure, outputOf, type StepInFlight } from './stepInFlight';

export interface EngineOptions {
  /** Text for users; null: they get token ids only. */
  tokenizer: Tokenizer | null;
  /** Told how far the load of the weights is. */
  onProgress?: (progress: LoadProgress) => void;
  /** Gives the start up: what was made is shut down, and `create` rejects with its reason. */
  signal?: AbortSignal;
}

export class LLMEngine {
  readonly config: UniprocConfig;
  /** What happens to requests, for those who listen; without a listener it costs nothing. */
  readonly events = new EventEmitter<EngineEvents>();
  private readonly metrics = new EngineMetrics(this.events);
  private readonly outputProcessor: OutputProcessor;
  private kvCacheManager!: KVCacheManager;
  private scheduler!: Scheduler;
  private readonly admission: Admission;
  private readonly singleRank: Lockstep;
  private lockstep: Lockstep;
  /** Why nothing runs any more. */
  private error: Error | null = null;
  /** Resolves once all callers have heard of it. */
  private stopped: Promise<void> = Promise.resolve();
  /** Ends the loop's wait for an arrival. */
  private wake: (() => void) | null = null;

  private constructor(
    readonly executor: Executor,
    tokenizer: Tokenizer | null,
  ) {
    this.config = executor.config;
    this.outputProcessor = new OutputProcessor(tokenizer, this.metrics);
    this.admission = new Admission(this.config, executor, this.outputProcessor, () =>
      this.wake?.(),
    );
    this.singleRank = new SingleRank(this.admission);
    this.lockstep = executor.inLockstep ? this.ranksInLockstep() : this.singleRank;
  }

  /**
   * Starts the executor, sizes the KV cache, warms the model up. Rejects with what the executor
   * rejects with, and with ConfigError when the cache cannot hold one request; what was made is shut
   * down before.
   */
  static async create(config: UniprocConfig, options: EngineOptions): Promise<LLMEngine> {
    const { tokenizer, onProgress, signal } = options;
    signal?.throwIfAborted();
    const executorClass = await getExecutorClass(config);
    const executor = await executorClass.create(config, { onProgress });
    try {
      const engine = new LLMEngine(executor, tokenizer);
      await engine.start(signal);
      return engine;
    } catch (error) {
      // The first error is the one to report, whatever the clearing up meets.
      await executor.shutdown(error).catch(() => {});
      throw error;
    }
  }

  private async start(signal: AbortSignal | undefined): Promise<void> {
    this.executor.registerFailureCallback((error) => this.stop(error));
    this.kvCacheManager = await this.makeKVCache(signal);
    const { limits, model, scheduler } = this.config;
    const { vocabSize } = model.transformer.spec;
    const { maxListMemoryBytes } = limits;
    this.scheduler = new Scheduler(scheduler, this.kvCacheManager, vocabSize, maxListMemoryBytes);
    this.admission.scheduler = this.scheduler;
    await this.lockstep.start();
    void this.run();
  }

  /** Sizes the workers' KV cache, allocates it and warms the model up. */
  private async makeKVCache(signal?: AbortSignal): Promise<KVCacheManager> {
    const { config, executor } = this;
    signal?.throwIfAborted();
    const specs = await executor.getKvCacheSpecs();
    const availableBytes = await executor.determineAvailableMemory();
    signal?.throwIfAborted();
    const kvCacheConfigs = getKvCacheConfigs(config, specs, availableBytes);
    await executor.initializeFromConfig(kvCacheConfigs);
    signal?.throwIfAborted();
    await executor.compileOrWarmUpModel();
    signal?.throwIfAborted();
    const { blockSize, enablePrefixCaching } = config.cache;
    const numBlocks = Math.min(...kvCacheConfigs.map((workerConfig) => workerConfig.numBlocks));
    return new KVCacheManager(numBlocks, blockSize, enablePrefixCaching);
  }

  /**
   * Each prompt's outputs, complete, in order. Rejects with what encoding rejects with, with
   * ExecutorFailedError, ShutdownError, QueueFullError, RequestFailedError, RequestTimeoutError or a
   * signal's reason, with InvalidStateError while the executor sleeps, and with NotSupportedError for
   * a signal or a timeout that other ranks do not know of. `call` says how far they are.
   *
   * Ids and seeds follow the order in which calls are made; requests of one call arrive together, once
   * all its prompts are encoded.
   */
  generate(
    inputs: CallInputs,
    options: RequestOptions = {},
    call = new Call(inputs.numPrompts),
  ): Promise<RequestOutput[]> {
    return rejecting(() => {
      if (this.error !== null) throw this.error;
      const outputs = new CallOutputs(inputs.numPrompts);
      this.lockstep.submit(inputs, outputs, options, call);
      return outputs.done;
    });
  }

  /**
   * A prompt's outputs as they grow, from the first read on; leaving the loop ends the request. The
   * first read makes the call, with what `takeInputs` returns; it rejects with what that throws, or as
   * `generate`.
   */
  stream(takeInputs: () => CallInputs, options: RequestOptions = {}): OutputStream {
    return new RequestOutputCollector((receiver) => {
      const { admission } = this;
      this.lockstep.checkStream();
      if (this.error !== null) throw this.error;
      const inputs = takeInputs();
      admission.check(inputs, options);
      const streaming: CallReceiver = {
        isStream: true,
        of: () => receiver,
        failed: (error, atOnce) => receiver.failed(error, atOnce),
      };
      const pending = admission.make(inputs, streaming, options, new Call(1));
      admission.begin(pending);
      return () => admission.giveUp(pending, 'abort');
    });
  }

  /** Samples that were asked for and are not complete. */
  get numUnfinishedRequests(): number {
    return this.admission.numUnfinishedRequests + this.lockstep.numQueuedRequests;
  }

  /** Requests that come after this find nothing in the KV cache that was computed before it. */
  resetPrefixCache(): void {
    this.lockstep.resetPrefixCache();
  }

  /** How the engine stands, and what it has done since it was made. */
  stats(): EngineStats {
    const { kvCacheManager, metrics, scheduler } = this;
    return {
      numWaitingReqs: this.admission.numWaiting + this.lockstep.numQueuedRequests,
      numRunningReqs: scheduler.numRunning,
      kvCacheUsage: kvCacheManager.usage,
      prefixCacheStats: { ...kvCacheManager.prefixCacheStats },
      numPreemptions: scheduler.numPreemptions,
      numFinishedReqs: { ...metrics.numFinishedReqs },
      numPromptTokens: metrics.numPromptTokens,
      numOutputTokens: metrics.numOutputTokens,
      numNansInLogits: metrics.numNansInLogits,
      timeToFirstToken: metrics.timeToFirstToken.snapshot(),
      interTokenLatency: metrics.interTokenLatency.snapshot(),
    };
  }

  /**
   * Goes over to another group of ranks, with the requests there are: every rank that stays or leaves
   * asks for it at the same place among its calls, and those that join are new processes. Rejects with
   * InvalidStateError or ConfigError, and goes on as before, when the ranks cannot or do not agree; a
   * rank that leaves resolves once it is shut down.
   */
  reinitializeDistributed(request: ReconfigureDistributedRequest): Promise<void> {
    if (this.error !== null) return Promise.reject(this.error);
    const ranks = this.lockstep instanceof RankLockstep ? this.lockstep : this.ranksInLockstep();
    this.lockstep = ranks;
    return ranks.reinitialize(request);
  }

  private ranksInLockstep(): RankLockstep {
    return new RankLockstep(this.executor, this.admission, {
      wake: () => this.wake?.(),
      isStopped: () => this.error !== null,
      unfinishedRequests: () => this.scheduler.unfinishedRequests,
      takeArrivals: () => this.takeArrivals(),
      restart: () => this.restart(),
      stop: (error) => this.stop(error),
      endLockstep: () => (this.lockstep = this.singleRank),
    });
  }

  /** The worker has lost all that it had, and no step is in flight: every request is computed again. */
  private async restart(): Promise<void> {
    this.kvCacheManager = await this.makeKVCache();
    for (const requestId of this.scheduler.restart(this.kvCacheManager)) {
      emit(this.events, 'preempted', requestId);
    }
    this.outputProcessor.restart();
  }

  /** Runs until the engine stops. With nothing to do it waits for an arrival, and keeps no process alive. */
  private async run(): Promise<void> {
    const { executor, scheduler } = this;
    let numSleeps = 0;
    const inFlight: StepInFlight[] = [];
    const turn = new EventLoopTurn();
    try {
      while (this.error === null) {
        const { change } = this.lockstep;
        if (change !== null && (await change.isDue())) {
          for (const { step, output } of inFlight.splice(0))
            this.update(step, await outputOf(output, turn));
          await change.carryOut();
          continue;
        }
        if (numSleeps !== executor.numSleeps) this.kvCacheManager.resetPrefixCache();
        numSleeps = executor.numSleeps;
        this.lockstep.takeTurns();
        this.takeArrivals();
        if (inFlight.length < executor.maxConcurrentBatches) {
          const step = this.schedule();
          if (step.totalNumScheduledTokens > 0) {
            this.lockstep.launched();
            inFlight.push({ step, output: executor.executeModel(step, { nonBlock: true }) });
            continue;
          }
          this.tellWorker(step);
        }
        const oldest = inFlight.shift();
        if (oldest !== undefined) {
          const output = await outputOf(oldest.output, turn);
          // No await from here to the next launch: a caller hears of its outputs after the worker does.
          this.update(oldest.step, output);
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

  private schedule(): SchedulerOutput {
    const step = this.scheduler.schedule();
    this.admission.numLeftWaiting = this.scheduler.numWaiting;
    if (step.scheduledNewReqs.length > 0) {
      const now = performance.now();
      for (const { reqId } of step.scheduledNewReqs) this.outputProcessor.scheduled(reqId, now);
    }
    for (const fault of this.scheduler.takeFaults()) this.admission.failToSchedule(fault);
    for (const requestId of step.preemptedReqIds) emit(this.events, 'preempted', requestId);
    return step;
  }

  /** A step without tokens may still hold requests whose state the worker is to free; nothing waits for it. */
  private tellWorker(step: SchedulerOutput): void {
    if (step.finishedReqIds.length === 0 && step.preemptedReqIds.length === 0) return;
    const output = this.executor.executeModel(step, { nonBlock: true });
    output.then(null, (error: unknown) => this.stop(asExecutorFailure(error)));
  }

  private takeArrivals(): void {
    this.admission.takeArrivals(() => this.kvCacheManager.resetPrefixCache());
  }

  private update(step: SchedulerOutput, output: ModelRunnerOutput): void {
    if (this.error !== null) return;
    const { failedReqs } = output;
    if (failedReqs !== undefined) {
      for (const [requestId, error] of failedReqs) {
        this.admission.failRequest(requestId, 'computed', error);
      }
      // With none of its requests left the step has nothing to hand out.
      if (failedReqs.size === step.numScheduledTokens.size) return;
    }
    const outputs = this.scheduler.updateFromOutput(step, output);
    const ended = this.outputProcessor.processOutputs(outputs, performance.now());
    this.scheduler.finishRequests(this.outputProcessor.failedReqIds, 'error');
    this.scheduler.finishRequests(ended, 'stop');
  }

  /** From now on nothing runs: calls that wait, and those that come, get the error. */
  private stop(error: Error): void {
    if (this.error !== null) return;
    this.error = error;
    const isShutdown = error instanceof ShutdownError;
    const reason = isShutdown ? 'abort' : 'error';
    this.lockstep.failAll(error, reason);
    this.stopped = this.admission.failAll(error, reason);
    if (!isShutdown) emit(this.events, 'failed', error);
  }

  /** Pending requests reject with ShutdownError; then the executor shuts down. Idempotent. */
  async shutdown(): Promise<void> {
    const error = new ShutdownError('the engine was shut down');
    const isBusy = this.numUnfinishedRequests > 0;
    this.stop(error);
    await Promise.all([this.executor.shutdown(isBusy ? error : undefined), this.stopped]);
  }
}
