/** Objects and arrays of a JSON schema. */
import { Dfa } from './dfa';
import { choice, EMPTY, type Expression, NEVER, repeat, sequence, text } from './expression';
import { ANY_CONTENT, jsonString, jsonStringOf, type JsonPunctuation } from './jsonText';
import { parseSearch } from './regex';
import { locate, type Part } from './schemaConjunction';
import { isObject, type Located, schemaError, type SchemaDocument, under } from './schemaDocument';
import { memberSchemas } from './schemaValidator';

/** Most patterns of an object's properties: each set of them is a case of its own. */
const MAX_PATTERNS = 4;

export interface SchemaRules {
  readonly document: SchemaDocument;
  readonly punctuation: JsonPunctuation;
  readonly allowsAdditional: boolean;
  /** The rule of values that satisfy all schemas. */
  valueOf(located: readonly Located[]): Expression;
  /** A new rule of the schema at `path`. */
  addRule(path: string, expression: Expression): Expression;
}

/** Whether disableAdditionalProperties closes the object: no part says otherwise. */
function isClosed(parts: readonly Part[]): boolean {
  return (
    parts.some(({ schema }) => schema.properties !== undefined) &&
    parts.every(({ schema }) => schema.additionalProperties === undefined)
  );
}

/**
 * Properties in the order of the schema, then others. An optional property may be left out; rest(i)
 * is what may follow when a property was written, first(i) when none was.
 */
export function objectExpression(rules: SchemaRules, parts: readonly Part[]): Expression {
  const { punctuation } = rules;
  const { path } = parts[0];
  const required = new Set<string>();
  const names = new Set<string>();
  for (const { schema } of parts) {
    if (isObject(schema.properties))
      for (const name of Object.keys(schema.properties)) names.add(name);
    for (const name of (schema.required as readonly string[] | undefined) ?? []) required.add(name);
  }
  const closes = !rules.allowsAdditional && isClosed(parts);
  const isDeclared = new Set(names);
  const valueOf = (name: string) => {
    const located = parts.flatMap(({ schema, path: at }) => memberSchemas(schema, name, at));
    const isRefused = closes && located.length === 0 && !isDeclared.has(name);
    return isRefused ? NEVER : rules.valueOf(located);
  };
  for (const name of required) names.add(name);
  const others = otherProperties(rules, parts, names, closes);
  const members = [...names].map((name) => ({
    isRequired: required.has(name),
    pair: sequence(text(JSON.stringify(name)), punctuation.colon, valueOf(name)),
  }));
  const { comma } = punctuation;
  const more = (member: Expression) => sequence(comma, member);
  let rest = repeat(more(others), 0, null);
  let first = choice([sequence(others, rest), EMPTY]);
  for (const { isRequired, pair } of members.reverse()) {
    const restRule = rules.addRule(path, rest);
    const written = sequence(pair, restRule);
    const after = sequence(comma, written);
    rest = isRequired ? after : choice([after, restRule]);
    first = isRequired ? written : choice([written, rules.addRule(path, first)]);
  }
  const content = rules.addRule(path, first);
  return punctuation.enclosed('{', content, '}');
}

/** A property that the schema does not name. */
function otherProperties(
  rules: SchemaRules,
  parts: readonly Part[],
  names: ReadonlySet<string>,
  closes: boolean,
): Expression {
  const { punctuation } = rules;
  const patterns: { dfa: Dfa; where: string; path: string; part: Part; pattern: string }[] = [];
  for (const part of parts) {
    const { patternProperties } = part.schema;
    if (!isObject(patternProperties)) continue;
    for (const pattern of Object.keys(patternProperties)) {
      const path = under(part.path, 'patternProperties', pattern);
      const where = `structuredOutputs.json: ${path}`;
      patterns.push({
        dfa: Dfa.from(parseSearch(pattern, where), where),
        where,
        path,
        part,
        pattern,
      });
    }
  }
  if (patterns.length > MAX_PATTERNS) {
    throw schemaError(
      parts[0].path,
      `more than ${MAX_PATTERNS} patternProperties are not supported`,
    );
  }
  const cases: Expression[] = [];
  for (let chosen = 0; chosen < 2 ** patterns.length; chosen++) {
    const matches = patterns.filter((_, i) => (chosen >> i) & 1);
    const located = parts.flatMap(({ schema, path }): Located[] => {
      const own = matches.filter(({ part }) => part.path === path);
      if (own.length > 0) {
        return own.map((match) =>
          locate((schema.patternProperties as Record<string, unknown>)[match.pattern], match.path),
        );
      }
      const additional = schema.additionalProperties;
      return additional === undefined
        ? []
        : [locate(additional, under(path, 'additionalProperties'))];
    });
    if (closes && matches.length === 0) continue;
    const value = rules.valueOf(located);
    if (value === NEVER) continue;
    const key = keyExpression(parts[0].path, names, patterns, chosen);
    if (key !== null) cases.push(sequence(key, punctuation.colon, value));
  }
  return choice(cases);
}

/** A key that has none of the names, and of the patterns those that are chosen; null: there is none. */
function keyExpression(
  path: string,
  names: ReadonlySet<string>,
  patterns: readonly { dfa: Dfa; where: string }[],
  chosen: number,
): Expression | null {
  if (names.size === 0 && patterns.length === 0) return jsonString();
  const where = `structuredOutputs.json: ${path}`;
  let keys = Dfa.from(ANY_CONTENT, where);
  if (names.size > 0) keys = Dfa.from(choice([...names].map(text)), where).complement();
  for (const [i, pattern] of patterns.entries()) {
    const dfa = (chosen >> i) & 1 ? pattern.dfa : pattern.dfa.complement();
    keys = keys.intersect(dfa, pattern.where);
  }
  return keys.isEmpty ? null : jsonStringOf(keys);
}

export function arrayExpression(rules: SchemaRules, parts: readonly Part[]): Expression {
  const { punctuation } = rules;
  let min = 0;
  let max: number | null = null;
  let numPrefix = 0;
  for (const { schema } of parts) {
    const { minItems, maxItems, prefixItems } = schema;
    if (typeof minItems === 'number') min = Math.max(min, minItems);
    if (typeof maxItems === 'number') max = Math.min(max ?? Infinity, maxItems);
    if (Array.isArray(prefixItems)) numPrefix = Math.max(numPrefix, prefixItems.length);
  }
  if (max !== null && max < min) return NEVER;
  const itemOf = (index: number) =>
    rules.valueOf(
      parts.flatMap(({ schema, path }): Located[] => {
        const { prefixItems, items } = schema;
        if (Array.isArray(prefixItems) && index < prefixItems.length) {
          return [locate(prefixItems[index], under(path, 'prefixItems', index))];
        }
        return items === undefined ? [] : [locate(items, under(path, 'items'))];
      }),
    );
  numPrefix = Math.min(numPrefix, max ?? Infinity);
  const { comma } = punctuation;
  const item = itemOf(numPrefix);
  const left = max === null ? null : max - numPrefix;
  const leftMin = Math.max(0, min - numPrefix);
  if (numPrefix === 0) {
    const empty = min === 0 ? [punctuation.enclosed('[', null, ']')] : [];
    if (max === 0) return choice(empty);
    const list = punctuation.list(item, Math.max(1, min), max);
    return choice([...empty, punctuation.enclosed('[', list, ']')]);
  }
  let rest = repeat(sequence(comma, item), leftMin, left);
  for (let index = numPrefix - 1; index >= 0; index--) {
    const element = itemOf(index);
    const written = sequence(index === 0 ? EMPTY : comma, element, rest);
    rest = index < min ? written : choice([written, EMPTY]);
  }
  return punctuation.enclosed('[', rest, ']');
}
