/** Drives a scheduler over a PagedModel like the engine's loop, with `depth` steps in flight. */
import { SamplingParams, type SamplingParamsOptions } from '../../lib/config/samplingParams';
import { KVCacheManager } from '../../lib/engine/kvCacheManager';
import type { FinishReason } from '../../lib/engine/outputs';
import { Request, type RequestInit } from '../../lib/engine/request';
import { Scheduler } from '../../lib/engine/scheduler';
import type { UniprocError } from '../../lib/errors';
import type { ModelRunnerOutput } from '../../lib/contract/modelRunnerOutput';
import type { SchedulerOutput } from '../../lib/contract/schedulerOutput';
import { PagedModel, VOCAB_SIZE } from './pagedModel';

const DEFAULTS = {
  numBlocks: 64,
  blockSize: 4,
  maxNumSeqs: 8,
  maxNumBatchedTokens: 64,
  longPrefillTokenThreshold: 0,
  policy: 'fcfs' as 'fcfs' | 'priority',
  enablePrefixCaching: false,
  maxModelLen: 64,
  depth: 1,
  maxListMemoryBytes: 2 ** 20,
  slidingWindows: [null] as readonly (number | null)[],
};

export interface Outcome {
  tokenIds: number[];
  finishReason: FinishReason | null;
}

export class SchedulerDriver {
  readonly limits: typeof DEFAULTS;
  readonly scheduler: Scheduler;
  readonly kvCacheManager: KVCacheManager;
  readonly model: PagedModel;
  /** By request id, both. */
  readonly requests = new Map<string, Request>();
  readonly outcomes = new Map<string, Outcome>();
  /** Errors of failed requests. */
  readonly errors = new Map<string, UniprocError>();
  /** All scheduled steps. */
  readonly steps: SchedulerOutput[] = [];
  private readonly inFlight: { step: SchedulerOutput; output: ModelRunnerOutput }[] = [];

  constructor(limits: Partial<typeof DEFAULTS> = {}) {
    this.limits = { ...DEFAULTS, ...limits };
    const { numBlocks, blockSize, enablePrefixCaching, slidingWindows } = this.limits;
    const { longPrefillTokenThreshold, maxNumBatchedTokens } = this.limits;
    this.kvCacheManager = new KVCacheManager(
      numBlocks,
      blockSize,
      enablePrefixCaching,
      slidingWindows,
      Math.min(maxNumBatchedTokens, longPrefillTokenThreshold || Infinity),
    );
    this.scheduler = new Scheduler(
      this.limits,
      this.kvCacheManager,
      VOCAB_SIZE,
      this.limits.maxListMemoryBytes,
    );
    this.model = new PagedModel(this.limits);
  }

  add(
    requestId: string,
    prompt: readonly number[],
    options: SamplingParamsOptions = {},
    { priority, cacheSalt }: Pick<RequestInit, 'priority' | 'cacheSalt'> = {},
  ): Request {
    const samplingParams = new SamplingParams(options);
    const request = new Request({
      requestId,
      promptTokenIds: Int32Array.from(prompt),
      samplingParams,
      stopTokenIds: samplingParams.stopTokenIds,
      badWordsTokenIds: [],
      seed: 0n,
      maxModelLen: this.limits.maxModelLen,
      priority,
      cacheSalt,
    });
    this.requests.set(requestId, request);
    this.outcomes.set(requestId, { tokenIds: [], finishReason: null });
    this.scheduler.addRequest(request);
    return request;
  }

  abort(requestId: string): void {
    const outcome = this.outcomes.get(requestId) as Outcome;
    outcome.finishReason ??= 'abort';
    this.scheduler.finishRequests([requestId], 'abort');
  }

  /** Schedules a step and runs it on the model. */
  launch(): SchedulerOutput {
    const step = this.scheduler.schedule();
    this.steps.push(step);
    const output = this.model.step(step);
    if (step.totalNumScheduledTokens > 0) this.inFlight.push({ step, output });
    return step;
  }

  /** Processes the oldest step's output; false if none is in flight. */
  land(): boolean {
    const oldest = this.inFlight.shift();
    if (oldest === undefined) return false;
    const result = this.scheduler.updateFromOutput(oldest.step, oldest.output);
    for (const entry of result.outputs.slice(0, result.length)) {
      const { requestId, start, end, finishReason, error } = entry;
      const outcome = this.outcomes.get(requestId) as Outcome;
      if (error !== null) this.errors.set(requestId, error);
      outcome.tokenIds.push(...result.sampledTokenIds.subarray(start, end));
      outcome.finishReason = finishReason;
    }
    return true;
  }

  /** One iteration of the engine's loop: launch while possible, then process the oldest. */
  turn(): void {
    while (this.inFlight.length < this.limits.depth) {
      if (this.launch().totalNumScheduledTokens === 0) break;
    }
    if (!this.land() && this.scheduler.hasUnfinishedRequests()) throw new Error('a dead end');
  }

  /** Runs until nothing is left; returns the tokens of each request. */
  run(): Record<string, number[]> {
    for (let i = 0; this.scheduler.hasUnfinishedRequests(); i++) {
      if (i > 10_000) throw new Error('no end');
      this.turn();
    }
    while (this.land());
    this.launch();
    return Object.fromEntries(Array.from(this.outcomes, ([id, { tokenIds }]) => [id, tokenIds]));
  }

  get numFreeBlocks(): number {
    return this.kvCacheManager.blockPool.numFreeBlocks;
  }
}

/** `length` tokens that begin with `first`. */
export function promptOf(length: number, first = 1): number[] {
  return Array.from({ length }, (_, i) => (first + 7 * i) % 97);
}
