/**
 * How byte-level BPE tokenizers split a text, by `tokenizer.ggml.pre` of a GGUF file: in the form of
 * tokenizer.json, as the models' own files have it.
 */

export interface PreTokenizer {
  pre_tokenizer: object;
  normalizer: object | null;
  /** A word that is a token is not divided. */
  ignoreMerges: boolean;
  /** Whether a file without `add_bos_token` adds it. */
  addsBos: boolean;
}

const byteLevel = (usesRegex: boolean) => ({
  type: 'ByteLevel',
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: usesRegex,
});

const split = (regex: string) => ({
  type: 'Sequence',
  pretokenizers: [
    { type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false },
    byteLevel(false),
  ],
});

const of = (pre_tokenizer: object, changes: Partial<PreTokenizer> = {}): PreTokenizer => ({
  pre_tokenizer,
  normalizer: null,
  ignoreMerges: false,
  addsBos: false,
  ...changes,
});

const CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const SPACES = '\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';
const MARKS = ' ?[^\\s\\p{L}\\p{N}]+';
/** cl100k of OpenAI's tiktoken, with numbers in threes or one by one. */
const cl100k = (digits: string) =>
  `${CONTRACTION}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}|${MARKS}[\\r\\n]*|${SPACES}`;
/** o200k: words divided where a lower-case letter precedes an upper-case one. */
const o200k = (contraction: string, digits: string) => {
  const upper = '\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}';
  const lower = '\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}';
  const word = (middle: string) => `[^\\r\\n\\p{L}\\p{N}]?${middle}${contraction}`;
  return (
    `${word(`[${upper}]*[${lower}]+`)}|${word(`[${upper}]+[${lower}]*`)}|${digits}|` +
    `${MARKS}[\\r\\n/]*|${SPACES}`
  );
};

const GPT2 = of(byteLevel(true));
const DIGITS = of({
  type: 'Sequence',
  pretokenizers: [{ type: 'Digits', individual_digits: true }, byteLevel(true)],
});
const CL100K = of(split(cl100k('\\p{N}{1,3}')));
const LLAMA3 = { ...CL100K, ignoreMerges: true, addsBos: true };
const QWEN2 = of(split(cl100k('\\p{N}')), { normalizer: { type: 'NFC' } });
const TEKKEN = of(split(o200k('', '\\p{N}')), { ignoreMerges: true, addsBos: true });

export const PRE_TOKENIZERS: ReadonlyMap<string, PreTokenizer> = new Map([
  ['gpt-2', GPT2],
  ['gpt2', GPT2],
  ['olmo', GPT2],
  ['phi-2', GPT2],
  ['smollm', DIGITS],
  ['starcoder', DIGITS],
  ['refact', DIGITS],
  ['command-r', DIGITS],
  ['llama3', LLAMA3],
  ['llama-v3', LLAMA3],
  ['llama-bpe', LLAMA3],
  ['falcon3', LLAMA3],
  ['smaug-bpe', CL100K],
  ['dbrx', CL100K],
  ['glm4', CL100K],
  ['chatglm-bpe', CL100K],
  ['qwen2', QWEN2],
  ['deepseek-r1-qwen', QWEN2],
  ['gpt-4o', of(split(o200k(`${CONTRACTION}?`, '\\p{N}{1,3}')))],
  ['tekken', TEKKEN],
]);
