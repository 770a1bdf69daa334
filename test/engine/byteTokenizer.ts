/** A byte-level tokenizer without merges: token b is byte b, so tests can cut text at any byte. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';

/** The EOS token, which is special. */
export const EOS_TOKEN_ID = 256;

/** GPT-2's byte-to-character map: printable bytes as they are, the others from U+0100 on. */
function byteLetters(): string[] {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable =
      (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCharCode(printable ? byte : next++);
  });
}

/** The tokenizer's files, by name. */
export function byteTokenizerFiles(): Record<string, object> {
  const vocab = Object.fromEntries(byteLetters().map((letter, byte) => [letter, byte]));
  const byteLevel = {
    type: 'ByteLevel',
    add_prefix_space: false,
    trim_offsets: true,
    use_regex: false,
  };
  const eos = { id: EOS_TOKEN_ID, content: '<eos>', special: true };
  const tokenizer = {
    version: '1.0',
    added_tokens: [{ ...eos, single_word: false, lstrip: false, rstrip: false, normalized: false }],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: 'BPE', vocab, merges: [] },
  };
  const config = { tokenizer_class: 'PreTrainedTokenizerFast', eos_token: '<eos>' };
  return { 'tokenizer.json': tokenizer, 'tokenizer_config.json': config };
}

export async function byteTokenizer(): Promise<Tokenizer> {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'uniproc-tokenizer-'));
  for (const [name, content] of Object.entries(byteTokenizerFiles())) {
    writeFileSync(path.join(folder, name), JSON.stringify(content));
  }
  try {
    return await Tokenizer.load(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
