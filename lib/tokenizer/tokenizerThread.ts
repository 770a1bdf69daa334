/**
 * The thread of a Tokenizer: it loads tokenizer.json into Hugging Face's library, which parses it in one go,
 * and answers what the JavaScript thread asks for. The library encodes and decodes on libuv's pool;
 * of that no more than half is taken, so that the files and names of the process do not wait.
 */
import { createHash, randomUUID } from 'node:crypto';
import { parseJson, readText } from '../config/jsonFile';
import { ChatTemplateError, CheckpointError } from '../errors';
import { ChatTemplate } from './chatTemplate';
import {
  type HuggingFaceTokenizer,
  loadTokenizersLibrary,
  type TokenizersLibrary,
} from './huggingface';
import { lengthBound, type TokenizerJson } from './lengthBound';
import { type AddedToken, type AddedTokenJson, tokensToAdd } from './specialTokens';
import type { LoadedTokenizer, Question, TokenizerRequests as Requests } from './threadMessages';
import { type Reply, serve } from './threadServer';
import { packVocabulary } from './vocabulary';

/** Above all ids: a table of them all is made. */
const MAX_TOKEN_ID = 2 ** 24;

class LoadedFile {
  private splitting: HuggingFaceTokenizer | null = null;

  private constructor(
    private readonly file: string,
    private readonly library: TokenizersLibrary,
    private readonly tokenizer: HuggingFaceTokenizer,
    /** The file as it was when it was loaded. */
    private readonly bytes: Buffer,
    private readonly additions: readonly AddedToken[],
    private readonly specialTokens: ReadonlySet<string>,
  ) {}

  static async load({ file, config, sha256: expected }: Requests['load']['input']): Promise<{
    loaded: LoadedFile;
    info: LoadedTokenizer;
    transfer: ArrayBuffer[];
  }> {
    const library = loadTokenizersLibrary();
    const text = await readText(file);
    const sha256 = createHash('sha256').update(text).digest('hex');
    if (expected !== null && sha256 !== expected) {
      throw new CheckpointError(
        file,
        'it was changed since it was loaded, and the thread that had it has died; load the model anew',
      );
    }
    const json = parseJson(file, text) as TokenizerJson & { decoder?: unknown };
    const tokenizer = fromString(library, file, text);
    const present = (json.added_tokens ?? []) as AddedTokenJson[];
    const additions = tokensToAdd(config, present);
    addTokens(library, tokenizer, additions);

    const added = [...present.map(fromJson), ...additions];
    const specialTokens = new Set(
      added.filter(({ special }) => special).map(({ content }) => content),
    );
    const vocab = tokenizer.getVocab(true);
    const tokens = new Map<number, string>();
    for (const token in vocab) tokens.set(vocab[token], token);
    // The one token that no object of JavaScript's takes as a name.
    const proto = tokenizer.tokenToId('__proto__');
    if (proto !== null) tokens.set(proto, '__proto__');
    // An added token may have the id of one of the model's, and another form when it is decoded.
    for (const { content } of added) {
      const id = content === '' ? null : tokenizer.tokenToId(content);
      const token = id === null ? null : tokenizer.idToToken(id);
      if (id !== null && token !== null) tokens.set(id, token);
    }
    for (const [id, token] of tokens) {
      if (id < MAX_TOKEN_ID) continue;
      throw new CheckpointError(
        file,
        `the id of ${token} is ${id}; at most ${MAX_TOKEN_ID} can be`,
      );
    }
    const specialTokenIds: Record<string, number> = {};
    for (const [name, { content }] of Object.entries(config.named)) {
      const id = tokenizer.tokenToId(content);
      if (id !== null) specialTokenIds[name] = id;
    }
    const vocabulary = packVocabulary(tokens, specialTokens);
    const info: LoadedTokenizer = {
      vocabulary,
      decoder: json.decoder ?? null,
      specialTokenIds,
      bound: lengthBound(json, vocab, added),
      sha256,
    };
    const bytes = Buffer.from(text);
    const loaded = new LoadedFile(file, library, tokenizer, bytes, additions, specialTokens);
    const transfer = Object.values(vocabulary).map(({ buffer }) => buffer as ArrayBuffer);
    return { loaded, info, transfer };
  }

  async encode({ text, addSpecialTokens, splitSpecialTokens }: Requests['encode']['input']) {
    const tokenizer = splitSpecialTokens ? this.splitter() : this.tokenizer;
    try {
      const encoding = await tokenizer.encode(text, null, { addSpecialTokens });
      return Int32Array.from(encoding.getIds());
    } catch (cause) {
      throw new CheckpointError(
        this.file,
        `the text cannot be encoded: ${(cause as Error).message}`,
        { cause },
      );
    }
  }

  async decode({ tokenIds, skipSpecialTokens }: Requests['decode']['input']): Promise<string> {
    try {
      return await this.tokenizer.decode(Array.from(tokenIds), skipSpecialTokens);
    } catch (cause) {
      throw new CheckpointError(
        this.file,
        `the tokens cannot be decoded: ${(cause as Error).message}`,
        { cause },
      );
    }
  }

  /**
   * The tokenizer with its `encode_special_tokens` set, which the library's Node binding cannot: one
   * that does not know the special tokens. Their ids stay taken, by contents that no text has, so
   * that others keep theirs. Where another added token lies inside a special one's text, it is found
   * there; with `encode_special_tokens` it would not be.
   */
  private splitter(): HuggingFaceTokenizer {
    if (this.specialTokens.size === 0) return this.tokenizer;
    if (this.splitting !== null) return this.splitting;
    const json = JSON.parse(this.bytes.toString()) as TokenizerJson;
    const inVocabulary = this.library.Tokenizer.fromString(
      JSON.stringify({ ...json, added_tokens: [] }),
    );
    const hidden = randomUUID();
    const hide = <Token extends { content: string }>(token: Token): Token[] => {
      if (!this.specialTokens.has(token.content)) return [token];
      if (inVocabulary.tokenToId(token.content) !== null) return [];
      return [{ ...token, content: `${hidden} ${token.content}` }];
    };
    const present = (json.added_tokens ?? []) as AddedTokenJson[];
    const tokenizer = fromString(
      this.library,
      this.file,
      JSON.stringify({ ...json, added_tokens: present.flatMap(hide) }),
    );
    addTokens(this.library, tokenizer, this.additions.flatMap(hide));
    for (const { content } of [...present, ...this.additions]) {
      if (this.specialTokens.has(content)) continue;
      if (tokenizer.tokenToId(content) === this.tokenizer.tokenToId(content)) continue;
      throw new CheckpointError(
        this.file,
        `splitSpecialTokens: without the special tokens, ${content} has another id`,
      );
    }
    return (this.splitting = tokenizer);
  }
}

const fromJson = ({ single_word, ...token }: AddedTokenJson): AddedToken => ({
  content: token.content,
  special: token.special,
  singleWord: single_word,
  lstrip: token.lstrip,
  rstrip: token.rstrip,
  normalized: token.normalized,
});

/** As the library reads `text`, but nothing is cut off or filled up: transformers does that only when it is asked to. */
function fromString(library: TokenizersLibrary, file: string, text: string): HuggingFaceTokenizer {
  try {
    const tokenizer = library.Tokenizer.fromString(text);
    tokenizer.disableTruncation();
    tokenizer.disablePadding();
    return tokenizer;
  } catch (cause) {
    throw new CheckpointError(
      file,
      `Hugging Face's tokenizers refuses it: ${(cause as Error).message}`,
      { cause },
    );
  }
}

function addTokens(
  { AddedToken }: TokenizersLibrary,
  tokenizer: HuggingFaceTokenizer,
  tokens: readonly AddedToken[],
): void {
  if (tokens.length === 0) return;
  tokenizer.addAddedTokens(
    tokens.map(
      ({ content, special, singleWord, lstrip, rstrip, normalized }) =>
        new AddedToken(content, special, {
          singleWord,
          leftStrip: lstrip,
          rightStrip: rstrip,
          normalized,
        }),
    ),
  );
}

/** Runs no more than `limit` jobs at once; the others wait their turn. */
function limited(limit: number): <T>(job: () => Promise<T>) => Promise<T> {
  let numRunning = 0;
  const waiting: (() => void)[] = [];
  return async (job) => {
    if (numRunning === limit) await new Promise<void>((turn) => waiting.push(turn));
    else numRunning++;
    try {
      return await job();
    } finally {
      const next = waiting.shift();
      if (next === undefined) numRunning--;
      else next();
    }
  };
}

const poolSize = Number(process.env.UV_THREADPOOL_SIZE ?? 4) || 4;
const inTurn = limited(Math.max(1, Math.floor(poolSize / 2)));

/** Why `text` is no chat template; null: it is one. */
function faultOf(text: string): string | null {
  try {
    new ChatTemplate(text);
    return null;
  } catch (error) {
    if (!(error instanceof ChatTemplateError)) throw error;
    return error.message;
  }
}

/** What the thread was told to load. */
let loading: Promise<LoadedFile>;

async function answer(question: Question<Requests>): Promise<Reply> {
  switch (question.method) {
    case 'load': {
      const loads = LoadedFile.load(question.input);
      loading = loads.then(({ loaded }) => loaded);
      // Those who ask later hear of it.
      loading.catch(() => {});
      const { info, transfer } = await loads;
      return { value: info, transfer };
    }
    case 'encode': {
      const loaded = await loading;
      const ids = await inTurn(() => loaded.encode(question.input));
      return { value: ids, transfer: [ids.buffer] };
    }
    case 'encodeBatch': {
      const loaded = await loading;
      const { texts, ...options } = question.input;
      const all = await Promise.all(
        texts.map((text) => inTurn(() => loaded.encode({ text, ...options }))),
      );
      return { value: all, transfer: all.map(({ buffer }) => buffer) };
    }
    case 'decode': {
      const loaded = await loading;
      return { value: await inTurn(() => loaded.decode(question.input)) };
    }
    case 'checkTemplates':
      return { value: question.input.texts.map(faultOf) };
  }
}

serve<Requests>(answer);
