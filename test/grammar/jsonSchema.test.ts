/** JSON Schema: the standard's test suite, ajv, and what is refused. */
import Ajv2020 from 'ajv/dist/2020';
import addFormats from 'ajv-formats';
import { loadRequiredSync } from 'json-schema-test-suite';
import { z } from 'zod';
import { InvalidRequestError } from '../../lib/errors';
import { randomOf, sampleText, syntheticVocabulary, TextMatcher } from './support';

const ajv = new Ajv2020({ strict: false, validateFormats: true });
addFormats(ajv);

/** A schema of draft 4 in the words of draft 2020-12. */
function modern(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(modern);
  if (typeof schema !== 'object' || schema === null) return schema;
  const { id, items, additionalItems, exclusiveMinimum, exclusiveMaximum, ...rest } =
    schema as Record<string, unknown>;
  const fields: Record<string, unknown> = Object.fromEntries(
    Object.entries(rest).map(([name, value]) => [
      name,
      ['enum', 'required', 'default'].includes(name) ? value : modern(value),
    ]),
  );
  if (typeof id === 'string') fields.$id = id;
  else if (id !== undefined) fields.id = modern(id);
  if (Array.isArray(items)) {
    fields.prefixItems = modern(items);
    if (additionalItems !== undefined) fields.items = modern(additionalItems);
  } else if (items !== undefined) fields.items = modern(items);
  for (const [flag, name, exclusive] of [
    [exclusiveMinimum, 'minimum', 'exclusiveMinimum'],
    [exclusiveMaximum, 'maximum', 'exclusiveMaximum'],
  ] as const) {
    if (flag !== true) continue;
    fields[exclusive] = fields[name];
    Reflect.deleteProperty(fields, name);
  }
  return fields;
}

/** Keys in the schema's order at the top level, in which the grammar writes them. */
function ordered(value: unknown, schema: unknown): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value;
  const all = JSON.stringify(schema);
  const place = (name: string) => {
    const at = all.indexOf(`${JSON.stringify(name)}:`);
    return at < 0 ? Infinity : at;
  };
  const entries = Object.entries(value).sort(([a], [b]) =>
    place(a) < place(b) ? -1 : place(a) > place(b) ? 1 : 0,
  );
  return Object.fromEntries(entries.map(([name, one]) => [name, ordered(one, schema)]));
}

interface Group {
  name: string;
  schema: unknown;
  cases: { description: string; data: unknown; valid: boolean }[];
}

const groups: Group[] = loadRequiredSync('draft4').flatMap(({ name, schemas }) =>
  schemas.map(({ description, schema, tests }) => ({
    name: `${name}: ${description}`,
    schema: modern(schema),
    cases: tests,
  })),
);

/** Files of which the grammar expresses no keyword. */
const REFUSED =
  /^(?:not|uniqueItems|multipleOf|minProperties|maxProperties|dependencies|refRemote|definitions)\b/;

describe('the test suite of JSON Schema', () => {
  const tried: string[] = [];

  test.each(groups)('$name', ({ name, schema, cases }) => {
    let matcher: TextMatcher;
    try {
      matcher = new TextMatcher({ json: schema as object });
    } catch (error) {
      expect(error).toBeInstanceOf(InvalidRequestError);
      expect((error as Error).message).toMatch(
        /#.*(?:not supported|cannot be told apart|outside of the schema|is not in the schema)/,
      );
      return;
    }
    expect(name).not.toMatch(/^(?:not|uniqueItems|refRemote)\b/);
    tried.push(name);
    for (const { description, data, valid } of cases) {
      const text = JSON.stringify(ordered(data, schema));
      expect([description, text, matcher.matches(text)]).toEqual([description, text, valid]);
    }
  });

  test('most of it is expressed', () => {
    const expressible = groups.filter(({ name }) => !REFUSED.test(name));
    expect(tried.length).toBeGreaterThan(0.8 * expressible.length);
  });
});

const SCHEMAS: [string, object][] = [
  ['types', { type: ['string', 'integer', 'null', 'boolean'] }],
  ['integers between bounds', { type: 'integer', minimum: -17, exclusiveMaximum: 1234 }],
  ['numbers between bounds', { type: 'number', exclusiveMinimum: -0.25, maximum: 10.125 }],
  ['numbers below 0', { type: 'number', maximum: -1.5 }],
  ['enum and const', { anyOf: [{ enum: ['a', 1, null, { b: [1, 2] }] }, { const: 'é"\\' }] }],
  ['lengths', { type: 'string', minLength: 2, maxLength: 5 }],
  ['pattern and length', { type: 'string', pattern: '^[a-f]+-\\d*$', minLength: 4, maxLength: 8 }],
  ['two patterns', { type: 'string', allOf: [{ pattern: 'a' }, { pattern: '^.{0,6}$' }] }],
  ...['date', 'time', 'date-time', 'uuid', 'email', 'ipv4', 'ipv6', 'uri', 'hostname'].map(
    (format): [string, object] => [`format ${format}`, { type: 'string', format }],
  ),
  [
    'objects',
    {
      type: 'object',
      properties: { a: { type: 'integer' }, b: { type: 'string' }, c: { type: 'boolean' } },
      required: ['b'],
      additionalProperties: false,
    },
  ],
  [
    'additional properties',
    {
      type: 'object',
      properties: { a: { type: 'null' } },
      additionalProperties: { type: 'integer' },
    },
  ],
  [
    'pattern properties',
    {
      type: 'object',
      patternProperties: { '^x': { type: 'integer' }, y$: { type: 'number', minimum: 0 } },
      additionalProperties: { type: 'null' },
    },
  ],
  ['arrays', { type: 'array', items: { type: 'integer' }, minItems: 2, maxItems: 4 }],
  [
    'tuples',
    {
      type: 'array',
      prefixItems: [{ type: 'integer' }, { enum: ['x'] }],
      items: { type: 'null' },
      minItems: 1,
    },
  ],
  [
    'oneOf by a constant',
    {
      oneOf: [
        {
          type: 'object',
          properties: { kind: { const: 'a' }, v: { type: 'integer' } },
          required: ['kind', 'v'],
        },
        {
          type: 'object',
          properties: { kind: { const: 'b' } },
          required: ['kind'],
          additionalProperties: false,
        },
        { type: 'string' },
      ],
    },
  ],
  [
    'allOf and $ref',
    {
      $defs: {
        base: { type: 'object', properties: { id: { type: 'integer' } }, required: ['id'] },
      },
      allOf: [
        { $ref: '#/$defs/base' },
        { properties: { name: { type: 'string' } }, required: ['name'] },
      ],
      additionalProperties: true,
    },
  ],
  [
    'recursion',
    {
      $id: 'https://example.com/list',
      type: 'object',
      properties: {
        value: { type: 'integer' },
        next: { anyOf: [{ type: 'null' }, { $ref: '#' }] },
      },
      required: ['value', 'next'],
      additionalProperties: false,
    },
  ],
];

test.each(SCHEMAS)('%s: 50 texts of random masks parse and validate', (_, schema) => {
  const vocabulary = syntheticVocabulary(500, 8);
  const checker = vocabulary.checker({ json: schema });
  const validate = ajv.compile(schema);
  const random = randomOf(9);
  let numTexts = 0;
  for (let i = 0; i < 400 && numTexts < 50; i++) {
    const text = sampleText(vocabulary, checker, random, 300);
    if (text === null) continue;
    numTexts++;
    const value: unknown = JSON.parse(text);
    if (!validate(value)) throw new Error(`${text}: ${JSON.stringify(validate.errors)}`);
  }
  expect(numTexts).toBe(50);
});

test('numbers between bounds are those that ajv accepts', () => {
  const random = randomOf(3);
  const number = () =>
    Number(((random() - 0.5) * 10 ** Math.floor(random() * 5)).toFixed(Math.floor(random() * 4)));
  for (let i = 0; i < 200; i++) {
    const [minimum, maximum] = [number(), number()].sort((a, b) => a - b);
    const isInteger = random() < 0.4;
    const schema = {
      type: isInteger ? 'integer' : 'number',
      ...(random() < 0.5 ? { minimum } : { exclusiveMinimum: minimum }),
      ...(random() < 0.5 ? { maximum } : { exclusiveMaximum: maximum }),
    };
    const validate = ajv.compile(schema);
    const values = [minimum, maximum, ...Array.from({ length: 30 }, number), 0, Math.ceil(minimum)];
    let matcher: TextMatcher;
    try {
      matcher = new TextMatcher({ json: schema });
    } catch (error) {
      expect((error as Error).message).toMatch(/no text satisfies/);
      for (const value of values)
        expect([schema, value, validate(value)]).toEqual([schema, value, false]);
      continue;
    }
    for (const value of values) {
      const text = JSON.stringify(value);
      if (text.includes('e') || text === '-0') continue;
      expect([schema, text, matcher.matches(text)]).toEqual([schema, text, validate(value)]);
    }
  }
});

test.each([
  [{ not: {} }, '#/not'],
  [{ properties: { a: { if: {}, then: {} } } }, '#/properties/a/if'],
  [{ items: { uniqueItems: true } }, '#/items/uniqueItems'],
  [{ type: 'string', format: 'duration' }, '#/format'],
  [{ type: 'number', multipleOf: 0.1 }, '#/multipleOf'],
  [{ oneOf: [{ type: 'string' }, { minLength: 3 }] }, '#/oneOf'],
  [{ $ref: 'https://example.com/other' }, '#/$ref'],
  [{ $ref: '#/$defs/none' }, '#/$ref'],
  [{ type: 'strin' }, '#/type'],
  [{ properties: { 'a/b': { minLength: 'x', type: 'string' } } }, '#/properties/a~1b/minLength'],
  [{ type: 'string', pattern: '(?=a)' }, '#/pattern'],
  [{ type: 'object', unevaluatedProperties: false }, '#/unevaluatedProperties'],
  [{ items: [{}] }, '#/items'],
  // Also where a keyword only decides which values of enum are valid.
  [{ enum: [{ a: 5 }], properties: { a: { not: { type: 'integer' } } } }, '#/properties/a/not'],
  [{ const: [1], items: { minimum: '2' } }, '#/items/minimum'],
  [{ enum: ['x'], format: 'duration' }, '#/format'],
  // Also where no value depends on what is malformed.
  [{ enum: [false], properties: { a: { maxItems: -1 } } }, '#/properties/a/maxItems'],
  [{ type: 'string', prefixItems: [{ anyOf: [] }] }, '#/prefixItems/0/anyOf'],
  [{ type: 'string', items: { $ref: '#/$defs/none' } }, '#/items/$ref'],
  [{ $defs: { a: 5 }, type: 'string' }, '#/$defs/a'],
  [{ $defs: { a: { pattern: '(' } }, type: 'string' }, '#/$defs/a/pattern'],
  [{ $defs: { a: { type: 'strin' } }, type: 'string' }, '#/$defs/a/type'],
  [{ properties: { '\ud800': {} } }, '#: a name in it has half of a surrogate pair'],
])('%j is refused by its path', (schema, path) => {
  expect(() => new TextMatcher({ json: schema })).toThrow(InvalidRequestError);
  expect(() => new TextMatcher({ json: schema })).toThrow(`structuredOutputs.json: ${path}`);
});

test('options of oneOf may contain it, whatever property comes first', () => {
  const node = (kind: string) => ({
    type: 'object',
    properties: { next: { $ref: '#/$defs/node' }, kind: { const: kind } },
    required: ['next', 'kind'],
    additionalProperties: false,
  });
  const matcher = new TextMatcher({
    json: {
      $defs: { node: { oneOf: [{ type: 'null' }, node('a'), node('b')] } },
      $ref: '#/$defs/node',
    },
  });
  expect(matcher.matches('{"next":{"next":null,"kind":"b"},"kind":"a"}')).toBe(true);
  expect(matcher.matches('{"next":{"next":null,"kind":"c"},"kind":"a"}')).toBe(false);
});

test('an enum of 20,000 values compiles within 5 seconds of processor time', () => {
  const values = Array.from({ length: 20_000 }, (_, i) => `w${i}`);
  const start = process.cpuUsage();
  const matcher = new TextMatcher({ json: { type: 'string', enum: values } });
  expect(process.cpuUsage(start).user / 1000).toBeLessThan(5000);
  expect(matcher.matches('"w19999"')).toBe(true);
  expect(matcher.matches('"w1999"')).toBe(true);
  expect(matcher.matches('"w20000"')).toBe(false);
  expect(matcher.matches('"w"')).toBe(false);
});

test.each([
  [false],
  [{ type: 'string', minLength: 5, maxLength: 2 }],
  [{ type: 'integer', minimum: 1.2, maximum: 1.8 }],
  [{ enum: [1, 'a'], type: 'null' }],
  [{ type: 'object', properties: { a: { $ref: '#' } }, required: ['a'] }],
])('%j has no value, which is refused', (schema) => {
  expect(() => new TextMatcher({ json: schema })).toThrow(/no text satisfies the grammar/);
});

test('a zod schema is its JSON schema', () => {
  const schema = z.object({ name: z.string(), age: z.int().min(0).optional() });
  const matcher = new TextMatcher({ json: schema });
  expect(matcher.matches('{"name":"a","age":3}')).toBe(true);
  expect(matcher.matches('{"name":"a"}')).toBe(true);
  expect(matcher.matches('{"name":"a","age":-3}')).toBe(false);
  expect(matcher.matches('{"name":"a","more":1}')).toBe(false);
});

test('the tuple of zod without elements is the empty array', () => {
  const matcher = new TextMatcher({ json: z.tuple([]) });
  expect(matcher.matches('[]')).toBe(true);
  expect(matcher.matches('[1]')).toBe(false);
});

test('a definition that no value depends on may have a keyword that is not supported', () => {
  const matcher = new TextMatcher({
    json: { $defs: { a: { not: {}, pattern: '(?=a)' } }, type: 'null' },
  });
  expect(matcher.matches('null')).toBe(true);
});

test('whitespacePattern is the white space between tokens', () => {
  const schema = { type: 'object', properties: { a: { type: 'integer' } }, required: ['a'] };
  const closed = { json: schema, disableAdditionalProperties: true };
  expect(new TextMatcher(closed).matches('{\n  "a": 1\n}')).toBe(true);
  const tight = new TextMatcher({ ...closed, whitespacePattern: '' });
  expect(tight.matches('{"a":1}')).toBe(true);
  expect(tight.matches('{"a": 1}')).toBe(false);
});
