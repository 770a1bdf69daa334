/**
 * Rejects a tokenizer.json that would make Hugging Face's library panic, which ends the process, or
 * run out of memory, on loading or on a later text. These checks run before the library reads the
 * file; errors name the field.
 */
import { show } from '../config/schema';
import { CheckpointError } from '../errors';
import { charsmapError, needsCharsmapPadding, padCharsmap } from './charsmap';
import { checkMerges } from './mergeChecks';
import { type RegexCost, regexCost, RegexError } from './regexCost';

/** Nesting of Sequences. */
const MAX_DEPTH = 16;
/** Parts of one kind: each adds time to every text. */
const MAX_PARTS = 256;
/** Characters of a pattern or its replacement. */
const MAX_STRING = 256;
/** Total factor by which replacements may lengthen a text. */
const MAX_GROWTH = 256;
/** UTF-16 units of a normalized text; each takes about 50 bytes of memory. */
const MAX_NORMALIZED_LENGTH = 2 ** 24;
/** The library's time per word is cubic in its length. */
const MAX_WORD_LENGTH = 1000;
/** Tokens that a template may add, and its pieces. */
const MAX_PIECES = 1024;

const NORMALIZERS = [
  'BertNormalizer', 'Strip', 'StripAccents', 'NFC', 'NFD', 'NFKC', 'NFKD', 'Sequence', 'Lowercase',
  'Nmt', 'Precompiled', 'Replace', 'Prepend', 'ByteLevel',
]; // prettier-ignore
const PRE_TOKENIZERS = [
  'BertPreTokenizer', 'ByteLevel', 'CharDelimiterSplit', 'Metaspace', 'Whitespace', 'Sequence',
  'Split', 'Punctuation', 'WhitespaceSplit', 'Digits', 'UnicodeScripts', 'FixedLength',
]; // prettier-ignore
const POST_PROCESSORS = [
  'RobertaProcessing', 'BertProcessing', 'ByteLevel', 'TemplateProcessing', 'Sequence',
]; // prettier-ignore
const DECODERS = [
  'BPEDecoder', 'ByteLevel', 'WordPiece', 'Metaspace', 'CTC', 'Sequence', 'Replace', 'Fuse', 'Strip',
  'ByteFallback',
]; // prettier-ignore

type Json = Record<string, unknown>;

interface Part extends Json {
  type: string;
}

/** Properties of an accepted file. */
export interface FileLimits {
  /** UTF-16 units of the longest text that can be encoded. */
  maxTextLength: number;
  /** Ids of tokens that the post-processor adds, with their paths in the file. */
  addedIds: readonly (readonly [path: string, id: number])[];
  /** Factor by which the normalizer can lengthen a text. */
  growth: number;
  /** Whether a normalizer inserts text at empty matches, which invalidates the library's offsets. */
  insertsText: boolean;
  /** Whether the JSON was replaced by an equivalent that the library can use. */
  isRepaired: boolean;
}

const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Throws CheckpointError for a file that could end the process or hang it. */
export function checkTokenizerFile(file: string, json: unknown): FileLimits {
  if (!isObject(json)) throw new CheckpointError(file, 'it must hold a JSON object');
  const fail = (path: string, value: unknown, reason: string): never => {
    throw new CheckpointError(file, `${path} is ${show(value)}; ${reason}`);
  };
  return new Checks(json, fail).run();
}

/** Whether `model` or `normalizer`, which the library processes while parsing, may be a duplicate key. */
export function hasDuplicateKey(text: string): boolean {
  const counts = new Map<string, number>();
  for (const { index } of text.matchAll(/:\s*[{[]/g)) {
    let end = index;
    while (/\s/.test(text.charAt(end - 1))) end--;
    const before = text.slice(Math.max(0, end - 100), end);
    const key = /"((?:[^"\\]|\\.)*)"$/.exec(before)?.[1] ?? '';
    const name = key.replace(/\\u([\da-fA-F]{4})/g, (_, hex: string) =>
      String.fromCharCode(parseInt(hex, 16)),
    );
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  return ['model', 'normalizer'].some((name) => (counts.get(name) ?? 0) > 1);
}

class Checks {
  private maxTextLength = MAX_NORMALIZED_LENGTH;
  private growth = 1;
  private isRepaired = false;
  private readonly addedIds: [string, number][] = [];

  constructor(
    private readonly json: Json,
    private readonly fail: (path: string, value: unknown, reason: string) => never,
  ) {}

  run(): FileLimits {
    const { json } = this;
    if (isObject(json.model)) this.model(json.model);
    const normalizers = this.parts('normalizer', 'normalizers', NORMALIZERS);
    for (const [path, part] of normalizers) this.normalizer(path, part);
    const { growth } = this;
    const preTokenizers = this.parts('pre_tokenizer', 'pretokenizers', PRE_TOKENIZERS);
    const insertsText = this.insertion(normalizers, preTokenizers.length > 0);
    for (const [path, part] of preTokenizers) this.preTokenizer(path, part);
    const maxTextLength = Math.min(this.maxTextLength, MAX_NORMALIZED_LENGTH / this.growth);
    this.postProcessors(this.parts('post_processor', 'processors', POST_PROCESSORS));
    this.growth = 1;
    for (const [path, part] of this.parts('decoder', 'decoders', DECODERS)) {
      this.decoder(path, part);
    }
    const { addedIds, isRepaired } = this;
    return { maxTextLength: Math.floor(maxTextLength), addedIds, growth, insertsText, isRepaired };
  }

  /**
   * Flattens nested Sequences into parts with their paths. Rejects parts without a type, which the
   * library would guess, and lists in place of objects.
   */
  private parts(root: string, list: string, types: readonly string[]): [string, Part][] {
    const found: [string, Part][] = [];
    const add = (path: string, part: unknown, depth: number) => {
      if (!isObject(part)) this.fail(path, part, 'it must be an object or null');
      const { type } = part;
      if (typeof type !== 'string' || !types.includes(type)) {
        this.fail(`${path}.type`, type, `it must be one of ${types.join(', ')}`);
      }
      const inner = part[list];
      if (type !== 'Sequence') {
        if (inner !== undefined)
          this.fail(`${path}.type`, type, `a part with ${list} must have the type Sequence`);
        found.push([path, part as Part]);
        return;
      }
      if (depth === MAX_DEPTH) {
        this.fail(path, part, `Sequences are nested more than ${MAX_DEPTH} deep`);
      }
      if (!Array.isArray(inner)) this.fail(`${path}.${list}`, inner, 'it must be a list');
      (inner as unknown[]).forEach((one, i) => add(`${path}.${list}[${i}]`, one, depth + 1));
      if (found.length > MAX_PARTS) {
        this.fail(path, part, `it has ${found.length} parts; at most ${MAX_PARTS} are supported`);
      }
    };
    const part = this.json[root];
    if (part !== null && part !== undefined) add(root, part, 0);
    return found;
  }

  private model(model: Json): void {
    // The library copies a merged token into a buffer of the longest token's size.
    if (Array.isArray(model.merges)) checkMerges(model, this.fail);
    const length = model.max_input_chars_per_word;
    if (typeof length === 'number' && length > MAX_WORD_LENGTH) {
      const path = 'model.max_input_chars_per_word';
      this.fail(path, length, `at most ${MAX_WORD_LENGTH} is supported`);
    }
  }

  private normalizer(path: string, part: Part): void {
    if (part.type === 'Precompiled') {
      // The library does not check trie positions and text offsets.
      const charsmap = part.precompiled_charsmap as string;
      const error = charsmapError(charsmap);
      if (error !== null) this.fail(`${path}.precompiled_charsmap`, charsmap, error);
      if (needsCharsmapPadding(charsmap)) {
        part.precompiled_charsmap = padCharsmap(charsmap);
        this.isRepaired = true;
      }
    }
    // An empty prefix invalidates the library's offsets.
    if (part.type === 'Prepend' && this.string(`${path}.prepend`, part.prepend) === '') {
      this.fail(`${path}.prepend`, part.prepend, 'it must not be empty');
    }
    if (part.type === 'Replace') this.replace(path, part, this.pattern(path, part));
  }

  /** Accounts for a Replace's growth of the text. */
  private replace(path: string, { pattern, content }: Part, cost: RegexCost | null): void {
    const { length } = this.string(`${path}.content`, content);
    const text = (pattern as { String?: string }).String;
    if (cost === null) this.growth *= Math.max(1, length / Math.max(1, text?.length ?? 1));
    else this.growth *= cost.matchesEmpty ? 1 + length : Math.max(1, length);
    if (this.growth > MAX_GROWTH) {
      const reason = `the replacements so far can make a text more than ${MAX_GROWTH} times longer`;
      this.fail(`${path}.content`, content, reason);
    }
  }

  /** The cost of a part's regular expression; null for a literal pattern. */
  private pattern(path: string, { pattern }: Part): RegexCost | null {
    if (!isObject(pattern)) return this.fail(`${path}.pattern`, pattern, 'it must be an object');
    if (typeof pattern.String === 'string') {
      this.string(`${path}.pattern.String`, pattern.String);
      return null;
    }
    const regex = pattern.Regex;
    if (typeof regex !== 'string') {
      return this.fail(`${path}.pattern`, pattern, 'it must be an object with String or Regex');
    }
    // The library panics when Oniguruma reaches its retry limit.
    try {
      const cost = regexCost(regex);
      this.maxTextLength = Math.min(this.maxTextLength, cost.maxTextLength / this.growth);
      return cost;
    } catch (error) {
      if (!(error instanceof RegexError)) throw error;
      const reason = `its backtracking is not linear, or cannot be analyzed: ${error.message}`;
      return this.fail(`${path}.pattern.Regex`, regex, reason);
    }
  }

  /**
   * Whether a Replace inserts text at an empty match. The library does not count inserted text in its
   * offsets, so only replacements of single characters may follow: no pre-tokenizer, and no added
   * token with `normalized`.
   */
  private insertion(normalizers: readonly [string, Part][], isSplit: boolean): boolean {
    const at = normalizers.findIndex(([, { type, pattern, content }]) => {
      if (type !== 'Replace' || content === '') return false;
      const { String: text, Regex: regex } = pattern as { String?: string; Regex?: string };
      return text === undefined ? regexCost(regex as string).matchesEmpty : text === '';
    });
    if (at === -1) return false;
    const isPlain = (part: Part) => {
      const { String: text, Regex: regex } = (part.pattern ?? {}) as {
        String?: string;
        Regex?: string;
      };
      const plain = text ?? regex ?? '';
      const isOne = part.type === 'Replace' && /^[^\\^$.|?*+()[\]{}]$/u.test(plain);
      return isOne && /^.$/su.test(part.content as string);
    };
    const next = normalizers.slice(at + 1).find(([, part]) => !isPlain(part));
    if (next !== undefined || isSplit) {
      const [path, { pattern }] = normalizers[at];
      const follower = next === undefined ? 'the pre-tokenizer' : next[0];
      const reason = `it can match an empty string, which is not supported before ${follower}`;
      this.fail(`${path}.pattern`, pattern, reason);
    }
    return true;
  }

  private preTokenizer(path: string, part: Part): void {
    if (part.type === 'Split') this.pattern(path, part);
    // Each UTF-8 byte becomes a character.
    if (part.type === 'ByteLevel') this.growth *= 3;
    const { type, length } = part;
    if (type === 'FixedLength' && length !== undefined && !((length as number) >= 1)) {
      this.fail(`${path}.length`, length, 'it must be at least 1');
    }
  }

  /**
   * Checks that templates refer only to their own special tokens and to one sequence. A template
   * takes one or two encodings but returns one per piece, so a second template may not follow.
   */
  private postProcessors(parts: readonly [string, Part][]): void {
    let numEncodings = [1, 1];
    for (const [path, part] of parts) {
      const isTemplate = part.type === 'TemplateProcessing';
      // The library determines the type from the fields.
      if (!isTemplate && (part.single !== undefined || part.special_tokens !== undefined)) {
        const reason = 'a part with a template must have the type TemplateProcessing';
        this.fail(`${path}.type`, part.type, reason);
      }
      if (!isTemplate) {
        for (const name of ['sep', 'cls']) this.addedId(`${path}.${name}[1]`, part[name]);
        continue;
      }
      if (numEncodings.some((count) => count !== 1)) {
        this.fail(`${path}.type`, part.type, 'it follows another template, which is not supported');
      }
      numEncodings = this.template(path, part);
    }
  }

  private addedId(path: string, pair: unknown): void {
    if (Array.isArray(pair) && typeof pair[1] === 'number') this.addedIds.push([path, pair[1]]);
  }

  /** Numbers of encodings that it returns with and without special tokens. */
  private template(path: string, { single, special_tokens: special }: Part): number[] {
    if (!Array.isArray(single)) this.fail(`${path}.single`, single, 'it must be a list');
    if (!isObject(special)) this.fail(`${path}.special_tokens`, special, 'it must be an object');
    const ids = new Map<string, number>();
    for (const [name, token] of Object.entries(special)) {
      const at = `${path}.special_tokens[${JSON.stringify(name)}]`;
      if (!isObject(token) || !Array.isArray(token.ids)) {
        return this.fail(at, token, 'it must be an object with ids');
      }
      token.ids.forEach((id, i) => this.addedIds.push([`${at}.ids[${i}]`, id as number]));
      ids.set(name, token.ids.length);
    }
    let [numTexts, numAdded] = [0, 0];
    const pieces = single as unknown[];
    pieces.forEach((piece, i) => {
      const at = `${path}.single[${i}]`;
      const { Sequence: text, SpecialToken: token } = isObject(piece) ? piece : ({} as Json);
      if (isObject(text)) {
        if (text.id !== 'A') this.fail(`${at}.Sequence.id`, text.id, 'it must be A');
        numTexts++;
      } else {
        const id = isObject(token) ? token.id : undefined;
        if (typeof id !== 'string') {
          this.fail(at, piece, 'it must be an object with Sequence or SpecialToken and its id');
        }
        const count = ids.get(id);
        if (count === undefined) {
          this.fail(`${at}.SpecialToken.id`, id, `it is not in ${path}.special_tokens`);
        }
        numAdded += count;
      }
    });
    if (Math.max(pieces.length, numAdded) > MAX_PIECES || numTexts > 16) {
      const reason = `at most ${MAX_PIECES} pieces, ${MAX_PIECES} tokens and 16 sequences are supported`;
      this.fail(`${path}.single`, single, reason);
    }
    return [pieces.length, numTexts];
  }

  private decoder(path: string, part: Part): void {
    for (const name of ['suffix', 'prefix', 'pad_token', 'word_delimiter_token']) {
      if (part[name] !== undefined) this.string(`${path}.${name}`, part[name]);
    }
    if (part.type !== 'Replace') return;
    const cost = this.pattern(path, part);
    this.replace(path, part, cost);
    // It runs on the JavaScript thread.
    if (cost !== null && (cost.looksFar || cost.maxTextLength !== Infinity)) {
      const regex = (part.pattern as Json).Regex;
      const reason =
        "a decoder's regular expression must not backtrack or look ahead without bound";
      this.fail(`${path}.pattern.Regex`, regex, reason);
    }
  }

  private string(path: string, value: unknown): string {
    if (typeof value !== 'string') return this.fail(path, value, 'it must be a string');
    if (value.length <= MAX_STRING) return value;
    const reason = `it has ${value.length} characters; at most ${MAX_STRING} are supported`;
    return this.fail(path, value, reason);
  }
}
