/**
 * Validates a call's prompts, parameters and options against the model and the engine's limits. All
 * caller-owned data is read once, when the call is made; text is encoded later, off this thread.
 */
import { types } from 'node:util';
import { HARD_LIMITS, limitedBy, type RequestLimits } from '../config/limits';
import type { ChatPromptOptions, PromptOptions } from '../config/requestOptions';
import { SamplingParams } from '../config/samplingParams';
import { show } from '../config/schema';
import { DataSnapshot, readingError, readingOf, SnapshotError } from '../config/snapshot';
import type { UniprocConfig } from '../config/uniprocConfig';
import { InvalidRequestError } from '../errors';
import { checkChat, checkTemplateOptions, type ChatMessage } from '../tokenizer/chatMessages';
import { checkFits } from '../tokenizer/lengthBound';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { CallInputs } from './callInputs';
import { type EncodeSettings, type PendingPrompt, PromptEncoder } from './promptEncoder';
import { copyTokenIds, type TokenIds } from './tokenIds';

/** Text, or token ids with their text if wanted. */
export type Prompt =
  | string
  | { readonly prompt: string }
  | { readonly promptTokenIds: TokenIds; readonly prompt?: string };

type Params = SamplingParams | readonly SamplingParams[] | undefined;

export class InputProcessor {
  private readonly vocabSize: number;
  private readonly limits: Readonly<RequestLimits>;
  private readonly encoder: PromptEncoder;
  private readonly defaultParams: SamplingParams;
  /** Immutable parameters already validated against the model. */
  private readonly checked = new WeakSet<SamplingParams>();

  constructor(
    private readonly config: UniprocConfig,
    private readonly tokenizer: Tokenizer | null,
  ) {
    this.vocabSize = config.model.transformer.spec.vocabSize;
    this.limits = config.limits;
    this.encoder = new PromptEncoder(config, tokenizer);
    this.defaultParams = SamplingParams.fromDefaults(config.model.generation);
  }

  /**
   * A snapshot of a call's prompts, each with its parameters: one SamplingParams for all, a list
   * with one for each, or none for the model's defaults. Throws InvalidRequestError naming the
   * prompt; encoding may reject later.
   */
  takePrompts(prompts: readonly Prompt[], params: Params, options: PromptOptions = {}): CallInputs {
    const settings = this.settings(options);
    const paramsOf = readingOf('the call', () =>
      this.takeParams(this.count(prompts, 'prompts'), params),
    );
    return this.encoder.inputs(
      takeEach('prompt', paramsOf, (samplingParams, i) =>
        this.takePrompt(prompts[i], samplingParams, settings),
      ),
      (pending) => this.checkTotals(pending),
      settings,
    );
  }

  /** As `takePrompts`, for conversations, which the chat template renders. */
  takeChats(
    conversations: readonly (readonly ChatMessage[])[],
    params: Params,
    options: ChatPromptOptions = {},
  ): CallInputs {
    this.requireTokenizer('a conversation');
    const snapshot = new DataSnapshot(this.limits.maxMessageValues, HARD_LIMITS.messageDepth);
    const settings = this.settings(naming('options', () => this.copy(options, snapshot)));
    checkTemplateOptions(settings);
    const paramsOf = readingOf('the call', () =>
      this.takeParams(this.count(conversations, 'conversations'), params),
    );
    return this.encoder.inputs(
      takeEach('conversation', paramsOf, (samplingParams, i) => ({
        ...this.takeMessages(conversations[i], snapshot),
        samplingParams: this.checkParams(samplingParams),
      })),
      (pending) => this.checkTotals(pending),
      settings,
    );
  }

  private settings({ truncatePromptTokens = null, ...rest }: ChatPromptOptions): EncodeSettings {
    const max = this.config.model.maxModelLen - 1;
    if (truncatePromptTokens !== null && truncatePromptTokens > max) {
      throw new InvalidRequestError(
        `options: truncatePromptTokens is ${truncatePromptTokens}; a prompt may have ${max} tokens`,
      );
    }
    return { ...rest, maxPromptTokens: truncatePromptTokens === -1 ? max : truncatePromptTokens };
  }

  private count(list: readonly unknown[], what: string): number {
    const { length } = list;
    if (length <= this.limits.maxPromptsPerCall) return length;
    throw new InvalidRequestError(
      `the call has ${length} ${what}; ${limitedBy(this.limits, 'maxPromptsPerCall')}`,
    );
  }

  /** The parameters of each prompt, unvalidated. */
  private takeParams(numPrompts: number, params: Params): unknown[] {
    if (!Array.isArray(params)) {
      return new Array<unknown>(numPrompts).fill(params ?? this.defaultParams);
    }
    const { length } = params;
    if (length !== numPrompts) {
      throw new InvalidRequestError(
        `the call has ${numPrompts} prompts but ${length} sampling parameters; pass one SamplingParams for ` +
          'all prompts, or one for each',
      );
    }
    return Array.from({ length: numPrompts }, (_, i) => params[i] as unknown);
  }

  private takePrompt(
    prompt: Prompt,
    samplingParams: unknown,
    { maxPromptTokens }: EncodeSettings,
  ): PendingPrompt {
    const params = this.checkParams(samplingParams);
    const input = typeof prompt === 'string' ? { prompt } : prompt;
    const text = (input as { prompt?: unknown } | null | undefined)?.prompt ?? null;
    const given =
      (input as { promptTokenIds?: unknown } | null | undefined)?.promptTokenIds ?? null;
    if (text !== null && typeof text !== 'string') {
      throw new InvalidRequestError(`its text is ${show(text)}; it must be a string`);
    }
    if (text !== null && text.length > this.limits.maxPromptLength) {
      throw new InvalidRequestError(
        `its text has ${text.length} characters; ${limitedBy(this.limits, 'maxPromptLength')}`,
      );
    }
    if (given !== null) {
      const { maxModelLen } = this.config.model;
      const kept = lastTokens(given, maxPromptTokens);
      const promptTokenIds = copyTokenIds(kept, maxModelLen, this.vocabSize);
      if (promptTokenIds === null) throw notAPrompt(prompt);
      return { samplingParams: params, prompt: text, promptTokenIds };
    }
    if (text === null) throw notAPrompt(prompt);
    const tokenizer = this.requireTokenizer('a text prompt');
    if (maxPromptTokens === null) {
      checkFits(tokenizer.minNumTokens(text), this.config.model.maxModelLen);
    }
    return { samplingParams: params, prompt: text };
  }

  private takeMessages(
    conversation: readonly ChatMessage[],
    snapshot: DataSnapshot,
  ): { prompt: null; messages: readonly ChatMessage[] } {
    if (!Array.isArray(conversation)) throw notAConversation(conversation);
    const messages = this.copy(conversation, snapshot);
    checkChat(messages);
    return { prompt: null, messages };
  }

  private copy<T>(data: T, snapshot: DataSnapshot): T {
    try {
      return snapshot.copy(data) as T;
    } catch (error) {
      if (!(error instanceof SnapshotError)) throw error;
      const isTooMuch = snapshot.numValues > snapshot.maxValues;
      throw new InvalidRequestError(
        `it ${error.message}; ` +
          (isTooMuch ? limitedBy(this.limits, 'maxMessageValues') : 'messages are plain data'),
      );
    }
  }

  /** Checks the call's totals. */
  private checkTotals(prompts: readonly PendingPrompt[]): void {
    const { maxRequestsPerCall, maxLogprobsPerCall } = this.limits;
    const { maxModelLen } = this.config.model;
    let numRequests = 0;
    let numLogprobs = 0;
    for (const { samplingParams, prompt, promptTokenIds } of prompts) {
      const { n, maxTokens, logprobs, promptLogprobs } = samplingParams;
      numRequests += n;
      if (logprobs !== null) {
        numLogprobs += n * (logprobs + 1) * Math.min(maxTokens ?? maxModelLen, maxModelLen);
      }
      if (promptLogprobs !== null) {
        const length = promptTokenIds?.length ?? prompt?.length ?? maxModelLen;
        numLogprobs += (promptLogprobs + 1) * Math.min(length, maxModelLen);
      }
    }
    if (numRequests > maxRequestsPerCall) {
      throw new InvalidRequestError(
        `the call requests ${numRequests} outputs (the sum of n over its prompts); ` +
          limitedBy(this.limits, 'maxRequestsPerCall'),
      );
    }
    if (numLogprobs > maxLogprobsPerCall) {
      throw new InvalidRequestError(
        `the call requests up to ${numLogprobs} logprobs (positions times alternatives, over all ` +
          `outputs); ${limitedBy(this.limits, 'maxLogprobsPerCall')}`,
      );
    }
  }

  private checkParams(params: unknown): SamplingParams {
    if (!SamplingParams.isMade(params)) {
      throw new InvalidRequestError(
        `its sampling parameters are ${show(params)}; make them with new SamplingParams({ ... })`,
      );
    }
    if (this.checked.has(params)) return params;
    this.checkCounts(params);
    this.checkTokenIds('logitBias', params.logitBias.keys());
    this.checkTokenIds('allowedTokenIds', params.allowedTokenIds ?? []);
    this.checkTokenIds('stopTokenIds', params.stopTokenIds);
    for (const word of params.badWords) {
      if (typeof word !== 'string') this.checkTokenIds('badWords', word);
    }
    if (params.stop.length > 0) this.requireTokenizer('a stop string');
    this.checked.add(params);
    return params;
  }

  private checkCounts(params: SamplingParams): void {
    const { maxLogprobs } = this.config.model;
    for (const name of ['logprobs', 'promptLogprobs'] as const) {
      const count = params[name];
      if (count !== null && count > maxLogprobs) {
        throw new InvalidRequestError(`${name} is ${count}; maxLogprobs is ${maxLogprobs}`);
      }
    }
    if (params.n > this.limits.maxN) {
      throw new InvalidRequestError(`n is ${params.n}; ${limitedBy(this.limits, 'maxN')}`);
    }
    this.checkCount('stop', params.stop.length, 'maxStopStrings');
    this.checkCount('stopTokenIds', params.stopTokenIds.length, 'maxStopTokenIds');
    this.checkCount('badWords', params.badWords.length, 'maxBadWords');
    this.checkCount('logitBias', params.logitBias.size, 'maxLogitBiases');
    this.checkCount('allowedTokenIds', params.allowedTokenIds?.length ?? 0, 'maxAllowedTokenIds');
    this.checkLengths('stop', params.stop, 'maxStopStringLength');
    this.checkLengths('badWords', params.badWords, 'maxBadWordLength');
  }

  private checkLengths(
    name: string,
    entries: readonly (string | readonly number[])[],
    limit: keyof RequestLimits,
  ): void {
    // Names are built only for errors: there may be many entries.
    const index = entries.findIndex(({ length }) => length > this.limits[limit]);
    if (index < 0) return;
    const what = typeof entries[index] === 'string' ? 'characters' : 'tokens';
    this.checkCount(`${name}[${index}]`, entries[index].length, limit, what);
  }

  private checkCount(
    name: string,
    count: number,
    limit: keyof RequestLimits,
    what = 'entries',
  ): void {
    if (count <= this.limits[limit]) return;
    throw new InvalidRequestError(`${name} has ${count} ${what}; ${limitedBy(this.limits, limit)}`);
  }

  private checkTokenIds(name: string, tokenIds: Iterable<number>): void {
    for (const tokenId of tokenIds) {
      if (tokenId < this.vocabSize) continue;
      throw new InvalidRequestError(
        `${name} has token ${tokenId}; the model's tokens are integers from 0 to ${this.vocabSize - 1}`,
      );
    }
  }

  private requireTokenizer(what: string): Tokenizer {
    if (this.tokenizer !== null) return this.tokenizer;
    throw new InvalidRequestError(
      `${what} needs a tokenizer, but the engine was created with skipTokenizerInit`,
    );
  }
}

/**
 * The last `count` token ids of a list; returned unchanged when `count` is null or `given` is no
 * list.
 */
function lastTokens(given: unknown, count: number | null): unknown {
  if (count === null) return given;
  if (Array.isArray(given)) return given.slice(-count);
  return types.isTypedArray(given) ? given.slice(-count) : given;
}

function notAConversation(messages: unknown): InvalidRequestError {
  return new InvalidRequestError(
    `it is ${show(messages)}; it must be a list of at least one { role, content }`,
  );
}

function notAPrompt(prompt: unknown): InvalidRequestError {
  return new InvalidRequestError(
    `it is ${show(prompt)}; a prompt is a string, { prompt } or { promptTokenIds }`,
  );
}

/** Maps `take` over the prompts' parameters; errors name the prompt. */
function takeEach<T>(
  what: string,
  params: readonly unknown[],
  take: (params: unknown, index: number) => T,
): T[] {
  return params.map((ofPrompt, i) => {
    try {
      return take(ofPrompt, i);
    } catch (error) {
      throw named(`${what} ${i}`, error);
    }
  });
}

/** As `readingOf`, but adds the subject to our own errors too. */
function naming<T>(subject: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw named(subject, error);
  }
}

function named(subject: string, error: unknown): InvalidRequestError {
  if (!(error instanceof InvalidRequestError)) return readingError(subject, error);
  return new InvalidRequestError(`${subject}: ${error.message}`, { cause: error.cause });
}
