/** Grammars on the calling thread, and vocabularies to mask. */
import {
  copyStructuredOutputs,
  type StructuredOutputsOptions,
} from '../../lib/config/structuredOutputs';
import { compileStructuredOutputs } from '../../lib/grammar/compile';
import { GrammarChecker } from '../support/testingAddon';

export const compile = (options: StructuredOutputsOptions): Int32Array =>
  compileStructuredOutputs(copyStructuredOutputs(options));

/** A vocabulary of byte strings; an empty one is no text. */
export class TestVocabulary {
  readonly bytes: Uint8Array;
  readonly offsets: Uint32Array;

  constructor(readonly tokens: readonly Uint8Array[]) {
    this.bytes = new Uint8Array(Buffer.concat(tokens));
    this.offsets = new Uint32Array(tokens.length + 1);
    tokens.forEach((token, i) => (this.offsets[i + 1] = this.offsets[i] + token.length));
  }

  get size(): number {
    return this.tokens.length;
  }

  checker(options: StructuredOutputsOptions): GrammarChecker {
    return new GrammarChecker(this.bytes, this.offsets, this.size, compile(options));
  }
}

const NO_TOKENS = new TestVocabulary([]);

/** Whether a text is one of the grammar, byte by byte. */
export class TextMatcher {
  private readonly checker: GrammarChecker;

  constructor(options: StructuredOutputsOptions) {
    this.checker = NO_TOKENS.checker(options);
  }

  matches(text: string): boolean {
    this.checker.reset();
    return this.checker.append(Buffer.from(text)) && this.checker.accepts();
  }

  /** Whether some text of the grammar begins with `text`. */
  begins(text: string): boolean {
    this.checker.reset();
    return this.checker.append(Buffer.from(text));
  }
}

/** A random number generator with a state: mulberry32. */
export function randomOf(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export const allowed = (mask: Int32Array): number[] => {
  const ids: number[] = [];
  for (let i = 0; i < 32 * mask.length; i++) if ((mask[i >> 5] >>> (i & 31)) & 1) ids.push(i);
  return ids;
};

/** Random texts in the grammar, by sampling from masks; null: still not at an end after `maxTokens`. */
export function sampleText(
  vocabulary: TestVocabulary,
  checker: GrammarChecker,
  random: () => number,
  maxTokens: number,
): string | null {
  const parts: Uint8Array[] = [];
  checker.reset();
  for (let i = 0; i < maxTokens; i++) {
    const ids = allowed(checker.mask());
    if (checker.accepts() && (ids.length === 0 || random() < 0.3)) {
      return Buffer.concat(parts).toString();
    }
    // Short tokens, and those that close something, so that most texts end.
    const closing = ids.filter((id) =>
      /["\]}]/.test(Buffer.from(vocabulary.tokens[id]).toString()),
    );
    const from = closing.length > 0 && random() < 0.4 ? closing : ids;
    const token = vocabulary.tokens[from[Math.floor(random() * from.length)]];
    parts.push(token);
    checker.append(token);
  }
  return null;
}

/** Tokens of a byte-level vocabulary: all bytes, pieces of JSON, words, and parts of characters. */
export function syntheticVocabulary(size: number, seed: number): TestVocabulary {
  const random = randomOf(seed);
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)];
  const PIECES = [
    ...Array.from('abcdefghijklmnopqrstuvwxyzABCXYZ0123456789'),
    ...Array.from('"\\{}[],:;. -_/@+\n\t\r'),
    '":',
    '",',
    '":"',
    '","',
    '"}',
    '": ',
    '{"',
    '[{',
    '}]',
    '\\n',
    '\\u00',
    '\\"',
    'true',
    'false',
    'null',
    'é',
    'ü',
    'ß',
    '漢',
    '字',
    'Ж',
    '😀',
    '\u2028',
    '\u007f',
    '\u0000',
    '  ',
    '    ',
    '\n  ',
  ];
  const tokens: Uint8Array[] = Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte));
  while (tokens.length < size) {
    const length = 1 + Math.floor(random() * random() * 12);
    const text = Array.from({ length }, () => pick(PIECES)).join('');
    let bytes = new Uint8Array(Buffer.from(text));
    // Byte-level BPE also merges parts of characters.
    if (random() < 0.15) bytes = bytes.subarray(Math.floor(random() * bytes.length));
    if (random() < 0.15) bytes = bytes.subarray(0, 1 + Math.floor(random() * bytes.length));
    if (bytes.length > 0) tokens.push(bytes);
  }
  tokens.push(new Uint8Array(0)); // a special token
  return new TestVocabulary(tokens);
}
