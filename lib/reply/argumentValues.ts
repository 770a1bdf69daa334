/** Arguments of notations without JSON, as JSON. */
import { pythonLiteral } from './pythonValue';
import type { ReplySink } from './replySink';

/** Writes the arguments one by one, as Python's json.dumps spaces them. */
export function openObject(sink: ReplySink): {
  add(name: string, json: string): void;
  close(): void;
} {
  let numAdded = 0;
  return {
    add: (name, json) => {
      sink.arguments(`${numAdded++ === 0 ? '{' : ', '}${JSON.stringify(name)}: ${json}`);
    },
    close: () => sink.arguments(numAdded === 0 ? '{}' : '}'),
  };
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Most schemas that are looked at for the types of one argument: references may be circular. */
const MAX_VISITED = 100;

/** The types that a schema allows; null: any. */
function typesOf(schema: unknown, root: unknown, visited: Set<unknown>): Set<string> | null {
  if (!isObject(schema) || visited.has(schema) || visited.size > MAX_VISITED) return null;
  visited.add(schema);
  const { $ref: reference, type, anyOf, oneOf, allOf, enum: values } = schema;
  if (typeof reference === 'string') return typesOf(resolved(reference, root), root, visited);
  if (typeof type === 'string') return new Set([type]);
  if (Array.isArray(type)) return new Set(type.map(String));
  if (Object.hasOwn(schema, 'const')) return new Set([typeOf(schema.const)]);
  if (Array.isArray(values)) return new Set(values.map(typeOf));
  const options = anyOf ?? oneOf;
  if (Array.isArray(options)) {
    const all = new Set<string>();
    for (const option of options) {
      const own = typesOf(option, root, visited);
      if (own === null) return null;
      for (const one of own) all.add(one);
    }
    return all;
  }
  if (!Array.isArray(allOf)) return null;
  return allOf.map((one) => typesOf(one, root, visited)).find((own) => own !== null) ?? null;
}

function resolved(reference: string, root: unknown): unknown {
  if (!reference.startsWith('#')) return null;
  let found = root;
  for (const part of reference.slice(1).split('/').slice(1)) {
    const name = part.replaceAll('~1', '/').replaceAll('~0', '~');
    if (!isObject(found) || !Object.hasOwn(found, name)) return null;
    found = found[name];
  }
  return found;
}

function typeOf(value: unknown): string {
  if (value === null) return 'null';
  return Array.isArray(value) ? 'array' : typeof value;
}

/** A value without quotes, as JSON: by the types of the schema, or by what it looks like. */
export function argumentOf(value: string, parameters: unknown, name: string): string {
  const properties = isObject(parameters) ? parameters.properties : undefined;
  const schema = isObject(properties) && Object.hasOwn(properties, name) ? properties[name] : null;
  const types = typesOf(schema, parameters, new Set());
  const isText = types !== null && [...types].every((type) => type === 'string' || type === 'null');
  if (isText && types.has('string')) {
    return value === 'null' && types.has('null') ? value : JSON.stringify(value);
  }
  try {
    JSON.parse(value);
    return value.trim();
  } catch {
    // Python's literals, which some templates write.
    return (
      (types === null || !types.has('string') ? pythonLiteral(value) : null) ??
      JSON.stringify(value)
    );
  }
}
