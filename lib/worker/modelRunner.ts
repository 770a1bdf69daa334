/** Launches scheduler outputs as device steps and reads their outputs (vLLM's ModelRunner). */
import { InvalidStateError } from '../errors';
import type { NativeEvent, NativeModelRunner, StepBuffers } from '../native';
import { InputBatch, type PreparedStep } from './inputBatch';
import {
  AsyncModelRunnerOutput,
  EMPTY_MODEL_RUNNER_OUTPUT,
  type LogprobsLists,
  type ModelRunnerOutput,
  NO_NANS_IN_LOGITS,
  RaggedTokenIds,
} from '../contract/modelRunnerOutput';
import { RefusedRequests } from './refusedRequests';
import type { GrammarOutput } from '../contract/grammarOutput';
import type { SchedulerOutput } from '../contract/schedulerOutput';
import type { StepOutput } from './workerBase';

export class ModelRunner {
  /** Public, as in vLLM, for programs that train the model between generations. */
  readonly inputBatch: InputBatch;
  private readonly refusedRequests = new RefusedRequests();
  /** Last output launched from each staging set. */
  private readonly launched: (StepOutputInFlight | null)[];
  private nextSet = 0;
  /** A step with its forward pass launched, awaiting a grammar for sampling. */
  private awaitingSample: { set: number; step: LaunchedStep } | null = null;

  constructor(
    readonly model: NativeModelRunner,
    readonly vocabSize: number,
    readonly maxNumSeqs: number,
    numKvCacheGroups = 1,
  ) {
    this.inputBatch = new InputBatch(model, maxNumSeqs, numKvCacheGroups);
    this.launched = model.steps.map(() => null);
  }

  /**
   * Launches a step. Returns null if it awaits `sampleTokens`, which must come before the next step
   * (the executor enforces this). Throws INVALID_STATE if every staging set is in flight.
   */
  executeModel(schedulerOutput: SchedulerOutput): StepOutput {
    const set = this.nextSet;
    const last = this.launched[set];
    if (last && !last.ready.done) {
      throw new InvalidStateError(
        `executeModel was called with ${this.launched.length} steps in flight, the most there may be`,
      );
    }
    last?.overwrite();
    this.launched[set] = null;
    const { prepared, failedReqs } = this.refusedRequests.prepare(schedulerOutput, (output) =>
      this.inputBatch.prepare(output, this.model.steps[set]),
    );
    const step: LaunchedStep = { ...prepared, failedReqs };
    if (step.numRows === 0) {
      return failedReqs.size === 0
        ? EMPTY_MODEL_RUNNER_OUTPUT
        : { ...EMPTY_MODEL_RUNNER_OUTPUT, failedReqs };
    }
    this.nextSet = (set + 1) % this.launched.length;
    this.model.forward(
      set,
      step.numRows,
      step.numBlockUpdates,
      step.numSampled,
      step.numPromptLogprobRows,
      schedulerOutput.hasStructuredOutputRequests,
    );
    if (schedulerOutput.hasStructuredOutputRequests) {
      this.awaitingSample = { set, step };
      return null;
    }
    return this.sample(set, step, null);
  }

  /** Samples the step awaiting sampling, with a grammar's bitmask. */
  sampleTokens(grammarOutput: GrammarOutput | null): StepOutput {
    if (!this.awaitingSample) {
      throw new InvalidStateError('sampleTokens was called, but no step awaits it');
    }
    const { set, step } = this.awaitingSample;
    this.awaitingSample = null;
    return this.sample(set, step, grammarOutput && this.rowsBitmask(step, grammarOutput));
  }

  private sample(set: number, step: LaunchedStep, bitmask: Int32Array | null): StepOutput {
    const ready = this.model.sample(set, bitmask);
    return (this.launched[set] = new StepOutputInFlight(ready, this.model.steps[set], step));
  }

  /** Expands the bitmask to all sampled rows; rows without a grammar allow every token. */
  private rowsBitmask(step: LaunchedStep, grammar: GrammarOutput): Int32Array {
    const words = Math.ceil(this.vocabSize / 32);
    if (grammar.grammarBitmask.length !== grammar.structuredOutputRequestIds.length * words) {
      throw new InvalidStateError(
        `grammarBitmask has ${grammar.grammarBitmask.length} words for ` +
          `${grammar.structuredOutputRequestIds.length} requests of ${words} words each`,
      );
    }
    const { structuredOutputRequestIds: reqIds } = grammar;
    const isWhole =
      reqIds.length === step.numSampled &&
      reqIds.every((reqId, i) => step.offsets[step.reqIdToIndex.get(reqId) ?? -1] === i);
    // No row is without a grammar.
    if (isWhole) return grammar.grammarBitmask;
    const bitmask = new Int32Array(step.numSampled * words).fill(-1);
    grammar.structuredOutputRequestIds.forEach((reqId, i) => {
      const row = step.reqIdToIndex.get(reqId);
      if (row === undefined || step.offsets[row] === step.offsets[row + 1]) return;
      bitmask.set(
        grammar.grammarBitmask.subarray(i * words, (i + 1) * words),
        step.offsets[row] * words,
      );
    });
    return bitmask;
  }
}

/** A written step and its refused requests. */
interface LaunchedStep extends PreparedStep {
  failedReqs: ReadonlyMap<string, Error>;
}

/** Output of a step in flight, copied from the staging set once the event is done. */
class StepOutputInFlight extends AsyncModelRunnerOutput {
  private state: 'pending' | 'taken' | 'overwritten' = 'pending';

  constructor(
    readonly ready: NativeEvent,
    private readonly buffers: StepBuffers,
    private readonly step: LaunchedStep,
  ) {
    super();
  }

  getOutput(): ModelRunnerOutput {
    if (this.state !== 'pending') {
      throw new InvalidStateError(`getOutput: this step's output was ${this.state} already`);
    }
    if (!this.ready.done)
      throw new InvalidStateError("getOutput: this step's output is not ready; wait for its event");
    this.state = 'taken';
    const { step, buffers } = this;
    return {
      reqIds: step.reqIds,
      reqIdToIndex: step.reqIdToIndex,
      sampledTokenIds: new RaggedTokenIds(
        buffers.sampledTokenIds.slice(0, step.numSampled),
        step.offsets,
      ),
      logprobs: step.numLogprobs < 0 ? null : this.sampledLogprobs(),
      promptLogprobs:
        step.promptLogprobs.length === 0
          ? EMPTY_MODEL_RUNNER_OUTPUT.promptLogprobs
          : this.promptLogprobs(),
      ...(step.pooling.length > 0 && { pooled: this.pooled() }),
      numNansInLogits: this.numNansInLogits(),
      ...(step.failedReqs.size > 0 && { failedReqs: step.failedReqs }),
    };
  }

  /** Copies of the embeddings. */
  private pooled(): Float32Array[] {
    const { pooled, pooledSizes } = this.buffers;
    const width = pooled.length / pooledSizes.length;
    return this.step.pooling.map(({ size }, i) => pooled.slice(i * width, i * width + size));
  }

  /** One pass over the counts of sampled rows and of prompt positions with logprobs. */
  private numNansInLogits(): ReadonlyMap<string, number> {
    const { buffers, step } = this;
    let numNans: Map<string, number> | undefined;
    for (let i = 0; i < step.numSampled; i++) {
      if (buffers.numNans[i] === 0) continue;
      numNans ??= new Map<string, number>();
      numNans.set(step.reqIds[buffers.sampledRows[i]], buffers.numNans[i]);
    }
    for (const { reqId, start, count } of step.promptLogprobs) {
      let nans = 0;
      for (let i = start; i < start + count; i++) nans += buffers.promptNumNans[i];
      if (nans === 0) continue;
      numNans ??= new Map<string, number>();
      numNans.set(reqId, (numNans.get(reqId) ?? 0) + nans);
    }
    return numNans ?? NO_NANS_IN_LOGITS;
  }

  /** Called when the staging set is reused; an output not read by then is lost. */
  overwrite(): void {
    if (this.state === 'pending') this.state = 'overwritten';
  }

  private sampledLogprobs(): LogprobsLists {
    const { buffers, step } = this;
    return copyLogprobs(
      buffers.logprobTokenIds,
      buffers.logprobs,
      buffers.logprobRanks,
      0,
      step.numSampled,
      1 + step.numLogprobs,
    );
  }

  private promptLogprobs(): ReadonlyMap<string, LogprobsLists> {
    const { buffers } = this;
    return new Map(
      this.step.promptLogprobs.map(({ reqId, start, count, numLogprobs }) => [
        reqId,
        copyLogprobs(
          buffers.promptLogprobTokenIds,
          buffers.promptLogprobs,
          buffers.promptLogprobRanks,
          start,
          count,
          1 + numLogprobs,
        ),
      ]),
    );
  }
}

/** Copies positions `start` to `start + count`, the first `width` entries of each. */
function copyLogprobs(
  tokenIds: Int32Array,
  logprobs: Float32Array,
  ranks: Int32Array,
  start: number,
  count: number,
  width: number,
): LogprobsLists {
  const stride = tokenIds.length / ranks.length;
  const lists = {
    width,
    tokenIds: new Int32Array(count * width),
    logprobs: new Float32Array(count * width),
    ranks: ranks.slice(start, start + count),
  };
  for (let i = 0; i < count; i++) {
    const from = (start + i) * stride;
    lists.tokenIds.set(tokenIds.subarray(from, from + width), i * width);
    lists.logprobs.set(logprobs.subarray(from, from + width), i * width);
  }
  return lists;
}
