/** Strings and numbers of a JSON schema. */
import { Dfa } from './dfa';
import { type CodeRange, type Expression, NEVER, repeat, set, ANY_CHARACTER } from './expression';
import { DECIMAL, INTEGER, jsonString, jsonStringOf, NUMBER } from './jsonText';
import { atLeast, atMost } from './numberRange';
import { parseRegex, parseSearch } from './regex';
import type { Part } from './schemaConjunction';
import { schemaError, under } from './schemaDocument';
import { formatPattern } from './schemaKeywords';

/** Longest string whose length is combined with a pattern or format. */
const MAX_COUNTED = 2000;

/** The greatest of a keyword's values among the parts, and its part. */
function extreme(
  parts: readonly Part[],
  name: string,
  pick: (a: number, b: number) => number,
): number | null {
  let found: number | null = null;
  for (const { schema } of parts) {
    const value = schema[name];
    if (typeof value === 'number') found = found === null ? value : pick(found, value);
  }
  return found;
}

const greatest = (parts: readonly Part[], name: string) => extreme(parts, name, Math.max);
const least = (parts: readonly Part[], name: string) => extreme(parts, name, Math.min);

/** A string that is written without quotes and escapes. */
export interface RawString {
  /** Characters that it may have. */
  readonly character: readonly CodeRange[];
  /** Any text of them. */
  readonly content: Expression;
}

/** As JSON unless `raw` is given. */
export function stringExpression(parts: readonly Part[], raw?: RawString): Expression {
  const min = greatest(parts, 'minLength') ?? 0;
  const max = least(parts, 'maxLength');
  if (max !== null && max < min) return NEVER;
  /** Regular expressions of the content, and what each is. */
  const contents: { expression: Expression; where: string }[] = [];
  for (const { schema, path } of parts) {
    const { pattern, format } = schema;
    if (typeof pattern === 'string') {
      const where = `structuredOutputs.json: ${under(path, 'pattern')}`;
      contents.push({ expression: parseSearch(pattern, where), where });
    }
    if (typeof format === 'string') {
      const where = `structuredOutputs.json: ${under(path, 'format')}`;
      contents.push({ expression: parseRegex(formatPattern(format, path), where), where });
    }
  }
  if (contents.length === 0) {
    return raw === undefined ? jsonString(min, max) : repeat(set(raw.character), min, max);
  }
  if (min > 0 || max !== null) {
    const { path } = parts[0];
    if (Math.max(min, max ?? 0) > MAX_COUNTED) {
      throw schemaError(
        path,
        `a length above ${MAX_COUNTED} together with a pattern or format is not supported`,
      );
    }
    const where = `structuredOutputs.json: ${path}`;
    contents.push({ expression: repeat(set(ANY_CHARACTER), min, max), where });
  }
  if (raw !== undefined) {
    contents.push({ expression: raw.content, where: `structuredOutputs.json: ${parts[0].path}` });
  }
  const [first, ...others] = contents;
  if (others.length === 0) return jsonStringOf(first.expression);
  let dfa = Dfa.from(first.expression, first.where);
  for (const { expression, where } of others) {
    dfa = dfa.intersect(Dfa.from(expression, where), where);
  }
  if (dfa.isEmpty) return NEVER;
  return raw === undefined ? jsonStringOf(dfa) : dfa.expression();
}

export function numberExpression(parts: readonly Part[], isInteger: boolean): Expression {
  const bounds: Expression[] = [];
  for (const { schema, path } of parts) {
    const { minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf } = schema;
    if (typeof minimum === 'number') bounds.push(atLeast({ value: minimum, isExclusive: false }));
    if (typeof maximum === 'number') bounds.push(atMost({ value: maximum, isExclusive: false }));
    if (typeof exclusiveMinimum === 'number') {
      bounds.push(atLeast({ value: exclusiveMinimum, isExclusive: true }));
    }
    if (typeof exclusiveMaximum === 'number') {
      bounds.push(atMost({ value: exclusiveMaximum, isExclusive: true }));
    }
    if (multipleOf !== undefined && !(multipleOf === 1 && isInteger)) {
      throw schemaError(under(path, 'multipleOf'), 'this keyword is not supported');
    }
  }
  if (bounds.length === 0) return isInteger ? INTEGER : NUMBER;
  const where = `structuredOutputs.json: ${parts[0].path}`;
  let numbers = Dfa.from(isInteger ? INTEGER : DECIMAL, where);
  for (const bound of bounds) numbers = numbers.intersect(Dfa.from(bound, where), where);
  return numbers.isEmpty ? NEVER : numbers.expression();
}
