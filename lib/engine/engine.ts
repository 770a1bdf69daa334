/**
 * The engine: one loop that schedules steps, has the executor run them and hands out what they
 * bring. What it does depends on the order in which requests came and on what steps gave back,
 * never on which of two things happened to be quicker.
 */
import { EventEmitter } from 'node:events';
import { setImmediate as nextTurnOfEventLoop } from 'node:timers/promises';
import { divisionFault } from '../config/division';
import {
  type ReconfigureDistributedRequest,
  ReconfigureRankType,
} from '../config/reconfigureRequest';
import type { RequestOptions } from '../config/requestOptions';
import type { LoadProgress, UniprocConfig } from '../config/uniprocConfig';
import {
  ExecutorFailedError,
  InvalidStateError,
  NotSupportedError,
  QueueFullError,
  RequestFailedError,
  ShutdownError,
} from '../errors';
import { Executor } from '../executor/executor';
import type { Future } from '../executor/future';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { ModelRunnerOutput } from '../worker/outputs';
import type { SchedulerOutput } from '../worker/schedulerOutput';
import { Call } from './call';
import type { EngineInput } from './inputProcessor';
import { getKvCacheConfigs } from './kvCacheConfig';
import { KVCacheManager } from './kvCacheManager';
import { emit, type EngineEvents, EngineMetrics } from './metrics';
import { type OutputReceiver, RequestOutputCollector } from './outputCollector';
import { OutputProcessor, ParentRequest } from './outputProcessor';
import type { OutputStream, RequestOutput } from './outputs';
import {
  decodeState,
  encodeState,
  lastStepOf,
  type QueuedCall,
  type Standing,
} from './reinitialization';
import { Request } from './request';
import { Scheduler } from './scheduler';
import { requestSeed, sampleSeed } from './seeds';
import type { EngineStats } from './stats';

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

/** A call that waits for those before it to end. */
interface WaitingCall extends QueuedCall {
  receivers: readonly OutputReceiver[];
  options: RequestOptions;
  call: Call;
}

/** A call, or what is to happen between two calls. */
type Turn = WaitingCall | 'resetPrefixCache' | 'reinitialize';

/** A change of the ranks that was asked for, until it is done. */
interface Reinitialization {
  request: ReconfigureDistributedRequest;
  /** Calls made before it. */
  numCalls: number;
  /** How all ranks stand. Until it is known this one launches nothing. */
  standings: Promise<Standing[]>;
  done: () => void;
  failed: (error: unknown) => void;
}

/** Whose outputs other ranks hand out. */
const NOBODY: OutputReceiver = { finished: () => {}, failed: () => {} };

interface StepInFlight {
  step: SchedulerOutput;
  output: Future<ModelRunnerOutput | null>;
}

export class LLMEngine {
  readonly config: UniprocConfig;
  /** What happens to requests, for those who listen; without a listener it costs nothing. */
  readonly events = new EventEmitter<EngineEvents>();
  private readonly metrics = new EngineMetrics(this.events);
  private readonly outputProcessor: OutputProcessor;
  private kvCacheManager!: KVCacheManager;
  private scheduler!: Scheduler;
  private readonly arrivals: Arrival[] = [];
  /** Requests among the arrivals. */
  private numArriving = 0;
  /** In the order made. Empty where calls may overlap. */
  private readonly turns: Turn[] = [];
  /** Of the group of ranks as it is now: all of them count the same. */
  private numSteps = 0;
  private numCalls = 0;
  /** Changes of it that were asked for. */
  private numReinitializations = 0;
  private reinitialization: Reinitialization | null = null;
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
    this.outputProcessor = new OutputProcessor(tokenizer, this.metrics);
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
      await executor.shutdown(error).catch(() => {});
      throw error;
    }
  }

  private async start(signal: AbortSignal | undefined): Promise<void> {
    this.executor.registerFailureCallback((error) => this.stop(error));
    this.kvCacheManager = await this.makeKVCache(signal);
    const { model, scheduler } = this.config;
    const { vocabSize } = model.transformer.spec;
    this.scheduler = new Scheduler(scheduler, this.kvCacheManager, vocabSize);
    // Of ranks that were there before, and go on with what they have.
    const state = await this.executor.broadcast(null);
    if (state !== null) this.takeOver(state);
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
    return new KVCacheManager(kvCacheConfigs[0].numBlocks, blockSize, enablePrefixCaching);
  }

  /**
   * Each prompt's outputs, complete, in order. Rejects with ExecutorFailedError, ShutdownError,
   * QueueFullError, RequestTimeoutError or a signal's reason, with InvalidStateError while the
   * executor sleeps, and with NotSupportedError for a signal or a timeout that other ranks do not
   * know of. `call` says how far they are.
   */
  async generate(
    inputs: readonly EngineInput[],
    options: RequestOptions = {},
    call = new Call(inputs.length),
  ): Promise<RequestOutput[]> {
    const receivers: OutputReceiver[] = [];
    const outputs = inputs.map(
      () =>
        new Promise<RequestOutput>((finished, failed) => {
          receivers.push({ finished, failed });
        }),
    );
    if (this.takesTurns) this.queue({ inputs, receivers, options, call });
    else this.admit(inputs, receivers, options, call);
    return Promise.all(outputs);
  }

  /**
   * A prompt's outputs as they grow, from the first read on; leaving the loop ends the request.
   * `makeInput` is called at the first read, which rejects with what it throws or rejects with, or
   * as `generate`.
   */
  stream(
    makeInput: () => EngineInput | Promise<EngineInput>,
    options: RequestOptions = {},
  ): OutputStream {
    return new RequestOutputCollector((receiver) => {
      const admit = (input: EngineInput) => {
        if (this.takesTurns) throw rankLocal('a stream', "its reader's");
        return this.admit([input], [receiver], options, new Call(1));
      };
      if (this.takesTurns) throw rankLocal('a stream', "its reader's");
      const input = makeInput();
      if (!(input instanceof Promise)) return admit(input);
      let giveUp: (() => void) | null = null;
      let left = false;
      input
        .then((made) => {
          if (!left) giveUp = admit(made);
        })
        .catch((error: unknown) => receiver.failed(error));
      return () => {
        left = true;
        giveUp?.();
      };
    });
  }

  /** Samples that were asked for and are not complete. */
  get numUnfinishedRequests(): number {
    return this.outputProcessor.numUnfinishedRequests;
  }

  /** Requests that come after this find nothing in the KV cache that was computed before it. */
  resetPrefixCache(): void {
    if (this.takesTurns) this.queue('resetPrefixCache');
    else this.arrive({ resetPrefixCache: true });
  }

  /** How the engine stands, and what it has done since it was made. */
  stats(): EngineStats {
    const { kvCacheManager, metrics, scheduler } = this;
    return {
      numWaitingReqs: this.numWaiting,
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

  private get numWaiting(): number {
    return this.scheduler.numWaiting + this.numArriving;
  }

  /**
   * Goes over to another group of ranks, with the requests there are: every rank that stays or leaves
   * asks for it at the same place among its calls, and those that join are new processes. Rejects with
   * InvalidStateError or ConfigError, and goes on as before, when the ranks cannot or do not agree; a
   * rank that leaves resolves once it is shut down.
   */
  reinitializeDistributed(request: ReconfigureDistributedRequest): Promise<void> {
    if (this.error !== null) return Promise.reject(this.error);
    if (this.reinitialization !== null) {
      const error = new InvalidStateError('reinitializeDistributed while another is under way');
      return Promise.reject(error);
    }
    const { numCalls } = this;
    // At once: the loop may be waiting for a step that the others launch when they know of this one.
    const standings = this.gatherStandings(request);
    // Whoever waits for it hears of it.
    standings.catch(() => {});
    return new Promise((done, failed) => {
      this.reinitialization = { request, numCalls, standings, done, failed };
      this.turns.push('reinitialize');
      this.wake?.();
    });
  }

  private async gatherStandings(request: ReconfigureDistributedRequest): Promise<Standing[]> {
    const { numSteps, numCalls } = this;
    const standing: Standing = { numSteps, numCalls, request, fault: this.faultOf(request) };
    const name = `reinitialize ${this.numReinitializations++}`;
    const all = await this.executor.gather(name, Buffer.from(JSON.stringify(standing)));
    return all.map((bytes) => JSON.parse(Buffer.from(bytes).toString()) as Standing);
  }

  /** Calls must not overlap: other ranks take part in them, or are about to. */
  private get takesTurns(): boolean {
    return this.executor.inLockstep || this.reinitialization !== null || this.turns.length > 0;
  }

  /**
   * Has a call wait for those before it. Ranks that step together make the same calls, but each at
   * its own time: of two that overlap, the second would join the first at a step that is another on
   * each rank.
   */
  private queue(turn: WaitingCall | 'resetPrefixCache'): void {
    if (this.error !== null) throw this.error;
    if (turn !== 'resetPrefixCache') {
      if (turn.options.signal) throw rankLocal('signal', "the caller's");
      if (turn.options.timeoutMs !== undefined) throw rankLocal('timeoutMs', 'the clock');
      this.numCalls++;
    }
    this.turns.push(turn);
    this.wake?.();
  }

  /** Begins the next call, once the one before it has ended. */
  private takeTurns(): void {
    while (this.numUnfinishedRequests === 0) {
      const turn = this.turns.at(0);
      if (turn === undefined || turn === 'reinitialize') return;
      this.turns.shift();
      if (turn === 'resetPrefixCache') {
        this.arrivals.push({ resetPrefixCache: true });
        continue;
      }
      const { inputs, receivers, options, call } = turn;
      try {
        this.admit(inputs, receivers, options, call);
      } catch (error) {
        for (const receiver of receivers) receiver.failed(error);
      }
    }
  }

  /**
   * Takes a call's prompts in, all or none; they end when it is given up, by the function returned,
   * by its signal or by its timeout.
   */
  private admit(
    inputs: readonly EngineInput[],
    receivers: readonly OutputReceiver[],
    options: RequestOptions,
    call: Call,
  ): () => void {
    options.signal?.throwIfAborted();
    if (this.error !== null) throw this.error;
    if (this.executor.isSleeping) throw asleep();
    this.checkQueue(inputs);
    if (inputs.length === 0) return () => undefined;

    const requestIds = inputs.flatMap((input, i) =>
      this.addRequest(input, receivers[i], options, call),
    );
    const giveUp = (reason: 'abort' | 'timeout') => {
      call.end();
      this.outputProcessor.dropRequests(requestIds, reason);
      for (const requestId of requestIds) this.arrive({ abort: requestId });
    };
    call.watch(options, (reason, error) => {
      giveUp(reason);
      for (const receiver of receivers) receiver.failed(error, reason === 'abort');
    });
    return () => giveUp('abort');
  }

  private checkQueue(inputs: readonly EngineInput[]): void {
    const { maxQueuedRequests } = this.config.scheduler;
    if (maxQueuedRequests === null) return;
    const numNew = inputs.reduce((sum, { samplingParams: { n } }) => sum + n, 0);
    const { numWaiting } = this;
    if (numWaiting + numNew <= maxQueuedRequests) return;
    throw new QueueFullError(maxQueuedRequests, numWaiting, numNew);
  }

  /** Returns the ids of the prompt's samples. */
  private addRequest(
    input: EngineInput,
    receiver: OutputReceiver,
    { priority, cacheSalt }: RequestOptions,
    call: Call,
  ): string[] {
    const { prompt, promptTokenIds, samplingParams } = input;
    const { maxModelLen, seed: engineSeed } = this.config.model;
    const now = performance.now();
    const count = this.numRequests++;
    const parentId = String(count);
    const parent = new ParentRequest(
      parentId,
      prompt,
      promptTokenIds,
      samplingParams,
      receiver,
      call,
    );
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
        priority,
        cacheSalt,
      });
      this.outputProcessor.addRequest(request, parent, index, now);
      this.numArriving++;
      this.arrive({ add: request });
      return requestId;
    });
  }

  private arrive(arrival: Arrival): void {
    this.arrivals.push(arrival);
    this.wake?.();
  }

  /** Runs until the engine stops. With nothing to do it waits for an arrival, and keeps no process alive. */
  private async run(): Promise<void> {
    const { executor, scheduler } = this;
    let numSleeps = 0;
    const inFlight: StepInFlight[] = [];
    try {
      while (this.error === null) {
        const { reinitialization } = this;
        if (reinitialization !== null && (await this.isAtLastStep(reinitialization))) {
          for (const { step, output } of inFlight.splice(0))
            this.update(step, await outputOf(output));
          await this.reinitialize(reinitialization);
          continue;
        }
        if (numSleeps !== executor.numSleeps) this.kvCacheManager.resetPrefixCache();
        numSleeps = executor.numSleeps;
        this.takeTurns();
        this.takeArrivals();
        if (inFlight.length < executor.maxConcurrentBatches) {
          const step = this.schedule();
          if (step.totalNumScheduledTokens > 0) {
            this.numSteps++;
            inFlight.push({ step, output: executor.executeModel(step, { nonBlock: true }) });
            continue;
          }
          this.tellWorker(step);
        }
        const oldest = inFlight.shift();
        if (oldest !== undefined) {
          const output = await outputOf(oldest.output);
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
    for (const { requestId, error } of this.scheduler.takeFaults()) {
      const failure = new RequestFailedError(requestId, 'scheduled', error);
      this.outputProcessor.failRequest({ requestId }, failure);
      this.scheduler.finishRequests(this.outputProcessor.failedReqIds, 'error');
    }
    if (step.scheduledNewReqs.length > 0) {
      const now = performance.now();
      for (const { reqId } of step.scheduledNewReqs) this.outputProcessor.scheduled(reqId, now);
    }
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
    const aborted: string[] = [];
    const abort = () => {
      if (aborted.length === 0) return;
      this.scheduler.finishRequests(aborted, 'abort');
      aborted.length = 0;
    };
    for (const arrival of this.arrivals) {
      if ('abort' in arrival) {
        aborted.push(arrival.abort);
        continue;
      }
      abort();
      if ('resetPrefixCache' in arrival) {
        this.kvCacheManager.resetPrefixCache();
        continue;
      }
      // The executor may have fallen asleep since the request was made.
      if (this.executor.isSleeping) this.outputProcessor.failRequest(arrival.add, asleep());
      else this.scheduler.addRequest(arrival.add);
    }
    abort();
    this.arrivals.length = 0;
    this.numArriving = 0;
  }

  private update(step: SchedulerOutput, output: ModelRunnerOutput): void {
    if (this.error !== null) return;
    const outputs = this.scheduler.updateFromOutput(step, output);
    const ended = this.outputProcessor.processOutputs(outputs, performance.now());
    this.scheduler.finishRequests(this.outputProcessor.failedReqIds, 'error');
    this.scheduler.finishRequests(ended, 'stop');
  }

  /** Whether this rank is where all agree to stop. */
  private async isAtLastStep({ standings, failed }: Reinitialization): Promise<boolean> {
    const all = await standings;
    try {
      return this.numSteps === lastStepOf(all);
    } catch (error) {
      this.endReinitialization();
      failed(error);
      return false;
    }
  }

  /** Why this rank cannot do what is asked; null when it can. */
  private faultOf({ newDataParallelSize: size }: ReconfigureDistributedRequest): string | null {
    if (this.executor.isSleeping) return 'it is asleep; call executor.wakeUp() first';
    const { numRankLocalRequests } = this.outputProcessor;
    if (size > 1 && numRankLocalRequests > 0) {
      return `it has ${numRankLocalRequests} requests that it may end alone (stream, signal, timeoutMs)`;
    }
    return divisionFault(this.config.model.transformer.spec, size);
  }

  /** No step is in flight, on any rank. */
  private async reinitialize({ request, numCalls, done, failed }: Reinitialization): Promise<void> {
    const { executor, outputProcessor, scheduler } = this;
    if (this.error !== null) return;
    this.takeArrivals();
    try {
      await executor.reinitializeDistributed(request);
      if (request.newDataParallelRank === ReconfigureRankType.SHUTDOWN_CURRENT_RANK) {
        this.endReinitialization();
        this.stop(new ShutdownError('this rank has left the others'));
        done();
        return;
      }
      this.kvCacheManager = await this.makeKVCache();
      for (const requestId of scheduler.restart(this.kvCacheManager)) {
        emit(this.events, 'preempted', requestId);
      }
      outputProcessor.restart();
      const { numRequests } = this;
      const requests = scheduler.unfinishedRequests;
      const turns = this.turnsBeforeReinitialization();
      await executor.broadcast(encodeState({ numRequests, requests, turns }));
    } catch (error) {
      if (error instanceof NotSupportedError) {
        this.endReinitialization();
        failed(error);
        return;
      }
      // What is left of the executor is of no use, and others may wait for it.
      void executor.shutdown(error).catch(() => {});
      throw error;
    }
    this.endReinitialization();
    this.numSteps = 0;
    this.numCalls -= numCalls;
    this.numReinitializations = 0;
    done();
  }

  private turnsBeforeReinitialization(): (WaitingCall | 'resetPrefixCache')[] {
    return this.turns
      .slice(0, this.turns.indexOf('reinitialize'))
      .filter((turn) => turn !== 'reinitialize');
  }

  private endReinitialization(): void {
    this.turns.splice(this.turns.indexOf('reinitialize'), 1);
    this.reinitialization = null;
  }

  /** Computes along what the ranks have that were there before this one; they hand it out. */
  private takeOver(bytes: Uint8Array): void {
    const { numRequests, requests, turns } = decodeState(bytes, this.config.model.maxModelLen);
    this.numRequests = numRequests;
    const now = performance.now();
    for (const request of requests) {
      const { requestId, promptTokenIds, samplingParams } = request;
      const call = new Call(1);
      const parent = new ParentRequest(
        requestId,
        null,
        promptTokenIds,
        samplingParams,
        NOBODY,
        call,
      );
      this.outputProcessor.addRequest(request, parent, 0, now);
      this.scheduler.addRequest(request);
    }
    for (const turn of turns) {
      if (turn === 'resetPrefixCache') this.turns.push(turn);
      else {
        const receivers = turn.inputs.map(() => NOBODY);
        this.turns.push({ ...turn, receivers, call: new Call(turn.inputs.length) });
      }
    }
  }

  /** From now on nothing runs: whoever waits, and whoever comes, gets the error. */
  private stop(error: Error): void {
    if (this.error !== null) return;
    this.error = error;
    this.arrivals.length = 0;
    this.numArriving = 0;
    for (const turn of this.turns.splice(0)) {
      if (typeof turn === 'object') {
        for (const receiver of turn.receivers) receiver.failed(error);
      }
    }
    this.reinitialization?.failed(error);
    const isShutdown = error instanceof ShutdownError;
    this.outputProcessor.failAll(error, isShutdown ? 'abort' : 'error');
    if (!isShutdown) emit(this.events, 'failed', error);
  }

  /** Pending requests reject with ShutdownError; then the executor shuts down. Idempotent. */
  shutdown(): Promise<void> {
    const error = new ShutdownError('the engine was shut down');
    const isBusy = this.numUnfinishedRequests > 0 || this.turns.length > 0;
    this.stop(error);
    return this.executor.shutdown(isBusy ? error : undefined);
  }
}

async function outputOf(output: Future<ModelRunnerOutput | null>): Promise<ModelRunnerOutput> {
  // A worker that is always done already would keep timers and sockets from ever being served.
  if (output.done()) await nextTurnOfEventLoop();
  const modelRunnerOutput = await output;
  if (modelRunnerOutput !== null) return modelRunnerOutput;
  throw new InvalidStateError('executeModel gave null for a step without grammars');
}

function asleep(): InvalidStateError {
  return new InvalidStateError('the executor is asleep; call executor.wakeUp() first');
}

function rankLocal(what: string, whose: string): NotSupportedError {
  return new NotSupportedError(
    what,
    `${what} would end requests by ${whose} choice on this rank alone, and ranks that share a model ` +
      'must schedule the same; use generate or chat without it, alike on every rank',
  );
}

function asExecutorFailure(error: unknown): Error {
  if (error instanceof ExecutorFailedError || error instanceof ShutdownError) return error;
  return new ExecutorFailedError(`a step failed: ${String(error)}`, { cause: error });
}
