/** A JSON Schema document: its subschemas, by pointer and by reference. */
import { InvalidRequestError } from '../errors';

export type SchemaObject = Readonly<Record<string, unknown>>;
export type Schema = boolean | SchemaObject;

/** A subschema and where it is: '#/properties/name'. */
export interface Located {
  readonly schema: Schema;
  readonly path: string;
}

/** Keywords with one schema, a list of them, or an object of them. */
const ONE = [
  'items',
  'additionalProperties',
  'propertyNames',
  'contains',
  'not',
  'if',
  'then',
  'else',
  'unevaluatedItems',
  'unevaluatedProperties',
  'contentSchema',
];
const LISTS = ['prefixItems', 'allOf', 'anyOf', 'oneOf'];
const OBJECTS = ['properties', 'patternProperties', '$defs', 'definitions', 'dependentSchemas'];

export const isObject = (value: unknown): value is SchemaObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

export const isSchema = (value: unknown): value is Schema =>
  typeof value === 'boolean' || isObject(value);

export function schemaError(path: string, message: string): InvalidRequestError {
  return new InvalidRequestError(`structuredOutputs.json: ${path}: ${message}`);
}

const escapePointer = (name: string) =>
  encodeURI(name.replaceAll('~', '~0').replaceAll('/', '~1')).replaceAll('#', '%23');

/** Throws InvalidRequestError for a name that no pointer can have. */
export function under(path: string, ...names: readonly (string | number)[]): string {
  const parts = names.map(String);
  if (parts.some((name) => /\p{Surrogate}/u.test(name))) {
    throw schemaError(path, 'a name in it has half of a surrogate pair, which is not supported');
  }
  return [path, ...parts.map(escapePointer)].join('/');
}

const BASE = 'schema:/root';

export class SchemaDocument {
  /** By absolute URI: documents with an $id, and anchors. */
  private readonly byUri = new Map<string, Located>();
  /** Paths of oneOf whose options were compared, or are being compared. */
  readonly exclusive = new Set<string>();
  /** The base URI of each subschema that is an object. */
  private readonly bases = new Map<string, string>();
  private readonly indexed: { readonly schema: unknown; readonly path: string }[] = [];

  constructor(root: Schema) {
    this.byUri.set(BASE, { schema: root, path: '#' });
    this.index(root, '#', BASE);
  }

  /** Values where the document has subschemas, whether or not they are schemas. */
  subschemas(): Iterable<{ readonly schema: unknown; readonly path: string }> {
    return this.indexed;
  }

  private index(schema: unknown, path: string, base: string): void {
    this.indexed.push({ schema, path });
    if (!isObject(schema)) return;
    const { $id, $anchor } = schema;
    if (typeof $id === 'string') {
      base = resolve($id, base, path).replace(/#$/, '');
      this.byUri.set(base, { schema, path });
    }
    if (typeof $anchor === 'string') this.byUri.set(`${base}#${$anchor}`, { schema, path });
    this.bases.set(path, base);
    for (const name of ONE) {
      if (schema[name] !== undefined) this.index(schema[name], under(path, name), base);
    }
    for (const name of LISTS) {
      const list = schema[name];
      if (!Array.isArray(list)) continue;
      list.forEach((one, i) => this.index(one, under(path, name, i), base));
    }
    for (const name of OBJECTS) {
      const object = schema[name];
      if (!isObject(object)) continue;
      for (const [key, one] of Object.entries(object))
        this.index(one, under(path, name, key), base);
    }
  }

  /** The schema that `reference` in the schema at `path` names. Throws InvalidRequestError. */
  resolve(reference: unknown, path: string): Located {
    const at = under(path, '$ref');
    if (typeof reference !== 'string') throw schemaError(at, 'it must be a string');
    const base = this.bases.get(path) ?? BASE;
    const uri = resolve(reference, base, at);
    const [resource, fragment = ''] = uri.split('#');
    const known = this.byUri.get(fragment === '' ? resource : uri);
    if (known !== undefined) return known;
    const document = this.byUri.get(resource);
    if (document === undefined) {
      throw schemaError(at, `${reference} is outside of the schema, which is not supported`);
    }
    if (!fragment.startsWith('/')) throw schemaError(at, `${reference} is not in the schema`);
    let { schema, path: found }: { schema: unknown; path: string } = document;
    for (const part of fragment.slice(1).split('/')) {
      const name = decode(part).replaceAll('~1', '/').replaceAll('~0', '~');
      const isOwn = typeof schema === 'object' && schema !== null && Object.hasOwn(schema, name);
      if (!isOwn) throw schemaError(at, `${reference} is not in the schema`);
      schema = (schema as SchemaObject)[name];
      found = under(found, name);
    }
    if (!isSchema(schema)) throw schemaError(at, `${reference} is not a schema`);
    return { schema, path: found };
  }
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function resolve(reference: string, base: string, path: string): string {
  try {
    return new URL(reference, base).href;
  } catch {
    throw schemaError(path, `${reference} is not a URI reference`);
  }
}
