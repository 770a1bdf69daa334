import { RegexError, regexCost } from '../../lib/tokenizer/regexCost';

/** Regular expressions of published tokenizers. */
const published: readonly (readonly [name: string, pattern: string])[] = [
  ['GPT-2', "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"],
  [
    'cl100k (GPT-4)',
    "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}+| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s",
  ],
  [
    'Llama 3',
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  ],
  [
    'o200k (GPT-4o)',
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  ],
  [
    'Kimi K2',
    "[\\p{Han}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  ],
  [
    'DeepSeek V3',
    '[!"#$%&\'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+',
  ],
  ['BLOOM', ' ?[^(\\s|[.,!?…。，、।۔،])]+'],
  ['CLIP', "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"],
  ['llm-jp', '(?<!\\n)^'],
  ['Falcon', '[0-9][0-9][0-9]'],
  ['digits in threes, from the right', '\\p{N}{1,3}(?=(?:\\p{N}{3})*(?:\\P{N}|$))'],
  ['words in capitals', '(?:[A-Z][a-z]*)+'],
  ['more than one space', ' {2,}'],
];

const costly = [
  '(a+)+$', '(a|a)*b', '(a|aa)+$', 'a*a*b', '\\s+\\s+x', '(?:a?){30}a', '(\\w|\\d)*x', '(.*)*x', '(a*)\\1x',
  '(?<x>a\\g<x>?)', '(?~a)', '(?(1)a|b)', '\\w*\\d*x', '(?:a{1,1000}){1,1000}x', '(?=(a+)+b)', '(?<!a*)b', '\\X*',
  'a{1,500}a{1,500}b', '([^x]*a)*y', '(?i:k)*\u212a*x', '(?i)[^a]*s*\u00df*x', '[^a]*[A]*x', '(x+x+)+y',
  '(?:a+|b)*c', '.*.*=', '\\s*(?:\\s|a)*b', '(?:(?>a*)b?)*c', '[\\p{Glagolitic}a]*[\\p{Glagolitic}b]*1',
  'a?'.repeat(30) + 'a', '(?:a|a)'.repeat(30) + 'b', '('.repeat(100) + ')'.repeat(100), '(?:a*){2,}b',
]; // prettier-ignore

describe('regexCost', () => {
  it.each(published)('accepts %s', (_, pattern) => {
    expect(regexCost(pattern).maxTextLength).toBeGreaterThan(1_000_000);
  });

  it.each(costly)('rejects %s', (pattern) => {
    expect(() => regexCost(pattern)).toThrow(RegexError);
  });

  it('allows texts of any length without backtracking', () => {
    expect(regexCost('\\s+|a').maxTextLength).toBe(Infinity);
  });

  it.each([
    ['a*', true],
    ['^', true],
    ['a|', true],
    ['(?=a)', true],
    ['(?:a?b*)+', true],
    ['a', false],
    ['(?<!b)a{1,2}', false],
  ])('says whether %s matches an empty string: %s', (pattern, matchesEmpty) => {
    expect(regexCost(pattern).matchesEmpty).toBe(matchesEmpty);
  });
});
