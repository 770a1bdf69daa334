/** Validates values of enum and const against the rest of their schema. */
import { Dfa } from './dfa';
import { parseRegex, parseSearch } from './regex';
import { isObject, type Located, type SchemaDocument, type SchemaObject } from './schemaDocument';
import { isSchema, schemaError, under } from './schemaDocument';
import { checkKeywords, formatPattern } from './schemaKeywords';

export function isType(value: unknown, type: unknown): boolean {
  switch (type) {
    case 'null':
      return value === null;
    case 'array':
      return Array.isArray(value);
    case 'object':
      return isObject(value);
    case 'integer':
      return typeof value === 'number' && Number.isInteger(value);
    default:
      return typeof value === type;
  }
}

export function equal(a: unknown, b: unknown): boolean {
  if (Array.isArray(a) && Array.isArray(b)) {
    return a.length === b.length && a.every((one, i) => equal(one, b[i]));
  }
  if (isObject(a) && isObject(b)) {
    const names = Object.keys(a);
    return (
      names.length === Object.keys(b).length &&
      names.every((name) => Object.hasOwn(b, name) && equal(a[name], b[name]))
    );
  }
  return a === b;
}

/** Whether the value satisfies all schemas. Throws InvalidRequestError as checkKeywords does. */
export function validates(
  document: SchemaDocument,
  schemas: readonly Located[],
  value: unknown,
): boolean {
  return schemas.every(({ schema, path }) => {
    if (typeof schema === 'boolean') return schema;
    checkKeywords(schema, path);
    return (
      validatesAny(schema, value) &&
      validatesNumber(schema, value) &&
      validatesString(schema, value, path) &&
      validatesObject(document, schema, value, path) &&
      validatesArray(document, schema, value, path) &&
      validatesParts(document, schema, value, path)
    );
  });
}

function validatesAny(schema: SchemaObject, value: unknown): boolean {
  const { type } = schema;
  if (type !== undefined) {
    const types: readonly unknown[] = Array.isArray(type) ? type : [type];
    if (!types.some((one) => isType(value, one))) return false;
  }
  if (Object.hasOwn(schema, 'const') && !equal(schema.const, value)) return false;
  return !Array.isArray(schema.enum) || isListed(schema.enum, value);
}

/** The values of each enum that are neither objects nor lists. */
const scalars = new WeakMap<readonly unknown[], ReadonlySet<unknown>>();

function isListed(list: readonly unknown[], value: unknown): boolean {
  if (typeof value === 'object' && value !== null) return list.some((one) => equal(one, value));
  let known = scalars.get(list);
  if (known === undefined) {
    known = new Set(list.filter((one) => typeof one !== 'object' || one === null));
    scalars.set(list, known);
  }
  return known.has(value);
}

function validatesNumber(schema: SchemaObject, value: unknown): boolean {
  if (typeof value !== 'number') return true;
  const holds = (name: string, test: (bound: number) => boolean) =>
    typeof schema[name] !== 'number' || test(schema[name]);
  return (
    holds('minimum', (bound) => value >= bound) &&
    holds('maximum', (bound) => value <= bound) &&
    holds('exclusiveMinimum', (bound) => value > bound) &&
    holds('exclusiveMaximum', (bound) => value < bound) &&
    holds('multipleOf', (step) => Number.isInteger(value / step))
  );
}

function validatesString(schema: SchemaObject, value: unknown, path: string): boolean {
  if (typeof value !== 'string') return true;
  const { length } = Array.from(value);
  const { minLength, maxLength, pattern, format } = schema;
  if (typeof minLength === 'number' && length < minLength) return false;
  if (typeof maxLength === 'number' && length > maxLength) return false;
  if (typeof pattern === 'string') {
    const where = `structuredOutputs.json: ${under(path, 'pattern')}`;
    if (!Dfa.from(parseSearch(pattern, where), where).matches(value)) return false;
  }
  if (typeof format !== 'string') return true;
  return Dfa.from(parseRegex(formatPattern(format, path), 'format'), 'format').matches(value);
}

function validatesObject(
  document: SchemaDocument,
  schema: SchemaObject,
  value: unknown,
  path: string,
): boolean {
  if (!isObject(value)) return true;
  const { required } = schema;
  if (
    Array.isArray(required) &&
    required.some((name) => typeof name === 'string' && !Object.hasOwn(value, name))
  ) {
    return false;
  }
  return Object.entries(value).every(([name, member]) =>
    validates(document, memberSchemas(schema, name, path), member),
  );
}

/** The schemas of an object schema's member. */
export function memberSchemas(schema: SchemaObject, name: string, path: string): Located[] {
  const found: Located[] = [];
  const add = (one: unknown, at: string) => {
    if (!isSchema(one)) throw schemaError(at, 'it must be an object, true or false');
    found.push({ schema: one, path: at });
  };
  const { properties, patternProperties, additionalProperties } = schema;
  if (isObject(properties) && Object.hasOwn(properties, name)) {
    add(properties[name], under(path, 'properties', name));
  }
  if (isObject(patternProperties)) {
    for (const [pattern, one] of Object.entries(patternProperties)) {
      const where = `structuredOutputs.json: ${under(path, 'patternProperties')}`;
      if (Dfa.from(parseSearch(pattern, where), where).matches(name)) {
        add(one, under(path, 'patternProperties', pattern));
      }
    }
  }
  if (found.length === 0 && additionalProperties !== undefined) {
    add(additionalProperties, under(path, 'additionalProperties'));
  }
  return found;
}

function validatesArray(
  document: SchemaDocument,
  schema: SchemaObject,
  value: unknown,
  path: string,
): boolean {
  if (!Array.isArray(value)) return true;
  const { minItems, maxItems, prefixItems, items } = schema;
  if (typeof minItems === 'number' && value.length < minItems) return false;
  if (typeof maxItems === 'number' && value.length > maxItems) return false;
  const prefix: readonly unknown[] = Array.isArray(prefixItems) ? prefixItems : [];
  return value.every((item, i) => {
    const one = i < prefix.length ? prefix[i] : items;
    const at = i < prefix.length ? under(path, 'prefixItems', i) : under(path, 'items');
    return !isSchema(one) || validates(document, [{ schema: one, path: at }], item);
  });
}

function validatesParts(
  document: SchemaDocument,
  schema: SchemaObject,
  value: unknown,
  path: string,
): boolean {
  const parts = (name: string): Located[] => {
    const list = schema[name];
    if (!Array.isArray(list)) return [];
    return list.filter(isSchema).map((one, i) => ({ schema: one, path: under(path, name, i) }));
  };
  if (schema.$ref !== undefined) {
    if (!validates(document, [document.resolve(schema.$ref, path)], value)) return false;
  }
  const count = (name: string) =>
    parts(name).filter((one) => validates(document, [one], value)).length;
  return (
    validates(document, parts('allOf'), value) &&
    (schema.anyOf === undefined || count('anyOf') > 0) &&
    (schema.oneOf === undefined || count('oneOf') === 1)
  );
}
