/**
 * The thread of a Tokenizer: loads tokenizer.json into Hugging Face's library, which parses it
 * synchronously, and serves requests. The library encodes and decodes on libuv's pool, of which at
 * most half is used, to leave threads for the process's file and DNS operations.
 */
import { createHash, randomUUID } from 'node:crypto';
import { parseJson, readText } from '../config/jsonFile';
import { show } from '../config/schema';
import { ChatTemplateError, CheckpointError, InvalidRequestError } from '../errors';
import { checkAddedTokens, checkWhiteSpace } from './addedTokenChecks';
import { ChatTemplate } from './chatTemplate';
import { checkTokenizerFile, type FileLimits, hasDuplicateKey } from './fileChecks';
import { readGgufTokenizer } from './gguf/ggufTokenizer';
import {
  createNormalizer,
  type HuggingFaceTokenizer,
  loadTokenizersLibrary,
  type TokenizersLibrary,
} from './huggingface';
import { lengthBound, type TokenizerJson } from './lengthBound';
import { exceededLimit } from './longRuns';
import { type AddedToken, type AddedTokenJson, tokensToAdd } from './specialTokens';
import type {
  LoadedTokenizer,
  ThreadRequest,
  TokenizerRequests as Requests,
} from './threadMessages';
import { type Reply, serve } from './threadServer';
import { packVocabulary } from './vocabulary';

/** Limit of token ids, which size the token table. */
const MAX_TOKEN_ID = 2 ** 24;

/** Inputs of creating a tokenizer, besides its text. */
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
    /** The file's text when it was loaded. */
    private readonly bytes: Buffer,
    private readonly additions: readonly AddedToken[],
    private readonly added: readonly AddedToken[],
    private readonly specialTokens: ReadonlySet<string>,
  ) {}

  static async load({ file, config: given, sha256: expected }: Requests['load']['input']): Promise<{
    loaded: LoadedFile;
    info: LoadedTokenizer;
    transfer: ArrayBuffer[];
  }> {
    const library = loadTokenizersLibrary();
    const { text: fileText, config } = given
      ? { text: await readText(file), config: given }
      : await readGgufTokenizer(file);
    const sha256 = createHash('sha256').update(fileText).digest('hex');
    if (expected !== null && sha256 !== expected) {
      throw new CheckpointError(
        file,
        'it changed after it was loaded, so the failed tokenizer thread cannot be restarted; reload the model',
      );
    }
    const json = parseJson(file, fileText) as TokenizerJson & {
      decoder?: unknown;
      normalizer?: object | null;
    };
    const limits = checkTokenizerFile(file, json);
    // The library processes every duplicate of a key, and cannot parse a byte order mark.
    const text =
      limits.isRepaired || hasDuplicateKey(fileText)
        ? JSON.stringify(json)
        : fileText.replace(/^\ufeff/, '');
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
    // A JavaScript object cannot have this key.
    const proto = tokenizer.tokenToId('__proto__');
    if (proto !== null) tokens.set(proto, '__proto__');
    // An added token may share its id with a token of the model, and decode to another text.
    for (const { content } of added) {
      const id = content === '' ? null : tokenizer.tokenToId(content);
      const token = id === null ? null : tokenizer.idToToken(id);
      if (id !== null && token !== null) tokens.set(id, token);
    }
    for (const [id, token] of tokens) {
      if (id < MAX_TOKEN_ID) continue;
      throw new CheckpointError(
        file,
        `the id of the token ${show(token)} is ${id}; it must be below ${MAX_TOKEN_ID}`,
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
      specialTokens: Object.fromEntries(
        Object.entries(config.named).map(([name, { content }]) => [name, content]),
      ),
      bound: lengthBound(json, vocab, added),
      sha256,
    };
    for (const [at, id] of limits.addedIds) {
      if (id < vocabulary.kinds.length) continue;
      const largest = vocabulary.kinds.length - 1;
      throw new CheckpointError(file, `${at} is ${id}; the largest token id is ${largest}`);
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
        `the text has ${text.length} characters; ${this.source.file} can encode at most ` +
          `${maxTextLength} at once`,
      );
    }
    const run = exceededLimit(text, runs);
    if (run !== null) {
      throw new InvalidRequestError(
        `the text has more than ${run.maxLength} consecutive characters that a regular expression in ` +
          `${this.source.file} repeats; at most that many can be encoded`,
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
   * Emulates `encode_special_tokens`, which the library's Node binding lacks, with a tokenizer without
   * the special tokens. Placeholders keep their ids, so that other tokens keep theirs. Unlike with
   * `encode_special_tokens`, another added token inside a special token's text is matched.
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
        `splitSpecialTokens is not supported: the id of the token ${show(content)} would change`,
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
  throw new CheckpointError(
    file,
    `added_tokens is ${show(tokens)}; it must be a list of objects with content`,
  );
}

/**
 * Creates the library's tokenizer from `text` and `additions` after checking them. Truncation and
 * padding are disabled: transformers applies them only on request.
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
      `Hugging Face's tokenizers rejects it: ${(cause as Error).message}`,
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

/** Returns a function that runs jobs, at most `limit` at once. */
function limitConcurrency(limit: number): <T>(job: () => Promise<T>) => Promise<T> {
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
const runLimited = limitConcurrency(Math.max(1, Math.floor(poolSize / 2)));

/** The ChatTemplateError message of `text`; null if it compiles. */
function compileError(text: string): string | null {
  try {
    new ChatTemplate(text);
    return null;
  } catch (error) {
    if (!(error instanceof ChatTemplateError)) throw error;
    return error.message;
  }
}

/** The result of the request 'load'. */
let loading: Promise<LoadedFile>;

async function handle(request: ThreadRequest<Requests>): Promise<Reply> {
  switch (request.method) {
    case 'load': {
      const loads = LoadedFile.load(request.input);
      loading = loads.then(({ loaded }) => loaded);
      // Later requests await `loading` and report its error.
      loading.catch(() => {});
      const { info, transfer } = await loads;
      return { value: info, transfer };
    }
    case 'encode': {
      const loaded = await loading;
      const ids = await runLimited(() => loaded.encode(request.input));
      return { value: ids, transfer: [ids.buffer] };
    }
    case 'encodeBatch': {
      const loaded = await loading;
      const { texts, ...options } = request.input;
      const all = await Promise.all(
        texts.map((text) => runLimited(() => loaded.encode({ text, ...options }))),
      );
      return { value: all, transfer: all.map(({ buffer }) => buffer) };
    }
    case 'decode': {
      const loaded = await loading;
      return { value: await runLimited(() => loaded.decode(request.input)) };
    }
    case 'checkTemplates':
      return { value: request.input.texts.map(compileError) };
  }
}

serve<Requests>(handle);
