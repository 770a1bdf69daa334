/** A prompt and its samples, from their first token to what the caller receives. */
import type { SamplingParams } from '../config/samplingParams';
import { IncrementalDetokenizer } from '../tokenizer/detokenizer';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { LogprobsLists } from '../contract/modelRunnerOutput';
import type { Call } from './call';
import { LogprobsDecoder } from './logprobs';
import type { RequestTimes } from './metrics';
import type { OutputReceiver } from './outputCollector';
import type { CompletionOutput, PositionLogprobs } from './outputs';
import type { Request } from './request';
import { StopStringMatcher } from './stopStrings';

/** A prompt whose `n` samples run as requests of their own (vLLM's ParentRequest). */
export class ParentRequest {
  private readonly outputs: CompletionOutput[] = [];
  /** One for each prompt token so far, null for the first; null when not asked for. */
  promptLogprobs: (PositionLogprobs | null)[] | null = null;
  private promptDecoder: LogprobsDecoder | null = null;
  private numUnfinished: number;
  /** Those that have not ended. */
  readonly samples = new Set<RequestState>();

  constructor(
    readonly requestId: string,
    /** As text, when it was given as text. */
    readonly prompt: string | null,
    readonly promptTokenIds: Int32Array,
    private readonly samplingParams: SamplingParams,
    readonly receiver: OutputReceiver,
    /** The call that the prompt is of. */
    readonly call: Call,
    /** Samples that run in this process's name; fewer than `n` where another rank has the call. */
    numSamples = samplingParams.n,
  ) {
    this.numUnfinished = numSamples;
    this.forgetPromptLogprobs();
  }

  /** Of the next prompt positions. */
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

  /** They are about to be computed, from the first on. */
  forgetPromptLogprobs(): void {
    this.promptLogprobs = this.samplingParams.promptLogprobs === null ? null : [null];
    this.promptDecoder = null;
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
      promptTokenIds: plain(this.promptTokenIds),
      promptLogprobs: this.promptLogprobs,
      outputs: this.outputs,
    });
  }

  /** Never throws: others may have to be told, too. */
  fail(error: Error): void {
    this.call.end();
    try {
      this.receiver.failed(error);
    } catch (thrown) {
      process.emitWarning(`an output's receiver threw: ${String(thrown)}`, 'UniprocWarning');
    }
  }
}

/** A copy. A loop, since prompts are long and Array.from asks the iterator for each token. */
function plain(tokenIds: Int32Array): number[] {
  const list = new Array<number>(tokenIds.length);
  for (let i = 0; i < tokenIds.length; i++) list[i] = tokenIds[i];
  return list;
}

/** What one sample has generated so far. */
export class RequestState {
  readonly tokenIds: number[] = [];
  text = '';
  readonly logprobs: PositionLogprobs[] | null;
  private readonly logprobsDecoder: LogprobsDecoder | null;
  /** Made for its first token: a request that waits costs little. */
  private detokenizer: IncrementalDetokenizer | null = null;
  private readonly stopStrings: StopStringMatcher | null;

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
    this.stopStrings =
      params.stop.length > 0
        ? new StopStringMatcher(params.stop, params.includeStopStrInOutput)
        : null;
  }

  get stopStringFound(): boolean {
    return this.stopStrings?.matched === true;
  }

  /** A token that was generated before there was this state: its text counts as given out. */
  recall(tokenId: number): void {
    this.tokenIds.push(tokenId);
    this.logprobsDecoder?.skip(tokenId);
    this.text += this.decode(tokenId);
  }

  /** The logprobs of the next token: a row of `lists`. */
  addLogprobs(lists: LogprobsLists, row: number): void {
    if (this.logprobs === null || this.logprobsDecoder === null) return;
    const count = this.request.samplingParams.logprobs ?? 0;
    this.logprobs.push(this.logprobsDecoder.next(lists, row, count));
  }

  /** Like stop tokens, stop strings end the output only after its first minTokens tokens. */
  private get mayStop(): boolean {
    return this.tokenIds.length > this.request.samplingParams.minTokens;
  }

  /** The text that the latest of `tokenIds` adds, as far as it can be given out. */
  decode(tokenId: number): string {
    const { stopStrings, tokenizer } = this;
    const { detokenize, skipSpecialTokens } = this.request.samplingParams;
    if (!detokenize || tokenizer === null) return '';
    const detokenizer = (this.detokenizer ??= new IncrementalDetokenizer(
      tokenizer,
      skipSpecialTokens,
    ));
    if (stopStrings === null) return detokenizer.append([tokenId]);
    if (skipSpecialTokens && tokenizer.isSpecial(tokenId)) {
      return stopStrings.pushHidden(tokenizer.idToToken(tokenId), this.mayStop);
    }
    const text = stopStrings.push(detokenizer.append([tokenId]), this.mayStop);
    // What is held back is final where the output ends.
    if (!this.mayStop || stopStrings.matched || !stopStrings.wouldMatch(detokenizer.heldText)) {
      return text;
    }
    return text + stopStrings.push(detokenizer.finish());
  }

  /** No more tokens will come: the text that waited for them. */
  flush(): string {
    if (this.detokenizer === null || this.stopStringFound) return '';
    const rest = this.detokenizer.finish();
    if (this.stopStrings === null) return rest;
    return this.stopStrings.push(rest, this.mayStop) + this.stopStrings.flush();
  }
}
