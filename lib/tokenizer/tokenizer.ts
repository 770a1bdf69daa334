/**
 * The public tokenizer: a checkpoint's tokenizer.json, special tokens and chat templates. Hugging
 * Face's library encodes and decodes on the tokenizer's thread; the JavaScript thread has a token
 * table, to detokenize outputs incrementally.
 */
import { setImmediate } from 'node:timers/promises';
import { z } from 'zod';
import { parseFields, show } from '../config/schema';
import { CheckpointError, InvalidRequestError, NotSupportedError } from '../errors';
import type { ChatMessage, ChatTemplateOptions } from './chatMessages';
import { type ChatRenderer, createRenderer } from './chatRenderer';
import { snapshotOfChat } from './chatSnapshot';
import { checkTemplates } from './chatTemplateFiles';
import { IncrementalDetokenizer } from './detokenizer';
import { type LengthBound, minNumTokens } from './lengthBound';
import { StreamDecoder } from './streamDecoder';
import { errorOf, ThreadClient } from './threadClient';
import type {
  Conversation,
  LoadedTokenizer,
  RenderSettings,
  TemplateSetUp,
  TokenizerRequests,
} from './threadMessages';
import { readTokenizerFiles } from './tokenizerFiles';
import { TokenTable } from './tokenTable';
import type { RenderedPart } from './userText';
import { Vocabulary } from './vocabulary';

export interface EncodeOptions {
  /** Add the tokenizer's special tokens, such as BOS, to the text; default true. */
  addSpecialTokens?: boolean;
  /** Encode special tokens in the text as plain text; default false. */
  splitSpecialTokens?: boolean;
}

export interface DecodeOptions {
  /** Omit special tokens; default true. */
  skipSpecialTokens?: boolean;
}

export interface LoadOptions {
  /** A template's text, or the name of a template in the checkpoint; default: the checkpoint's. */
  chatTemplate?: string;
}

export interface ApplyChatTemplateOptions extends ChatTemplateOptions {
  /** A template's text, or the name of a template in the checkpoint. */
  chatTemplate?: string | null;
  /** Add the tokenizer's special tokens to the rendered text; default false. */
  addSpecialTokens?: boolean;
  /** Encode special tokens in documents and messages, except the assistant's, as text; default false. */
  splitSpecialTokens?: boolean;
}

/** Ends the threads of garbage-collected tokenizers that were not closed. */
const unclosedTokenizers = new FinalizationRegistry(
  (threads: readonly { closeWhenIdle(): void }[]): void => {
    for (const thread of threads) thread.closeWhenIdle();
  },
);

/** An id without a token. */
const NO_TOKEN = -1;
const MAX_INT32 = 0x7fffffff;

/** Ids copied per turn of the event loop. */
const SLICE = 2 ** 15;

/** Most rendered parts in one encoding request. */
const MAX_PARTS = 256;

export class Tokenizer {
  /** Largest token id + 1. The model's vocabulary may be padded to a larger size. */
  readonly vocabSize: number;
  readonly bosTokenId: number | null;
  readonly eosTokenId: number | null;
  /** Ids of named tokens by transformers' names: bos_token, eos_token, ... */
  readonly specialTokenIds: Readonly<Record<string, number | undefined>>;
  /** @internal */
  readonly tokens: TokenTable;
  private readonly bound: LengthBound | null;
  /** Cache of `idToToken`, by id. */
  private readonly texts: (string | undefined)[];
  private readonly renderer: ChatRenderer;
  /** Renders template texts of calls on another thread: a slow one delays only others of these. */
  private readonly callTemplateRenderer: ChatRenderer;
  private readonly templates: ReadonlyMap<string, string>;

  private constructor(
    private readonly thread: ThreadClient<TokenizerRequests>,
    { vocabulary, decoder, specialTokenIds, bound }: LoadedTokenizer,
    private readonly chatTemplates: Pick<TemplateSetUp, 'templates' | 'userTemplate'>,
    /** Named tokens by name, as chat templates refer to them. */
    readonly specialTokens: Readonly<Record<string, string>>,
  ) {
    this.tokens = new TokenTable(new Vocabulary(vocabulary), new StreamDecoder(decoder));
    this.vocabSize = this.tokens.vocabulary.size;
    this.texts = new Array<undefined>(this.vocabSize);
    this.specialTokenIds = specialTokenIds;
    this.bosTokenId = specialTokenIds.bos_token ?? null;
    this.eosTokenId = specialTokenIds.eos_token ?? null;
    this.bound = bound;
    const setUp = { ...chatTemplates, specialTokens, bound };
    this.renderer = createRenderer(this.tokens, setUp);
    this.callTemplateRenderer = createRenderer(this.tokens, setUp);
    this.templates = new Map(chatTemplates.templates.map(({ name, text }) => [name, text]));
    unclosedTokenizers.register(this, [thread, this.renderer, this.callTemplateRenderer], this);
  }

  /**
   * Loads `folder`, or a GGUF file, on a new thread, which `close` ends and which does not keep the
   * process alive. Rejects with CheckpointError if a file is missing, damaged, or rejected by Hugging Face's library;
   * with AddonUnavailableError if that library cannot be loaded; with ConfigError if chatTemplate does
   * not compile.
   */
  static async load(folder: string, { chatTemplate }: LoadOptions = {}): Promise<Tokenizer> {
    const { file, templates, tokens } = await readTokenizerFiles(folder);
    const userTemplate = chatTemplate ?? null;
    const thread = new ThreadClient<TokenizerRequests>('tokenizerThread', 'uniproc tokenizer');
    try {
      await checkTemplates(thread, templates, userTemplate);
      const loaded = await thread.request('load', { file, config: tokens, sha256: null });
      thread.setInitialRequest('load', { file, config: tokens, sha256: loaded.sha256 });
      return new Tokenizer(thread, loaded, { templates, userTemplate }, loaded.specialTokens);
    } catch (error) {
      await thread.close();
      if (error instanceof NotSupportedError) throw new CheckpointError(file, error.message);
      throw error;
    }
  }

  /** Whether `tokenId` is a special token, such as BOS or the end of a turn. */
  isSpecial(tokenId: number): boolean {
    return this.tokens.isSpecial(tokenId);
  }

  /** Encodes `text` as [numTokens] ids. Rejects with InvalidRequestError if it is not a string. */
  async encode(text: string, options: EncodeOptions = {}): Promise<number[]> {
    checkText('text', text);
    return toNumbers(await this.thread.request('encode', { text, ...encodeSettings(options) }));
  }

  /** Encodes each text. */
  async encodeBatch(texts: readonly string[], options: EncodeOptions = {}): Promise<number[][]> {
    const lists: number[][] = [];
    for (const ids of await this.encodeArrays(texts, options)) lists.push(await toNumbers(ids));
    return lists;
  }

  /** `encodeBatch` without converting the thread's arrays: constant time on the calling thread. */
  async encodeArrays(texts: readonly string[], options: EncodeOptions = {}): Promise<Int32Array[]> {
    if (!Array.isArray(texts)) {
      throw new InvalidRequestError(`texts is ${show(texts)}; it must be a list of strings`);
    }
    texts.forEach((text: unknown, i) => checkText(`texts[${i}]`, text));
    return this.thread.request('encodeBatch', { texts, ...encodeSettings(options) });
  }

  /**
   * A lower bound of the number of tokens of `text`, without added special tokens, computed without
   * encoding. It serves to reject overlong prompts. 0 if the tokenizer allows no bound.
   */
  minNumTokens(text: string): number {
    return minNumTokens(text, this.bound);
  }

  /** Decodes `tokenIds`; ids without a token are ignored. */
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
   * A synchronous decoder for one token at a time. All its returned text, including that of `finish`,
   * equals `decode` of all tokens.
   */
  incrementalDecoder(options: DecodeOptions = {}): IncrementalDetokenizer {
    return new IncrementalDetokenizer(this, skipsSpecialTokens(options), { continues: false });
  }

  /** The text that `tokenIds` append to previous text: a leading space is kept. */
  continuation(tokenIds: Iterable<number>): string {
    const detokenizer = new IncrementalDetokenizer(this, false);
    return detokenizer.append(tokenIds) + detokenizer.finish();
  }

  /** The text that one token appends, cached; an incomplete character is U+FFFD. */
  idToToken(tokenId: number): string {
    if (!this.tokens.has(tokenId)) return '';
    return (this.texts[tokenId] ??= this.continuation([tokenId]));
  }

  /**
   * The text that `tokenId` appends after `previousTokenIds` (the last few suffice), including a
   * character that it completes. A character that it leaves incomplete is U+FFFD.
   */
  textAfter(previousTokenIds: Iterable<number>, tokenId: number): string {
    const detokenizer = new IncrementalDetokenizer(this, false);
    detokenizer.append(previousTokenIds);
    return detokenizer.append([tokenId]) + detokenizer.finish();
  }

  /** The token's bytes within a text, which may be part of a character. */
  tokenBytes(tokenId: number): Uint8Array {
    if (!this.tokens.has(tokenId)) return new Uint8Array(0);
    const bytes = this.tokens.decoder.bytes(this.tokens.piece(tokenId));
    return bytes ?? Buffer.from(this.idToToken(tokenId));
  }

  /**
   * Renders a conversation with the checkpoint's template or `options.chatTemplate`. addGenerationPrompt
   * defaults to true, unless continueFinalMessage is set. The template runs on a separate thread, on a
   * copy of the messages made at the call. Rejects with InvalidRequestError if there is no template,
   * or it rejects the messages, or takes too much time or memory; with CheckpointError if the
   * checkpoint's template does not compile.
   */
  async renderChatTemplate(
    messages: readonly ChatMessage[],
    options: ApplyChatTemplateOptions = {},
  ): Promise<string> {
    const chat = snapshotOfChat(messages, options);
    const settings = { ...chat.settings, addSpecialTokens: false, splitSpecialTokens: false };
    return textOf(await this.renderOne(chat.conversation, settings));
  }

  /**
   * Renders a conversation and encodes it as [numTokens] ids. The template adds the special tokens; with
   * splitSpecialTokens, those in documents and messages, except the assistant's, are encoded as text.
   */
  async applyChatTemplate(
    messages: readonly ChatMessage[],
    options: ApplyChatTemplateOptions = {},
  ): Promise<number[]> {
    const { conversation, settings } = snapshotOfChat(messages, options);
    const parts = await this.renderOne(conversation, settings);
    const [ids] = await this.encodeRendered([parts], settings.addSpecialTokens ?? false);
    return toNumbers(ids);
  }

  /**
   * The text of the template that renders a chat, as `ChatTemplates` chooses it; null if there is none.
   * @internal
   */
  chatTemplateText(chosen: string | null, hasTools: boolean): string | null {
    const { templates } = this;
    const name = chosen ?? this.chatTemplates.userTemplate;
    if (name !== null) return templates.get(name) ?? name;
    const forTools = hasTools ? templates.get('tool_use') : undefined;
    return forTools ?? templates.get('default') ?? null;
  }

  private async renderOne(
    conversation: Conversation,
    settings: RenderSettings,
  ): Promise<readonly RenderedPart[]> {
    const [rendered] = await this.renderChats([conversation], settings);
    if (rendered instanceof Error) throw rendered;
    return rendered;
  }

  /**
   * Renders conversations, which must not change, to their parts until one fails, whose error is the
   * last result, or `isWanted` returns false.
   * @internal
   */
  async renderChats(
    conversations: readonly Conversation[],
    settings: RenderSettings,
    isWanted?: () => boolean,
  ): Promise<(readonly RenderedPart[] | Error)[]> {
    const { chatTemplate = null } = settings;
    const isText = chatTemplate !== null && !this.templates.has(chatTemplate);
    const renderer = isText ? this.callTemplateRenderer : this.renderer;
    const all = await renderer.render(conversations, settings, isWanted);
    return all.map((one) => ('parts' in one ? one.parts : errorOf(one.failure)));
  }

  /**
   * Encodes each rendered text as [numTokens] ids.
   * @internal
   */
  async encodeRendered(
    texts: readonly (readonly RenderedPart[])[],
    addSpecialTokens: boolean,
  ): Promise<Int32Array[]> {
    const parts = texts.flat();
    const encoded = new Map<RenderedPart, Int32Array>();
    for (const isPlain of [false, true]) {
      const alike = parts.filter((part) => part.isPlain === isPlain);
      for (let start = 0; start < alike.length; start += MAX_PARTS) {
        const batch = alike.slice(start, start + MAX_PARTS);
        const lists = await this.encodeArrays(
          batch.map(({ text }) => text),
          { addSpecialTokens, splitSpecialTokens: isPlain },
        );
        batch.forEach((part, i) => encoded.set(part, lists[i]));
      }
    }
    return texts.map((text) => concatenate(text.map((part) => encoded.get(part) as Int32Array)));
  }

  /** Ends the tokenizer's threads; pending and later calls reject with ShutdownError. Idempotent. */
  async close(): Promise<void> {
    // The registry holds the threads, and the stack of their ShutdownError would retain this object.
    unclosedTokenizers.unregister(this);
    const { thread, renderer, callTemplateRenderer } = this;
    await Promise.all([thread.close(), renderer.close(), callTemplateRenderer.close()]);
  }
}

function concatenate(arrays: readonly Int32Array[]): Int32Array {
  if (arrays.length === 1) return arrays[0];
  const all = new Int32Array(arrays.reduce((sum, { length }) => sum + length, 0));
  let start = 0;
  for (const array of arrays) {
    all.set(array, start);
    start += array.length;
  }
  return all;
}

function textOf(parts: readonly RenderedPart[]): string {
  return parts.map(({ text }) => text).join('');
}

const flag = () => z.boolean().nullish().describe('true or false');
const encodeSchema = z.strictObject({ addSpecialTokens: flag(), splitSpecialTokens: flag() });
const decodeSchema = z.strictObject({ skipSpecialTokens: flag() });

/** A null option counts as missing. Throws InvalidRequestError. */
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

/** Copies ids to a list, one slice per turn of the event loop. */
async function toNumbers(ids: Int32Array): Promise<number[]> {
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
