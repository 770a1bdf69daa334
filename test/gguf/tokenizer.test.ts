/**
 * Tokenizers in GGUF files: those of test/tokenizer as llama.cpp's script writes them, with what
 * transformers has for their tokenizer.json.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Tokenizer } from '../../lib';
import { gguf, type Value } from '../support/ggufFile';
import { tokenizerMetadata } from '../support/ggufTokenizer';

interface Expected {
  vocabSize: number;
  bosTokenId: number | null;
  eosTokenId: number;
  encode: { text: string; ids: number[]; withSpecial: number[] }[];
  decode: { ids: number[]; text: string; withSpecial: string }[];
  chat: {
    messages: { role: string; content: string }[];
    addGenerationPrompt: boolean;
    ids?: number[];
    error?: string;
  }[];
}

const folder = mkdtempSync(path.join(os.tmpdir(), 'uniproc-test-'));
afterAll(() => rmSync(folder, { recursive: true }));

function fileOf(name: string, metadata: Record<string, Value>): string {
  const file = path.join(folder, `${name}.gguf`);
  writeFileSync(
    file,
    gguf({ metadata: { 'general.architecture': { text: 'llama' }, ...metadata } }),
  );
  return file;
}

const recorded = (name: string) => path.join(__dirname, '..', 'tokenizer', name);

describe.each([
  ['byte-bpe', 'llama-bpe', {}],
  ['nfc-bpe', 'qwen2', {}],
  ['sentencepiece', null, { 'general.name': { text: 'A small Llama' } }],
])('the tokenizer of %s', (name, pre, more: Record<string, Value>) => {
  const expected = JSON.parse(
    readFileSync(path.join(recorded(name), 'expected.json'), 'utf8'),
  ) as Expected;
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    const metadata = { ...tokenizerMetadata(recorded(name), pre), ...more };
    tokenizer = await Tokenizer.load(fileOf(name, metadata));
  });
  afterAll(() => tokenizer.close());

  it('has its tokens by name', () => {
    const { vocabSize, bosTokenId, eosTokenId } = expected;
    expect(tokenizer).toMatchObject({ vocabSize, bosTokenId, eosTokenId });
  });

  it.each(expected.encode)('encodes $text', async ({ text, ids, withSpecial }) => {
    expect(await tokenizer.encode(text, { addSpecialTokens: false })).toEqual(ids);
    expect(await tokenizer.encode(text)).toEqual(withSpecial);
  });

  it.each(expected.decode)('decodes to $text', async ({ ids, text, withSpecial }) => {
    expect(await tokenizer.decode(ids)).toBe(text);
    expect(await tokenizer.decode(ids, { skipSpecialTokens: false })).toBe(withSpecial);
  });

  it.each(expected.chat)(
    'renders and encodes $messages',
    async ({ messages, error, ids, ...options }) => {
      const encoding = tokenizer.applyChatTemplate(messages, options);
      if (error === undefined) expect(await encoding).toEqual(ids);
      else await expect(encoding).rejects.toThrow(error);
    },
  );
});

describe('a tokenizer in GGUF', () => {
  const small: Record<string, Value> = {
    'tokenizer.ggml.model': { text: 'gpt2' },
    'tokenizer.ggml.pre': { text: 'gpt-2' },
    'tokenizer.ggml.tokens': { texts: ['a', 'b', 'ab', '<end>'] },
    'tokenizer.ggml.token_type': { i32s: [1, 1, 1, 3] },
    'tokenizer.ggml.merges': { texts: ['a b'] },
    'tokenizer.ggml.bos_token_id': { u32: 3 },
  };

  it.each([
    [true, [3, 2]],
    [false, [2]],
  ])('with add_bos_token %s begins texts accordingly', async (bool, ids) => {
    const file = fileOf('bos', { ...small, 'tokenizer.ggml.add_bos_token': { bool } });
    const tokenizer = await Tokenizer.load(file);
    try {
      expect(await tokenizer.encode('ab')).toEqual(ids);
    } finally {
      await tokenizer.close();
    }
  });

  it('without a space prefix keeps spaces as they are', async () => {
    const tokens = ['<unk>', '<s>', '▁', 'a', '▁a'];
    const file = fileOf('spaces', {
      'tokenizer.ggml.model': { text: 'llama' },
      'tokenizer.ggml.tokens': { texts: tokens },
      'tokenizer.ggml.token_type': { i32s: [2, 3, 1, 1, 1] },
      'tokenizer.ggml.scores': { f32s: [0, 0, -2, -3, -1] },
      'tokenizer.ggml.add_space_prefix': { bool: false },
      'tokenizer.ggml.add_bos_token': { bool: false },
    });
    const tokenizer = await Tokenizer.load(file);
    try {
      expect(await tokenizer.encode('a a')).toEqual([3, 4]);
      expect(await tokenizer.decode([4, 4])).toBe(' a a');
    } finally {
      await tokenizer.close();
    }
  });

  it('of SentencePiece with a token of a megabyte is refused before merges are made of it', async () => {
    const file = fileOf('long', {
      'tokenizer.ggml.model': { text: 'llama' },
      'tokenizer.ggml.tokens': { texts: ['a', 'a'.repeat(2 ** 20)] },
      'tokenizer.ggml.scores': { f32s: [0, 0] },
    });
    await expect(Tokenizer.load(file)).rejects.toThrow(
      "metadata 'tokenizer.ggml.tokens' has at 1 a token of 1048576 characters; at most 1024",
    );
  });

  it.each<[string, Record<string, Value>, string]>([
    ['model', { 'tokenizer.ggml.model': { text: 'bert' } }, "'bert', which is not supported"],
    ['pre', { 'tokenizer.ggml.pre': { text: 'new' } }, "'new', which is not supported"],
    ['tokens', { 'tokenizer.ggml.tokens': { u32: 1 } }, 'it must be a list of strings'],
    ['token_type', { 'tokenizer.ggml.token_type': { i32s: [1] } }, 'has 1 entries'],
    ['merges', { 'tokenizer.ggml.merges': { texts: ['ab'] } }, "has 'ab'; it must be two tokens"],
  ])('with another %s is refused by the key', async (key, metadata, reason) => {
    const loading = Tokenizer.load(fileOf('refused', { ...small, ...metadata }));
    await expect(loading).rejects.toThrow(reason);
    await expect(loading).rejects.toThrow(`metadata 'tokenizer.ggml.${key}'`);
  });
});
