/**
 * The engine core: one loop that schedules steps, executes them and delivers their outputs. It
 * depends only on the order of requests and on step outputs, never on timing.
 */
import { EventEmitter } from 'node:events';
import { throwIfAborted } from '../abortSignal';
import type { ReconfigureDistributedRequest } from '../config/reconfigureRequest';
import type { LoadProgress, UniprocConfig } from '../config/uniprocConfig';
import { InvalidStateError, ShutdownError } from '../errors';
import type { Executor } from '../executor/executor';
import { getExecutorClass } from '../executor/executorClass';
import { codeOf, log } from '../log';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';
import { Admission } from './admission';
import { Call } from './call';
import type { CallInputs } from './callInputs';
import type { CallOptions } from './callOptions';
import { launchTime, publishStep } from './diagnostics';
import { initializeKvCaches } from './initializeKvCaches';
import type { KVCacheManager } from './kvCacheManager';
import { Grammars } from './grammars';
import { type Lockstep, RankLockstep, SingleRank } from './lockstep';
import { emit, type EngineEvents, EngineMetrics } from './metrics';
import { RequestOutputCollector } from './outputCollector';
import { CallOutputs, rejectOnThrow } from './callOutputs';
import { OutputProcessor } from './outputProcessor';
import type { OutputStream, RequestOutput } from './outputs';
import type { CallReceiver } from './pendingCall';
import { Scheduler } from './scheduler';
import { EventLoopTurn } from '../slicedWork';
import type { StartupRecord } from './startupRecord';
import { type EngineStats, engineStats } from './stats';
import { asExecutorFailure, outputOf, type StepInFlight } from './stepInFlight';
import { StructuredOutput } from './structuredOutput';
import { WorkSignal } from './workSignal';

export interface EngineOptions {
  /** May load beside the weights. Null: outputs have token ids only. */
  tokenizer: Promise<Tokenizer | null>;
  /** Called with the progress of weight loading. */
  onProgress?: (progress: LoadProgress) => void;
  /**
   * Aborts the start: shuts down what was created, and `create` rejects with the signal's reason.
   */
  signal?: AbortSignal;
}

export class LLMEngine<E extends Executor = Executor> {
  readonly config: UniprocConfig;
  /** Events of the engine and of requests; free of cost without a listener. */
  readonly events = new EventEmitter<EngineEvents>();
  /** The latest 'started' record. */
  startup!: StartupRecord;
  private readonly metrics = new EngineMetrics(this.events);
  private readonly outputProcessor: OutputProcessor;
  private kvCacheManager!: KVCacheManager;
  private scheduler!: Scheduler;
  private readonly admission: Admission;
  /** Compiles `structuredOutputs`; null without a tokenizer. @internal */
  readonly grammars: Grammars | null;
  private readonly structuredOutput: StructuredOutput | null;
  private readonly singleRank: Lockstep;
  private lockstep: Lockstep;
  /** Set once the engine has stopped. */
  private error: Error | null = null;
  /** Resolves once all callers are notified of the stop. */
  private stopped: Promise<void> = Promise.resolve();
  private readonly work = new WorkSignal();

  private constructor(
    readonly executor: E,
    tokenizer: Tokenizer | null,
  ) {
    this.config = executor.config;
    this.outputProcessor = new OutputProcessor(tokenizer, this.metrics);
    const wake = () => this.work.wake();
    this.admission = new Admission(this.config, executor, this.outputProcessor, wake);
    const { vocabSize } = this.config.model.transformer.spec;
    this.grammars = tokenizer && new Grammars(tokenizer, vocabSize);
    const failRequest = (id: string, error: Error) =>
      this.admission.failRequest(id, 'computed', error);
    this.structuredOutput = this.grammars && new StructuredOutput(this.grammars, failRequest);
    this.singleRank = new SingleRank(this.admission);
    this.lockstep = executor.inLockstep ? this.ranksInLockstep() : this.singleRank;
  }

  /**
   * Creates the executor, sizes the KV cache and warms up the model. Rejects with the executor's
   * error, or with ConfigError when the cache cannot hold one request, after shutting down what was
   * created.
   * @internal
   */
  static async create<E extends Executor = Executor>(
    config: UniprocConfig,
    options: EngineOptions,
  ): Promise<LLMEngine<E>> {
    const { tokenizer, onProgress, signal } = options;
    const startTime = performance.now();
    tokenizer.catch(() => {}); // handled below, once the executor is there to be shut down
    throwIfAborted(signal);
    const executorClass = await getExecutorClass(config);
    const executor = (await executorClass.create(config, { onProgress })) as E;
    log('start: %s has loaded the model', executorClass.name);
    try {
      const engine = new LLMEngine(executor, await tokenizer);
      await engine.start(startTime, signal);
      return engine;
    } catch (error) {
      // Report the first error, even if the shutdown fails too.
      await executor.shutdown(error).catch(() => {});
      throw error;
    }
  }

  private async start(startTime: number, signal: AbortSignal | undefined): Promise<void> {
    this.executor.registerFailureCallback((error) => this.stop(error));
    await this.initializeKvCaches(startTime, signal);
    const { limits, model, scheduler } = this.config;
    const { vocabSize } = model.transformer.spec;
    const { maxListMemoryBytes } = limits;
    this.scheduler = new Scheduler(scheduler, this.kvCacheManager, vocabSize, maxListMemoryBytes);
    this.admission.scheduler = this.scheduler;
    await this.lockstep.start();
    void this.run();
    // Emitted later, so that the caller of `create` can add a listener first.
    setImmediate(() => this.error ?? this.emitStarted());
  }

  private emitStarted(): void {
    emit(this.events, 'started', this.startup);
  }

  /** Sizes and allocates the workers' KV caches and warms up the model. */
  private async initializeKvCaches(startTime: number, signal?: AbortSignal): Promise<void> {
    const ready = await initializeKvCaches(this.executor, startTime, signal);
    this.startup = ready.startup;
    this.kvCacheManager = ready.kvCacheManager;
  }

  /**
   * Completed outputs of each prompt, in order. Rejects with the encoding error,
   * ExecutorFailedError, ShutdownError, QueueFullError, RequestFailedError, RequestTimeoutError or
   * RequestAbortedError; with InvalidStateError while the executor sleeps; and with NotSupportedError
   * for a signal or timeout among several ranks. `call` tracks progress.
   *
   * Request ids and seeds follow the order of calls; requests of one call arrive together, once all
   * its prompts are encoded.
   * @internal
   */
  generate(
    inputs: CallInputs,
    options: CallOptions = {},
    call = new Call(inputs.numPrompts),
  ): Promise<RequestOutput[]> {
    return rejectOnThrow(() => {
      if (this.error !== null) throw this.error;
      const outputs = new CallOutputs(inputs.numPrompts);
      this.lockstep.submit(inputs, outputs, options, call);
      return outputs.done;
    });
  }

  /**
   * Streams a prompt's outputs; leaving the loop aborts the request. The first read makes the call
   * with the result of `takeInputs`, and rejects with what that throws or as `generate` does.
   * @internal
   */
  stream(takeInputs: () => CallInputs, options: CallOptions = {}): OutputStream {
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
      return () => admission.end(pending, 'abort');
    });
  }

  /** Samples requested and not complete. */
  get numUnfinishedRequests(): number {
    return this.admission.numUnfinishedRequests + this.lockstep.numQueuedRequests;
  }

  /**
   * Resolves once no step is in flight and the worker has freed ended requests; null if so now.
   * @internal
   */
  idle(): Promise<void> | null {
    return this.error === null ? this.work.idle() : null;
  }

  /** Later requests get no prefix cache hits on blocks computed before this. */
  resetPrefixCache(): void {
    this.lockstep.resetPrefixCache();
  }

  /** Current state and totals since creation. */
  stats(): EngineStats {
    const { kvCacheManager, metrics, scheduler, startup } = this;
    const numWaiting = this.admission.numWaiting + this.lockstep.numQueuedRequests;
    return engineStats({ numWaiting, startup, kvCacheManager, metrics, scheduler });
  }

  /**
   * Moves the engine and its unfinished requests to a new rank group. Every rank that stays or
   * leaves must call it at the same position among its calls; ranks that join are new processes. If
   * the ranks cannot or do not agree, rejects with InvalidStateError or ConfigError and changes
   * nothing; on a leaving rank, resolves once it is shut down.
   */
  reinitializeDistributed(request: ReconfigureDistributedRequest): Promise<void> {
    if (this.error !== null) return Promise.reject(this.error);
    const ranks = this.lockstep instanceof RankLockstep ? this.lockstep : this.ranksInLockstep();
    this.lockstep = ranks;
    return ranks.reinitialize(request);
  }

  private ranksInLockstep(): RankLockstep {
    return new RankLockstep(this.executor, this.admission, {
      wake: () => this.work.wake(),
      isStopped: () => this.error !== null,
      unfinishedRequests: () => this.scheduler.unfinishedRequests,
      takeArrivals: () => this.takeArrivals(),
      restart: () => this.restart(),
      stop: (error) => this.stop(error),
      endLockstep: () => (this.lockstep = this.singleRank),
    });
  }

  /** The worker has lost its state and no step is in flight: recomputes every request. */
  private async restart(): Promise<void> {
    await this.initializeKvCaches(performance.now());
    this.emitStarted();
    for (const requestId of this.scheduler.restart(this.kvCacheManager)) {
      emit(this.events, 'preempted', requestId);
    }
    this.outputProcessor.restart();
  }

  /** Runs until the engine stops. An idle loop awaits an arrival and keeps no process alive. */
  private async run(): Promise<void> {
    const { executor, scheduler } = this;
    let numSleeps = 0;
    const inFlight: StepInFlight[] = [];
    const turn = new EventLoopTurn();
    try {
      while (this.error === null) {
        const { change } = this.lockstep;
        if (change !== null && change.agreement !== null) {
          await change.agreement;
          continue;
        }
        if (change?.isDue) {
          for (const launched of inFlight.splice(0))
            this.update(launched, await outputOf(launched.output, turn));
          await change.carryOut();
          continue;
        }
        if (numSleeps !== executor.numSleeps) this.kvCacheManager.resetPrefixCache();
        numSleeps = executor.numSleeps;
        this.lockstep.startQueuedCalls();
        this.takeArrivals();
        if (inFlight.length < executor.maxConcurrentBatches) {
          const step = this.schedule();
          if (step.totalNumScheduledTokens > 0) {
            this.lockstep.launched();
            const output = executor.executeModel(step, { nonBlock: true });
            const launched = { step, output, launched: launchTime() };
            if (step.hasStructuredOutputRequests) await this.sample(launched, inFlight, turn);
            inFlight.push(launched);
            continue;
          }
          this.launchEmptyStep(step);
        }
        const oldest = inFlight.shift();
        if (oldest !== undefined) {
          const output = await outputOf(oldest.output, turn);
          // No await until the next launch: the worker frees a request before its caller gets the
          // output.
          this.update(oldest, output);
        } else if (!scheduler.hasUnfinishedRequests()) {
          await this.work.wait();
        } else {
          throw new InvalidStateError('the worker returned fewer tokens than were scheduled');
        }
      }
    } catch (error) {
      this.stop(asExecutorFailure(error));
    }
    this.work.tellIdle();
  }

  /** Samples a launched step with masks, which need the tokens of all steps before it. */
  private async sample(
    launched: StepInFlight,
    inFlight: StepInFlight[],
    turn: EventLoopTurn,
  ): Promise<void> {
    for (const earlier of inFlight.splice(0)) {
      this.update(earlier, await outputOf(earlier.output, turn));
    }
    await this.structuredOutput?.sample(launched, this.scheduler, this.executor);
  }

  private schedule(): SchedulerOutput {
    const step = this.scheduler.schedule();
    this.structuredOutput?.forget(step.finishedReqIds);
    this.admission.numLeftWaiting = this.scheduler.numWaiting;
    if (step.scheduledNewReqs.length > 0) {
      const now = performance.now();
      for (const { reqId } of step.scheduledNewReqs) this.outputProcessor.scheduled(reqId, now);
    }
    for (const fault of this.scheduler.takeFaults()) this.admission.failToSchedule(fault);
    for (const requestId of step.preemptedReqIds) emit(this.events, 'preempted', requestId);
    return step;
  }

  /**
   * Launches a step without tokens if it carries finished or preempted requests for the worker to
   * free; nothing awaits it.
   */
  private launchEmptyStep(step: SchedulerOutput): void {
    if (step.finishedReqIds.length === 0 && step.preemptedReqIds.length === 0) return;
    const output = this.executor.executeModel(step, { nonBlock: true });
    output.then(null, (error: unknown) => this.stop(asExecutorFailure(error)));
  }

  private takeArrivals(): void {
    this.admission.takeArrivals(() => this.kvCacheManager.resetPrefixCache());
  }

  private update(launched: StepInFlight, output: ModelRunnerOutput): void {
    if (this.error !== null) return;
    this.deliver(launched.step, output);
    publishStep(launched, this.scheduler);
  }

  private deliver(step: SchedulerOutput, output: ModelRunnerOutput): void {
    const { failedReqs } = output;
    if (failedReqs !== undefined) {
      for (const [requestId, error] of failedReqs) {
        this.admission.failRequest(requestId, 'computed', error);
      }
      // No request of the step is left to update.
      if (failedReqs.size === step.numScheduledTokens.size) return;
    }
    const outputs = this.scheduler.updateFromOutput(step, output);
    const ended = this.outputProcessor.processOutputs(outputs, performance.now());
    this.scheduler.finishRequests(this.outputProcessor.failedReqIds, 'error');
    this.scheduler.finishRequests(ended, 'stop');
  }

  /**
   * Resolves while the engine can run: rejects with ExecutorFailedError and its cause, or with
   * ShutdownError, once it has stopped for any reason; else with a worker's error.
   */
  async checkHealth(): Promise<void> {
    if (this.error !== null) throw this.error;
    await this.executor.checkHealth();
  }

  /** Stops the engine: current and later calls, the executor's too, fail with the error. */
  private stop(error: Error): void {
    if (this.error !== null) return;
    this.error = error;
    const isShutdown = error instanceof ShutdownError;
    log('the engine stops: %s', codeOf(error));
    const reason = isShutdown ? 'abort' : 'error';
    this.lockstep.failAll(error, reason);
    this.stopped = this.admission.failAll(error, reason);
    if (isShutdown) return;
    // Its failure callbacks may shut the engine down, which then waits for `stopped`.
    this.executor.fail(error);
    emit(this.events, 'failed', error);
  }

  /** Rejects pending requests with ShutdownError, then shuts the executor down. Idempotent. */
  async shutdown(): Promise<void> {
    const error = new ShutdownError('the engine was shut down');
    const isBusy = this.numUnfinishedRequests > 0;
    log('shutdown: %d requests are unfinished', this.numUnfinishedRequests);
    this.stop(error);
    await Promise.all([
      this.executor.shutdown(isBusy ? error : undefined),
      this.stopped,
      this.structuredOutput?.shutdown(),
    ]);
    log('shutdown: done');
  }
}
