/** Output state of a prompt and its samples. */
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

/** A prompt whose `n` samples are separate requests (vLLM's ParentRequest). */
export class ParentRequest {
  private readonly outputs: CompletionOutput[] = [];
  /** One per prompt token so far, null for the first; null if not requested. */
  promptLogprobs: (PositionLogprobs | null)[] | null = null;
  private promptDecoder: LogprobsDecoder | null = null;
  private numUnfinished: number;
  /** Unfinished samples. */
  readonly samples = new Set<RequestState>();

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
  ) {
    this.numUnfinished = numSamples;
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

  /** Delivers the prompt's output once all samples are complete. */
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
  readonly logprobs: PositionLogprobs[] | null;
  private readonly logprobsDecoder: LogprobsDecoder | null;
  /** Created at the first token: a waiting request costs little. */
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

  /** Adds a token generated before this state existed; its text counts as delivered. */
  replay(tokenId: number): void {
    this.tokenIds.push(tokenId);
    this.logprobsDecoder?.skip(tokenId);
    this.text += this.decode(tokenId);
  }

  /** Appends the next token's logprobs, from a row of `lists`. */
  addLogprobs(lists: LogprobsLists, row: number): void {
    if (this.logprobs === null || this.logprobsDecoder === null) return;
    const count = this.request.samplingParams.logprobs ?? 0;
    this.logprobs.push(this.logprobsDecoder.next(lists, row, count));
  }

  /** Stop strings, like stop tokens, are ignored in the first minTokens tokens. */
  private get mayStop(): boolean {
    return this.tokenIds.length > this.request.samplingParams.minTokens;
  }

  /** Text that the last token adds and that can be delivered now. */
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
    // Held-back text is final if the output ends here.
    if (!this.mayStop || stopStrings.matched || !stopStrings.wouldMatch(detokenizer.heldText)) {
      return text;
    }
    return text + stopStrings.push(detokenizer.finish());
  }

  /** Returns the held-back text once the output is complete. */
  flush(): string {
    if (this.detokenizer === null || this.stopStringFound) return '';
    const rest = this.detokenizer.finish();
    if (this.stopStrings === null) return rest;
    return this.stopStrings.push(rest, this.mayStop) + this.stopStrings.flush();
  }
}
