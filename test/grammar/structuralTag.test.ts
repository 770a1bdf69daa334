/** Structural tags: what texts they have. */
import { InvalidRequestError } from '../../lib';
import type { StructuralFormat, StructuralTag } from '../../lib/config/structuralTag';
import { tokenText } from '../../lib/grammar/expression';
import { bytesOf } from '../../lib/grammar/expression';
import { compile, TestVocabulary, TextMatcher } from './support';

const of = (format: StructuralFormat) => new TextMatcher({ structuralTag: { format } });
const CITY = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };

/** Each format with texts that it has and texts that it has not. */
const CASES: Record<string, [StructuralTag, string[], string[]]> = {
  "vLLM's structures": [
    {
      structures: [
        { begin: '<f=a>', schema: CITY, end: '</f>' },
        { begin: '<f=b>', schema: { type: 'integer' }, end: '</f>' },
      ],
      triggers: ['<f='],
    },
    [
      '',
      'any text, <f and < too',
      'Let me see. <f=a>{"city": "Rome"}</f>',
      '<f=b>3</f> and <f=a>{"city":"<f="}</f> done',
      '<<f=b>3</f><<f',
    ],
    ['<f=', '<f=c>', 'x <f=a>{}</f>', '<f=b>3', '<f=b>"3"</f>'],
  ],
  'tags with a separator': [
    {
      format: {
        type: 'tags_with_separator',
        tags: [{ type: 'tag', begin: '[', content: { type: 'regex', pattern: '\\d' }, end: ']' }],
        separator: ', ',
        at_least_one: true,
      },
    },
    ['[1]', '[1], [2], [3]'],
    ['', '[1],[2]', '[1], ', 'x[1]'],
  ],
  'text up to the end of its tag': [
    {
      format: {
        type: 'sequence',
        elements: [
          {
            type: 'optional',
            content: { type: 'tag', begin: '<t>', content: { type: 'any_text' }, end: '</t>' },
          },
          { type: 'json_schema', json_schema: CITY },
        ],
      },
    },
    ['{"city":""}', '<t></t>{"city":""}', '<t>a {"city":1} </ t></t>{"city": "x"}'],
    ['<t>', '<t></t>', '<t></t></t>{"city":""}'],
  ],
  'a first tag alone': [
    {
      format: {
        type: 'triggered_tags',
        triggers: ['<'],
        tags: [
          { type: 'tag', begin: '<a', content: { type: 'const_string', value: '!' }, end: '>' },
        ],
        stop_after_first: true,
      },
    },
    ['', 'text', 'text <a!>'],
    ['<a!> more', '<b', '<a!><a!>'],
  ],
  'text that does not begin with a trigger': [
    {
      format: {
        type: 'leading_tags',
        triggers: ['{"name": ', '['],
        content: { type: 'const_string', value: '{"name": 1}' },
      },
    },
    ['', '{"name": 1}', '{', '{"nam', '{"names": 2}', 'x [{"name": '],
    ['{"name": ', '{"name": 2}', '[', '[1]'],
  ],
  'a grammar any number of times': [
    {
      format: {
        type: 'star',
        content: {
          type: 'or',
          elements: [
            { type: 'grammar', grammar: 'root ::= "(" root ")" | "x"' },
            { type: 'grammar', grammar: 'root ::= "y"' },
          ],
        },
      },
    },
    ['', 'xy', '((x))yx'],
    ['(y)', '(x'],
  ],
};

test.each(Object.entries(CASES))('%s', (_, [structuralTag, yes, no]) => {
  const matcher = new TextMatcher({ structuralTag });
  for (const text of yes) expect([text, matcher.matches(text)]).toEqual([text, true]);
  for (const text of no) expect([text, matcher.matches(text)]).toEqual([text, false]);
  // As text, and in another key order, it is the same.
  const again = new TextMatcher({ structuralTag: JSON.stringify(structuralTag) });
  for (const text of yes) expect(again.matches(text)).toBe(true);
});

const ARGUMENTS = {
  type: 'object',
  properties: {
    city: { type: 'string' },
    unit: { enum: ['c', 'f', null] },
    days: { $ref: '#/$defs/count' },
    note: { type: ['string', 'null'], maxLength: 3 },
    any: {},
    list: { type: 'array', items: { type: 'boolean' } },
  },
  required: ['city', 'days'],
  $defs: { count: { type: 'integer', minimum: 1, maximum: 9 } },
};

test("arguments as Qwen3-Coder's blocks", () => {
  const matcher = of({ type: 'qwen_xml_parameter', json_schema: ARGUMENTS });
  const block = (name: string, value: string) => `<parameter=${name}>\n${value}\n</parameter>\n`;
  const city = block('city', 'a "b" </para \n c');
  const days = block('days', '7');
  const accepted = [
    city + days,
    block('city', '') + days,
    city + block('unit', 'c') + days,
    city + block('unit', 'null') + days + block('note', 'a b') + block('list', '[true]'),
    city + days + block('note', 'null') + block('any', '"text"'),
  ];
  const refused = [
    city,
    days + city,
    city + block('days', '10'),
    city + block('unit', '"c"') + days,
    city + days + block('note', 'abcd'),
    city + days + block('any', 'text'),
    block('city', 'x</parameter>') + days,
    city + days + block('other', '1'),
  ];
  for (const text of accepted) expect([text, matcher.matches(text)]).toEqual([text, true]);
  for (const text of refused) expect([text, matcher.matches(text)]).toEqual([text, false]);
});

test('arguments of a Python call', () => {
  const matcher = of({ type: 'pythonic_arguments', json_schema: ARGUMENTS });
  for (const text of ['city="a\\n", days=7', 'city="", unit=None, days=1, list=[true]'])
    expect([text, matcher.matches(text)]).toEqual([text, true]);
  for (const text of ['days=7', 'city="", unit=null, days=1', 'city="" days=1', ', city=""'])
    expect([text, matcher.matches(text)]).toEqual([text, false]);
  expect(of({ type: 'pythonic_arguments', json_schema: {} }).matches('')).toBe(true);
});

test("Gemma's arguments", () => {
  const quote = '<|"|>';
  const matcher = of({ type: 'gemma_arguments', json_schema: ARGUMENTS, quote });
  for (const text of [
    `city:${quote}a "b" <|${quote},days:7`,
    `city:${quote}${quote},unit:null,days:1`,
  ])
    expect([text, matcher.matches(text)]).toEqual([text, true]);
  for (const text of [`city:"a",days:7`, `city:${quote}a,days:7`, `city:${quote}a${quote}`])
    expect([text, matcher.matches(text)]).toEqual([text, false]);
});

test('a special token is allowed where the tag has it, and nothing else spells it', () => {
  const begin = { type: 'token', token: '[CALL]' } as const;
  const structuralTag: StructuralTag = {
    format: {
      type: 'triggered_tags',
      triggers: [begin],
      tags: [{ type: 'tag', begin, content: { type: 'regex', pattern: '\\d' }, end: '.' }],
    },
  };
  const names = ['a', '1', '.', '[CALL]', '[', '</s>'];
  const vocabulary = new TestVocabulary([
    ...names.map((name) => Buffer.from(name)),
    bytesOf(tokenText('[CALL]')),
    bytesOf(tokenText('</s>')),
  ]);
  const checker = vocabulary.checker({ structuralTag });
  const mask = () => checker.mask()[0];
  const bits = (...ids: number[]) => ids.reduce((sum, id) => sum | (1 << id), 0);
  const free = bits(0, 1, 2, 3, 4, 5, 6);
  expect(mask()).toBe(free);
  checker.append(Buffer.from('[CALL]'));
  expect(mask()).toBe(free);
  checker.append(bytesOf(tokenText('[CALL]')));
  expect(mask()).toBe(bits(1));
  checker.append(Buffer.from('1.'));
  expect(mask()).toBe(free);
});

test.each<[object | string, RegExp]>([
  ['{', /structuralTag is not JSON/],
  [{ format: { type: 'other' } }, /structuralTag: format.*type is one of/],
  [
    { structures: [{ begin: '<a', end: '' }], triggers: ['<b'] },
    /structures\[0\]\.begin: it begins with none of the triggers/,
  ],
  [{ structures: [], triggers: ['<'] }, /structuralTag: structures: /],
  [
    { format: { type: 'const_string', value: '\udc00' } },
    /format\.value: it has half of a surrogate pair/,
  ],
  [
    { format: { type: 'sequence', elements: [{ type: 'json_schema', json_schema: { not: {} } }] } },
    /structuralTag: format\.elements\[0\]\.json_schema: #\/not: this keyword is not supported/,
  ],
  [
    { format: { type: 'qwen_xml_parameter', json_schema: { anyOf: [{ type: 'object' }, {}] } } },
    /json_schema: #: the arguments of a function must be one object/,
  ],
  [{ format: { type: 'regex', pattern: '(' } }, /structuralTag: format\.pattern/],
])('refuses %p', (structuralTag, message) => {
  const compiling = () => compile({ structuralTag: structuralTag as StructuralTag });
  expect(compiling).toThrow(InvalidRequestError);
  expect(compiling).toThrow(message);
});
