/** tokenizer.json and tokenizer_config.json: refused by name, or a working tokenizer. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { CheckpointError, InvalidRequestError } from '../../lib/errors';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import { type BytesTarget, type Campaign, expect } from '../campaign';
import { ROOT } from '../cases';
import { isObject } from './typed';

const TEXTS = ['', 'One day', ' a\nb\u00e9\ud83d\ude00</s><s>', '\u0000\ufffd e\u0301'];

const TESTS = path.join(ROOT, 'test', 'tokenizer');

const readTests = (...names: string[]) =>
  JSON.parse(readFileSync(path.join(TESTS, ...names), 'utf8')) as unknown;

/**
 * The tests' tokenizers: complete ones, one for each model, normalizer, pre-tokenizer and
 * post-processor, and ones that crash the library.
 */
function seeds(): Buffer[] {
  const whole = ['byte-bpe', 'nfc-bpe', 'sentencepiece'].map((name) => ({
    'tokenizer.json': readTests(name, 'tokenizer.json'),
    'tokenizer_config.json': readTests(name, 'tokenizer_config.json'),
  }));
  const small = ['encoders.json', 'unsafe.json'].flatMap((file) =>
    (readTests(file) as { tokenizer: object }[]).map(({ tokenizer }) => ({
      'tokenizer.json': tokenizer,
      'tokenizer_config.json': {},
    })),
  );
  return [...whole, ...small].map((files) => Buffer.from(JSON.stringify(files)));
}

/** Rethrows an error that is not a CheckpointError. */
function expectNamesFile(error: unknown, folder: string): void {
  if (!(error instanceof CheckpointError)) throw error;
  expect(
    path.dirname(error.file) === folder && error.message.startsWith(`${error.file}: `),
    () => `the error does not name its file: ${error.message}`,
  );
}

async function checkTokenizer(tokenizer: Tokenizer, folder: string): Promise<void> {
  expect(
    Number.isInteger(tokenizer.vocabSize) && tokenizer.vocabSize >= 0,
    () => `a vocabulary of ${tokenizer.vocabSize}`,
  );
  for (const id of [tokenizer.bosTokenId, tokenizer.eosTokenId]) {
    expect(id === null || (Number.isInteger(id) && id >= 0), () => `a special token ${id}`);
  }
  for (const text of TEXTS) {
    let ids: number[];
    try {
      ids = Array.from(await tokenizer.encode(text));
    } catch (error) {
      // The library refuses a text that needs an unknown token which the vocabulary lacks.
      expectNamesFile(error, folder);
      continue;
    }
    expect(
      ids.every((id) => Number.isInteger(id) && id >= 0 && id < tokenizer.vocabSize),
      () => `${JSON.stringify(text)} is ${ids.join()} in a vocabulary of ${tokenizer.vocabSize}`,
    );
    expect(typeof (await tokenizer.decode(ids)) === 'string', 'a decoding that is no text');
    for (const id of ids) expect(typeof tokenizer.idToToken(id) === 'string', `token ${id}`);
  }
  try {
    await tokenizer.applyChatTemplate([{ role: 'user', content: 'Hello' }]);
  } catch (error) {
    if (!(error instanceof InvalidRequestError || error instanceof CheckpointError)) throw error;
  }
}

export const tokenizer: Campaign = {
  name: 'tokenizer',
  about: 'tokenizer.json and its config: refused by name, or every token inside the vocabulary',
  open() {
    const folder = mkdtempSync(path.join(tmpdir(), 'uniproc-fuzz-tokenizer-'));
    const counts = { accepted: 0 };
    const target: BytesTarget = {
      kind: 'bytes',
      counts,
      seeds: seeds(),
      words: [
        'type', 'model', 'vocab', 'merges', 'normalizer', 'pre_tokenizer', 'post_processor', 'decoder',
        'decoders', 'normalizers', 'pretokenizers', 'processors', 'added_tokens', 'special', 'content',
        'id', 'single_word', 'lstrip', 'rstrip', 'normalized', 'pattern', 'Regex', 'String', 'behavior',
        'invert', 'BPE', 'WordPiece', 'Unigram', 'WordLevel', 'ByteLevel', 'Sequence', 'Split', 'NFC',
        'Metaspace', 'ByteFallback', 'Fuse', 'Strip', 'Replace', 'Prepend', 'TemplateProcessing',
        'add_prefix_space', 'trim_offsets', 'use_regex', 'unk_token', 'byte_fallback', 'ignore_merges',
        'dropout', 'continuing_subword_prefix', 'end_of_word_suffix', 'fuse_unk', 'single', 'pair',
        'special_tokens', 'FixedLength', 'length', 'Precompiled', 'precompiled_charsmap', 'CTC', 'BPEDecoder',
        'suffix', 'pad_token', 'word_delimiter_token', 'prepend', 'RobertaProcessing', 'BertProcessing', 'sep', 'cls',
        'start', 'stop', 'max_input_chars_per_word', 'A', 'B', '##', 'a*a*b', 'chat_template', 'bos_token', 'eos_token', '(a+)+$', '[', '(?<', '\\p{X}',
        '{{', '{% for %}', '{{ messages[0].x.y }}', '{{ raise_exception("no") }}',
      ], // prettier-ignore
      jsonFrom: 0,
      async check(bytes) {
        // A value that is not an object stands for an invalid tokenizer.json.
        let files: unknown;
        try {
          files = JSON.parse(bytes.toString());
        } catch {
          files = null;
        }
        const text = (name: string): string | Buffer => {
          if (!isObject(files)) return bytes;
          return name in files ? JSON.stringify(files[name]) : '';
        };
        for (const name of ['tokenizer.json', 'tokenizer_config.json']) {
          writeFileSync(path.join(folder, name), text(name));
        }
        let loaded: Tokenizer;
        try {
          loaded = await Tokenizer.load(folder);
        } catch (error) {
          expectNamesFile(error, folder);
          return;
        }
        counts.accepted++;
        try {
          await checkTokenizer(loaded, folder);
        } finally {
          await loaded.close();
        }
      },
      close() {
        rmSync(folder, { recursive: true, force: true });
        return Promise.resolve();
      },
    };
    return Promise.resolve(target);
  },
};
