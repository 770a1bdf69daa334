/** Output state of a prompt and its samples. */
import type { SamplingParams } from '../config/samplingParams';
import { IncrementalDetokenizer } from '../tokenizer/detokenizer';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { LogprobsLists } from '../contract/modelRunnerOutput';
import type { Call } from './call';
import { LogprobsDecoder } from './logprobs';
import { elapsed, RequestTimes } from './metrics';
import type { OutputReceiver } from './outputCollector';
import type {
  CompletionOutput,
  FinishReason,
  PositionLogprobs,
  RequestMetrics,
  RequestOutput,
  Usage,
} from './outputs';
import type { ReplySettings } from '../reply/replyParser';
import type { Request } from './request';
import { ReplyReader } from './replyReader';
import { StopStringMatcher } from './stopStrings';

/** A prompt whose `n` samples are separate requests (vLLM's ParentRequest). */
export class ParentRequest {
  private readonly outputs: CompletionOutput[] = [];
  /** One per prompt token so far, null for the first; null if not requested. */
  promptLogprobs: (PositionLogprobs | null)[] | null = null;
  private promptDecoder: LogprobsDecoder | null = null;
  private numUnfinished: number;
  /** Unfinished samples. */
  readonly samples = new Set<RequestState>();
  /** Samples that were unfinished when their call ended early. */
  readonly dropped: RequestState[] = [];
  /** The first sample's prefix cache hits: later samples find the first one's blocks. */
  numCachedTokens = 0;
  /** Tokens generated, over all samples. */
  numOutputTokens = 0;
  /** Tokens of reasoning, over all samples; null if the model does not reason. */
  numReasoningTokens: number | null = null;
  /** Of all samples: the first to be scheduled, and so on. */
  readonly times: RequestTimes;

  constructor(
    readonly requestId: string,
    /** As text, when it was given as text. */
    readonly prompt: string | null,
    readonly promptTokenIds: Int32Array,
    private readonly samplingParams: SamplingParams,
    readonly receiver: OutputReceiver,
    /** The prompt's call. */
    readonly call: Call,
    /** Samples expected; fewer than `n` if another rank has the call. */
    numSamples = samplingParams.n,
    /** When the call was made, by `performance.now()`. */
    arrival = performance.now(),
    /** How outputs are read as messages; undefined: they are texts alone. */
    readonly reply?: ReplySettings,
  ) {
    this.numUnfinished = numSamples;
    this.times = new RequestTimes(arrival);
    call.addUnfinished(this);
    this.resetPromptLogprobs();
  }

  /** Appends the logprobs of the next prompt positions. */
  addPromptLogprobs(lists: LogprobsLists, tokenizer: Tokenizer | null): void {
    const count = this.samplingParams.promptLogprobs;
    if (this.promptLogprobs === null || count === null) return;
    if (this.promptDecoder === null) {
      this.promptDecoder = new LogprobsDecoder(this.requestId, tokenizer);
      this.promptDecoder.skip(this.promptTokenIds[0]);
    }
    for (let row = 0; row < lists.ranks.length; row++) {
      this.promptLogprobs.push(this.promptDecoder.next(lists, row, count));
    }
  }

  /** Resets them before the prompt is recomputed. */
  resetPromptLogprobs(): void {
    this.promptLogprobs = this.samplingParams.promptLogprobs === null ? null : [null];
    this.promptDecoder = null;
  }

  /** Whether this rank may end it on its own. */
  get isRankLocal(): boolean {
    return this.call.isWatched || this.receiver.delta !== undefined;
  }

  /** Whether only one sample is unfinished. */
  get hasOneUnfinished(): boolean {
    return this.numUnfinished === 1;
  }

  /** Delivers the prompt's output once all samples are complete. */
  addOutput(output: CompletionOutput): void {
    this.outputs[output.index] = output;
    if (--this.numUnfinished > 0) return;
    this.call.removeUnfinished(this.requestId);
    this.call.promptDone();
    this.receiver.finished(this.output());
  }

  /** The output when its call ended early; unfinished samples with a token have the reason 'abort'. */
  partialOutput(): RequestOutput {
    for (const state of [...this.dropped, ...this.samples]) {
      if (state.tokenIds.length === 0) continue;
      state.text += state.flush();
      this.outputs[state.index] = state.completion('abort', null);
    }
    return this.output();
  }

  private output(): RequestOutput {
    return {
      requestId: this.requestId,
      prompt: this.prompt,
      promptTokenIds: plain(this.promptTokenIds),
      promptLogprobs: this.promptLogprobs,
      // Without holes: samples of an unfinished prompt that have not begun.
      outputs: this.outputs.flat(),
      numCachedTokens: this.numCachedTokens,
      metrics: this.metrics,
    };
  }

  get usage(): Usage {
    return {
      numPromptTokens: this.promptTokenIds.length,
      numCachedTokens: this.numCachedTokens,
      numOutputTokens: this.numOutputTokens,
      ...(this.numReasoningTokens !== null && { numReasoningTokens: this.numReasoningTokens }),
    };
  }

  get metrics(): RequestMetrics {
    const { arrival, scheduled, firstToken, lastToken } = this.times;
    return {
      arrivalTimeMs: performance.timeOrigin + arrival,
      queueTimeMs: elapsed(arrival, scheduled),
      timeToFirstTokenMs: elapsed(arrival, firstToken),
      timeToLastTokenMs: elapsed(arrival, lastToken),
    };
  }

  /** Never throws: the caller may have more receivers to notify. */
  fail(error: Error): void {
    this.call.end();
    try {
      this.receiver.failed(error);
    } catch (thrown) {
      process.emitWarning(`an output's receiver threw: ${String(thrown)}`, 'UniprocWarning');
    }
  }
}

/**
 * Copies to a plain array with a loop: Array.from iterates token by token, slow for long prompts.
 */
function plain(tokenIds: Int32Array): number[] {
  const list = new Array<number>(tokenIds.length);
  for (let i = 0; i < tokenIds.length; i++) list[i] = tokenIds[i];
  return list;
}

/** Output of one sample so far. */
export class RequestState {
  readonly tokenIds: number[] = [];
  text = '';
  /** Null until an embedding model has computed it. */
  embedding: Float32Array | null = null;
  readonly logprobs: PositionLogprobs[] | null;
  /** Sum of the logprobs of its tokens, if requested. */
  cumulativeLogprob = 0;
  private readonly logprobsDecoder: LogprobsDecoder | null;
  /** Created at the first token: a waiting request costs little. */
  private detokenizer: IncrementalDetokenizer | null = null;
  private readonly stopStrings: StopStringMatcher | null;
  /** Reads the text as a message, of a chat. */
  readonly reply: ReplyReader | null;

  constructor(
    readonly request: Request,
    readonly parent: ParentRequest,
    readonly index: number,
    readonly times: RequestTimes,
    private readonly tokenizer: Tokenizer | null,
  ) {
    const params = request.samplingParams;
    this.logprobs = params.logprobs === null ? null : [];
    this.logprobsDecoder =
      params.logprobs === null ? null : new LogprobsDecoder(request.requestId, tokenizer);
    const isRead = tokenizer !== null && params.detokenize && parent.reply !== undefined;
    this.reply = isRead ? new ReplyReader(parent.reply) : null;
    this.stopStrings =
      params.stop.length > 0
        ? new StopStringMatcher(params.stop, params.includeStopStrInOutput)
        : null;
  }

  /** The stop string that ended the output; null if none. */
  get stopString(): string | null {
    return this.stopStrings?.matched ?? null;
  }

  /** The output so far, as one that ended for `finishReason`. */
  completion(finishReason: FinishReason, stopReason: string | number | null): CompletionOutput {
    const { index, text, tokenIds, logprobs } = this;
    const cumulativeLogprob = logprobs === null ? null : this.cumulativeLogprob;
    const output = { index, text, tokenIds, finishReason, stopReason, logprobs, cumulativeLogprob };
    return {
      ...output,
      ...this.reply?.parts,
      ...(this.embedding === null ? null : { embedding: this.embedding }),
    };
  }

  /** Adds a token generated before this state existed; its text counts as delivered. */
  replay(tokenId: number): void {
    this.tokenIds.push(tokenId);
    this.logprobsDecoder?.skip(tokenId);
    this.text += this.decode(tokenId);
    this.reply?.take();
    this.reply?.takeNumReasoningTokens();
  }

  /** Appends the next token's logprobs, from a row of `lists`. */
  addLogprobs(lists: LogprobsLists, row: number): void {
    if (this.logprobs === null || this.logprobsDecoder === null) return;
    const count = this.request.samplingParams.logprobs ?? 0;
    this.logprobs.push(this.logprobsDecoder.next(lists, row, count));
    // The first of a row is the sampled token's.
    this.cumulativeLogprob += lists.logprobs[row * lists.width];
  }

  /** Stop strings, like stop tokens, are ignored in the first minTokens tokens. */
  private get mayStop(): boolean {
    return this.tokenIds.length > this.request.samplingParams.minTokens;
  }

  /** Text that the last token adds and that can be delivered now. */
  decode(tokenId: number): string {
    const { tokenizer, reply } = this;
    const { detokenize, skipSpecialTokens } = this.request.samplingParams;
    if (!detokenize || tokenizer === null) return '';
    const detokenizer = (this.detokenizer ??= new IncrementalDetokenizer(
      tokenizer,
      skipSpecialTokens,
    ));
    const isHidden = skipSpecialTokens && tokenizer.isSpecial(tokenId);
    const text = this.decodeWith(detokenizer, tokenizer, tokenId, isHidden);
    if (isHidden) {
      reply?.hide(tokenizer.tokens.vocabulary.token(tokenId), text.length + this.heldLength);
    }
    reply?.push(text);
    return text;
  }

  /** Decoded text that is not delivered yet. */
  private get heldLength(): number {
    return (this.stopStrings?.numHeld ?? 0) + (this.detokenizer?.heldText.length ?? 0);
  }

  private decodeWith(
    detokenizer: IncrementalDetokenizer,
    tokenizer: Tokenizer,
    tokenId: number,
    isHidden: boolean,
  ): string {
    const { stopStrings } = this;
    if (stopStrings === null) return detokenizer.append([tokenId]);
    if (isHidden) return stopStrings.pushHidden(tokenizer.idToToken(tokenId), this.mayStop);
    const text = stopStrings.push(detokenizer.append([tokenId]), this.mayStop);
    // Held-back text is final if the output ends here.
    if (
      !this.mayStop ||
      stopStrings.matched !== null ||
      !stopStrings.wouldMatch(detokenizer.heldText)
    ) {
      return text;
    }
    return text + stopStrings.push(detokenizer.finish());
  }

  /** Returns the held-back text once the output has ended; '' at later calls. */
  flush(): string {
    const rest = this.flushText();
    this.reply?.finish(rest);
    return rest;
  }

  private flushText(): string {
    if (this.detokenizer === null || this.stopString !== null) return '';
    const rest = this.detokenizer.finish();
    if (this.stopStrings === null) return rest;
    return this.stopStrings.push(rest, this.mayStop) + this.stopStrings.flush();
  }
}
