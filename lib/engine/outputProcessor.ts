/**
 * Turns sampled tokens into user outputs: text, logprobs, completed outputs (vLLM's
 * OutputProcessor).
 */
import { InvalidLogitsError, RequestFailedError, UniprocError } from '../errors';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { Call } from './call';
import { requestStart } from './diagnostics';
import { type EndReason, type EngineMetrics, RequestTimes } from './metrics';
import type { EngineCoreOutput, EngineCoreOutputs, FinishReason, OutputDelta } from './outputs';
import type { PendingCall } from './pendingCall';
import type { Request } from './request';
import { ParentRequest, RequestState } from './requestState';
import type { Pieces } from '../slicedWork';

export class OutputProcessor {
  /** Unfinished requests, by id. */
  private readonly states = new Map<string, RequestState>();
  /** Requests that ended in the latest step's processing, and those that failed. */
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
   * Adds the parent's sample `index`; `now` is the call's time, by `performance.now()`. Tokens
   * already generated on other ranks count as delivered.
   */
  addRequest(request: Request, parent: ParentRequest, index: number, now: number): void {
    const times = new RequestTimes(now);
    const state = new RequestState(request, parent, index, times, this.tokenizer);
    this.states.set(request.requestId, state);
    parent.samples.add(state);
    if (request.numOutputTokens === 0) return;
    times.firstToken = times.lastToken = now;
    const { numPromptTokens, numTokens } = request;
    for (const tokenId of request.tokensBetween(numPromptTokens, numTokens)) state.replay(tokenId);
  }

  /** Prepares for all requests to be recomputed from their prompts. */
  restart(): void {
    for (const { parent, index } of this.states.values()) {
      if (index === 0) parent.resetPromptLogprobs();
    }
  }

  /** Requests that this rank may end on its own. */
  get numRankLocalRequests(): number {
    let count = 0;
    for (const { parent } of this.states.values()) if (parent.isRankLocal) count++;
    return count;
  }

  /** The request's call; undefined once the request is finished. */
  callOf(requestId: string): Call | undefined {
    return this.states.get(requestId)?.parent.call;
  }

  /** Records when the request was first scheduled. */
  scheduled(requestId: string, now: number): void {
    const state = this.states.get(requestId);
    if (state === undefined || !Number.isNaN(state.times.scheduled)) return;
    const { index, parent, request, times } = state;
    times.scheduled = now;
    if (Number.isNaN(parent.times.scheduled)) parent.times.scheduled = now;
    const { numPromptTokens } = request;
    const numCachedTokens = request.numCachedTokens ?? 0;
    if (index === 0) parent.numCachedTokens = numCachedTokens;
    if (!requestStart.hasSubscribers) return;
    const queueTimeMs = now - times.arrival;
    requestStart.publish({ requestId, numPromptTokens, numCachedTokens, queueTimeMs });
  }

  /**
   * Processes a step's outputs, received at `now`, and delivers them. Returns the ids of requests
   * that ended here, by a stop string or an error, and that the scheduler still has to finish;
   * valid until the next call. An error thrown for one request fails only that request's prompt.
   */
  processOutputs(step: EngineCoreOutputs, now: number): readonly string[] {
    this.endedReqIds.length = 0;
    this.failed.length = 0;
    for (let i = 0; i < step.length; i++) {
      const output = step.outputs[i];
      const state = this.states.get(output.requestId);
      // Requests of a large ended call may not be dropped yet.
      if (state === undefined || state.parent.call.isEnded) continue;
      try {
        this.processOutput(state, output, step, now);
      } catch (error) {
        this.fail(state.parent, asRequestError(output.requestId, error));
      }
    }
    return this.endedReqIds;
  }

  /** Requests that ended with an error in the latest step's processing. */
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
    { sampledTokenIds, logprobs, pooled }: EngineCoreOutputs,
    now: number,
  ): void {
    const { parent, request } = state;
    const numTokensBefore = state.tokenIds.length;
    let finishReason = engineReason;
    let text = '';
    if (pooled !== undefined) state.embedding = pooled[start];
    for (let i = start; i < end && pooled === undefined && state.stopString === null; i++) {
      state.tokenIds.push(sampledTokenIds[i]);
      if (logprobs !== null) state.addLogprobs(logprobs, i);
      // A stop token is part of the text only with includeStopStrInOutput, as in vLLM.
      const isStopToken = engineReason === 'stop' && i === end - 1;
      if (!isStopToken || request.samplingParams.includeStopStrInOutput) {
        text += state.decode(sampledTokenIds[i]);
      }
    }
    if (finishReason !== null) text += state.flush();
    if (state.stopString !== null) {
      if (finishReason === null) this.endedReqIds.push(requestId);
      state.reply?.finish('');
      finishReason = 'stop';
    }
    const stopReason = finishReason === 'stop' ? stopReasonOf(state) : null;
    this.measure(state, numTokensBefore, now);
    state.text += text;
    parent.receiver.delta?.(deltaOf(state, numTokensBefore, { text, finishReason, stopReason }));
    if (finishReason !== null) this.finish(state, finishReason, stopReason);
  }

  private measure(
    { request, parent, times, tokenIds, reply }: RequestState,
    numTokensBefore: number,
    now: number,
  ): void {
    if (numTokensBefore === 0) {
      this.metrics.firstToken(times, now, request.numPromptTokens);
      parent.call.numPromptTokens += request.numPromptTokens;
    } else {
      this.metrics.nextToken(times, now);
    }
    if (Number.isNaN(parent.times.firstToken)) parent.times.firstToken = now;
    parent.times.lastToken = now;
    const numNewTokens = tokenIds.length - numTokensBefore;
    this.metrics.numOutputTokens += numNewTokens;
    parent.numOutputTokens += numNewTokens;
    const numReasoning = reply?.takeNumReasoningTokens() ?? null;
    if (numReasoning !== null) {
      parent.numReasoningTokens = (parent.numReasoningTokens ?? 0) + numReasoning;
    }
    parent.call.numOutputTokens += numNewTokens;
  }

  private finish(
    state: RequestState,
    finishReason: FinishReason,
    stopReason: string | number | null,
  ): void {
    this.end(state, finishReason);
    state.parent.addOutput(state.completion(finishReason, stopReason));
  }

  /** Ends requests of an ended call; returns the ids that were unfinished. */
  dropRequests(requestIds: readonly string[], reason: EndReason): readonly string[] {
    return requestIds.filter((requestId) => {
      const state = this.states.get(requestId);
      if (state !== undefined) {
        state.parent.dropped.push(state);
        this.end(state, reason);
      }
      return state !== undefined;
    });
  }

  /**
   * Counts an ended call's samples that have no Request yet because the call was queued or
   * encoding. Returns work that emits their `finished` events; null without listeners.
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
        pending.skipNext();
        metrics.emitFinished(
          { requestId, numPromptTokens, numCachedTokens: null },
          times,
          0,
          endReason,
        );
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

/** `end`: the text that it gained, and how it ended. */
function deltaOf(
  { index, tokenIds, logprobs, parent, cumulativeLogprob, reply }: RequestState,
  numTokensBefore: number,
  end: Pick<OutputDelta, 'text' | 'finishReason' | 'stopReason'>,
): OutputDelta {
  const delta: OutputDelta = {
    requestId: parent.requestId,
    numPromptTokens: parent.promptTokenIds.length,
    index,
    text: end.text,
    tokenIds: tokenIds.slice(numTokensBefore),
    finishReason: end.finishReason,
    stopReason: end.stopReason,
  };
  const message = reply?.take() ?? null;
  if (message !== null) delta.message = message;
  if (logprobs !== null) {
    delta.logprobs = logprobs.slice(numTokensBefore);
    delta.cumulativeLogprob = cumulativeLogprob;
  }
  if (index === 0 && numTokensBefore === 0 && parent.promptLogprobs !== null) {
    delta.promptLogprobs = [...parent.promptLogprobs];
  }
  if (end.finishReason !== null && parent.hasOneUnfinished) {
    delta.usage = parent.usage;
    delta.metrics = parent.metrics;
  }
  return delta;
}

/** The stop string, or the caller's stop token, that ended an output; null for the model's end. */
function stopReasonOf({ request, stopString, tokenIds }: RequestState): string | number | null {
  if (stopString !== null) return stopString;
  const last = tokenIds[tokenIds.length - 1];
  return request.samplingParams.stopTokenIds.includes(last) ? last : null;
}

function asRequestError(requestId: string, error: unknown): UniprocError {
  if (error instanceof UniprocError) return error;
  return new RequestFailedError(requestId, 'turned into text', error);
}
