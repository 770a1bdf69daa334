/**
 * Text in, text out: a checkpoint's tokenizer.json, the files beside it that tell of special tokens, and its
 * chat template. Hugging Face's own library encodes and decodes, on a thread of the tokenizer's; the
 * JavaScript thread has a table of the tokens, for the text of outputs as they grow.
 */
import path from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { show } from '../config/schema';
import { CheckpointError, InvalidRequestError, NotSupportedError } from '../errors';
import { type ChatMessage, ChatTemplate } from './chatTemplate';
import { IncrementalDetokenizer } from './detokenizer';
import { type LengthBound, minNumTokens } from './lengthBound';
import { readSpecialTokens } from './specialTokens';
import { StreamDecoder } from './streamDecoder';
import { ThreadClient } from './threadClient';
import type { LoadedTokenizer } from './threadMessages';
import { TokenTable } from './tokenTable';
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

  private constructor(
    private readonly thread: ThreadClient,
    { vocabulary, decoder, specialTokenIds, bound }: LoadedTokenizer,
    private readonly chatTemplate: ChatTemplate | null,
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
    forgotten.register(this, thread);
  }

  /**
   * Reads `folder`, on a thread of its own, which `close` ends; it does not keep the process. Rejects with
   * CheckpointError: a file is missing, is damaged, or is refused by Hugging Face's library; with
   * AddonUnavailableError where that library cannot be loaded.
   */
  static async load(folder: string): Promise<Tokenizer> {
    const { config, tokens } = await readSpecialTokens(folder);
    const chatTemplate = await ChatTemplate.load(folder, config.chat_template);
    const named = Object.entries(tokens.named).map(([name, { content }]) => [name, content]);
    const file = path.join(folder, 'tokenizer.json');
    const thread = new ThreadClient();
    try {
      const loaded = await thread.request('load', { file, config: tokens });
      const specialTokens = Object.fromEntries(named) as Record<string, string>;
      return new Tokenizer(thread, loaded, chatTemplate, specialTokens);
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
    texts.forEach((text, i) => checkText(`texts[${i}]`, text));
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
  async decode(
    tokenIds: Iterable<number>,
    { skipSpecialTokens = true }: DecodeOptions = {},
  ): Promise<string> {
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
  incrementalDecoder({ skipSpecialTokens = true }: DecodeOptions = {}): IncrementalDetokenizer {
    return new IncrementalDetokenizer(this, skipSpecialTokens, { continues: false });
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
   * A conversation as [numTokens] ids, by the checkpoint's own template; with the opening of the
   * model's turn unless told not to. Throws InvalidRequestError: there is no template, or it refuses
   * the messages.
   */
  async applyChatTemplate(
    messages: readonly ChatMessage[],
    { addGenerationPrompt = true } = {},
  ): Promise<number[]> {
    if (!this.chatTemplate) {
      throw new InvalidRequestError(
        'this model has no chat template (chat_template.jinja, or chat_template in ' +
          'tokenizer_config.json); write the prompt as text and use generate',
      );
    }
    const text = this.chatTemplate.render(messages, addGenerationPrompt, this.specialTokens);
    // The template has put the special tokens where they belong.
    return this.encode(text, { addSpecialTokens: false });
  }

  /** Ends the tokenizer's thread; calls that wait, or come later, reject with ShutdownError. Idempotent. */
  close(): Promise<void> {
    return this.thread.close();
  }
}

function encodeSettings({ addSpecialTokens = true, splitSpecialTokens = false }: EncodeOptions) {
  return { addSpecialTokens, splitSpecialTokens };
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
