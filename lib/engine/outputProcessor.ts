/** Turns the tokens of a step into what users receive: text, logprobs, finished outputs. */
import { InvalidLogitsError, RequestFailedError, UniprocError } from '../errors';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { Call } from './call';
import { type EndReason, type EngineMetrics, RequestTimes } from './metrics';
import type { EngineCoreOutput, EngineCoreOutputs, FinishReason, OutputDelta } from './outputs';
import type { PendingCall } from './pendingCall';
import type { Request } from './request';
import { ParentRequest, RequestState } from './requestState';
import type { Pieces } from '../slicedWork';

export class OutputProcessor {
  /** By request id, those unfinished. */
  private readonly states = new Map<string, RequestState>();
  /** Of the latest step: requests that ended here, and those of them that failed. */
  private readonly endedReqIds: string[] = [];
  private readonly failed: string[] = [];

  constructor(
    private readonly tokenizer: Tokenizer | null,
    private readonly metrics: EngineMetrics,
  ) {}

  get numUnfinishedRequests(): number {
    return this.states.size;
  }

  /**
   * `request` is the parent's sample `index`; it was called for at `now`, by `performance.now()`. What
   * it has generated, on other ranks, counts as given out.
   */
  addRequest(request: Request, parent: ParentRequest, index: number, now: number): void {
    const times = new RequestTimes(now);
    const state = new RequestState(request, parent, index, times, this.tokenizer);
    this.states.set(request.requestId, state);
    parent.samples.add(state);
    if (request.numOutputTokens === 0) return;
    times.firstToken = times.lastToken = now;
    const { numPromptTokens, numTokens } = request;
    for (const tokenId of request.tokensBetween(numPromptTokens, numTokens)) state.recall(tokenId);
  }

  /** Every request is computed again, from its prompt on. */
  restart(): void {
    for (const { parent, index } of this.states.values()) {
      if (index === 0) parent.forgetPromptLogprobs();
    }
  }

  /** Requests that this process alone may end before they are done. */
  get numRankLocalRequests(): number {
    let count = 0;
    for (const { parent } of this.states.values()) if (parent.isRankLocal) count++;
    return count;
  }

  /** The call that the request is of; undefined once it is finished. */
  callOf(requestId: string): Call | undefined {
    return this.states.get(requestId)?.parent.call;
  }

  /** The request is in a step for the first time. */
  scheduled(requestId: string, now: number): void {
    const times = this.states.get(requestId)?.times;
    if (times !== undefined && Number.isNaN(times.scheduled)) times.scheduled = now;
  }

  /**
   * Takes a step's outputs, which came at `now`, and hands users what is theirs. Returns the ids of
   * the requests that end here, at a stop string or because they failed, though the scheduler thinks
   * they go on; valid until the next call. What is thrown for one request ends that one's prompt alone.
   */
  processOutputs(step: EngineCoreOutputs, now: number): readonly string[] {
    this.endedReqIds.length = 0;
    this.failed.length = 0;
    for (let i = 0; i < step.length; i++) {
      const output = step.outputs[i];
      const state = this.states.get(output.requestId);
      // Of a large call that has ended, some may not be dropped yet.
      if (state === undefined || state.parent.call.isEnded) continue;
      try {
        this.processOutput(state, output, step, now);
      } catch (error) {
        this.fail(state.parent, asRequestError(output.requestId, error));
      }
    }
    return this.endedReqIds;
  }

  /** Among the requests that the latest step's outputs ended, those that ended with an error. */
  get failedReqIds(): readonly string[] {
    return this.failed;
  }

  private processOutput(
    state: RequestState,
    output: EngineCoreOutput,
    step: EngineCoreOutputs,
    now: number,
  ): void {
    if (output.error) throw output.error;
    if (output.promptLogprobs !== null && state.index === 0) {
      state.parent.addPromptLogprobs(output.promptLogprobs, this.tokenizer);
    }
    if (output.end > output.start) this.addTokens(state, output, step, now);
  }

  private addTokens(
    state: RequestState,
    { requestId, start, end, finishReason: engineReason }: EngineCoreOutput,
    { sampledTokenIds, logprobs }: EngineCoreOutputs,
    now: number,
  ): void {
    const { parent, request } = state;
    const numTokensBefore = state.tokenIds.length;
    let finishReason = engineReason;
    let text = '';
    for (let i = start; i < end && !state.stopStringFound; i++) {
      state.tokenIds.push(sampledTokenIds[i]);
      if (logprobs !== null) state.addLogprobs(logprobs, i);
      // A stop token ends the text, and is part of it only when asked for, as in vLLM.
      const isStopToken = engineReason === 'stop' && i === end - 1;
      if (!isStopToken || request.samplingParams.includeStopStrInOutput) {
        text += state.decode(sampledTokenIds[i]);
      }
    }
    if (finishReason !== null) text += state.flush();
    if (state.stopStringFound) {
      if (finishReason === null) this.endedReqIds.push(requestId);
      finishReason = 'stop';
    }
    this.measure(state, numTokensBefore, now);
    state.text += text;
    parent.receiver.delta?.(deltaOf(state, numTokensBefore, text, finishReason));
    if (finishReason !== null) this.finish(state, finishReason);
  }

  private measure(
    { request, parent, times, tokenIds }: RequestState,
    numTokensBefore: number,
    now: number,
  ): void {
    if (numTokensBefore === 0) {
      this.metrics.firstToken(times, now, request.numPromptTokens);
      parent.call.numPromptTokens += request.numPromptTokens;
    } else {
      this.metrics.nextToken(times, now);
    }
    const numNewTokens = tokenIds.length - numTokensBefore;
    this.metrics.numOutputTokens += numNewTokens;
    parent.call.numOutputTokens += numNewTokens;
  }

  private finish(state: RequestState, finishReason: FinishReason): void {
    this.end(state, finishReason);
    const { index, text, tokenIds, logprobs } = state;
    state.parent.addOutput({ index, text, tokenIds, finishReason, logprobs });
  }

  /** Ends requests of a call that has ended; returns their ids, those left out that are finished. */
  dropRequests(requestIds: readonly string[], reason: EndReason): readonly string[] {
    return requestIds.filter((requestId) => {
      const state = this.states.get(requestId);
      if (state !== undefined) this.end(state, reason);
      return state !== undefined;
    });
  }

  /**
   * Counts those samples of an ended call that are no requests yet: the call waited, or its prompts
   * were being encoded. Returns what emits `finished` for each; null where nobody listens.
   */
  dropSamples(pending: PendingCall): Pieces | null {
    const { endReason, numLeft, time } = pending;
    const { metrics } = this;
    metrics.numFinishedReqs[endReason] += numLeft;
    if (numLeft === 0 || !metrics.hasListeners) return null;
    const times = new RequestTimes(time);
    return (function* (): Pieces {
      while (pending.numLeft > 0) {
        const { numPromptTokens } = pending;
        const { requestId } = pending.next;
        pending.passNext();
        metrics.tell({ requestId, numPromptTokens, numCachedTokens: null }, times, 0, endReason);
        yield;
      }
    })();
  }

  private fail(parent: ParentRequest, error: Error): void {
    if (error instanceof InvalidLogitsError) this.metrics.numNansInLogits++;
    for (const state of parent.samples) {
      const { requestId } = state.request;
      this.endedReqIds.push(requestId);
      this.failed.push(requestId);
      this.end(state, 'error');
    }
    parent.fail(error);
  }

  private end(state: RequestState, reason: EndReason): void {
    const { request, parent, times, tokenIds } = state;
    this.states.delete(request.requestId);
    parent.samples.delete(state);
    this.metrics.finished(request, times, tokenIds.length, reason);
  }
}

function deltaOf(
  { index, tokenIds, logprobs, parent }: RequestState,
  numTokensBefore: number,
  text: string,
  finishReason: FinishReason | null,
): OutputDelta {
  const delta: OutputDelta = {
    index,
    text,
    tokenIds: tokenIds.slice(numTokensBefore),
    finishReason,
  };
  if (logprobs !== null) delta.logprobs = logprobs.slice(numTokensBefore);
  if (index === 0 && numTokensBefore === 0 && parent.promptLogprobs !== null) {
    delta.promptLogprobs = [...parent.promptLogprobs];
  }
  return delta;
}

function asRequestError(requestId: string, error: unknown): UniprocError {
  if (error instanceof UniprocError) return error;
  return new RequestFailedError(requestId, 'turned into text', error);
}
