/** Regular expressions against JavaScript's RegExp, and EBNF. */
import fc from 'fast-check';
import { InvalidRequestError } from '../../lib/errors';
import { TextMatcher } from './support';

const ATOMS = [
  'a',
  'b',
  '1',
  '.',
  '\\d',
  '\\w',
  '\\s',
  '\\S',
  '[ab]',
  '[^a]',
  '[a-c1]',
  'é',
  '\\u00e9',
  '\\.',
  '[\\d-]',
];
const pattern: fc.Arbitrary<string> = fc.letrec<{ regex: string; term: string }>((tie) => ({
  regex: fc
    .array(fc.array(tie('term'), { minLength: 0, maxLength: 4 }), { minLength: 1, maxLength: 3 })
    .map((options) => options.map((terms) => terms.join('')).join('|')),
  term: fc.oneof(
    { maxDepth: 2, withCrossShrink: true },
    fc
      .tuple(
        fc.constantFrom(...ATOMS),
        fc.constantFrom('', '', '*', '+', '?', '{2}', '{1,3}', '{0,9}', '*?', '{2,}'),
      )
      .map((parts) => parts.join('')),
    fc
      .tuple(tie('regex'), fc.constantFrom('', '*', '?', '+', '{1,2}'))
      .map(([regex, quantifier]) => `(?:${regex})${quantifier}`),
  ),
})).regex;
const subject = fc.string({
  unit: fc.constantFrom('a', 'b', 'c', '1', ' ', 'é', '.', '\n', '-'),
  maxLength: 8,
});

test('regex matches the texts that RegExp matches as a whole', () => {
  fc.assert(
    fc.property(pattern, fc.array(subject, { minLength: 5, maxLength: 20 }), (regex, texts) => {
      let matcher: TextMatcher;
      try {
        matcher = new TextMatcher({ regex });
      } catch (error) {
        // Only a repetition of what may be empty is refused.
        expect((error as Error).message).toMatch(/no text satisfies/);
        return;
      }
      const reference = new RegExp(`^(?:${regex})$`, 'u');
      for (const text of texts)
        expect([text, matcher.matches(text)]).toEqual([text, reference.test(text)]);
    }),
    { numRuns: 150, seed: 5 },
  );
});

test("a schema's pattern matches the strings that RegExp finds a match in", () => {
  const anchored = fc
    .tuple(fc.constantFrom('', '^'), pattern, fc.constantFrom('', '$'))
    .map((parts) => parts.join(''));
  fc.assert(
    fc.property(anchored, fc.array(subject, { minLength: 5, maxLength: 20 }), (regex, texts) => {
      const matcher = new TextMatcher({ json: { type: 'string', pattern: regex } });
      const reference = new RegExp(regex, 'u');
      for (const text of texts) {
        expect([text, matcher.matches(JSON.stringify(text))]).toEqual([text, reference.test(text)]);
      }
    }),
    { numRuns: 150, seed: 6 },
  );
});

test.each([
  ['\\p{Lu}\\p{L}*', ['Éa', 'A'], ['éa', '1']],
  ['[^\\W_]+', ['ab1'], ['_', 'é']],
  ['(?<year>\\d{4})-(\\d\\d)', ['2024-01'], ['2024-1']],
  ['a{3}b{2,}c{0,200}', ['aaabb', 'aaabbbc'], ['aabb', 'aaab', `aaabb${'c'.repeat(201)}`]],
  ['^(?:a|^b)$|c', ['a', 'b', 'c'], ['ab', '']],
  ['a^b|$', [''], ['ab', 'a']],
  ['[\\u{1F600}-\\u{1F64F}]', ['😀'], ['a']],
  ['\\x41\\cJ\\0', ['A\n\0'], ['A']],
])('%s', (regex, matching, others) => {
  const matcher = new TextMatcher({ regex });
  for (const text of matching) expect([text, matcher.matches(text)]).toEqual([text, true]);
  for (const text of others) expect([text, matcher.matches(text)]).toEqual([text, false]);
});

test.each([
  ['a(?=b)', /a lookahead, which is not supported/],
  ['(?<!a)b', /a lookbehind/],
  ['(a)\\1', /a back reference/],
  ['\\bword', /a word boundary/],
  ['(?i:a)', /a group of this kind/],
  ['(a', /a group without its end/],
  ['a)', /an unmatched \)/],
  ['[a', /a \[ without its \]/],
  ['*a', /nothing to repeat/],
  ['a{2}{3}', /nothing to repeat/],
  ['a{,5}', /without its least number/],
  ['a{3,1}', /the quantifier \{3,1\}/],
  ['a{200000}', /more than 100000 times/],
  ['[b-a]', /a range out of order/],
  ['\\p{Nope}', /unknown property Nope/],
  ['a\\', /ends with a backslash/],
  ['(?:a?){0,999}', /may be empty is repeated up to 999 times/],
  ['[]', /no text satisfies/],
  ['('.repeat(500) + ')'.repeat(500), /deeper than 200 groups/],
])('%s is refused', (regex, message) => {
  expect(() => new TextMatcher({ regex })).toThrow(InvalidRequestError);
  expect(() => new TextMatcher({ regex })).toThrow(message);
});

describe('grammar', () => {
  const ARITHMETIC = `
    # llama.cpp's example
    root  ::= (expr "=" ws term "\\n")+
    expr  ::= term ([-+*/] term)*
    term  ::= ident | num | "(" ws expr ")" ws
    ident ::= [a-z] [a-z0-9_]* ws
    num   ::= [0-9]+ ws
    ws    ::= [ \\t\\n]*
  `;

  test("matches the texts of llama.cpp's arithmetic", () => {
    const matcher = new TextMatcher({ grammar: ARITHMETIC });
    for (const text of ['1+2=3\n', '(a *(b-1)) = c_1\nx=y\n'])
      expect(matcher.matches(text)).toBe(true);
    for (const text of ['1+=3\n', '(1=2\n', '1=2']) expect(matcher.matches(text)).toBe(false);
  });

  test.each([
    ['root ::= "a" root "b" | ""', ['', 'ab', 'aaabbb'], ['a', 'aab', 'ba']],
    ['root ::= x{2,3} # comment\nx ::= [^a-c\\n]', ['dd', 'ééé'], ['d', 'da', 'dddd']],
    ['root ::= "\\x41\\u00e9\\"" | .', ['Aé"', 'x', '漢'], ['xx', '']],
    ['root ::=\n  "a" |\n  "b" rest-1\nrest-1 ::= ("c"\n "d")?', ['a', 'b', 'bcd'], ['ab', 'bc']],
    ['root ::= "x" root | "x"', ['x', 'x'.repeat(500)], ['', 'y']],
    ['root ::= [-a\\]]+', ['-a]'], ['b']],
  ])('%s', (grammar, matching, others) => {
    const matcher = new TextMatcher({ grammar });
    for (const text of matching) expect([text, matcher.matches(text)]).toEqual([text, true]);
    for (const text of others) expect([text, matcher.matches(text)]).toEqual([text, false]);
  });

  test.each([
    ['start ::= "a"', /no rule root/],
    ['root ::= other', /no rule other/],
    ['root ::= root "a" | "b"', /rule root is left-recursive/],
    ['root ::= x root\nx ::= "a"?', /left-recursive/],
    ['root ::= "a" root', /no text satisfies/],
    ['root ::= "a\n"', /line 1: a " is missing/],
    ['root ::= ("a"', /a group has no end/],
    ['root ::= "a"\nroot ::= "b"', /rule root is defined twice/],
    ['root ::= "a" }', /unexpected "}"/],
    ['root ::= (= "a")', /a lookahead \(= \) is not supported/],
    ['root ::= [b-a]', /out of order/],
  ])('%s is refused', (grammar, message) => {
    expect(() => new TextMatcher({ grammar })).toThrow(InvalidRequestError);
    expect(() => new TextMatcher({ grammar })).toThrow(message);
  });
});
