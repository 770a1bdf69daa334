/** Text in, text out: a checkpoint's tokenizer.json, tokenizer_config.json and chat template. */
import path from 'node:path';
import { z } from 'zod';
import { fileExists, readJsonObject } from '../config/jsonFile';
import { parseFields, show } from '../config/schema';
import { CheckpointError, InvalidRequestError } from '../errors';
import { type ChatMessage, ChatTemplate } from './chatTemplate';
import { HuggingFaceTokenizer } from './huggingface';
import { bytesOf } from './tokenBytes';

const token = z.union([z.string(), z.looseObject({ content: z.string() })]);
const tokenOrNull = () => token.nullish().describe('a string, an object with content, or null');

/** Tokens with a part to play, as tokenizer_config.json and chat templates call them. */
const TOKEN_NAMES = ['bos_token', 'eos_token', 'unk_token', 'pad_token'] as const;

const configSchema = z.looseObject({
  bos_token: tokenOrNull(),
  eos_token: tokenOrNull(),
  unk_token: tokenOrNull(),
  pad_token: tokenOrNull(),
  chat_template: z.unknown().optional(),
});

const contentOf = (value: z.output<typeof token>): string =>
  typeof value === 'string' ? value : value.content;

/** Decoders under which a token adds the same to a text wherever in it the token stands. */
const DECODERS = ['Sequence', 'ByteLevel', 'ByteFallback', 'Metaspace', 'Replace', 'Fuse', 'Strip'];

/** Throws for a decoder, or one inside it, that is not among DECODERS. */
function checkDecoder(file: string, decoder: unknown): void {
  if (decoder === undefined || decoder === null) return;
  const { type, decoders } = decoder as { type?: unknown; decoders?: unknown };
  if (typeof type !== 'string' || !DECODERS.includes(type)) {
    throw new CheckpointError(
      file,
      `its decoder is ${show(type)}; supported are ${DECODERS.join(', ')}`,
    );
  }
  if (Array.isArray(decoders)) for (const inner of decoders) checkDecoder(file, inner);
}

/** The keys that tokenizer.json may leave out. */
const EMPTY_TOKENIZER = {
  added_tokens: [],
  normalizer: null,
  pre_tokenizer: null,
  post_processor: null,
  decoder: null,
};

export class Tokenizer {
  /** Above all ids. The model's own vocabulary may be larger, padded. */
  readonly vocabSize: number;
  readonly bosTokenId: number | null;
  readonly eosTokenId: number | null;

  private readonly specialIds: ReadonlySet<number>;
  /** Plain tokens, and their text: what `continuation` goes on from. */
  private readonly contextIds: readonly number[];
  private readonly contextText: string;
  /** What `idToToken` found, by id. */
  private readonly texts: (string | undefined)[];

  private constructor(
    private readonly tokenizer: HuggingFaceTokenizer,
    private readonly chatTemplate: ChatTemplate | null,
    /** The tokens that have a name, by that name: bos_token, ... */
    private readonly namedTokens: Readonly<Record<string, string>>,
  ) {
    let vocabSize = 0;
    for (const id of tokenizer.get_vocab().values()) vocabSize = Math.max(vocabSize, id + 1);
    this.vocabSize = vocabSize;
    this.texts = new Array<undefined>(vocabSize);
    this.bosTokenId = tokenizer.token_to_id(namedTokens.bos_token) ?? null;
    this.eosTokenId = tokenizer.token_to_id(namedTokens.eos_token) ?? null;

    const specialIds = new Set<number>();
    for (const [id, { special }] of tokenizer.get_added_tokens_decoder()) {
      if (special) specialIds.add(id);
    }
    for (const content of Object.values(namedTokens)) {
      const id = tokenizer.token_to_id(content);
      if (id !== undefined) specialIds.add(id);
    }
    this.specialIds = specialIds;
    this.contextIds = tokenizer.encode('a', { add_special_tokens: false }).ids;
    this.contextText = this.decode(this.contextIds);
  }

  /** Reads `folder`. Throws CheckpointError: a file is missing, is damaged, or is none this library knows. */
  static async load(folder: string): Promise<Tokenizer> {
    const file = path.join(folder, 'tokenizer.json');
    const json = await readJsonObject(file);
    const configFile = path.join(folder, 'tokenizer_config.json');
    const config = parseFields(
      configSchema,
      (await fileExists(configFile)) ? await readJsonObject(configFile) : {},
      (message) => new CheckpointError(configFile, message),
    );
    const chatTemplate = await ChatTemplate.load(folder, config.chat_template);

    const namedTokens: Record<string, string> = {};
    for (const name of TOKEN_NAMES) {
      const value = config[name];
      if (value) namedTokens[name] = contentOf(value);
    }
    checkDecoder(file, json.decoder);
    try {
      const tokenizer = new HuggingFaceTokenizer({ ...EMPTY_TOKENIZER, ...json }, namedTokens);
      return new Tokenizer(tokenizer, chatTemplate, namedTokens);
    } catch (cause) {
      throw new CheckpointError(file, `no tokenizer: ${(cause as Error).message}`, { cause });
    }
  }

  /** Whether `tokenId` marks something (a turn, an end) rather than being text. */
  isSpecial(tokenId: number): boolean {
    return this.specialIds.has(tokenId);
  }

  /** `text` as [numTokens] ids, with the special tokens the model wants around it unless told not to. */
  encode(text: string, { addSpecialTokens = true } = {}): number[] {
    return this.tokenizer.encode(text, { add_special_tokens: addSpecialTokens }).ids;
  }

  /** The text of `tokenIds`; ids without a token add nothing. */
  decode(tokenIds: Iterable<number>, { skipSpecialTokens = true } = {}): string {
    const known: number[] = [];
    for (const id of tokenIds) {
      if (skipSpecialTokens && this.specialIds.has(id)) continue;
      if (this.tokenizer.id_to_token(id) !== undefined) known.push(id);
    }
    if (known.length === 0) return '';
    // Cleaning up would take spaces from the text that the model wrote, and could not be done in steps.
    return this.tokenizer.decode(known, { clean_up_tokenization_spaces: false });
  }

  /** What `tokenIds` add to a text that went before: unlike at its beginning, their first space is kept. */
  continuation(tokenIds: readonly number[]): string {
    const text = this.decode([...this.contextIds, ...tokenIds], { skipSpecialTokens: false });
    return text.slice(this.contextText.length);
  }

  /** The continuation by one token; bytes that are only part of a character are U+FFFD. Looked up. */
  idToToken(tokenId: number): string {
    if (tokenId >= this.vocabSize) return '';
    return (this.texts[tokenId] ??= this.continuation([tokenId]));
  }

  /** The bytes of a token that begins or ends inside a character; null for one of whole characters. */
  partialBytes(tokenId: number): number[] | null {
    const text = this.idToToken(tokenId);
    if (!text.includes('\ufffd')) return null;
    const bytes = bytesOf(this.tokenizer.id_to_token(tokenId) ?? '');
    // A token may be the character U+FFFD itself.
    return bytes !== null && Buffer.from(text).equals(Buffer.from(bytes)) ? null : bytes;
  }

  /**
   * A conversation as [numTokens] ids, by the checkpoint's own template; with the opening of the
   * model's turn unless told not to. Throws InvalidRequestError: there is no template, or it refuses
   * the messages.
   */
  applyChatTemplate(
    messages: readonly ChatMessage[],
    { addGenerationPrompt = true } = {},
  ): number[] {
    if (!this.chatTemplate) {
      throw new InvalidRequestError(
        'this model has no chat template (chat_template.jinja, or chat_template in ' +
          'tokenizer_config.json); write the prompt as text and use generate',
      );
    }
    const text = this.chatTemplate.render(messages, addGenerationPrompt, this.namedTokens);
    // The template has put the special tokens where they belong.
    return this.encode(text, { addSpecialTokens: false });
  }
}
