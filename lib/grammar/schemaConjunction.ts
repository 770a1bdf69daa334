/**
 * Subschemas that a value must satisfy together: allOf and $ref are flattened into one list, and
 * anyOf and oneOf become alternatives.
 */
import { type Located, type SchemaDocument, type SchemaObject } from './schemaDocument';
import { isObject, isSchema, schemaError, under } from './schemaDocument';
import { checkKeywords } from './schemaKeywords';
import { validates } from './schemaValidator';

/** An object schema without references, allOf, anyOf and oneOf. */
export interface Part {
  readonly schema: SchemaObject;
  readonly path: string;
}

export const TYPES = ['string', 'number', 'boolean', 'null', 'object', 'array'] as const;
/** A number may be limited to integers. */
export type Type = (typeof TYPES)[number] | 'integer';

/** Most alternatives of one place in a schema. */
const MAX_ALTERNATIVES = 1024;
/** Most options of oneOf, which are compared in pairs. */
const MAX_EXCLUSIVE = 128;
/** Most references, one behind another. */
const MAX_DEPTH = 256;

/** The alternatives of the conjunction of `located`; none: nothing satisfies it. */
export function alternativesOf(document: SchemaDocument, located: readonly Located[]): Part[][] {
  return expand(document, [...located], [], new Set(), 0);
}

function expand(
  document: SchemaDocument,
  pending: readonly Located[],
  parts: readonly Part[],
  seen: ReadonlySet<string>,
  depth: number,
): Part[][] {
  if (pending.length === 0) return [[...parts]];
  const [first, ...rest] = pending;
  const { schema, path } = first;
  if (schema === true || seen.has(path)) return expand(document, rest, parts, seen, depth);
  if (schema === false) return [];
  if (depth > MAX_DEPTH) throw schemaError(path, `more than ${MAX_DEPTH} schemas apply at once`);
  checkKeywords(schema, path);
  const more: Located[] = [...rest];
  if (schema.$ref !== undefined) more.push(document.resolve(schema.$ref, path));
  more.push(...listOf(schema, path, 'allOf'));
  const own = [...parts, { schema, path }];
  const after = new Set(seen).add(path);
  const choices = (['anyOf', 'oneOf'] as const)
    .map((name) => {
      const options = listOf(schema, path, name);
      if (name === 'oneOf') checkDisjoint(document, options, under(path, name));
      return options;
    })
    .filter((options) => options.length > 0);
  let alternatives: Located[][] = [more];
  for (const options of choices) {
    if (alternatives.length * options.length > MAX_ALTERNATIVES) throw tooMany(path);
    alternatives = alternatives.flatMap((before) => options.map((option) => [...before, option]));
  }
  const all: Part[][] = [];
  for (const next of alternatives) {
    all.push(...expand(document, next, own, after, depth + 1));
    if (all.length > MAX_ALTERNATIVES) throw tooMany(path);
  }
  return all;
}

const tooMany = (path: string) =>
  schemaError(path, `it has more than ${MAX_ALTERNATIVES} alternatives`);

/** The schemas of allOf, anyOf or oneOf; none without it. Throws InvalidRequestError. */
export function listOf(schema: SchemaObject, path: string, name: string): Located[] {
  const list = schema[name];
  if (list === undefined) return [];
  if (!Array.isArray(list) || list.length === 0) {
    throw schemaError(under(path, name), 'it must be a list of at least one schema');
  }
  return list.map((one: unknown, i) => locate(one, under(path, name, i)));
}

export function locate(schema: unknown, path: string): Located {
  if (!isSchema(schema)) throw schemaError(path, 'it must be an object, true or false');
  return { schema, path };
}

/** The types that the parts allow together. */
export function typesOf(parts: readonly Part[]): Set<Type> {
  let types = new Set<Type>(TYPES);
  for (const { schema, path } of parts) {
    if (schema.type === undefined) continue;
    const list: readonly unknown[] = Array.isArray(schema.type) ? schema.type : [schema.type];
    const own = new Set<unknown>(list);
    for (const name of own) {
      if (name === 'integer' || (TYPES as readonly unknown[]).includes(name)) continue;
      throw schemaError(under(path, 'type'), `${JSON.stringify(name)} is not a type`);
    }
    const common = new Set<Type>();
    for (const type of types) {
      if (own.has(type) || (type === 'integer' && own.has('number'))) common.add(type);
      else if (type === 'number' && own.has('integer')) common.add('integer');
    }
    types = common;
  }
  return types;
}

/** The values of enum and const that all parts allow; null without either keyword. */
export function valuesOf(parts: readonly Part[]): readonly unknown[] | null {
  let values: readonly unknown[] | null = null;
  for (const { schema, path } of parts) {
    if (Object.hasOwn(schema, 'enum')) {
      if (!Array.isArray(schema.enum)) throw schemaError(under(path, 'enum'), 'it must be a list');
      values ??= schema.enum as readonly unknown[];
    }
    if (Object.hasOwn(schema, 'const')) values ??= [schema.const];
  }
  return values;
}

/** Throws unless no value can satisfy two of the options. */
function checkDisjoint(document: SchemaDocument, options: readonly Located[], path: string): void {
  // Also while it is being checked: its options may contain it.
  if (document.exclusive.has(path)) return;
  document.exclusive.add(path);
  if (options.length > MAX_EXCLUSIVE) {
    throw schemaError(path, `more than ${MAX_EXCLUSIVE} options are not supported`);
  }
  const alternatives = options.map((option) => alternativesOf(document, [option]));
  for (let i = 0; i < alternatives.length; i++) {
    for (let j = 0; j < i; j++) {
      const isDisjoint = alternatives[i].every((a) =>
        alternatives[j].every((b) => areDisjoint(document, a, b)),
      );
      if (isDisjoint) continue;
      throw schemaError(
        path,
        `options ${j} and ${i} cannot be told apart by type, by values, or by a required property with ` +
          'different values; use anyOf if both may hold',
      );
    }
  }
}

/** Whether it is evident that no value satisfies both. */
export function areDisjoint(
  document: SchemaDocument,
  a: readonly Part[],
  b: readonly Part[],
  depth = 0,
): boolean {
  for (const [one, other] of [
    [a, b],
    [b, a],
  ]) {
    const values = valuesOf(one);
    if (values !== null) {
      const located = [...one, ...other];
      return !values.some((value) => validates(document, located, value));
    }
  }
  const types = typesOf([...a, ...b]);
  if (types.size === 0) return true;
  if (types.size > 1 || !types.has('object') || depth > 2) return false;
  const required = (parts: readonly Part[]) =>
    parts
      .flatMap(({ schema }): unknown[] => (Array.isArray(schema.required) ? schema.required : []))
      .filter((name) => typeof name === 'string');
  return (
    required(a).some((name) => {
      if (isForbidden(b, name)) return true;
      const [left, right] = [a, b].map((parts) =>
        parts.flatMap(({ schema, path }) => {
          const { properties } = schema;
          return isObject(properties) && Object.hasOwn(properties, name)
            ? [locate(properties[name], under(path, 'properties', name))]
            : [];
        }),
      );
      if (left.length === 0 || right.length === 0) return false;
      const lefts = alternativesOf(document, left);
      const rights = alternativesOf(document, right);
      return lefts.every((x) => rights.every((y) => areDisjoint(document, x, y, depth + 1)));
    }) ||
    (depth === 0 && required(b).some((name) => isForbidden(a, name)))
  );
}

/** Whether no object of `parts` has the property. */
function isForbidden(parts: readonly Part[], name: string): boolean {
  return parts.some(({ schema }) => {
    const { additionalProperties, patternProperties, properties } = schema;
    if (isObject(properties) && Object.hasOwn(properties, name)) return properties[name] === false;
    return additionalProperties === false && patternProperties === undefined;
  });
}
