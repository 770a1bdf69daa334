/** Encodes a call's texts, conversations and bad words in batches, off this thread. */
import { limitedBy } from '../config/limits';
import type { ChatPromptOptions } from '../config/requestOptions';
import type { SamplingParams } from '../config/samplingParams';
import { show } from '../config/schema';
import type { UniprocConfig } from '../config/uniprocConfig';
import { InvalidRequestError } from '../errors';
import type { ChatMessage } from '../tokenizer/chatMessages';
import type { ReplySettings } from '../reply/replyParser';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { RenderedPart } from '../tokenizer/userText';
import { type CallInputs, countsOf, type EngineInput } from './callInputs';
import type { Grammars } from './grammars';
import type { ChatPlan } from './chatPlan';
import { checkListBytes, listBytes } from './listMemory';
import { type Pieces, slicedWork } from '../slicedWork';
import { copyTokenIds } from './tokenIds';

/** A snapshot of a prompt: its token ids, else its messages or text. */
export interface PendingPrompt {
  samplingParams: SamplingParams;
  /** As text, when it was given as text. */
  prompt: string | null;
  promptTokenIds?: Int32Array;
  messages?: readonly ChatMessage[];
  /** Of a chat. */
  plan?: ChatPlan;
  /** Of a chat, once it is rendered. */
  reply?: ReplySettings;
}

/** Encoding options of a call. */
export type EncodeSettings = Omit<ChatPromptOptions, 'truncatePromptTokens'> & {
  /** Tokens kept of each prompt, from its end; null: all. */
  maxPromptTokens: number | null;
};

/** Batch limits: a batch's result returns to this thread in one piece. */
const MAX_BATCH_TEXTS = 128;
const MAX_BATCH_LENGTH = 2 ** 17;

/** Characters of a prompt's end in which a mark of reasoning is looked for. */
const MAX_TAIL = 256;

type TokenLists = readonly (readonly number[])[];

/** Cancels the encoding of an ended call; never reaches a caller. */
class EncodingCancelled extends Error {}

export class PromptEncoder {
  /** Encoded bad words; parameters are immutable. */
  private readonly badWords = new WeakMap<SamplingParams, TokenLists>();
  private hasWarnedOfTwoBos = false;
  private readonly stopTokenIds = new WeakMap<SamplingParams, readonly number[]>();

  constructor(
    private readonly config: UniprocConfig,
    /** Null: token id prompts only. */
    private readonly tokenizer: Tokenizer | null,
    /** Null without a tokenizer. */
    private readonly grammars: Grammars | null = null,
  ) {}

  /** Builds the call's inputs; `check` may throw to refuse them. */
  inputs(
    prompts: readonly PendingPrompt[],
    check: (prompts: readonly PendingPrompt[]) => void,
    settings: EncodeSettings,
  ): CallInputs {
    check(prompts);
    return {
      ...countsOf(prompts),
      encode: (isWanted) => {
        const isEncoded = prompts.every(
          ({ promptTokenIds, samplingParams }) =>
            promptTokenIds !== undefined &&
            this.badWordsTokenIds(samplingParams) !== null &&
            this.hasGrammar(samplingParams),
        );
        if (isEncoded) return prompts.map((prompt) => this.encoded(prompt));
        return this.encode(prompts, settings, isWanted);
      },
    };
  }

  private encoded(pending: PendingPrompt): EngineInput {
    const { samplingParams, prompt, promptTokenIds, reply } = pending;
    this.warnOfTwoBos(promptTokenIds as Int32Array);
    const input = {
      prompt,
      promptTokenIds: promptTokenIds as Int32Array,
      samplingParams,
      stopTokenIds: this.stopTokenIdsOf(samplingParams),
      badWordsTokenIds: this.badWordsTokenIds(samplingParams) ?? [],
      ...(reply !== undefined && { reply }),
    };
    checkListBytes(listBytes(input), this.config.limits);
    return input;
  }

  /** Warns once: a chat template writes its own BOS, and encoding may add another. */
  private warnOfTwoBos(promptTokenIds: Int32Array): void {
    const bosTokenId = this.tokenizer?.bosTokenId ?? null;
    if (this.hasWarnedOfTwoBos || bosTokenId === null) return;
    if (promptTokenIds[0] !== bosTokenId || promptTokenIds[1] !== bosTokenId) return;
    this.hasWarnedOfTwoBos = true;
    process.emitWarning(
      `a prompt begins with two BOS tokens (${bosTokenId}): if a chat template rendered it, pass ` +
        'addSpecialTokens: false to generate or stream',
      'UniprocWarning',
    );
  }

  private stopTokenIdsOf(params: SamplingParams): readonly number[] {
    let stopTokenIds = this.stopTokenIds.get(params);
    if (stopTokenIds === undefined) {
      const eosTokenIds = params.ignoreEos ? [] : this.config.model.transformer.eosTokenIds;
      stopTokenIds = Object.freeze([...new Set([...params.stopTokenIds, ...eosTokenIds])]);
      this.stopTokenIds.set(params, stopTokenIds);
    }
    return stopTokenIds;
  }

  /** Whether its grammar is compiled, if it has one. */
  private hasGrammar({ structuredOutputs }: SamplingParams): boolean {
    return structuredOutputs === null || this.grammars?.of(structuredOutputs) != null;
  }

  /** Null if not encoded yet. */
  private badWordsTokenIds(params: SamplingParams): TokenLists | null {
    const encoded = this.badWords.get(params);
    if (encoded !== undefined) return encoded;
    let numTokens = 0;
    for (const word of params.badWords) {
      if (typeof word === 'string') return null;
      numTokens += word.length;
    }
    this.checkBadWordsTokens(numTokens);
    this.badWords.set(params, params.badWords as TokenLists);
    return params.badWords as TokenLists;
  }

  private async encode(
    prompts: readonly PendingPrompt[],
    settings: EncodeSettings,
    isWanted: () => boolean,
  ): Promise<readonly EngineInput[]> {
    for (const { samplingParams, plan } of prompts) {
      if (this.badWordsTokenIds(samplingParams) === null) {
        await this.encodeBadWords(samplingParams, isWanted);
      }
      // A chat's grammar depends on its rendered text.
      if (plan === undefined) await this.compile(samplingParams, isWanted);
      if (!isWanted()) throw new EncodingCancelled();
    }
    const promptTokenIds = prompts.map((prompt) => prompt.promptTokenIds);
    /** Of chats: what their grammars and replies are. */
    const chats: Pick<PendingPrompt, 'samplingParams' | 'reply'>[] = [];
    for (const [start, end] of batches(prompts.map(lengthToEncode))) {
      const encoded = await this.encodeBatch(prompts, settings, [start, end], isWanted, chats);
      if (!isWanted()) throw new EncodingCancelled();
      const take = (i: number) =>
        this.take(prompts[start + i], start + i, last(encoded[i], settings.maxPromptTokens));
      await slicedWork.finish(
        (function* (): Pieces {
          for (let i = 0; i < encoded.length; i++) yield void (promptTokenIds[start + i] = take(i));
        })(),
      );
    }
    for (const { samplingParams } of chats) {
      await this.compile(samplingParams, isWanted);
      if (!isWanted()) throw new EncodingCancelled();
    }
    const inputs: EngineInput[] = [];
    const add = (prompt: PendingPrompt, i: number) =>
      inputs.push(this.encoded({ ...prompt, ...chats[i], promptTokenIds: promptTokenIds[i] }));
    await slicedWork.finish(
      (function* (): Pieces {
        for (const [i, prompt] of prompts.entries()) yield void add(prompt, i);
      })(),
    );
    return inputs;
  }

  private async compile(
    { structuredOutputs }: SamplingParams,
    isWanted: () => boolean,
  ): Promise<void> {
    if (structuredOutputs !== null) await this.grammars?.compile(structuredOutputs, isWanted);
  }

  /** The chat with the grammar and the reading of its reply; `tail`: the end of its rendered text. */
  private planned(
    { samplingParams, messages = [], plan }: PendingPrompt,
    tail: string,
  ): Pick<PendingPrompt, 'samplingParams' | 'reply'> {
    if (plan === undefined) return { samplingParams };
    const isOpened = plan.isOpened(messages, tail);
    const mayEnd = this.stopTokenIdsOf(samplingParams).length > 0;
    const params = plan.paramsOf(samplingParams, isOpened, mayEnd);
    const badWords = this.badWords.get(samplingParams);
    if (badWords !== undefined) this.badWords.set(params, badWords);
    return { samplingParams: params, reply: plan.replyOf(isOpened) };
  }

  /** The tokenizer's token ids of prompts `start` to `end` (exclusive). */
  private async encodeBatch(
    prompts: readonly PendingPrompt[],
    settings: EncodeSettings,
    [start, end]: readonly [number, number],
    isWanted: () => boolean,
    chats: Pick<PendingPrompt, 'samplingParams' | 'reply'>[],
  ): Promise<readonly Int32Array[]> {
    const tokenizer = this.requireTokenizer('a text prompt');
    const batch = prompts.slice(start, end);
    // A call has prompts or conversations, never both.
    if (batch.some(({ messages }) => messages !== undefined)) {
      return this.encodeChats(tokenizer, batch, settings, start, isWanted, chats);
    }
    const { addSpecialTokens, splitSpecialTokens } = settings;
    const texts = batch.flatMap(({ prompt, promptTokenIds }) =>
      promptTokenIds === undefined ? [prompt ?? ''] : [],
    );
    const encoded = await tokenizer.encodeArrays(texts, { addSpecialTokens, splitSpecialTokens });
    let next = 0;
    return batch.map(({ promptTokenIds }) => promptTokenIds ?? encoded[next++]);
  }

  /** `start` is the index of the first conversation in the call. */
  private async encodeChats(
    tokenizer: Tokenizer,
    batch: readonly PendingPrompt[],
    { maxPromptTokens, ...settings }: EncodeSettings,
    start: number,
    isWanted: () => boolean,
    chats: Pick<PendingPrompt, 'samplingParams' | 'reply'>[],
  ): Promise<readonly Int32Array[]> {
    const { limits, model } = this.config;
    const maxModelLen = maxPromptTokens === null ? model.maxModelLen : null;
    const rendered = await tokenizer.renderChats(
      batch.map(({ messages = [] }) => messages),
      { ...settings, limits, maxModelLen },
      isWanted,
    );
    if (!isWanted()) throw new EncodingCancelled();
    const texts = rendered.map((text, i) => {
      if (text instanceof Error) throw named(`conversation ${start + i}`, text);
      return text;
    });
    for (const [i, text] of texts.entries()) chats.push(this.planned(batch[i], tailOf(text)));
    return tokenizer.encodeRendered(texts, settings.addSpecialTokens ?? false);
  }

  private take(prompt: PendingPrompt, index: number, tokenIds: Int32Array): Int32Array {
    if (prompt.promptTokenIds !== undefined) return prompt.promptTokenIds;
    const { maxModelLen, transformer } = this.config.model;
    try {
      const { vocabSize } = transformer.spec;
      return copyTokenIds(tokenIds, maxModelLen, vocabSize) ?? tokenIds;
    } catch (error) {
      throw named(`${prompt.messages === undefined ? 'prompt' : 'conversation'} ${index}`, error);
    }
  }

  /**
   * Encodes bad words as token sequences. A word is often encoded differently at the start of a
   * text and after a space: both are banned, at any length (vLLM drops the second if its length
   * differs).
   */
  private async encodeBadWords(params: SamplingParams, isWanted: () => boolean): Promise<void> {
    const { badWords } = params;
    const tokenizer = this.requireTokenizer('a bad word as text');
    const spellings: (readonly number[])[] = [];
    let numTokens = 0;
    const add = (spelling: readonly number[]) => {
      numTokens += spelling.length;
      spellings.push(spelling);
    };
    for (const [start, end] of batches(badWords.map((word) => 2 * word.length))) {
      const words = badWords.slice(start, end);
      const texts = words.flatMap((word) => (typeof word === 'string' ? bothSpellings(word) : []));
      const encoded = await tokenizer.encodeBatch(texts, { addSpecialTokens: false });
      if (!isWanted()) throw new EncodingCancelled();
      let next = 0;
      for (const word of words) {
        if (typeof word !== 'string') add(word);
        else this.spell(word, encoded[next++], encoded[next++]).forEach(add);
      }
      this.checkBadWordsTokens(numTokens);
    }
    this.badWords.set(params, Object.freeze(spellings));
  }

  private spell(
    word: string,
    atStart: ArrayLike<number>,
    afterSpace: ArrayLike<number>,
  ): readonly (readonly number[])[] {
    if (atStart.length === 0 || afterSpace.length === 0) {
      throw new InvalidRequestError(
        `badWords has ${show(word)}, which encodes to no token; remove it`,
      );
    }
    const spellings = [Array.from(atStart), Array.from(afterSpace)];
    const { vocabSize } = this.config.model.transformer.spec;
    const outside = spellings.flat().find((tokenId) => tokenId >= vocabSize);
    if (outside !== undefined) {
      throw new InvalidRequestError(
        `badWords has ${show(word)}, which encodes to token ${outside}, but the model has ${vocabSize} tokens`,
      );
    }
    // The space is a token of its own, followed by the first spelling.
    const isCovered = spellings[0].every(
      (tokenId, i) => tokenId === spellings[1].at(i - spellings[0].length),
    );
    return isCovered ? [spellings[0]] : spellings;
  }

  private checkBadWordsTokens(numTokens: number): void {
    const { limits } = this.config;
    if (numTokens <= limits.maxBadWordsTokens) return;
    throw new InvalidRequestError(
      `badWords has ${numTokens} tokens or more; ${limitedBy(limits, 'maxBadWordsTokens')}`,
    );
  }

  private requireTokenizer(what: string): Tokenizer {
    if (this.tokenizer !== null) return this.tokenizer;
    throw new InvalidRequestError(
      `${what} needs a tokenizer, but the engine was created with skipTokenizerInit`,
    );
  }
}

/** The word at the start of a text, and after a space. */
function bothSpellings(word: string): string[] {
  const bare = word.trimStart();
  if (bare === '') {
    throw new InvalidRequestError(
      `badWords has ${show(word)}; a bad word must have a character other than whitespace`,
    );
  }
  return [bare, ` ${bare}`];
}

function lengthToEncode({ prompt, promptTokenIds, messages }: PendingPrompt): number {
  if (promptTokenIds !== undefined) return 0;
  if (messages === undefined) return prompt?.length ?? 0;
  let length = 0;
  for (const message of messages as readonly (Partial<ChatMessage> | null)[]) {
    const content: unknown = message?.content;
    const parts = Array.isArray(content) ? (content as { text?: unknown }[]) : [{ text: content }];
    for (const { text } of parts) if (typeof text === 'string') length += text.length;
  }
  return length;
}

/** Batch ranges within both limits; a single larger text is a batch of its own. */
function* batches(lengths: readonly number[]): Iterable<[start: number, end: number]> {
  let start = 0;
  let total = 0;
  for (const [i, length] of lengths.entries()) {
    const isFull = i - start === MAX_BATCH_TEXTS || total + length > MAX_BATCH_LENGTH;
    if (i > start && isFull) {
      yield [start, i];
      start = i;
      total = 0;
    }
    total += length;
  }
  if (start < lengths.length) yield [start, lengths.length];
}

/** The last characters of a rendered text. */
function tailOf(parts: readonly RenderedPart[]): string {
  let tail = '';
  for (let i = parts.length - 1; i >= 0 && tail.length < MAX_TAIL; i--) {
    tail = parts[i].text.slice(-MAX_TAIL) + tail;
  }
  return tail;
}

/** The last `count` tokens; null: all. */
function last(tokenIds: Int32Array, count: number | null): Int32Array {
  return count === null || tokenIds.length <= count ? tokenIds : tokenIds.slice(-count);
}

/** Prefixes an InvalidRequestError with its subject; returns other errors unchanged. */
function named(subject: string, error: unknown): unknown {
  if (!(error instanceof InvalidRequestError)) return error;
  return new InvalidRequestError(`${subject}: ${error.message}`, { cause: error.cause });
}
