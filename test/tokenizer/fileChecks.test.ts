import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { InvalidRequestError } from '../../lib/errors';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import { folderWith } from '../support/folder';

/** Files on which Python's tokenizers panics: see make_unsafe.py. */
const unsafe = JSON.parse(readFileSync(path.join(__dirname, 'unsafe.json'), 'utf8')) as {
  name: string;
  field: string;
  tokenizer: { added_tokens: object[] };
}[];

const base = {
  version: '1.0',
  added_tokens: [],
  model: { type: 'BPE', vocab: { a: 0, b: 1, ab: 2 }, merges: ['a b'] },
};

/** Files that exhaust time or memory, or cause a panic in another way. */
const unending: readonly (readonly [name: string, field: string, content: unknown])[] = [
  [
    'replacements that repeatedly double a text',
    'normalizer.normalizers[8].content',
    {
      ...base,
      normalizer: {
        type: 'Sequence',
        normalizers: Array.from({ length: 40 }, () => replacement('a', 'aa')),
      },
    },
  ],
  [
    'a decoder that repeatedly doubles a text',
    'decoder.decoders[8].content',
    {
      ...base,
      decoder: {
        type: 'Sequence',
        decoders: Array.from({ length: 40 }, () => replacement('a', 'aa')),
      },
    },
  ],
  [
    'a replacement of a megabyte',
    'normalizer.content',
    { ...base, normalizer: replacement('a', 'x'.repeat(1e6)) },
  ],
  [
    'a decoder with a pattern of a megabyte',
    'decoder.pattern.String',
    { ...base, decoder: replacement('a'.repeat(1e6), 'x') },
  ],
  [
    'a decoder with an unbounded lookahead',
    'decoder.pattern.Regex',
    {
      ...base,
      decoder: { type: 'Replace', pattern: { Regex: '(?=a*)b' }, content: '' },
    },
  ],
  [
    'a decoder that backtracks',
    'decoder.pattern.Regex',
    { ...base, decoder: { type: 'Replace', pattern: { Regex: 'a*b' }, content: '' } },
  ],
  [
    'words of unlimited length',
    'model.max_input_chars_per_word',
    {
      ...base,
      model: {
        type: 'WordPiece',
        unk_token: '[UNK]',
        continuing_subword_prefix: '##',
        max_input_chars_per_word: 2 ** 40,
        vocab: { '[UNK]': 0, a: 1, '##a': 2 },
      },
    },
  ],
  ['nested Sequences', 'normalizer.normalizers[0]', { ...base, normalizer: nested(60) }],
  [
    'nested Sequences that overflow the stack',
    'normalizer.normalizers[0]',
    text(nestedText(100_000)),
  ],
  [
    'a duplicate normalizer',
    'normalizer.type',
    text(
      '"normalizer":null,"normalizer":{"type":"Precompiled","type":"Foo","precompiled_charsmap":""}',
    ),
  ],
  [
    "a post-processor's token outside the vocabulary",
    'post_processor.sep[1]',
    {
      ...base,
      post_processor: { type: 'BertProcessing', sep: ['a', 2 ** 32 - 1], cls: ['b', 1] },
    },
  ],
  ['null', 'it must hold a JSON object', 'null'],
  ['an added token without content', 'added_tokens', { ...base, added_tokens: [{ id: 7 }] }],
];

function replacement(from: string, content: string) {
  return { type: 'Replace', pattern: { String: from }, content };
}

function nested(depth: number): object {
  let normalizer: object = { type: 'NFC' };
  for (; depth > 0; depth--) normalizer = { type: 'Sequence', normalizers: [normalizer] };
  return normalizer;
}

function nestedText(depth: number): string {
  const open = '{"type":"Sequence","normalizers":['.repeat(depth);
  return `"normalizer":${open}${']}'.repeat(depth)}`;
}

/** JSON of the base, with `field` prepended. */
function text(field: string): string {
  return `{${field},${JSON.stringify(base).slice(1)}`;
}

const LOADER = path.join(__dirname, '..', 'executor', 'requireTypescript.js');

const SCRIPT = `
  const { Tokenizer } = require('uniproc');
  (async () => {
    for (const folder of JSON.parse(process.argv[1])) {
      try {
        const tokenizer = await Tokenizer.load(folder);
        const texts = ['a', 'ab', '\\u00e9b', '<s>    a', 'a'.repeat(40) + 'b', 'a'.repeat(6000) + '!'];
        for (const text of texts) await tokenizer.decode(await tokenizer.encode(text));
        await tokenizer.close();
        console.log('loaded');
      } catch (error) {
        console.log(JSON.stringify({ name: error.name, message: error.message, file: error.file }));
      }
    }
  })();`;

/** Loads each file in a separate process, which a panic would end; returns its output. */
async function outcomes(contents: readonly unknown[]): Promise<{ folder: string; line: string }[]> {
  const folders = await Promise.all(
    contents.map((content) => folderWith({ 'tokenizer.json': content })),
  );
  const run = promisify(execFile);
  const args = ['--require', LOADER, '-e', SCRIPT, JSON.stringify(folders)];
  const cwd = path.join(__dirname, '..', '..');
  const { stdout } = await run(process.execPath, args, { cwd }).catch(
    (error: unknown) => error as { stdout: string },
  );
  const lines = stdout.split('\n');
  return folders.map((folder, i) => ({ folder, line: lines[i] || 'the process ended' }));
}

describe('a tokenizer.json that could end the process', () => {
  const cases = [
    ...unsafe.map(({ name, field, tokenizer }) => ({ name, field, content: tokenizer })),
    ...unending.map(([name, field, content]) => ({ name, field, content })),
  ];
  let found: { folder: string; line: string }[];

  beforeAll(async () => {
    found = await outcomes(cases.map(({ content }) => content));
  }, 300_000);

  it.each(cases.map((one, i) => ({ ...one, i })))('is rejected: $name', ({ field, i }) => {
    const { folder, line } = found[i];
    const file = path.join(folder, 'tokenizer.json');
    expect(line).toMatch(/^\{/);
    const error = JSON.parse(line) as { name: string; message: string; file: string };
    expect(error).toMatchObject({ name: 'CheckpointError', file });
    expect(error.message.slice(`${file}: `.length)).toMatch(
      new RegExp(`^${field.replace(/[[\].]/g, '\\$&')}`),
    );
  });
});

describe('a text that could end or hang the process', () => {
  const cased =
    "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  const split = { type: 'Split', pattern: { Regex: cased }, behavior: 'Isolated', invert: false };
  const newline = { id: 3, content: '\n', single_word: false, lstrip: false, rstrip: true };

  it("is rejected: white space beyond the regular expression's retry limit", async () => {
    const tokenizer = await Tokenizer.load(
      await folderWith({ 'tokenizer.json': { ...base, pre_tokenizer: split } }),
    );
    const long = `a${' '.repeat(12_000_000)}b`;
    await expect(tokenizer.encode(long)).rejects.toThrow(InvalidRequestError);
    await expect(tokenizer.encode(long)).rejects.toThrow('tokenizer.json can encode at most');
    expect(await tokenizer.encode(`a${' '.repeat(100_000)}b`)).toEqual([0, 1]);
    await tokenizer.close();
  });

  it('is rejected: long white space of an added token with rstrip', async () => {
    const added = { ...newline, normalized: false, special: false };
    const tokenizer = await Tokenizer.load(
      await folderWith({ 'tokenizer.json': { ...base, added_tokens: [added] } }),
    );
    await expect(tokenizer.encode('\n'.repeat(1e6))).rejects.toThrow(InvalidRequestError);
    expect(await tokenizer.encode('\n'.repeat(1000))).toHaveLength(1000);
    await tokenizer.close();
  });
});
