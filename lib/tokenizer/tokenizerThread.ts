/**
 * The thread of a Tokenizer: it loads tokenizer.json into Hugging Face's library, which parses it in one go,
 * and answers what the JavaScript thread asks for. The library encodes and decodes on libuv's pool;
 * of that no more than half is taken, so that the files and names of the process do not wait.
 */
import { createHash, randomUUID } from 'node:crypto';
import { parseJson, readText } from '../config/jsonFile';
import { ChatTemplateError, CheckpointError, InvalidRequestError } from '../errors';
import { checkAddedTokens, checkWhiteSpace } from './addedTokenChecks';
import { ChatTemplate } from './chatTemplate';
import { checkTokenizerFile, type FileLimits, hasRepeatedPart } from './fileChecks';
import {
  createNormalizer,
  type HuggingFaceTokenizer,
  loadTokenizersLibrary,
  type TokenizersLibrary,
} from './huggingface';
import { lengthBound, type TokenizerJson } from './lengthBound';
import { exceededLimit } from './longRuns';
import { type AddedToken, type AddedTokenJson, tokensToAdd } from './specialTokens';
import type { LoadedTokenizer, Question, TokenizerRequests as Requests } from './threadMessages';
import { type Reply, serve } from './threadServer';
import { packVocabulary } from './vocabulary';

/** Above all ids: a table of them all is made. */
const MAX_TOKEN_ID = 2 ** 24;

/** What a tokenizer is made of, besides its text. */
interface Source {
  library: TokenizersLibrary;
  file: string;
  limits: FileLimits;
  normalizer: object | null | undefined;
}

class LoadedFile {
  private splitting: HuggingFaceTokenizer | null = null;

  private constructor(
    private readonly source: Source,
    private readonly tokenizer: HuggingFaceTokenizer,
    /** The file as it was when it was loaded. */
    private readonly bytes: Buffer,
    private readonly additions: readonly AddedToken[],
    private readonly added: readonly AddedToken[],
    private readonly specialTokens: ReadonlySet<string>,
  ) {}

  static async load({ file, config, sha256: expected }: Requests['load']['input']): Promise<{
    loaded: LoadedFile;
    info: LoadedTokenizer;
    transfer: ArrayBuffer[];
  }> {
    const library = loadTokenizersLibrary();
    const written = await readText(file);
    const sha256 = createHash('sha256').update(written).digest('hex');
    if (expected !== null && sha256 !== expected) {
      throw new CheckpointError(
        file,
        'it was changed since it was loaded, and the thread that had it has died; load the model anew',
      );
    }
    const json = parseJson(file, written) as TokenizerJson & {
      decoder?: unknown;
      normalizer?: object | null;
    };
    const limits = checkTokenizerFile(file, json);
    // The library reads a part that comes twice both times, and no byte order mark.
    const text =
      limits.isMended || hasRepeatedPart(written)
        ? JSON.stringify(json)
        : written.replace(/^\ufeff/, '');
    const source = { library, file, limits, normalizer: json.normalizer };
    const present = presentTokens(file, json);
    const additions = tokensToAdd(config, present);
    const tokenizer = createTokenizer(source, text, present, additions);

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
    for (const [at, id] of limits.addedIds) {
      if (id < vocabulary.kinds.length) continue;
      throw new CheckpointError(file, `${at} is ${id}; ids end at ${vocabulary.kinds.length - 1}`);
    }
    const bytes = Buffer.from(text);
    const loaded = new LoadedFile(source, tokenizer, bytes, additions, added, specialTokens);
    const transfer = Object.values(vocabulary).map(({ buffer }) => buffer as ArrayBuffer);
    return { loaded, info, transfer };
  }

  async encode({ text, addSpecialTokens, splitSpecialTokens }: Requests['encode']['input']) {
    const { maxTextLength, runs } = this.source.limits;
    if (text.length > maxTextLength) {
      throw new InvalidRequestError(
        `the text has ${text.length} characters; at most ${maxTextLength} can be encoded at once by ` +
          this.source.file,
      );
    }
    const run = exceededLimit(text, runs);
    if (run !== null) {
      throw new InvalidRequestError(
        `the text has more than ${run.maxLength} characters in a row that a regular expression of ` +
          `${this.source.file} repeats; it cannot be encoded`,
      );
    }
    checkWhiteSpace(text, this.added);
    const tokenizer = splitSpecialTokens ? this.splitter() : this.tokenizer;
    try {
      const encoding = await tokenizer.encode(text, null, { addSpecialTokens });
      return Int32Array.from(encoding.getIds());
    } catch (cause) {
      throw new CheckpointError(
        this.source.file,
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
        this.source.file,
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
    const inVocabulary = this.source.library.Tokenizer.fromString(
      JSON.stringify({ ...json, added_tokens: [] }),
    );
    const hidden = randomUUID();
    const hide = <Token extends { content: string }>(token: Token): Token[] => {
      if (!this.specialTokens.has(token.content)) return [token];
      if (inVocabulary.tokenToId(token.content) !== null) return [];
      return [{ ...token, content: `${hidden} ${token.content}` }];
    };
    const present = (json.added_tokens ?? []) as AddedTokenJson[];
    const shown = present.flatMap(hide);
    const tokenizer = createTokenizer(
      this.source,
      JSON.stringify({ ...json, added_tokens: shown }),
      shown,
      this.additions.flatMap(hide),
    );
    for (const { content } of [...present, ...this.additions]) {
      if (this.specialTokens.has(content)) continue;
      if (tokenizer.tokenToId(content) === this.tokenizer.tokenToId(content)) continue;
      throw new CheckpointError(
        this.source.file,
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

/** The added_tokens of a file. */
function presentTokens(file: string, { added_tokens: tokens }: TokenizerJson): AddedTokenJson[] {
  if (tokens === null || tokens === undefined) return [];
  const isToken = (token: unknown) => typeof (token as AddedTokenJson | null)?.content === 'string';
  if (Array.isArray(tokens) && tokens.every(isToken)) return tokens as AddedTokenJson[];
  throw new CheckpointError(file, 'added_tokens must be a list of objects with content');
}

/**
 * What the library makes of `text`, with `additions`, once it is known to survive that. Nothing is cut off or
 * filled up: transformers does that only when it is asked to.
 */
function createTokenizer(
  { library, file, limits, normalizer }: Source,
  text: string,
  present: readonly AddedTokenJson[],
  additions: readonly AddedToken[],
): HuggingFaceTokenizer {
  const tokens = [...present.map(fromJson), ...additions];
  try {
    const isNormalized = normalizer && tokens.some(({ normalized }) => normalized);
    const normalize = isNormalized ? createNormalizer(normalizer) : null;
    checkAddedTokens(file, tokens, limits, normalize);
    const tokenizer = library.Tokenizer.fromString(text);
    tokenizer.disableTruncation();
    tokenizer.disablePadding();
    addTokens(library, tokenizer, additions);
    return tokenizer;
  } catch (cause) {
    if (cause instanceof CheckpointError) throw cause;
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
