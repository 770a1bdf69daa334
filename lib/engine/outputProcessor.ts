/** Turns the tokens of a step into what users receive: text, logprobs, finished outputs. */
import type { SamplingParams } from '../config/samplingParams';
import { IncrementalDetokenizer } from '../tokenizer/detokenizer';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { LogprobsLists } from '../worker/outputs';
import type { Call } from './call';
import { type EndReason, type EngineMetrics, RequestTimes } from './metrics';
import type { OutputReceiver } from './outputCollector';
import type {
  CompletionOutput,
  EngineCoreOutput,
  EngineCoreOutputs,
  FinishReason,
  PositionLogprobs,
} from './outputs';
import type { Request } from './request';
import { StopStringMatcher } from './stopStrings';

/** A prompt whose `n` samples run as requests of their own (vLLM's ParentRequest). */
export class ParentRequest {
  private readonly outputs: CompletionOutput[] = [];
  private readonly promptLogprobs: (PositionLogprobs | null)[] | null;
  private numUnfinished: number;

  constructor(
    readonly requestId: string,
    /** As text, when it was given as text. */
    readonly prompt: string | null,
    readonly promptTokenIds: Int32Array,
    { n, promptLogprobs }: SamplingParams,
    readonly receiver: OutputReceiver,
    /** The call that the prompt is of. */
    readonly call: Call,
  ) {
    this.numUnfinished = n;
    this.promptLogprobs = promptLogprobs === null ? null : [null];
  }

  addPromptLogprobs(logprobs: PositionLogprobs): void {
    this.promptLogprobs?.push(logprobs);
  }

  /** They are about to be computed again. */
  forgetPromptLogprobs(): void {
    if (this.promptLogprobs !== null) this.promptLogprobs.length = 1;
  }

  /** Whether this process alone may end it before it is done. */
  get isRankLocal(): boolean {
    return this.call.isWatched || this.receiver.delta !== undefined;
  }

  /** Tells the receiver once all samples are there. */
  addOutput(output: CompletionOutput): void {
    this.outputs[output.index] = output;
    if (--this.numUnfinished > 0) return;
    this.call.promptDone();
    this.receiver.finished({
      requestId: this.requestId,
      prompt: this.prompt,
      promptTokenIds: Array.from(this.promptTokenIds),
      promptLogprobs: this.promptLogprobs,
      outputs: this.outputs,
    });
  }

  fail(error: Error): void {
    this.call.end();
    this.receiver.failed(error);
  }
}

/** What one sample has generated so far. */
class RequestState {
  readonly tokenIds: number[] = [];
  text = '';
  readonly logprobs: PositionLogprobs[] | null;
  private readonly detokenizer: IncrementalDetokenizer | null;
  private readonly stopStrings: StopStringMatcher | null;

  constructor(
    readonly request: Request,
    readonly parent: ParentRequest,
    readonly index: number,
    readonly times: RequestTimes,
    tokenizer: Tokenizer | null,
  ) {
    const params = request.samplingParams;
    this.logprobs = params.logprobs === null ? null : [];
    this.detokenizer =
      params.detokenize && tokenizer !== null
        ? new IncrementalDetokenizer(tokenizer, params.skipSpecialTokens)
        : null;
    this.stopStrings =
      params.stop.length > 0
        ? new StopStringMatcher(params.stop, params.includeStopStrInOutput)
        : null;
  }

  get stopStringFound(): boolean {
    return this.stopStrings?.matched === true;
  }

  /** The text that a token adds, as far as it can be given out. */
  decode(tokenId: number): string {
    if (this.detokenizer === null) return '';
    const piece = this.detokenizer.append([tokenId]);
    // Like stop tokens, stop strings count only after minTokens tokens.
    const { minTokens } = this.request.samplingParams;
    if (this.stopStrings === null || this.tokenIds.length <= minTokens) return piece;
    const text = this.stopStrings.push(piece);
    // What is held back is final where the output ends.
    if (this.stopStringFound || !this.stopStrings.wouldMatch(this.detokenizer.heldText))
      return text;
    return text + this.stopStrings.push(this.detokenizer.finish());
  }

  /** No more tokens will come: the text that waited for them. */
  flush(): string {
    if (this.detokenizer === null || this.stopStringFound) return '';
    const rest = this.detokenizer.finish();
    if (this.stopStrings === null) return rest;
    return this.stopStrings.push(rest) + this.stopStrings.flush();
  }
}

export class OutputProcessor {
  /** By request id, those unfinished. */
  private readonly states = new Map<string, RequestState>();
  private readonly stoppedReqIds: string[] = [];

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
    if (request.numOutputTokens === 0) return;
    times.firstToken = times.lastToken = now;
    const { numPromptTokens, numTokens } = request;
    for (const tokenId of request.tokensBetween(numPromptTokens, numTokens)) {
      state.tokenIds.push(tokenId);
      state.text += state.decode(tokenId);
    }
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

  /** The request is in a step for the first time. */
  scheduled(requestId: string, now: number): void {
    const times = this.states.get(requestId)?.times;
    if (times !== undefined && Number.isNaN(times.scheduled)) times.scheduled = now;
  }

  /**
   * Takes a step's outputs, which came at `now`, and hands users what is theirs. Returns the ids of
   * the requests that end here, at a stop string, though the scheduler thinks they go on; valid until
   * the next call.
   */
  processOutputs(step: EngineCoreOutputs, now: number): readonly string[] {
    this.stoppedReqIds.length = 0;
    for (let i = 0; i < step.length; i++) {
      const output = step.outputs[i];
      const state = this.states.get(output.requestId);
      if (state === undefined) continue;
      if (output.promptLogprobs !== null && state.index === 0) {
        this.addPromptLogprobs(state, output.promptLogprobs);
      }
      if (output.end > output.start) this.addTokens(state, output, step, now);
    }
    return this.stoppedReqIds;
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
      if (state.logprobs !== null && logprobs !== null) {
        const count = request.samplingParams.logprobs ?? 0;
        state.logprobs.push(this.positionLogprobs(logprobs, i, count));
      }
      // A stop token ends the text without being part of it.
      const isStopToken = engineReason === 'stop' && i === end - 1;
      if (!isStopToken) text += state.decode(sampledTokenIds[i]);
    }
    if (finishReason !== null) text += state.flush();
    if (state.stopStringFound) {
      if (finishReason === null) this.stoppedReqIds.push(requestId);
      finishReason = 'stop';
    }
    this.measure(state, numTokensBefore, now);
    state.text += text;
    parent.receiver.delta?.({
      index: state.index,
      text,
      tokenIds: state.tokenIds.slice(numTokensBefore),
      finishReason,
    });
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

  /** Ends requests that their caller gave up, and knows of; ids that are finished are ignored. */
  dropRequests(requestIds: readonly string[], reason: EndReason): void {
    for (const requestId of requestIds) {
      const state = this.states.get(requestId);
      if (state !== undefined) this.end(state, reason);
    }
  }

  /** Ends a request, and the other samples of its prompt, with an error. */
  failRequest({ requestId }: Request, error: Error): void {
    const parent = this.states.get(requestId)?.parent;
    if (parent === undefined) return;
    for (const state of this.states.values()) if (state.parent === parent) this.end(state, 'error');
    parent.fail(error);
  }

  /** Ends every request with an error. */
  failAll(error: Error, reason: EndReason): void {
    const parents = new Set(Array.from(this.states.values(), ({ parent }) => parent));
    for (const state of this.states.values()) this.end(state, reason);
    for (const parent of parents) parent.fail(error);
  }

  private end({ request, times, tokenIds }: RequestState, reason: EndReason): void {
    this.states.delete(request.requestId);
    this.metrics.finished(request, times, tokenIds.length, reason);
  }

  private addPromptLogprobs({ parent, request }: RequestState, logprobs: LogprobsLists): void {
    const count = request.samplingParams.promptLogprobs ?? 0;
    for (let row = 0; row < logprobs.ranks.length; row++) {
      parent.addPromptLogprobs(this.positionLogprobs(logprobs, row, count));
    }
  }

  /** A row as a Map: its own token and the `count` likeliest. */
  private positionLogprobs(lists: LogprobsLists, row: number, count: number): PositionLogprobs {
    const position: PositionLogprobs = new Map();
    const first = row * lists.width;
    const last = first + Math.min(count, lists.width - 1);
    for (let i = first; i <= last; i++) {
      const tokenId = lists.tokenIds[i];
      position.set(tokenId, {
        logprob: lists.logprobs[i],
        rank: i === first ? lists.ranks[row] : i - first,
        decodedToken: this.tokenizer === null ? null : this.tokenizer.idToToken(tokenId),
      });
    }
    return position;
  }
}
