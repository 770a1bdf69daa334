/** The form of a whole JSON Schema document, also where no value depends on a subschema. */
import { parseSearch } from './regex';
import { listOf, locate, typesOf } from './schemaConjunction';
import { isObject, type SchemaDocument, type SchemaObject, under } from './schemaDocument';
import { checkValues } from './schemaKeywords';

/**
 * Throws InvalidRequestError for a malformed subschema. Keywords that are not supported are refused
 * only where a value depends on them: a document may have definitions that it does not use.
 */
export function checkForm(document: SchemaDocument): void {
  for (const { schema, path } of document.subschemas()) {
    locate(schema, path);
    if (!isObject(schema)) continue;
    checkValues(schema, path);
    for (const name of ['allOf', 'anyOf', 'oneOf']) listOf(schema, path, name);
    typesOf([{ schema, path }]);
    if (schema.$ref !== undefined) document.resolve(schema.$ref, path);
    checkPatterns(schema, path);
  }
}

function checkPatterns(schema: SchemaObject, path: string): void {
  const { pattern, patternProperties } = schema;
  if (typeof pattern === 'string') checkPattern(pattern, under(path, 'pattern'));
  if (!isObject(patternProperties)) return;
  for (const name of Object.keys(patternProperties)) {
    checkPattern(name, under(path, 'patternProperties', name));
  }
}

/** Accepts what no grammar here expresses, as a look-ahead: no value may depend on it. */
function checkPattern(pattern: string, path: string): void {
  try {
    new RegExp(pattern, 'u');
  } catch {
    parseSearch(pattern, `structuredOutputs.json: ${path}`);
  }
}
