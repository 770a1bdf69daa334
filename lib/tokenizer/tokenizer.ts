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
import type { ChatMessage, ChatTemplateOptions } from './chatMessages';
import { type ChatRenderer, rendererOf } from './chatRenderer';
import { snapshotOfChat } from './chatSnapshot';
import { checkTemplates, readChatTemplates } from './chatTemplateFiles';
import { IncrementalDetokenizer } from './detokenizer';
import { type LengthBound, minNumTokens } from './lengthBound';
import { readSpecialTokens } from './specialTokens';
import { StreamDecoder } from './streamDecoder';
import { errorOf, ThreadClient } from './threadClient';
import type {
  Conversation,
  LoadedTokenizer,
  RenderSettings,
  TemplateSetUp,
  TokenizerRequests,
} from './threadMessages';
import { TokenTable } from './tokenTable';
import type { RenderedPart } from './userText';
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
const forgotten = new FinalizationRegistry(
  (threads: readonly { closeWhenIdle(): void }[]): void => {
    for (const thread of threads) thread.closeWhenIdle();
  },
);

/** An id that is no token's. */
const NO_TOKEN = -1;
const MAX_INT32 = 0x7fffffff;

/** Ids that are copied in one turn of the event loop. */
const SLICE = 2 ** 15;

/** Parts of rendered texts that are encoded at once. */
const MAX_PARTS = 256;

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
  private readonly renderer: ChatRenderer;
  /** Of templates that calls bring, on another thread: one that takes long holds up only others of these. */
  private readonly ownRenderer: ChatRenderer;
  private readonly templateNames: ReadonlySet<string>;

  private constructor(
    private readonly thread: ThreadClient<TokenizerRequests>,
    { vocabulary, decoder, specialTokenIds, bound }: LoadedTokenizer,
    templates: Pick<TemplateSetUp, 'templates' | 'own'>,
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
    const setUp = { ...templates, specialTokens, bound };
    this.renderer = rendererOf(this.tokens, setUp);
    this.ownRenderer = rendererOf(this.tokens, setUp);
    this.templateNames = new Set(templates.templates.map(({ name }) => name));
    forgotten.register(this, [thread, this.renderer, this.ownRenderer], this);
  }

  /**
   * Reads `folder`, on a thread of its own, which `close` ends; it does not keep the process. Rejects with
   * CheckpointError: a file is missing, is damaged, or is refused by Hugging Face's library; with
   * AddonUnavailableError where that library cannot be loaded; with ConfigError for a chatTemplate that does
   * not compile.
   */
  static async load(folder: string, { chatTemplate }: LoadOptions = {}): Promise<Tokenizer> {
    const { config, tokens } = await readSpecialTokens(folder);
    const templates = await readChatTemplates(folder, config.chat_template);
    const own = chatTemplate ?? null;
    const named = Object.entries(tokens.named).map(([name, { content }]) => [name, content]);
    const file = path.join(folder, 'tokenizer.json');
    const thread = new ThreadClient<TokenizerRequests>('tokenizerThread', 'uniproc tokenizer');
    try {
      await checkTemplates(thread, templates, own);
      const loaded = await thread.request('load', { file, config: tokens, sha256: null });
      thread.openWith('load', { file, config: tokens, sha256: loaded.sha256 });
      const specialTokens = Object.fromEntries(named) as Record<string, string>;
      return new Tokenizer(thread, loaded, { templates, own }, specialTokens);
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
    const lists: number[][] = [];
    for (const ids of await this.encodeArrays(texts, options)) lists.push(await plain(ids));
    return lists;
  }

  /** The same, as the thread gives them: nothing on this one grows with the texts. */
  async encodeArrays(texts: readonly string[], options: EncodeOptions = {}): Promise<Int32Array[]> {
    if (!Array.isArray(texts)) {
      throw new InvalidRequestError(`texts is ${show(texts)}; it must be a list of strings`);
    }
    texts.forEach((text: unknown, i) => checkText(`texts[${i}]`, text));
    return this.thread.request('encodeBatch', { texts, ...encodeSettings(options) });
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
   * opening of the model's turn, unless that is declined or the last message is gone on with. The template
   * runs on a thread of its own, on a copy of the messages made at the call. Rejects with
   * InvalidRequestError: there is no template, or it refuses the messages, or takes too much time or
   * memory; with CheckpointError: the checkpoint's does not compile.
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
   * The same as [numTokens] ids. The template has put the special tokens where they belong; with
   * splitSpecialTokens, those that stand in the messages (but the assistant's) and documents are text.
   */
  async applyChatTemplate(
    messages: readonly ChatMessage[],
    options: ApplyChatTemplateOptions = {},
  ): Promise<number[]> {
    const { conversation, settings } = snapshotOfChat(messages, options);
    const parts = await this.renderOne(conversation, settings);
    const [ids] = await this.encodeRendered([parts], settings.addSpecialTokens ?? false);
    return plain(ids);
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
   * Conversations, which nobody changes any more, as text: each one's parts, or, of the last, the error that
   * ended it; fewer when `isWanted` became false.
   */
  async renderChats(
    conversations: readonly Conversation[],
    settings: RenderSettings,
    isWanted?: () => boolean,
  ): Promise<(readonly RenderedPart[] | Error)[]> {
    const { chatTemplate = null } = settings;
    const isOwn = chatTemplate !== null && !this.templateNames.has(chatTemplate);
    const renderer = isOwn ? this.ownRenderer : this.renderer;
    const all = await renderer.render(conversations, settings, isWanted);
    return all.map((one) => ('parts' in one ? one.parts : errorOf(one.failure)));
  }

  /** Rendered texts as [numTokens] ids each. */
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
    return texts.map((text) => joined(text.map((part) => encoded.get(part) as Int32Array)));
  }

  /** Ends the tokenizer's threads; calls that wait, or come later, reject with ShutdownError. Idempotent. */
  async close(): Promise<void> {
    // The registry holds the threads, and so would the stack of their ShutdownError hold this object.
    forgotten.unregister(this);
    const { thread, renderer, ownRenderer } = this;
    await Promise.all([thread.close(), renderer.close(), ownRenderer.close()]);
  }
}

function joined(arrays: readonly Int32Array[]): Int32Array {
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
