/** A grammar as expressions over characters: what schemas, regular expressions and EBNF become. */

/** Code points `from` to `to`, inclusive. */
export type CodeRange = readonly [from: number, to: number];

export type Expression =
  /** The text itself. */
  | { readonly kind: 'text'; readonly text: string }
  /** One character of the ranges, which are ascending and disjoint. */
  | { readonly kind: 'set'; readonly ranges: readonly CodeRange[] }
  | { readonly kind: 'sequence'; readonly parts: readonly Expression[] }
  /** Any of the options; no options: no text. */
  | { readonly kind: 'choice'; readonly options: readonly Expression[] }
  /** `max` null: unlimited. */
  | {
      readonly kind: 'repeat';
      readonly body: Expression;
      readonly min: number;
      readonly max: number | null;
    }
  | { readonly kind: 'rule'; readonly name: string }
  /** A finite automaton that starts in state 0. */
  | { readonly kind: 'automaton'; readonly states: readonly AutomatonState[] };

export interface AutomatonState {
  readonly accepts: boolean;
  /** What leads to state `to`; never empty text. */
  readonly edges: readonly { readonly on: Expression; readonly to: number }[];
}

/** An expression without parts of its own. */
export type Leaf = Exclude<Expression, { kind: 'sequence' | 'choice' | 'repeat' }>;

/** Whether all parts of sequences, and an option of each choice, consist of leaves that pass `test`. */
export function consistsOf(expression: Expression, test: (leaf: Leaf) => boolean): boolean {
  const inside = (part: Expression) => consistsOf(part, test);
  switch (expression.kind) {
    case 'sequence':
      return expression.parts.every(inside);
    case 'choice':
      return expression.options.some(inside);
    case 'repeat':
      return expression.min === 0 || inside(expression.body);
    default:
      return test(expression);
  }
}

/** Rules by name; a text of the grammar is one of `root`. */
export interface RuleSet {
  readonly root: Expression;
  readonly rules: ReadonlyMap<string, Expression>;
}

export const MAX_CODE_POINT = 0x10ffff;

/** All characters that UTF-8 can encode: without surrogates. */
export const ANY_CHARACTER: readonly CodeRange[] = [
  [0, 0xd7ff],
  [0xe000, MAX_CODE_POINT],
];

/**
 * Around a special token's name in an expression's text. Lone surrogates are no characters, so no set,
 * regular expression or JSON string has them; program.ts writes them as bytes that UTF-8 lacks.
 */
const TOKEN_START = '\udc00';
const TOKEN_END = '\udc01';
/** The bytes of TOKEN_START and TOKEN_END. */
export const TOKEN_START_BYTE = 0xff;
export const TOKEN_END_BYTE = 0xfe;

/** Text that only the special token of this name is. */
export const tokenText = (name: string): string => TOKEN_START + name + TOKEN_END;

/** A text in UTF-8, with the marks of special tokens. */
export function bytesOf(content: string): Buffer {
  if (!content.includes(TOKEN_START)) return Buffer.from(content);
  // With the flag u, halves of pairs are no marks.
  const parts = content.split(/([\udc00\udc01])/u);
  return Buffer.concat(
    parts.map((part) =>
      part === TOKEN_START
        ? Buffer.of(TOKEN_START_BYTE)
        : part === TOKEN_END
          ? Buffer.of(TOKEN_END_BYTE)
          : Buffer.from(part),
    ),
  );
}

export const EMPTY: Expression = { kind: 'text', text: '' };
/** Matches nothing, not even the empty text. */
export const NEVER: Expression = { kind: 'choice', options: [] };

export const text = (content: string): Expression => ({ kind: 'text', text: content });
export const set = (ranges: readonly CodeRange[]): Expression =>
  ranges.length === 0 ? NEVER : { kind: 'set', ranges };
export const rule = (name: string): Expression => ({ kind: 'rule', name });

export function sequence(...parts: readonly Expression[]): Expression {
  return parts.length === 1 ? parts[0] : { kind: 'sequence', parts };
}

export function choice(options: readonly Expression[]): Expression {
  return options.length === 1 ? options[0] : { kind: 'choice', options };
}

export function repeat(body: Expression, min: number, max: number | null): Expression {
  if (max === 0) return EMPTY;
  return min === 1 && max === 1 ? body : { kind: 'repeat', body, min, max };
}

export const optional = (body: Expression): Expression => repeat(body, 0, 1);

/** Sorts ranges and merges those that touch. */
export function normalizeRanges(ranges: readonly CodeRange[]): CodeRange[] {
  const sorted = [...ranges].sort((a, b) => a[0] - b[0]);
  const merged: [number, number][] = [];
  for (const [from, to] of sorted) {
    if (from > to) continue;
    const last = merged.at(-1);
    if (last !== undefined && from <= last[1] + 1) last[1] = Math.max(last[1], to);
    else merged.push([from, to]);
  }
  return merged;
}

/** The characters of both; each list normalized. */
export function intersectRanges(a: readonly CodeRange[], b: readonly CodeRange[]): CodeRange[] {
  const common: CodeRange[] = [];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    const from = Math.max(a[i][0], b[j][0]);
    const to = Math.min(a[i][1], b[j][1]);
    if (from <= to) common.push([from, to]);
    if (a[i][1] < b[j][1]) i++;
    else j++;
  }
  return common;
}

/** All characters that are not in `ranges`. */
export function complementRanges(ranges: readonly CodeRange[]): CodeRange[] {
  const gaps: CodeRange[] = [];
  let next = 0;
  for (const [from, to] of normalizeRanges(ranges)) {
    if (from > next) gaps.push([next, from - 1]);
    next = to + 1;
  }
  if (next <= MAX_CODE_POINT) gaps.push([next, MAX_CODE_POINT]);
  return intersectRanges(gaps, ANY_CHARACTER);
}

/** The ranges of the characters of a text. */
export function rangesOf(characters: string): CodeRange[] {
  return normalizeRanges(
    Array.from(characters, (character) => {
      const code = character.codePointAt(0) as number;
      return [code, code] as const;
    }),
  );
}
