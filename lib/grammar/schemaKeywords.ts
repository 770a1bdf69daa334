/** Keywords of one schema object: which are refused, and what values they may have. */
import { FORMATS } from './formats';
import { isObject, schemaError, type SchemaObject, under } from './schemaDocument';

/** Keywords of the standard that constrain a value, and that no grammar here expresses. */
const UNSUPPORTED: Readonly<Record<string, (value: unknown) => boolean>> = {
  not: () => true,
  if: () => true,
  contains: () => true,
  uniqueItems: (value) => value !== false,
  minProperties: (value) => value !== 0,
  maxProperties: () => true,
  propertyNames: (value) => value !== true,
  dependentRequired: () => true,
  dependentSchemas: () => true,
  dependencies: () => true,
  unevaluatedItems: (value) => value !== true,
  unevaluatedProperties: (value) => value !== true,
  additionalItems: (value) => value !== true,
  $dynamicRef: () => true,
  $recursiveRef: () => true,
};

const isCount = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0;
const isStrings = (value: unknown) =>
  Array.isArray(value) && value.every((one) => typeof one === 'string');

/** Throws InvalidRequestError for a keyword that is not supported or has a value of a wrong type. */
export function checkKeywords(schema: SchemaObject, path: string): void {
  for (const [name, isRefused] of Object.entries(UNSUPPORTED)) {
    if (Object.hasOwn(schema, name) && isRefused(schema[name])) {
      throw schemaError(under(path, name), 'this keyword is not supported');
    }
  }
  checkValues(schema, path);
}

/** Throws InvalidRequestError for a keyword with a value of a wrong type. */
export function checkValues(schema: SchemaObject, path: string): void {
  const check = (names: readonly string[], what: string, test: (value: unknown) => boolean) => {
    for (const name of names) {
      if (schema[name] === undefined || test(schema[name])) continue;
      throw schemaError(under(path, name), `it must be ${what}`);
    }
  };
  check(
    ['minLength', 'maxLength', 'minItems', 'maxItems', 'minContains', 'maxContains'],
    'an integer of at least 0',
    isCount,
  );
  check(
    ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'],
    'a number',
    (value) => typeof value === 'number' && Number.isFinite(value),
  );
  check(['pattern', 'format'], 'a string', (value) => typeof value === 'string');
  check(['properties', 'patternProperties'], 'an object', isObject);
  check(['required'], 'a list of strings', isStrings);
  check(['prefixItems'], 'a list', Array.isArray);
  if (Array.isArray(schema.items)) {
    throw schemaError(under(path, 'items'), 'it must be a schema; prefixItems has a list of them');
  }
}

/** The regular expression of a schema's format. Throws InvalidRequestError for an unknown one. */
export function formatPattern(format: string, path: string): string {
  if (Object.hasOwn(FORMATS, format)) return FORMATS[format];
  throw schemaError(
    under(path, 'format'),
    `the format ${format} is not supported; the formats are ${Object.keys(FORMATS).join(', ')}`,
  );
}
