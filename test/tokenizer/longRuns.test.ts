import fc from 'fast-check';
import { CharacterSet } from '../../lib/tokenizer/characterSet';
import { checkTokenizerFile } from '../../lib/tokenizer/fileChecks';
import { exceededLimit, type RunLimit } from '../../lib/tokenizer/longRuns';

const LETTERS = new CharacterSet('\\p{L}', '');
const limit = (maxLength: number, forms: RunLimit['forms'] = []): RunLimit => ({
  sets: [LETTERS],
  maxLength,
  forms,
});

test('a run is found at any position if it is longer than the limit', () => {
  const text = fc.string({ unit: fc.constantFrom('a', '\u4e00', ' ', '1'), maxLength: 60 });
  fc.assert(
    fc.property(text, fc.integer({ min: 1, max: 8 }), (text, maxLength) => {
      const longest = Math.max(0, ...(text.match(/\p{L}+/gu) ?? []).map(({ length }) => length));
      expect(exceededLimit(text, [limit(maxLength)]) !== null).toBe(longest > maxLength);
    }),
    { numRuns: 2000 },
  );
});

test('runs are counted in the normalized text', () => {
  // Marks separate decomposed letters, but composed letters form a run. U+3316 decomposes to six letters.
  expect(exceededLimit('e\u0301'.repeat(30), [limit(20)])).toBeNull();
  expect(exceededLimit('e\u0301'.repeat(30), [limit(20, ['NFC'])])).not.toBeNull();
  expect(exceededLimit('\u3316'.repeat(5), [limit(20, ['NFKC'])])).not.toBeNull();
});

test('a character whose class depends on the Unicode version does not end a run', () => {
  // U+A7DA is a letter since Unicode 16.
  expect(exceededLimit('a\ua7da\u{1f600}'.repeat(10), [limit(20)])).not.toBeNull();
});

const LLAMA4 =
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|" +
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|" +
  '\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';

test("Llama 4's expression allows a prompt of a million tokens, but not a run of its length", () => {
  const { maxTextLength, runs } = checkTokenizerFile('tokenizer.json', {
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: LLAMA4 }, behavior: 'Isolated', invert: false },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
  });
  const length = 5_500_000;
  expect(maxTextLength).toBeGreaterThan(length);
  const fill = (text: string) => text.repeat(Math.ceil(length / text.length));
  for (const text of [
    'The tide, 12 times a day.\n',
    '\u6f6e\u6c34\u3002',
    '    x = 1;\n',
    '0xffA9_',
  ]) {
    expect(exceededLimit(fill(text), runs)).toBeNull();
  }
  for (const text of ['a', 'A', '\u6f6e', ' ', '\n', '\u{1f600}']) {
    expect(exceededLimit(fill(text), runs)).not.toBeNull();
  }
});
