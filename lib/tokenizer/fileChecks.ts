/**
 * What a tokenizer.json must not say. Hugging Face's library panics on some contents, when it loads them or
 * later on a text, and its binary ends the process on a panic; others make it run out of memory. These
 * checks run before the library sees the file, and name the field: each comment says what it prevents.
 */
import { show } from '../config/schema';
import { CheckpointError } from '../errors';
import { charsmapFault, isCharsmapCut, padCharsmap } from './charsmap';
import type { NormalizationForm, RunLimit } from './longRuns';
import { checkMerges } from './mergeChecks';
import { type RegexCost, regexCost, RegexError } from './regexCost';

/** Sequences in a Sequence that are followed. */
const MAX_DEPTH = 16;
/** Parts of one kind: each costs time for every text. */
const MAX_PARTS = 256;
/** Characters of what is looked for and what is put in its place. */
const MAX_STRING = 256;
/** How many times longer a text may become, in all. */
const MAX_GROWTH = 256;
/** UTF-16 units of a text after normalizers: some 50 bytes of memory each. */
const MAX_NORMALIZED_LENGTH = 2 ** 24;
/** The library's time for a word grows with the third power. */
const MAX_WORD_LENGTH = 1000;
/** Tokens that a template may add, and pieces it may have. */
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

/** What the checks found out about a file that passed. */
export interface FileLimits {
  /** UTF-16 units of the longest text that can be encoded. */
  maxTextLength: number;
  /** Of the runs in a text. */
  runs: readonly RunLimit[];
  /** Of the tokens that the post-processor adds, by where the file says so. */
  addedIds: readonly (readonly [path: string, id: number])[];
  /** How many times longer the normalizer can make a text. */
  growth: number;
  /** Whether a normalizer puts text where it found none; the library then loses track of positions. */
  insertsText: boolean;
  /** Whether the JSON was changed, to the same effect, so that it can be used. */
  isMended: boolean;
}

const isForm = (type: string): type is NormalizationForm => /^NFK?[CD]$/.test(type);

const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Throws CheckpointError for what would end the process, or could never end. */
export function checkTokenizerFile(file: string, json: unknown): FileLimits {
  if (!isObject(json)) throw new CheckpointError(file, 'it must hold a JSON object');
  const fail = (path: string, value: unknown, reason: string): never => {
    throw new CheckpointError(file, `${path} is ${show(value)}; ${reason}`);
  };
  return new Checks(json, fail).run();
}

/** Whether a part that the library works through as it reads it, the model or the normalizer, may come twice. */
export function hasRepeatedPart(text: string): boolean {
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
  private readonly runs: RunLimit[] = [];
  /** Of the normalizer; null where it does something else, too. */
  private forms: NormalizationForm[] | null = null;
  private growth = 1;
  private isMended = false;
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
    const types = normalizers.map(([, { type }]) => type);
    if (types.every(isForm)) this.forms = types;
    const insertsText = this.insertion(normalizers, preTokenizers.length > 0);
    for (const [path, part] of preTokenizers) this.preTokenizer(path, part);
    const maxTextLength = Math.min(this.maxTextLength, MAX_NORMALIZED_LENGTH / this.growth);
    this.postProcessors(this.parts('post_processor', 'processors', POST_PROCESSORS));
    this.growth = 1;
    for (const [path, part] of this.parts('decoder', 'decoders', DECODERS)) {
      this.decoder(path, part);
    }
    const { addedIds, isMended, runs } = this;
    return {
      maxTextLength: Math.floor(maxTextLength),
      runs,
      addedIds,
      growth,
      insertsText,
      isMended,
    };
  }

  /**
   * The parts of a Sequence in a Sequence, by their paths. The library guesses what a part without a type
   * is, and takes lists for objects; these are refused.
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
          this.fail(`${path}.type`, type, `a part with ${list} is a Sequence`);
        found.push([path, part as Part]);
        return;
      }
      if (depth === MAX_DEPTH) this.fail(path, part, `more than ${MAX_DEPTH} Sequences in another`);
      if (!Array.isArray(inner)) this.fail(`${path}.${list}`, inner, 'it must be a list');
      (inner as unknown[]).forEach((one, i) => add(`${path}.${list}[${i}]`, one, depth + 1));
      if (found.length > MAX_PARTS) {
        this.fail(path, part, `it has ${found.length} parts; at most ${MAX_PARTS} can be`);
      }
    };
    const part = this.json[root];
    if (part !== null && part !== undefined) add(root, part, 0);
    return found;
  }

  private model(model: Json): void {
    // A merge is copied into a buffer of the longest token's size, without the prefix of its second half.
    if (Array.isArray(model.merges)) checkMerges(model, this.fail);
    const length = model.max_input_chars_per_word;
    if (typeof length === 'number' && length > MAX_WORD_LENGTH) {
      const path = 'model.max_input_chars_per_word';
      this.fail(path, length, `at most ${MAX_WORD_LENGTH} can be`);
    }
  }

  private normalizer(path: string, part: Part): void {
    if (part.type === 'Precompiled') {
      // The trie's positions and the texts' offsets are followed as they stand.
      const charsmap = part.precompiled_charsmap as string;
      const fault = charsmapFault(charsmap);
      if (fault !== null) this.fail(`${path}.precompiled_charsmap`, charsmap, fault);
      if (isCharsmapCut(charsmap)) {
        part.precompiled_charsmap = padCharsmap(charsmap);
        this.isMended = true;
      }
    }
    // The library loses track of positions.
    if (part.type === 'Prepend' && this.string(`${path}.prepend`, part.prepend) === '') {
      this.fail(`${path}.prepend`, part.prepend, 'it must not be empty');
    }
    if (part.type === 'Replace') this.replace(path, part, this.pattern(path, part));
  }

  /** How a Replace lets a text grow. */
  private replace(path: string, { pattern, content }: Part, cost: RegexCost | null): void {
    const { length } = this.string(`${path}.content`, content);
    const text = (pattern as { String?: string }).String;
    if (cost === null) this.growth *= Math.max(1, length / Math.max(1, text?.length ?? 1));
    else this.growth *= cost.matchesEmpty ? 1 + length : Math.max(1, length);
    if (this.growth > MAX_GROWTH) {
      const reason = `with those before it a text can become more than ${MAX_GROWTH} times longer`;
      this.fail(`${path}.content`, content, reason);
    }
  }

  /** The cost of a part's regular expression; null for a plain text. */
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
    // Oniguruma gives up after so many retries, which is a panic.
    try {
      const cost = regexCost(regex);
      const { maxTextLength: maxLength, repeated } = cost;
      if (this.forms === null || this.growth > 1) {
        this.maxTextLength = Math.min(this.maxTextLength, maxLength / this.growth);
      } else {
        for (const sets of repeated) this.runs.push({ sets, maxLength, forms: this.forms });
      }
      return cost;
    } catch (error) {
      if (!(error instanceof RegexError)) throw error;
      const reason = `a text could keep its search from ending, or that cannot be told: ${error.message}`;
      return this.fail(`${path}.pattern.Regex`, regex, reason);
    }
  }

  /**
   * What is put where a pattern matched nothing has no position, and the library does not count it. Only
   * replacements of single characters stand that: no pre-tokenizer, and no added token of the normalized text.
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
      const what = next === undefined ? 'the pre-tokenizer' : next[0];
      this.fail(`${path}.pattern`, pattern, `it can match nothing, which ${what} does not stand`);
    }
    return true;
  }

  private preTokenizer(path: string, part: Part): void {
    if (part.type === 'Split') this.pattern(path, part);
    // A letter for each byte.
    if (part.type === 'ByteLevel') this.growth *= 3;
    const { type, length } = part;
    if (type === 'FixedLength' && length !== undefined && !((length as number) >= 1)) {
      this.fail(`${path}.length`, length, 'it must be at least 1');
    }
  }

  /**
   * A template names special tokens that it has, and one text, which is all that is encoded. It takes one
   * encoding, or two; what a template before it gives is as many as it has pieces.
   */
  private postProcessors(parts: readonly [string, Part][]): void {
    let numEncodings = [1, 1];
    for (const [path, part] of parts) {
      const isTemplate = part.type === 'TemplateProcessing';
      // The library goes by the fields.
      if (!isTemplate && (part.single !== undefined || part.special_tokens !== undefined)) {
        this.fail(`${path}.type`, part.type, 'a part with a template is a TemplateProcessing');
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

  /** How many encodings come of it, with special tokens and without. */
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
        if (text.id !== 'A') this.fail(`${at}.Sequence.id`, text.id, 'it must be A, the one text');
        numTexts++;
      } else {
        const id = isObject(token) ? token.id : undefined;
        if (typeof id !== 'string') {
          this.fail(at, piece, 'it must be an object, Sequence or SpecialToken with an id');
        }
        const count = ids.get(id);
        if (count === undefined) {
          this.fail(`${at}.SpecialToken.id`, id, `it is not in ${path}.special_tokens`);
        }
        numAdded += count;
      }
    });
    if (Math.max(pieces.length, numAdded) > MAX_PIECES || numTexts > 16) {
      this.fail(`${path}.single`, single, `more than ${MAX_PIECES} pieces or tokens, or 16 texts`);
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
      this.fail(`${path}.pattern.Regex`, regex, 'a decoder must not try a text more than once');
    }
  }

  private string(path: string, value: unknown): string {
    if (typeof value !== 'string') return this.fail(path, value, 'it must be a string');
    if (value.length <= MAX_STRING) return value;
    return this.fail(path, value, `${value.length} characters; at most ${MAX_STRING} can be`);
  }
}
