/**
 * The tokenizer in a GGUF file's metadata, as the text of a tokenizer.json. The tokenizer's thread reads
 * it, since its lists have an entry for each token.
 */
import { show } from '../../config/schema';
import { CheckpointError, UnsupportedModelError } from '../../errors';
import { type MetadataValue, readGgufHeader } from '../../model/gguf/header';
import { MetadataReader } from '../../model/gguf/metadata';
import type { AddedToken, AddedTokenJson, SpecialTokensConfig } from '../specialTokens';
import type { ChatTemplateFile } from '../threadMessages';
import { PRE_TOKENIZERS } from './preTokenizers';
import { mergesOf, partsOf, type Prefix } from './sentencePiece';

const PREFIX = 'tokenizer.';
const LISTS = ['tokens', 'token_type', 'scores', 'merges'].map((name) => `tokenizer.ggml.${name}`);
const TEMPLATE = 'tokenizer.chat_template';

/** Types of tokens. */
const NORMAL = 1;
const UNKNOWN = 2;
const CONTROL = 3;
const USER_DEFINED = 4;

/** transformers' names of tokens, by the name in keys of ids. */
const NAMES: Readonly<Record<string, string>> = {
  bos: 'bos_token',
  eos: 'eos_token',
  unknown: 'unk_token',
  seperator: 'sep_token',
  padding: 'pad_token',
  cls: 'cls_token',
  mask: 'mask_token',
};

const MODELS = ['gpt2', 'llama'];

/** Of SentencePiece, whose merges take time by the square of a token's length. */
const MAX_TOKEN_LENGTH = 1024;

/** Reads the chat templates: a default one, and others by name. Rejects with CheckpointError. */
export async function readGgufTemplates(file: string): Promise<ChatTemplateFile[]> {
  const { metadata } = await readGgufHeader(file, () => false, true);
  const templates: ChatTemplateFile[] = [];
  for (const [key, text] of metadata) {
    if (key !== TEMPLATE && !key.startsWith(`${TEMPLATE}.`)) continue;
    if (typeof text !== 'string') {
      throw new CheckpointError(
        file,
        `metadata ${show(key)} is ${show(text)}; it must be a string`,
      );
    }
    const name = key === TEMPLATE ? 'default' : key.slice(TEMPLATE.length + 1);
    templates.push({ name, file, text });
  }
  return templates;
}

/**
 * The tokenizer.json of the file, and its named tokens. Rejects with CheckpointError and
 * UnsupportedModelError, which name the key.
 */
export async function readGgufTokenizer(
  file: string,
): Promise<{ text: string; config: SpecialTokensConfig }> {
  const header = await readGgufHeader(file, (key) => LISTS.includes(key), true);
  return new GgufTokenizer(new MetadataReader(file, header.metadata)).read();
}

class GgufTokenizer {
  private readonly tokens: readonly string[];
  /** [numTokens] */
  private readonly types: readonly number[];

  constructor(private readonly metadata: MetadataReader) {
    this.tokens = this.list('tokens', 'string');
    const types = this.optionalList('token_type', 'number');
    this.types = types ?? this.tokens.map(() => NORMAL);
    this.requireLength('token_type', this.types);
  }

  read(): { text: string; config: SpecialTokensConfig } {
    const model = this.metadata.requiredText(`${PREFIX}ggml.model`);
    if (!MODELS.includes(model)) {
      throw new UnsupportedModelError(
        this.metadata.file,
        `metadata '${PREFIX}ggml.model' is ${show(model)}, which is not supported; supported: ` +
          MODELS.join(', '),
      );
    }
    const added = this.addedTokens();
    const json = {
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: added,
      ...(model === 'gpt2' ? this.byteLevel() : this.sentencePiece()),
    };
    return { text: JSON.stringify(json), config: this.namedTokens(added) };
  }

  private list<T extends 'string' | 'number'>(
    name: string,
    type: T,
  ): readonly { string: string; number: number }[T][] {
    const found = this.optionalList(name, type);
    if (found) return found;
    throw this.metadata.fail(`${PREFIX}ggml.${name}`, `a list of ${type}s`);
  }

  private optionalList<T extends 'string' | 'number'>(
    name: string,
    type: T,
  ): readonly { string: string; number: number }[T][] | null {
    const value: MetadataValue | undefined = this.metadata.metadata.get(`${PREFIX}ggml.${name}`);
    if (value === undefined) return null;
    if (Array.isArray(value) && value.every((each) => typeof each === type)) {
      return value as { string: string; number: number }[T][];
    }
    throw this.metadata.fail(`${PREFIX}ggml.${name}`, `a list of ${type}s`);
  }

  private requireLength(name: string, { length }: readonly unknown[]): void {
    if (length === this.tokens.length) return;
    throw new CheckpointError(
      this.metadata.file,
      `metadata '${PREFIX}ggml.${name}' has ${length} entries, but there are ${this.tokens.length} tokens`,
    );
  }

  private vocabulary(): Record<string, number> {
    // Without a prototype, in which __proto__ is a token as any other.
    const vocabulary = Object.create(null) as Record<string, number>;
    this.tokens.forEach((token, id) => (vocabulary[token] ??= id));
    return vocabulary;
  }

  /** Control tokens are special; tokens that a user defined are matched in a text too. */
  private addedTokens(): AddedTokenJson[] {
    const isPhi3 = this.metadata.text('general.architecture') === 'phi3';
    const isSentencePiece = this.metadata.text(`${PREFIX}ggml.model`) === 'llama';
    const notStripping = new Set(['<unk>', '<s>', '<|endoftext|>']);
    return this.tokens.flatMap((content, id) => {
      const type = this.types[id];
      const special = type === CONTROL || (type === UNKNOWN && isSentencePiece);
      if (content === '' || !(special || type === USER_DEFINED)) return [];
      return [
        {
          id,
          content,
          single_word: false,
          lstrip: false,
          // Phi-3's absorb white space after them, which no key says.
          rstrip: isPhi3 && isSentencePiece && !notStripping.has(content),
          normalized: false,
          special,
        },
      ];
    });
  }

  private namedTokens(added: readonly AddedTokenJson[]): SpecialTokensConfig {
    const named: Record<string, AddedToken> = {};
    for (const [key, name] of Object.entries(NAMES)) {
      const id = this.metadata.number(`${PREFIX}ggml.${key}_token_id`);
      const content = id === undefined ? undefined : this.tokens[id];
      if (!content) continue;
      const own = added.find((token) => token.content === content);
      named[name] = {
        content,
        special: true,
        singleWord: false,
        lstrip: false,
        rstrip: own?.rstrip ?? false,
        normalized: false,
      };
    }
    return { named, extra: [], added: [] };
  }

  private byteLevel() {
    const key = `${PREFIX}ggml.pre`;
    const name = this.metadata.text(key) ?? 'default';
    const pre = PRE_TOKENIZERS.get(name);
    if (!pre) {
      throw new UnsupportedModelError(
        this.metadata.file,
        `metadata '${key}' is ${show(name)}, which is not supported; supported: ` +
          `${[...PRE_TOKENIZERS.keys()].join(', ')}; set tokenizer to the folder of its tokenizer.json, or skipTokenizerInit to use token ids`,
      );
    }
    return {
      normalizer: pre.normalizer,
      pre_tokenizer: pre.pre_tokenizer,
      post_processor: this.template(pre.addsBos),
      decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
      model: {
        type: 'BPE',
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: pre.ignoreMerges,
        vocab: this.vocabulary(),
        merges: this.list('merges', 'string').map((pair) => this.pairOf(pair)),
      },
    };
  }

  /** Two tokens with a space between them; in a token a space is another character. */
  private pairOf(pair: string): [string, string] {
    const at = pair.indexOf(' ', 1);
    if (at > 0) return [pair.slice(0, at), pair.slice(at + 1)];
    throw new CheckpointError(
      this.metadata.file,
      `metadata '${PREFIX}ggml.merges' has ${show(pair)}; it must be two tokens with a space between`,
    );
  }

  private sentencePiece() {
    const scores = this.list('scores', 'number');
    this.requireLength('scores', scores);
    if (this.metadata.flag(`${PREFIX}ggml.remove_extra_whitespaces`) === true) {
      throw this.metadata.fail(`${PREFIX}ggml.remove_extra_whitespaces`, 'false');
    }
    const long = this.tokens.findIndex(({ length }) => length > MAX_TOKEN_LENGTH);
    if (long >= 0) {
      throw new CheckpointError(
        this.metadata.file,
        `metadata '${PREFIX}ggml.tokens' has at ${long} a token of ${this.tokens[long].length} ` +
          `characters; at most ${MAX_TOKEN_LENGTH} are possible`,
      );
    }
    const unknown = this.tokens.find((_, id) => this.types[id] === UNKNOWN) ?? null;
    return {
      ...partsOf(this.prefix()),
      post_processor: this.template(true),
      model: {
        type: 'BPE',
        dropout: null,
        unk_token: unknown,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: true,
        byte_fallback: true,
        ignore_merges: false,
        vocab: this.vocabulary(),
        merges: mergesOf(this.tokens, scores, this.types),
      },
    };
  }

  /**
   * Llama 2's and Phi-3's texts have a space before them after each special token, Mistral's only the
   * first. No key says it, so a model that does not say to be Llama counts as Mistral.
   */
  private prefix(): Prefix {
    if (this.metadata.flag(`${PREFIX}ggml.add_space_prefix`) === false) return 'never';
    const names = ['general.architecture', 'general.basename', 'general.name'].map((key) =>
      this.metadata.metadata.get(key),
    );
    const isLlama = names.slice(1).some((name) => typeof name === 'string' && /llama/i.test(name));
    return names[0] === 'phi3' || isLlama ? 'always' : 'first';
  }

  /** The tokens that are added around a text. */
  private template(addsBos: boolean) {
    const ids = {
      bos: (this.metadata.flag(`${PREFIX}ggml.add_bos_token`) ?? addsBos) && 'bos',
      eos: this.metadata.flag(`${PREFIX}ggml.add_eos_token`) === true && 'eos',
    };
    const special: Record<string, object> = {};
    const pieceOf = (name: string | false): object[] => {
      if (name === false) return [];
      const id = this.metadata.number(`${PREFIX}ggml.${name}_token_id`);
      const token = id === undefined ? undefined : this.tokens[id];
      if (id === undefined || !token) return [];
      special[token] = { id: token, ids: [id], tokens: [token] };
      return [{ SpecialToken: { id: token, type_id: 0 } }];
    };
    const single = [
      ...pieceOf(ids.bos),
      { Sequence: { id: 'A', type_id: 0 } },
      ...pieceOf(ids.eos),
    ];
    if (single.length === 1) return null;
    return {
      type: 'TemplateProcessing',
      single,
      pair: [...single, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: special,
    };
  }
}
