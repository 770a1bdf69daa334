/** Masks against trying every token byte by byte. */
import type { StructuredOutputsOptions } from '../../lib/config/structuredOutputs';
import { allowed, randomOf, sampleText, syntheticVocabulary, TestVocabulary } from './support';

const PERSON = {
  type: 'object',
  properties: {
    name: { type: 'string', minLength: 2, maxLength: 30 },
    nick: { type: 'string' },
    age: { type: 'integer', minimum: 0, maximum: 150 },
    tags: { type: 'array', items: { enum: ['red', 'green', 'grey'] }, maxItems: 3 },
    code: { type: 'string', pattern: '^[A-Z]{2}-\\d+$' },
  },
  required: ['name', 'age'],
};
const TREE = {
  $ref: '#/$defs/node',
  $defs: {
    node: {
      type: 'object',
      properties: { v: { type: ['string', 'null'] }, next: { $ref: '#/$defs/node' } },
      additionalProperties: false,
    },
  },
};

/** Free text, with the same characters as in triggers and ends. */
const TOOLS: StructuredOutputsOptions = {
  structuralTag: {
    format: {
      type: 'sequence',
      elements: [
        { type: 'tag', begin: '', content: { type: 'any_text', excludes: ['漢b'] }, end: '":' },
        {
          type: 'triggered_tags',
          triggers: ['{"', 'a\n'],
          tags: [
            {
              type: 'tag',
              begin: '{"a":',
              content: { type: 'json_schema', json_schema: TREE },
              end: '}',
            },
            { type: 'tag', begin: 'a\nb', content: { type: 'any_text' }, end: '字' },
          ],
        },
      ],
    },
  },
};

const GRAMMARS: [string, StructuredOutputsOptions][] = [
  ['an object with optional and additional properties', { json: PERSON }],
  ['an object without additional properties', { json: PERSON, disableAdditionalProperties: true }],
  ['a recursive schema', { json: TREE }],
  ['any JSON object', { jsonObject: true }],
  ['any value', { json: true }],
  ['strings with bounds', { json: { type: 'string', minLength: 3, maxLength: 40 } }],
  ['a regular expression', { regex: '(?:[^"\\n]{0,20}|"[a-f]+"){0,3}é?漢{2,5}' }],
  ['words', { regex: '(?:[a-z]+ |\\w+,|[^\\x00-\\x1f"\\\\é]+")*' }],
  ['free text with tags', TOOLS],
  ['a choice', { choice: ['abc', 'abd', 'x', '漢字', 'é'] }],
  [
    'a grammar',
    { grammar: 'root ::= "(" root ")" root | ws\nws ::= [ \\t\\n]{0,9} ("é" | [^a-z"]+)?' },
  ],
];

const bytesOf = (text: string) => new Uint8Array(Buffer.from(text));

describe.each([
  ['a small vocabulary', syntheticVocabulary(600, 1), 60],
  ['a large vocabulary', syntheticVocabulary(40_000, 2), 12],
] as const)('%s', (_, vocabulary, numPrefixes) => {
  test.each(GRAMMARS)(
    '%s: the mask has each token that can follow, and no other',
    (_name, options) => {
      const checker = vocabulary.checker(options);
      const random = randomOf(7);
      let numTokens = 0;
      for (let i = 0; i < numPrefixes; i++) {
        checker.reset();
        for (let step = Math.floor(random() * 12); step >= 0; step--) {
          const mask = checker.mask();
          const ids = allowed(mask);
          if (step === 0) {
            expect(ids).toEqual(allowed(checker.plainMask()));
            expect(ids).not.toContain(vocabulary.size - 1);
            numTokens += ids.length;
          }
          if (ids.length === 0) break;
          checker.append(vocabulary.tokens[ids[Math.floor(random() * ids.length)]]);
        }
      }
      expect(numTokens).toBeGreaterThan(0);
    },
  );
});

test('the plain mask is that of reading one byte after another', () => {
  const vocabulary = syntheticVocabulary(600, 3);
  const checker = vocabulary.checker({ json: PERSON });
  for (const prefix of [
    '',
    '{',
    '{"name":"',
    '{"name":"ab\\',
    '{"name": "ab", "nick',
    '{"name":"é',
  ]) {
    checker.reset();
    expect(checker.append(bytesOf(prefix))).toBe(true);
    const ids = new Set(allowed(checker.plainMask()));
    for (const [id, token] of vocabulary.tokens.entries()) {
      checker.reset();
      checker.append(bytesOf(prefix));
      const isAlive = Array.from(token, (byte) => checker.append(Uint8Array.of(byte))).every(
        Boolean,
      );
      expect(ids.has(id)).toBe(token.length > 0 && isAlive);
    }
  }
});

test('a token may span the end of one part and the beginning of the next', () => {
  const vocabulary = new TestVocabulary(['{"a":1', '","b', '":', '{', '"', 'x'].map(bytesOf));
  const checker = vocabulary.checker({
    json: {
      type: 'object',
      properties: { a: { type: 'string' }, b: { type: 'null' } },
      required: ['a', 'b'],
    },
  });
  expect(allowed(checker.mask())).toEqual([3]);
  checker.append(bytesOf('{"a":"x'));
  expect(allowed(checker.mask())).toEqual([1, 3, 4, 5]);
  checker.append(vocabulary.tokens[1]);
  expect(allowed(checker.mask())).toEqual([2, 4]);
});

test('a character may be divided among tokens, and only completed', () => {
  const [lead, ...rest] = bytesOf('é漢');
  const vocabulary = new TestVocabulary([
    Uint8Array.of(lead),
    Uint8Array.from(rest),
    bytesOf('é'),
    bytesOf('a'),
  ]);
  const checker = vocabulary.checker({ regex: '[é-漢a]{2}' });
  expect(allowed(checker.mask())).toEqual([0, 2, 3]);
  checker.append(vocabulary.tokens[0]);
  expect(allowed(checker.mask())).toEqual([1]);
});

test.each(GRAMMARS)('%s: texts sampled from masks are complete texts', (_name, options) => {
  const vocabulary = syntheticVocabulary(600, 4);
  const checker = vocabulary.checker(options);
  const random = randomOf(11);
  let numTexts = 0;
  for (let i = 0; i < 40; i++) {
    const text = sampleText(vocabulary, checker, random, 400);
    if (text === null) continue;
    numTexts++;
    if ('json' in options || 'jsonObject' in options)
      expect(() => JSON.parse(text) as unknown).not.toThrow();
    if (options.regex != null) expect(text).toMatch(new RegExp(`^(?:${options.regex})$`, 'u'));
    if (options.choice != null) expect(options.choice).toContain(text);
  }
  expect(numTexts).toBeGreaterThan(10);
});
