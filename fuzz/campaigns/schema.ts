/** structuredOutputs: refused by name, or masks that are right and texts that are valid. */
import Ajv2020 from 'ajv/dist/2020';
import addFormats from 'ajv-formats';
import * as fc from 'fast-check';
import { InvalidRequestError } from '../../lib/errors';
import type { StructuredOutputsOptions } from '../../lib/config/structuredOutputs';
import { allowed, randomOf, sampleText, syntheticVocabulary } from '../../test/grammar/support';
import type { GrammarChecker } from '../../test/support/testingAddon';
import { type Campaign, expect, type StructuredTarget } from '../campaign';

/** null where ajv itself exhausts the stack, as on a schema that is a reference to itself. */
function isValidBy(validate: (value: unknown) => unknown, value: unknown): boolean | null {
  try {
    return validate(value) === true;
  } catch (error) {
    if (error instanceof RangeError) return null;
    throw error;
  }
}

/** zod writes `prefixItems: []` for an empty tuple; it demands nothing, but ajv refuses it. */
function withoutEmptyPrefixes(schema: object): object {
  return JSON.parse(JSON.stringify(schema), (key, value: unknown) =>
    key === 'prefixItems' && Array.isArray(value) && value.length === 0 ? undefined : value,
  ) as object;
}

interface Case {
  outputs: StructuredOutputsOptions;
  seed: number;
}

const name = fc.constantFrom('a', 'b', 'ab', 'é', 'x y', '"', '__proto__');
const pattern = fc.constantFrom(
  '^a',
  'b$',
  '^[a-f]{1,5}$',
  '\\d+-\\d*',
  '[^a]',
  '(a|b)+',
  '^(?=a)',
  '(',
  '.*',
);
const count = fc.oneof({ weight: 8, arbitrary: fc.nat(6) }, fc.constantFrom(-1, 1.5, 1e6, 2 ** 40));
const number = fc.oneof(
  fc.integer({ min: -20, max: 200 }),
  fc.constantFrom(0.5, -1.25, 1e-7, 1e21),
);
const type = fc.constantFrom(
  'string',
  'number',
  'integer',
  'boolean',
  'null',
  'object',
  'array',
  'any',
);

const { schema } = fc.letrec<{ schema: unknown; object: unknown }>((tie) => ({
  schema: fc.oneof({ maxDepth: 3, withCrossShrink: true }, fc.boolean(), tie('object')),
  object: fc.record(
    {
      type: fc.oneof(type, fc.uniqueArray(type, { maxLength: 3 })),
      enum: fc.array(fc.jsonValue({ maxDepth: 1 }), { maxLength: 3 }),
      const: fc.jsonValue({ maxDepth: 1 }),
      minLength: count,
      maxLength: count,
      pattern,
      format: fc.constantFrom('date', 'ipv4', 'uuid', 'duration'),
      minimum: number,
      exclusiveMaximum: number,
      properties: fc.dictionary(name, tie('schema'), { maxKeys: 3 }),
      required: fc.uniqueArray(name, { maxLength: 2 }),
      patternProperties: fc.dictionary(pattern, tie('schema'), { maxKeys: 2 }),
      additionalProperties: tie('schema'),
      items: tie('schema'),
      prefixItems: fc.array(tie('schema'), { maxLength: 2 }),
      minItems: count,
      maxItems: count,
      allOf: fc.array(tie('schema'), { maxLength: 2 }),
      anyOf: fc.array(tie('schema'), { maxLength: 3 }),
      oneOf: fc.array(tie('schema'), { maxLength: 3 }),
      not: tie('schema'),
      $ref: fc.constantFrom('#', '#/items', '#/properties/a', '#/none', 'https://example.com/x'),
    },
    { requiredKeys: [] },
  ),
}));

const regex = fc.array(
  fc.constantFrom(
    'a',
    'b',
    '.',
    '[^a]',
    '(',
    ')',
    '(?:',
    '|',
    '*',
    '+',
    '?',
    '{2}',
    '{1,9}',
    '\\d',
    '^',
    '$',
    'é',
  ),
  { maxLength: 12 },
);
const grammar = fc.array(
  fc.constantFrom(
    'root ::= ',
    'x ::= ',
    '"a"',
    '[a-z]',
    'x',
    'root',
    '(',
    ')',
    '|',
    '*',
    '{2,3}',
    '\n',
    '"é"',
  ),
  { maxLength: 14 },
);

const outputs: fc.Arbitrary<StructuredOutputsOptions> = fc.oneof(
  { weight: 6, arbitrary: schema.map((json) => ({ json }) as StructuredOutputsOptions) },
  regex.map((parts) => ({ regex: parts.join('') })),
  grammar.map((parts) => ({ grammar: `root ::= ${parts.join(' ')}` })),
);

class SchemaTarget implements StructuredTarget<Case> {
  readonly kind = 'structured';
  readonly counts = { accepted: 0, texts: 0 };
  readonly arbitrary = fc.record({ outputs, seed: fc.nat() });
  private readonly vocabulary = syntheticVocabulary(400, 1);

  check({ outputs: given, seed }: Case): void {
    const random = randomOf(seed);
    try {
      const checker = this.vocabulary.checker(given);
      this.counts.accepted++;
      this.checkMasks(checker, random);
      this.checkTexts(given, checker, random);
    } catch (error) {
      if (!(error instanceof InvalidRequestError)) throw error;
    }
  }

  private checkMasks(checker: GrammarChecker, random: () => number): void {
    checker.reset();
    for (let step = 0; step < 4; step++) {
      const ids = allowed(checker.mask());
      const plain = allowed(checker.plainMask());
      expect(ids.join() === plain.join(), 'a mask differs from trying every token');
      expect(ids.length > 0 || checker.accepts(), 'a dead end');
      if (ids.length === 0) return;
      checker.append(this.vocabulary.tokens[ids[Math.floor(random() * ids.length)]]);
    }
  }

  private checkTexts(
    given: StructuredOutputsOptions,
    checker: GrammarChecker,
    random: () => number,
  ): void {
    const { json } = given;
    if (json === undefined) return;
    const ajv = new Ajv2020({ strict: false, allErrors: false });
    addFormats(ajv);
    const validate = ajv.compile(withoutEmptyPrefixes(json as object));
    for (let i = 0; i < 3; i++) {
      const text = sampleText(this.vocabulary, checker, random, 60);
      if (text === null) continue;
      this.counts.texts++;
      const isValid = isValidBy(validate, JSON.parse(text));
      if (isValid === null) break;
      expect(isValid, () => `${text}: ${JSON.stringify(validate.errors)}`);
    }
  }
}

export const schemas: Campaign = {
  name: 'schema',
  about: 'structuredOutputs: JSON schemas, regular expressions, grammars',
  open: () => Promise.resolve(new SchemaTarget() as StructuredTarget<unknown>),
};
