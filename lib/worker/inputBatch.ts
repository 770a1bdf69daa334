/**
 * The worker's persistent batch: requests and their slots, and the writing of steps into staging
 * sets (vLLM's InputBatch).
 *
 * A request keeps one device slot until it finishes or is preempted; its tokens, block table and
 * sampling parameters live there. So a step carries only changes: which slots compute how many
 * tokens, and newly appended blocks. After the prompt, token ids never pass through here: the
 * device reads them where sampling wrote them.
 */
import { InvalidRequestError, InvalidStateError, UniprocError } from '../errors';
import type { NativeModelRunner, NativeRequest, NativeSampling, StepBuffers } from '../native';
import { samplingLists } from './samplingLists';
import type { NewRequestData, PoolingParams, SchedulerOutput } from '../contract/schedulerOutput';

/** Per-request state kept between steps. */
export class CachedRequestState {
  /** -1 while preempted. */
  slot = -1;
  /** Tokens of the request when it last entered a slot; a row that reaches them is sampled. */
  numTokens = 0;
  numComputedTokens = 0;
  /** Entries of each of its block tables. */
  numBlocks = 0;
  /** Prompt positions with logprobs already returned, so a resumed prompt does not repeat them. */
  numPromptLogprobsDone = 0;

  constructor(
    readonly reqId: string,
    readonly numPromptTokens: number,
    readonly sampling: NativeSampling,
    /** Undefined for a model that samples. */
    readonly pooling?: PoolingParams,
  ) {}
}

/** Prompt positions of one request in a step's output: rows `start` to `start + count`. */
export interface PromptLogprobRange {
  reqId: string;
  start: number;
  count: number;
  numLogprobs: number;
}

/** A written step, for its launch and output. */
export interface PreparedStep {
  reqIds: readonly string[];
  reqIdToIndex: ReadonlyMap<string, number>;
  /** [numRows + 1]: row i's sampled tokens are offsets[i] .. offsets[i + 1]. */
  offsets: Int32Array;
  numRows: number;
  numBlockUpdates: number;
  numSampled: number;
  numPromptLogprobRows: number;
  /** Most logprobs requested by a sampled row; -1 if none. */
  numLogprobs: number;
  promptLogprobs: PromptLogprobRange[];
  /** Of each sampled row, for a model that pools. */
  pooling: PoolingParams[];
}

const NO_PROMPT_LOGPROBS: PromptLogprobRange[] = [];
const NO_REQUESTS: NativeRequest[] = [];

export class InputBatch {
  private readonly requests = new Map<string, CachedRequestState>();
  private readonly freeSlots: number[] = [];
  private reqIds: readonly string[] = [];
  private reqIdToIndex: ReadonlyMap<string, number> = new Map();

  /** @internal */
  constructor(
    private readonly model: NativeModelRunner,
    private readonly maxNumSeqs: number,
    /** Groups of layers, each with a block table of its own. */
    private readonly numKvCacheGroups = 1,
  ) {
    for (let slot = maxNumSeqs - 1; slot >= 0; slot--) this.freeSlots.push(slot);
  }

  /** Requests held, including preempted ones. */
  get size(): number {
    return this.requests.size;
  }

  /**
   * Applies the scheduler's changes and writes the step's rows into `buffers`.
   *
   * Throws InvalidRequestError with `requestId` for a new request that the device refuses, before
   * changing anything here or on the device: the same step without that request can follow.
   * @internal
   */
  prepare(schedulerOutput: SchedulerOutput, buffers: StepBuffers): PreparedStep {
    const newRequests = this.checkNew(schedulerOutput);
    for (const reqId of schedulerOutput.finishedReqIds) this.finish(reqId);
    for (const reqId of schedulerOutput.preemptedReqIds) this.leaveSlot(this.request(reqId));
    newRequests.forEach((request, i) => {
      this.admit(schedulerOutput.scheduledNewReqs[i], request);
    });
    const numBlockUpdates = this.updateCached(schedulerOutput, buffers);
    return this.writeRows(schedulerOutput, buffers, numBlockUpdates);
  }

  private request(reqId: string): CachedRequestState {
    const request = this.requests.get(reqId);
    if (request === undefined) {
      throw new InvalidStateError(
        `request ${reqId} is scheduled, but was never sent to the worker as new`,
      );
    }
    return request;
  }

  /** A request may finish before it reaches the worker; then there is nothing to free. */
  private finish(reqId: string): void {
    const request = this.requests.get(reqId);
    if (request === undefined) return;
    if (request.slot >= 0) this.leaveSlot(request);
    this.requests.delete(reqId);
  }

  /** Converts and checks the step's new requests. Changes nothing. */
  private checkNew(schedulerOutput: SchedulerOutput): NativeRequest[] {
    const { scheduledNewReqs, finishedReqIds, preemptedReqIds } = schedulerOutput;
    if (scheduledNewReqs.length === 0) return NO_REQUESTS;
    const finished = new Set(finishedReqIds);
    const leaving = new Set([...finishedReqIds, ...preemptedReqIds]);
    let numFree = this.freeSlots.length;
    for (const reqId of leaving) if ((this.requests.get(reqId)?.slot ?? -1) >= 0) numFree++;
    const reqIds = new Set<string>();
    return scheduledNewReqs.map((data) => {
      const { reqId } = data;
      if (reqIds.has(reqId) || (this.requests.has(reqId) && !finished.has(reqId))) {
        throw new InvalidStateError(
          `request ${reqId} is scheduled as new, but the worker has it already`,
        );
      }
      if (reqIds.size === numFree) throw this.noSlotFor(reqId);
      reqIds.add(reqId);
      try {
        const request = toNativeRequest(data);
        this.model.checkRequest(request);
        return request;
      } catch (cause) {
        if (cause instanceof UniprocError && !(cause instanceof InvalidRequestError)) throw cause;
        const options = { cause, requestId: reqId };
        throw new InvalidRequestError(`request ${reqId}: ${(cause as Error).message}`, options);
      }
    });
  }

  private admit(data: NewRequestData, native: NativeRequest): void {
    const { numPromptTokens, sampling } = native;
    const request = new CachedRequestState(data.reqId, numPromptTokens, sampling, data.pooling);
    this.enterSlot(request, native);
    request.numComputedTokens = data.numComputedTokens;
    this.requests.set(data.reqId, request);
  }

  private enterSlot(request: CachedRequestState, native: NativeRequest): void {
    const slot = this.freeSlots.at(-1);
    if (slot === undefined) throw this.noSlotFor(request.reqId);
    this.model.addRequest(slot, native);
    this.freeSlots.pop();
    request.slot = slot;
    request.numTokens = native.tokenIds.length;
    request.numBlocks = native.blockIds.length / this.numKvCacheGroups;
  }

  private noSlotFor(reqId: string): InvalidStateError {
    return new InvalidStateError(
      `request ${reqId} has no free slot: all ${this.maxNumSeqs} (maxNumSeqs) are in use`,
    );
  }

  private leaveSlot(request: CachedRequestState): void {
    this.model.removeRequest(request.slot);
    this.freeSlots.push(request.slot);
    request.slot = -1;
  }

  private updateCached({ scheduledCachedReqs }: SchedulerOutput, buffers: StepBuffers): number {
    const { reqIds, resumedReqIds, newBlockIds, numComputedTokens, allTokenIds, listOffsets } =
      scheduledCachedReqs;
    let numBlockUpdates = 0;
    for (let i = 0; i < reqIds.length; i++) {
      const request = this.request(reqIds[i]);
      request.numComputedTokens = numComputedTokens[i];
      const blockIds = newBlockIds[i];
      if (resumedReqIds.has(request.reqId)) {
        const tokenIds = allTokenIds.get(request.reqId);
        if (tokenIds === undefined || blockIds === null) {
          throw new InvalidStateError(
            `request ${request.reqId} is resumed without its tokens or blocks`,
          );
        }
        if (request.slot >= 0) this.leaveSlot(request);
        const { numPromptTokens, sampling } = request;
        this.enterSlot(request, {
          tokenIds,
          numPromptTokens,
          blockIds: Int32Array.from(blockIds),
          sampling,
          listOffset: listOffsets?.get(request.reqId),
        });
      } else if (blockIds !== null) {
        numBlockUpdates = this.appendBlocks(request, blockIds, buffers, numBlockUpdates);
      }
    }
    return numBlockUpdates;
  }

  /** Writes block updates behind the first `numBlockUpdates`; returns their number with these. */
  private appendBlocks(
    request: CachedRequestState,
    blockIds: readonly number[],
    { blockUpdates }: StepBuffers,
    numBlockUpdates: number,
  ): number {
    const { numKvCacheGroups } = this;
    if (request.slot < 0 || blockIds.length % numKvCacheGroups !== 0) {
      throw new InvalidStateError(
        `request ${request.reqId} has ${blockIds.length} new blocks; ` +
          (request.slot < 0
            ? 'it is preempted, and gets blocks only when it resumes'
            : `it must have as many of each of ${numKvCacheGroups} groups of layers`),
      );
    }
    let at = 3 * numBlockUpdates;
    for (let i = 0; i < blockIds.length; request.numBlocks++) {
      for (let group = 0; group < numKvCacheGroups; group++) {
        blockUpdates[at++] = group * this.maxNumSeqs + request.slot;
        blockUpdates[at++] = request.numBlocks;
        blockUpdates[at++] = blockIds[i++];
      }
    }
    return numBlockUpdates + blockIds.length;
  }

  private writeRows(
    { numScheduledTokens }: SchedulerOutput,
    buffers: StepBuffers,
    numBlockUpdates: number,
  ): PreparedStep {
    const offsets = new Int32Array(numScheduledTokens.size + 1);
    let sameRequests = this.reqIds.length === numScheduledTokens.size;
    let promptLogprobs = NO_PROMPT_LOGPROBS;
    let numPromptPositions = 0;
    let numPromptLogprobRows = 0;
    let numSampled = 0;
    let numLogprobs = -1;
    const pooling: PoolingParams[] = [];
    let row = 0;
    for (const [reqId, numTokens] of numScheduledTokens) {
      const request = this.request(reqId);
      if (request.slot < 0) {
        throw new InvalidStateError(`request ${reqId} is scheduled while preempted`);
      }
      sameRequests &&= this.reqIds[row] === reqId;
      const start = request.numComputedTokens;
      const end = start + numTokens;
      buffers.slots[row] = request.slot;
      buffers.numComputedTokens[row] = start;
      buffers.numScheduledTokens[row] = numTokens;
      if (end >= request.numTokens) {
        if (request.pooling !== undefined) {
          const { size, normalize } = request.pooling;
          buffers.pooledSizes[numSampled] = normalize ? size : 0;
          pooling.push(request.pooling);
        }
        buffers.sampledRows[numSampled++] = row;
        if (request.sampling.numLogprobs > numLogprobs) numLogprobs = request.sampling.numLogprobs;
      }
      if (request.sampling.numPromptLogprobs >= 0) {
        const positions = Math.min(end, request.numPromptTokens - 1) - start;
        const repeated = Math.max(0, request.numPromptLogprobsDone - start);
        if (positions > repeated) {
          if (promptLogprobs === NO_PROMPT_LOGPROBS) promptLogprobs = [];
          buffers.promptLogprobRows[numPromptLogprobRows++] = row;
          promptLogprobs.push({
            reqId,
            start: numPromptPositions + repeated,
            count: positions - repeated,
            numLogprobs: request.sampling.numPromptLogprobs,
          });
          numPromptPositions += positions;
          request.numPromptLogprobsDone = start + positions;
        }
      }
      offsets[++row] = numSampled;
    }
    if (!sameRequests) {
      this.reqIds = [...numScheduledTokens.keys()];
      this.reqIdToIndex = new Map(this.reqIds.map((reqId, index) => [reqId, index]));
    }
    return {
      reqIds: this.reqIds,
      reqIdToIndex: this.reqIdToIndex,
      offsets,
      numRows: row,
      numBlockUpdates,
      numSampled,
      numPromptLogprobRows,
      numLogprobs,
      promptLogprobs,
      pooling,
    };
  }
}

function toNativeRequest(data: NewRequestData): NativeRequest {
  return {
    tokenIds: data.prefillTokenIds ?? data.promptTokenIds,
    numPromptTokens: data.promptTokenIds.length,
    blockIds: Int32Array.from(data.blockIds),
    sampling: toNativeSampling(data),
    listOffset: data.listOffset,
  };
}

/** Converts SamplingParams for the device: numbers and flat lists. */
export function toNativeSampling(
  data: Pick<NewRequestData, 'samplingParams' | 'badWordsTokenIds' | 'stopTokenIds' | 'seed'>,
): NativeSampling {
  const { samplingParams: params, seed } = data;
  return {
    temperature: params.temperature,
    topP: params.topP,
    topK: Math.max(0, params.topK),
    minP: params.minP,
    presencePenalty: params.presencePenalty,
    frequencyPenalty: params.frequencyPenalty,
    repetitionPenalty: params.repetitionPenalty,
    seed,
    minTokens: params.minTokens,
    numLogprobs: params.logprobs ?? -1,
    numPromptLogprobs: params.promptLogprobs ?? -1,
    ...samplingLists(data),
  };
}
