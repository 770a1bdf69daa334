/**
 * Text in, text out: a checkpoint's tokenizer.json, the files beside it that tell of special tokens, and its
 * chat template. Hugging Face's own library encodes and decodes, on a thread of the tokenizer's; the
 * JavaScript thread has a table of the tokens, for the text of outputs as they grow.
 */
import path from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { z } from 'zod';
import { parseFields, show } from '../config/schema';
import { CheckpointError, InvalidRequestError, NotSupportedError } from '../errors';
import { checkMessages, type ChatMessage, type ChatTemplateOptions } from './chatMessages';
import { ChatTemplates } from './chatTemplates';
import { IncrementalDetokenizer } from './detokenizer';
import { type LengthBound, minNumTokens } from './lengthBound';
import { readSpecialTokens } from './specialTokens';
import { StreamDecoder } from './streamDecoder';
import { ThreadClient } from './threadClient';
import type { LoadedTokenizer } from './threadMessages';
import { TokenTable } from './tokenTable';
import { protectTexts } from './userText';
import { Vocabulary } from './vocabulary';

export interface EncodeOptions {
  /** Put the special tokens that the model wants around the text; default true. */
  addSpecialTokens?: boolean;
  /** Encode special tokens that are written in the text as the text they are; default false. */
  splitSpecialTokens?: boolean;
}

export interface DecodeOptions {
  /** Leave special tokens out; default true. */
  skipSpecialTokens?: boolean;
}

export interface LoadOptions {
  /** A chat template's text, or the name of one of the checkpoint's; default: the checkpoint's. */
  chatTemplate?: string;
}

export interface ApplyChatTemplateOptions extends ChatTemplateOptions {
  /** A template of one's own, or the name of one of the checkpoint's. */
  chatTemplate?: string | null;
  /** Put the special tokens that the model wants around the rendered text as well; default false. */
  addSpecialTokens?: boolean;
  /** Encode special tokens that are written in what is not the assistant's as text; default false. */
  splitSpecialTokens?: boolean;
}

/** Ends the threads of tokenizers that nothing refers to any more, and that were not closed. */
const forgotten = new FinalizationRegistry((thread: ThreadClient) => thread.closeWhenIdle());

/** An id that is no token's. */
const NO_TOKEN = -1;
const MAX_INT32 = 0x7fffffff;

/** Ids that are copied in one turn of the event loop. */
const SLICE = 2 ** 15;

export class Tokenizer {
  /** Above all ids. The model's own vocabulary may be larger, padded. */
  readonly vocabSize: number;
  readonly bosTokenId: number | null;
  readonly eosTokenId: number | null;
  /** The ids of the tokens that have a name, by transformers' name: bos_token, eos_token, ... */
  readonly specialTokenIds: Readonly<Record<string, number | undefined>>;
  /** What each token stands for. */
  readonly tokens: TokenTable;
  private readonly bound: LengthBound | null;
  /** What `idToToken` found, by id. */
  private readonly texts: (string | undefined)[];
  private specialTextsFound: readonly string[] | undefined;

  private constructor(
    private readonly thread: ThreadClient,
    { vocabulary, decoder, specialTokenIds, bound }: LoadedTokenizer,
    private readonly chatTemplates: ChatTemplates,
    /** The tokens that have a name, by that name: what chat templates know them by. */
    readonly specialTokens: Readonly<Record<string, string>>,
  ) {
    this.tokens = new TokenTable(new Vocabulary(vocabulary), new StreamDecoder(decoder));
    this.vocabSize = this.tokens.vocabulary.size;
    this.texts = new Array<undefined>(this.vocabSize);
    this.specialTokenIds = specialTokenIds;
    this.bosTokenId = specialTokenIds.bos_token ?? null;
    this.eosTokenId = specialTokenIds.eos_token ?? null;
    this.bound = bound;
    forgotten.register(this, thread, this);
  }

  /**
   * Reads `folder`, on a thread of its own, which `close` ends; it does not keep the process. Rejects with
   * CheckpointError: a file is missing, is damaged, or is refused by Hugging Face's library; with
   * AddonUnavailableError where that library cannot be loaded; with ConfigError for a chatTemplate that does
   * not compile.
   */
  static async load(folder: string, { chatTemplate }: LoadOptions = {}): Promise<Tokenizer> {
    const { config, tokens } = await readSpecialTokens(folder);
    const chatTemplates = await ChatTemplates.load(folder, config.chat_template, chatTemplate);
    const named = Object.entries(tokens.named).map(([name, { content }]) => [name, content]);
    const file = path.join(folder, 'tokenizer.json');
    const thread = new ThreadClient();
    try {
      const loaded = await thread.request('load', { file, config: tokens });
      const specialTokens = Object.fromEntries(named) as Record<string, string>;
      return new Tokenizer(thread, loaded, chatTemplates, specialTokens);
    } catch (error) {
      await thread.close();
      if (error instanceof NotSupportedError) throw new CheckpointError(file, error.message);
      throw error;
    }
  }

  /** Whether `tokenId` marks something (a turn, an end) rather than being text. */
  isSpecial(tokenId: number): boolean {
    return this.tokens.isSpecial(tokenId);
  }

  /** `text` as [numTokens] ids. Rejects with InvalidRequestError: it is no text. */
  async encode(text: string, options: EncodeOptions = {}): Promise<number[]> {
    checkText('text', text);
    return plain(await this.thread.request('encode', { text, ...encodeSettings(options) }));
  }

  /** `encode` of each text. */
  async encodeBatch(texts: readonly string[], options: EncodeOptions = {}): Promise<number[][]> {
    if (!Array.isArray(texts)) {
      throw new InvalidRequestError(`texts is ${show(texts)}; it must be a list of strings`);
    }
    texts.forEach((text: unknown, i) => checkText(`texts[${i}]`, text));
    const input = { texts, ...encodeSettings(options) };
    const lists: number[][] = [];
    for (const ids of await this.thread.request('encodeBatch', input)) lists.push(await plain(ids));
    return lists;
  }

  /**
   * A lower bound of the number of tokens that `encode` makes of `text`, special tokens not counted, without
   * encoding: a prompt that cannot fit is refused by it. 0 where the tokenizer allows no bound.
   */
  minNumTokens(text: string): number {
    return minNumTokens(text, this.bound);
  }

  /** The text of `tokenIds`; ids without a token add nothing. */
  async decode(tokenIds: Iterable<number>, options: DecodeOptions = {}): Promise<string> {
    const skipSpecialTokens = skipsSpecialTokens(options);
    const ids = checkTokenIds(tokenIds);
    if (!this.tokens.decoder.isSafe) {
      const decoder = this.incrementalDecoder({ skipSpecialTokens });
      return decoder.append(ids) + decoder.finish();
    }
    return this.thread.request('decode', { tokenIds: ids, skipSpecialTokens }, [
      ids.buffer as ArrayBuffer,
    ]);
  }

  /**
   * Decodes tokens that come one by one, synchronously: with the rest that `finish` gives, what it gives is what
   * `decode` makes of them all.
   */
  incrementalDecoder(options: DecodeOptions = {}): IncrementalDetokenizer {
    return new IncrementalDetokenizer(this, skipsSpecialTokens(options), { continues: false });
  }

  /** What `tokenIds` add to a text that went before: unlike at its beginning, their first space is kept. */
  continuation(tokenIds: Iterable<number>): string {
    const detokenizer = new IncrementalDetokenizer(this, false);
    return detokenizer.append(tokenIds) + detokenizer.finish();
  }

  /** The continuation by one token; bytes that are only part of a character are U+FFFD. Looked up. */
  idToToken(tokenId: number): string {
    if (!this.tokens.has(tokenId)) return '';
    return (this.texts[tokenId] ??= this.continuation([tokenId]));
  }

  /**
   * What `tokenId` adds to a text that ends with `previousTokenIds`, of which a few will do: a character that
   * it makes whole, too. A character that it leaves unfinished is U+FFFD.
   */
  textAfter(previousTokenIds: Iterable<number>, tokenId: number): string {
    const detokenizer = new IncrementalDetokenizer(this, false);
    detokenizer.append(previousTokenIds);
    return detokenizer.append([tokenId]) + detokenizer.finish();
  }

  /** The bytes that a token stands for inside a text, which may be only part of a character's. */
  tokenBytes(tokenId: number): Uint8Array {
    if (!this.tokens.has(tokenId)) return new Uint8Array(0);
    const bytes = this.tokens.decoder.bytes(this.tokens.piece(tokenId));
    return bytes ?? Buffer.from(this.idToToken(tokenId));
  }

  /**
   * A conversation as text, by the checkpoint's own template or by the one that `options` names; with the
   * opening of the model's turn, unless that is declined or the last message is gone on with. Throws
   * InvalidRequestError: there is no template, or it refuses the messages; CheckpointError: the
   * checkpoint's does not compile.
   */
  renderChatTemplate(
    messages: readonly ChatMessage[],
    options: ApplyChatTemplateOptions = {},
  ): string {
    const { chatTemplate, tools, documents, continueFinalMessage, chatTemplateKwargs } = options;
    const addGenerationPrompt = options.addGenerationPrompt ?? !options.continueFinalMessage;
    const { specialTokens } = this;
    return this.chatTemplates.render(
      messages,
      {
        tools,
        documents,
        continueFinalMessage,
        chatTemplateKwargs,
        addGenerationPrompt,
        specialTokens,
      },
      chatTemplate,
    );
  }

  /**
   * The same as [numTokens] ids. The template has put the special tokens where they belong; with
   * splitSpecialTokens, those that stand in the messages (but the assistant's) and documents are text.
   * `check` may refuse the rendered text, by throwing, before it is encoded.
   */
  async applyChatTemplate(
    messages: readonly ChatMessage[],
    options: ApplyChatTemplateOptions = {},
    check: (rendered: string) => void = () => {},
  ): Promise<number[]> {
    const { addSpecialTokens = false, splitSpecialTokens = false, ...rest } = options;
    if (splitSpecialTokens) {
      const ids = await this.applyToPlainTexts(messages, rest, addSpecialTokens, check);
      if (ids !== null) return ids;
    }
    const rendered = this.renderChatTemplate(messages, rest);
    check(rendered);
    return this.encode(rendered, { addSpecialTokens });
  }

  /** Null when no text reads like a special token. */
  private async applyToPlainTexts(
    messages: readonly ChatMessage[],
    options: ApplyChatTemplateOptions,
    addSpecialTokens: boolean,
    check: (rendered: string) => void,
  ): Promise<number[] | null> {
    checkMessages(messages);
    const documents = options.documents ?? [];
    const isAssistant = (item: unknown) => (item as { role?: unknown }).role === 'assistant';
    const all = [...messages, ...documents] as Record<string, unknown>[];
    const plainTexts = protectTexts(all, this.specialTexts(), isAssistant);
    if (plainTexts === null) return null;
    if (addSpecialTokens) {
      throw new InvalidRequestError(
        'a chat takes either splitSpecialTokens or addSpecialTokens: its template has the special tokens',
      );
    }
    const [ownMessages, ownDocuments] = [
      plainTexts.value.slice(0, messages.length) as ChatMessage[],
      plainTexts.value.slice(messages.length),
    ];
    const rendered = this.renderChatTemplate(ownMessages, {
      ...options,
      documents: options.documents ? ownDocuments : options.documents,
    });
    const parts = plainTexts.split(rendered);
    check(parts.map(({ text }) => text).join(''));
    const encoded = await Promise.all(
      parts.map(({ text, isPlain }) =>
        this.encode(text, { addSpecialTokens: false, splitSpecialTokens: isPlain }),
      ),
    );
    return encoded.flat();
  }

  /** The special tokens as they are written. */
  private specialTexts(): readonly string[] {
    if (this.specialTextsFound === undefined) {
      const { vocabulary } = this.tokens;
      const found: string[] = [];
      for (let id = 0; id < this.vocabSize; id++) {
        if (vocabulary.isSpecial(id)) found.push(vocabulary.token(id));
      }
      this.specialTextsFound = found;
    }
    return this.specialTextsFound;
  }

  /** Ends the tokenizer's thread; calls that wait, or come later, reject with ShutdownError. Idempotent. */
  close(): Promise<void> {
    // The registry holds the thread, and so would the stack of its ShutdownError hold this object.
    forgotten.unregister(this);
    return this.thread.close();
  }
}

const flag = () => z.boolean().nullish().describe('true or false');
const encodeSchema = z.strictObject({ addSpecialTokens: flag(), splitSpecialTokens: flag() });
const decodeSchema = z.strictObject({ skipSpecialTokens: flag() });

/** An option that is null counts as missing. Throws InvalidRequestError. */
function encodeSettings(options: EncodeOptions | null) {
  const { addSpecialTokens, splitSpecialTokens } = parseFields(encodeSchema, options ?? {}, fail);
  return {
    addSpecialTokens: addSpecialTokens ?? true,
    splitSpecialTokens: splitSpecialTokens ?? false,
  };
}

function skipsSpecialTokens(options: DecodeOptions | null): boolean {
  return parseFields(decodeSchema, options ?? {}, fail).skipSpecialTokens ?? true;
}

function fail(message: string): InvalidRequestError {
  return new InvalidRequestError(`options: ${message}`);
}

/** As a list, a slice in each turn of the event loop. */
async function plain(ids: Int32Array): Promise<number[]> {
  const list: number[] = [];
  for (let start = 0; start < ids.length; start += SLICE) {
    if (start > 0) await setImmediate();
    const end = Math.min(start + SLICE, ids.length);
    for (let i = start; i < end; i++) list.push(ids[i]);
  }
  return list;
}

function checkText(name: string, text: unknown): void {
  if (typeof text === 'string') return;
  throw new InvalidRequestError(`${name} is ${show(text)}; it must be a string`);
}

function checkTokenIds(tokenIds: Iterable<number>): Int32Array {
  if (typeof (tokenIds as Partial<Iterable<number>> | null)?.[Symbol.iterator] !== 'function') {
    throw new InvalidRequestError(`tokenIds is ${show(tokenIds)}; it must be a list of integers`);
  }
  const ids: ArrayLike<number> =
    Array.isArray(tokenIds) || ArrayBuffer.isView(tokenIds)
      ? (tokenIds as unknown as ArrayLike<number>)
      : Array.from(tokenIds);
  const checked = new Int32Array(ids.length);
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i];
    if (!Number.isInteger(id)) {
      throw new InvalidRequestError(`token ${i} is ${show(id)}; it must be an integer`);
    }
    checked[i] = id >= 0 && id <= MAX_INT32 ? id : NO_TOKEN;
  }
  return checked;
}
