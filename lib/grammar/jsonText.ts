/** JSON's own grammar: strings, numbers, white space, and any value. */
import type { Dfa } from './dfa';
import {
  ANY_CHARACTER,
  choice,
  type CodeRange,
  complementRanges,
  type Expression,
  intersectRanges,
  rangesOf,
  repeat,
  rule,
  sequence,
  set,
  text,
} from './expression';
import { parseRegex } from './regex';

/** A line break with its indentation, or a space: unlimited space would let a model pad for ever. */
export const DEFAULT_WHITESPACE = '(?: |\\n[ \\t]{0,32})?';

const regex = (pattern: string) => parseRegex(pattern, 'JSON');

/** Characters that a string must escape. */
const ESCAPED = [...rangesOf('"\\'), [0, 0x1f] as const].sort((a, b) => a[0] - b[0]);
const PLAIN = complementRanges(ESCAPED);

/** One character of a string, in any of its spellings. A surrogate is escaped with its partner. */
const STRING_CHARACTER = choice([
  set(PLAIN),
  regex('\\\\["\\\\/bfnrt]'),
  regex('\\\\u(?:[0-9a-cA-CefEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})'),
  regex('\\\\u[dD][89abAB][0-9a-fA-F]{2}\\\\u[dD][c-fC-F][0-9a-fA-F]{2}'),
]);

const QUOTE = text('"');

/** A string of `min` to `max` characters. */
export function jsonString(min = 0, max: number | null = null): Expression {
  return sequence(QUOTE, repeat(STRING_CHARACTER, min, max), QUOTE);
}

/** A character in a string as JSON.stringify writes it. */
function writeCharacter(ranges: readonly CodeRange[]): Expression {
  const options: Expression[] = [];
  const plain = intersectRanges(ranges, PLAIN);
  if (plain.length > 0) options.push(set(plain));
  for (const [from, to] of intersectRanges(ranges, ESCAPED)) {
    for (let code = from; code <= to; code++) {
      options.push(text(JSON.stringify(String.fromCharCode(code)).slice(1, -1)));
    }
  }
  return choice(options);
}

/** A string with a content of the automaton or of a regular expression, as JSON.stringify writes it. */
export function jsonStringOf(content: Dfa | Expression): Expression {
  const written = 'kind' in content ? writeContent(content) : content.expression(writeCharacter);
  return sequence(QUOTE, written, QUOTE);
}

function writeContent(content: Expression): Expression {
  switch (content.kind) {
    case 'text':
      return text(JSON.stringify(content.text).slice(1, -1));
    case 'set':
      return writeCharacter(content.ranges);
    case 'sequence':
      return { kind: 'sequence', parts: content.parts.map(writeContent) };
    case 'choice':
      return { kind: 'choice', options: content.options.map(writeContent) };
    case 'repeat':
      return { ...content, body: writeContent(content.body) };
    case 'rule':
    case 'automaton':
      return content;
  }
}

/** Any content of a string. */
export const ANY_CONTENT: Expression = repeat(set(ANY_CHARACTER), 0, null);

export const NUMBER = regex('-?(?:0|[1-9][0-9]*)(?:\\.[0-9]+)?(?:[eE][+-]?[0-9]+)?');
export const INTEGER = regex('-?(?:0|[1-9][0-9]*)');
/** Without an exponent, for bounds. */
export const DECIMAL = regex('-?(?:0|[1-9][0-9]*)(?:\\.[0-9]+)?');

/** Brackets and punctuation with white space as the pattern allows it. */
export class JsonPunctuation {
  readonly comma: Expression;
  readonly colon: Expression;

  constructor(private readonly space: Expression) {
    this.comma = sequence(space, text(','), space);
    this.colon = sequence(space, text(':'), space);
  }

  /** `content` null: empty. */
  enclosed(open: string, content: Expression | null, close: string): Expression {
    const { space } = this;
    const empty = sequence(text(open), space, text(close));
    if (content === null) return empty;
    return sequence(text(open), space, content, space, text(close));
  }

  /** `content` may be absent. */
  maybeEmpty(open: string, content: Expression, close: string): Expression {
    return choice([this.enclosed(open, null, close), this.enclosed(open, content, close)]);
  }

  /** `min` to `max` items between commas. */
  list(item: Expression, min: number, max: number | null): Expression {
    const more = sequence(this.comma, item);
    return sequence(item, repeat(more, Math.max(0, min - 1), max === null ? null : max - 1));
  }
}

/** The rules of any JSON value: `json.value`, `json.object`, `json.array`. */
export function anyJsonRules(punctuation: JsonPunctuation): [string, Expression][] {
  const value = rule('json.value');
  const member = sequence(jsonString(), punctuation.colon, value);
  return [
    [
      'json.value',
      choice([
        jsonString(),
        NUMBER,
        text('true'),
        text('false'),
        text('null'),
        rule('json.object'),
        rule('json.array'),
      ]),
    ],
    ['json.object', punctuation.maybeEmpty('{', punctuation.list(member, 1, null), '}')],
    ['json.array', punctuation.maybeEmpty('[', punctuation.list(value, 1, null), ']')],
  ];
}
