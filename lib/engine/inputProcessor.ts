/**
 * Validates a call's prompts, parameters and options against the model and the engine's limits. All
 * caller-owned data is read once, when the call is made; text is encoded later, off this thread.
 */
import { types } from 'node:util';
import { HARD_LIMITS, limitedBy, type RequestLimits } from '../config/limits';
import type { ChatPromptOptions, PromptOptions } from '../config/requestOptions';
import { replyFields } from '../config/replyOptions';
import { show } from '../config/schema';
import { DataSnapshot, readingError, readingOf, SnapshotError } from '../config/snapshot';
import type { UniprocConfig } from '../config/uniprocConfig';
import { InvalidRequestError } from '../errors';
import { checkChat, checkTemplateOptions, type ChatMessage } from '../tokenizer/chatMessages';
import { checkFits } from '../tokenizer/lengthBound';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { ParserNames } from '../reply/replyFormat';
import type { CallInputs } from './callInputs';
import { type CallParams, ParamsReader, tokenizerMissing } from './callParams';
import { ChatPlan } from './chatPlan';
import type { Grammars } from './grammars';
import { type EncodeSettings, type PendingPrompt, PromptEncoder } from './promptEncoder';
import { copyTokenIds, type TokenIds } from './tokenIds';

/** Text, or token ids, with their text if wanted. */
export type Prompt =
  | string
  | TokenIds
  | { readonly prompt: string }
  | { readonly promptTokenIds: TokenIds; readonly prompt?: string };

export class InputProcessor {
  private readonly vocabSize: number;
  private readonly limits: Readonly<RequestLimits>;
  private readonly encoder: PromptEncoder;
  private readonly params: ParamsReader;

  constructor(
    private readonly config: UniprocConfig,
    private readonly tokenizer: Tokenizer | null,
    grammars: Grammars | null = null,
    /** Of replies, for chats that name none. */
    private readonly parsers: ParserNames = {},
  ) {
    this.vocabSize = config.model.transformer.spec.vocabSize;
    this.limits = config.limits;
    this.encoder = new PromptEncoder(config, tokenizer, grammars);
    this.params = new ParamsReader(config, tokenizer !== null);
  }

  /**
   * A snapshot of a call's prompts, each with its parameters: one SamplingParams for all, a list
   * with one for each, or none for the model's defaults. Throws InvalidRequestError naming the
   * prompt; encoding may reject later.
   */
  takePrompts(
    prompts: readonly Prompt[],
    params: CallParams,
    options: PromptOptions = {},
  ): CallInputs {
    const settings = this.settings(options);
    const numPrompts = this.count(prompts, 'prompts');
    const paramsOf = readingOf('the call', () => this.params.take(params, numPrompts, false));
    return this.encoder.inputs(
      takeEach('prompt', numPrompts, (i) => ({
        samplingParams: paramsOf(i),
        ...this.takePrompt(prompts[i], settings),
      })),
      (pending) => this.checkTotals(pending),
      settings,
    );
  }

  /** As `takePrompts`, for conversations, which the chat template renders. */
  takeChats(
    conversations: readonly (readonly ChatMessage[])[],
    params: CallParams,
    options: ChatPromptOptions = {},
  ): CallInputs {
    const tokenizer = this.requireTokenizer('a conversation');
    const snapshot = new DataSnapshot(this.limits.maxMessageValues, HARD_LIMITS.messageDepth);
    const copied = naming('options', () => this.copy(options, snapshot));
    checkTemplateOptions(copied);
    const plan = new ChatPlan(tokenizer, copied, this.parsers);
    const settings = this.settings(withoutReply({ ...copied, ...plan.templateOptions }));
    const numPrompts = this.count(conversations, 'conversations');
    const paramsOf = readingOf('the call', () => this.params.take(params, numPrompts, true));
    return this.encoder.inputs(
      takeEach('conversation', numPrompts, (i) => ({
        ...this.takeMessages(conversations[i], snapshot),
        samplingParams: paramsOf(i),
        plan,
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
    const { length } = readingOf('the call', () => ({ length: list.length }));
    if (length <= this.limits.maxPromptsPerCall) return length;
    throw new InvalidRequestError(
      `the call has ${length} ${what}; ${limitedBy(this.limits, 'maxPromptsPerCall')}`,
    );
  }

  private takePrompt(
    prompt: Prompt,
    { maxPromptTokens }: EncodeSettings,
  ): Omit<PendingPrompt, 'samplingParams'> {
    const { text, given } = partsOf(prompt);
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
      return { prompt: text, promptTokenIds };
    }
    if (text === null) throw notAPrompt(prompt);
    const tokenizer = this.requireTokenizer('a text prompt');
    if (maxPromptTokens === null) {
      checkFits(tokenizer.minNumTokens(text), this.config.model.maxModelLen);
    }
    return { prompt: text };
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

  private requireTokenizer(what: string): Tokenizer {
    if (this.tokenizer !== null) return this.tokenizer;
    throw tokenizerMissing(what);
  }
}

/** The options of rendering. */
function withoutReply(options: ChatPromptOptions): ChatPromptOptions {
  const entries = Object.entries(options).filter(([name]) => !(name in replyFields));
  return Object.fromEntries(entries);
}

/** The conversations of a call: one, or a list. */
export function asConversations(
  messages: readonly ChatMessage[] | readonly (readonly ChatMessage[])[],
): readonly (readonly ChatMessage[])[] {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new InvalidRequestError(
      `messages is ${show(messages)}; it must be a list of messages or a list of conversations`,
    );
  }
  return Array.isArray(messages[0])
    ? (messages as readonly (readonly ChatMessage[])[])
    : [messages as readonly ChatMessage[]];
}

/**
 * The prompts of a call: one, or a list. A list that starts with a number is one prompt's token ids; an
 * empty one is no prompts (as in vLLM).
 */
export function asPrompts(prompts: Prompt | readonly Prompt[]): readonly Prompt[] {
  if (!Array.isArray(prompts)) return [prompts as Prompt];
  const list = prompts as readonly (Prompt | number | bigint)[];
  const isTokenIds = typeof list[0] === 'number' || typeof list[0] === 'bigint';
  return isTokenIds ? [prompts as TokenIds] : (prompts as readonly Prompt[]);
}

/** The text and the token ids that a prompt has, unchecked. */
function partsOf(prompt: unknown): { text: unknown; given: unknown } {
  if (typeof prompt === 'string') return { text: prompt, given: null };
  if (Buffer.isBuffer(prompt)) {
    throw new InvalidRequestError(
      'it is a Buffer, which holds bytes; pass buffer.toString() for text, or { promptTokenIds } for ' +
        'token ids of a byte each',
    );
  }
  if (Array.isArray(prompt) || types.isTypedArray(prompt)) return { text: null, given: prompt };
  const { prompt: text, promptTokenIds } = (prompt ?? {}) as Record<string, unknown>;
  return { text: text ?? null, given: promptTokenIds ?? null };
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
    `it is ${show(prompt)}; a prompt is a string, a list of token ids, { prompt } or { promptTokenIds }`,
  );
}

/** Calls `take` for each index below `count`; errors name the prompt. */
function takeEach<T>(what: string, count: number, take: (index: number) => T): T[] {
  return Array.from({ length: count }, (_, i) => {
    try {
      return take(i);
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
