import path from 'node:path';
import fc from 'fast-check';
import { type LengthBound, lengthBound, minNumTokens } from '../../lib/tokenizer/lengthBound';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import { byteTokenizer } from '../engine/byteTokenizer';

const load = (name: string) => Tokenizer.load(path.join(__dirname, name));

describe.each([
  ['bytes', byteTokenizer],
  ['byte-bpe', () => load('byte-bpe')],
  ['nfc-bpe', () => load('nfc-bpe')],
  ['sentencepiece', () => load('sentencepiece')],
])('minNumTokens of %s', (_, create) => {
  let tokenizer: Tokenizer;

  beforeAll(async () => {
    tokenizer = await create();
  });

  afterAll(() => tokenizer.close());

  it('is at most the number of tokens', async () => {
    const words = fc.constantFrom(
      'the tide',
      '  ',
      'e\u0301',
      'ᾂ',
      '\u1112\u1161\u11ab',
      '<|end|>',
      '猫',
      '😀',
    );
    const texts = fc.array(fc.oneof(words, fc.string({ unit: 'binary' })), { maxLength: 30 });
    await fc.assert(
      fc.asyncProperty(texts, async (parts) => {
        const text = parts.join('');
        const ids = await tokenizer.encode(text, { addSpecialTokens: false });
        expect(tokenizer.minNumTokens(text)).toBeLessThanOrEqual(ids.length);
      }),
      { numRuns: 100 },
    );
  });

  it('grows with the text', () => {
    expect(tokenizer.minNumTokens('')).toBe(0);
    expect(tokenizer.minNumTokens('a')).toBe(1);
    expect(tokenizer.minNumTokens('the tide '.repeat(1000))).toBeGreaterThan(100);
  });
});

test('minNumTokens is the number of bytes if each byte is a token', async () => {
  const tokenizer = await byteTokenizer();
  // The special token <eos> has 5 bytes.
  expect(tokenizer.minNumTokens('é'.repeat(500))).toBe(200);
  await tokenizer.close();
});

describe('lengthBound', () => {
  const flags = {
    special: true,
    singleWord: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
  };
  const vocab = { '?': 0, a: 1, abc: 2 };
  const model = { type: 'BPE', vocab, merges: [], unk_token: '?' };

  it('is sound for a tokenizer that keeps its text', () => {
    expect(lengthBound({ model }, vocab, [])).toMatchObject({ maxPerToken: 3 });
  });

  it.each([
    ['a normalizer that shortens', { normalizer: { type: 'NFKC' }, model }],
    [
      'a normalizer that shortens in a Sequence',
      {
        normalizer: { type: 'Sequence', normalizers: [{ type: 'NFC' }, { type: 'Strip' }] },
        model,
      },
    ],
    [
      'a Replace with a shorter text',
      { normalizer: { type: 'Replace', pattern: { String: 'ab' }, content: 'a' }, model },
    ],
    [
      'a Replace that shortens a run',
      { normalizer: { type: 'Replace', pattern: { Regex: ' +' }, content: ' ' }, model },
    ],
    ['a pre-tokenizer that drops', { pre_tokenizer: { type: 'WhitespaceSplit' }, model }],
    ['a Split that drops', { pre_tokenizer: { type: 'Split', behavior: 'Removed' }, model }],
    ['unknown characters that are fused', { model: { ...model, fuse_unk: true } }],
    ['unknown characters that are dropped', { model: { ...model, unk_token: null } }],
    ['byte tokens that are missing', { model: { ...model, unk_token: null, byte_fallback: true } }],
    ['unknown words', { model: { type: 'WordLevel', vocab, unk_token: '?' } }],
  ])('is null for %s', (_, json) => {
    const bound = lengthBound(json, vocab, []);
    expect(minNumTokens('a'.repeat(100), bound)).toBe(0);
  });

  it('is 0 for a text with a token that absorbs white space', () => {
    const bound = lengthBound({ model }, vocab, [{ ...flags, content: '<m>', rstrip: true }]);
    expect(minNumTokens('<m>' + ' '.repeat(100), bound)).toBe(0);
    expect(minNumTokens('a'.repeat(100), bound as LengthBound)).toBe(34);
  });
});
