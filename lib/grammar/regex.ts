/** Regular expressions, as JavaScript writes them with the flag u, to expressions. */
import { show } from '../config/schema';
import { InvalidRequestError } from '../errors';
import {
  ANY_CHARACTER,
  choice,
  type CodeRange,
  complementRanges,
  consistsOf,
  EMPTY,
  type Expression,
  intersectRanges,
  MAX_CODE_POINT,
  normalizeRanges,
  rangesOf,
  repeat,
  sequence,
  set,
  text,
} from './expression';
import { propertyRanges } from './unicodeProperties';

/** Deepest nesting of groups. */
const MAX_DEPTH = 200;
/** Most alternatives with different anchors. */
const MAX_ANCHORED = 64;
/** Most repetitions that a quantifier may ask for. */
const MAX_REPETITIONS = 100_000;

const DIGITS: readonly CodeRange[] = [[0x30, 0x39]];
const WORD: readonly CodeRange[] = normalizeRanges([
  ...DIGITS,
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
]);
const SPACE: readonly CodeRange[] = normalizeRanges([
  [0x09, 0x0d],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
]);
const NOT_NEWLINE = complementRanges(rangesOf('\n\r\u2028\u2029'));
const CLASSES: Readonly<Record<string, readonly CodeRange[]>> = {
  d: DIGITS,
  D: complementRanges(DIGITS),
  w: WORD,
  W: complementRanges(WORD),
  s: SPACE,
  S: complementRanges(SPACE),
};
const CONTROLS: Readonly<Record<string, string>> = {
  n: '\n',
  r: '\r',
  t: '\t',
  f: '\f',
  v: '\v',
};

/** An alternative of a pattern, and whether ^ and $ hold it to the ends of the text. */
interface Anchored {
  start: boolean;
  body: Expression;
  end: boolean;
}

const isEmpty = (expression: Expression): boolean =>
  expression === EMPTY || (expression.kind === 'text' && expression.text === '');

/** Whether the empty text matches; a regular expression has no rules. */
const isNullable = (expression: Expression): boolean =>
  consistsOf(expression, (leaf) => leaf.kind === 'text' && leaf.text === '');

class RegexParser {
  private readonly characters: readonly string[];
  private at = 0;
  private depth = 0;

  constructor(
    private readonly pattern: string,
    private readonly where: string,
  ) {
    this.characters = Array.from(pattern);
  }

  parse(): Anchored[] {
    const alternatives = this.alternatives();
    if (this.at < this.characters.length) this.fail(`has an unmatched )`);
    return alternatives;
  }

  private fail(what: string): never {
    throw new InvalidRequestError(
      `${this.where}: the regular expression ${show(this.pattern)} ${what} (at character ${this.at})`,
    );
  }

  private unsupported(what: string): never {
    return this.fail(`has ${what}, which is not supported`);
  }

  private get next(): string | undefined {
    return this.characters.at(this.at);
  }

  private ahead(count: number): string {
    return this.characters.slice(this.at, this.at + count).join('');
  }

  private takes(token: string): boolean {
    if (!this.startsWith(token)) return false;
    this.at += token.length;
    return true;
  }

  private startsWith(token: string): boolean {
    for (let i = 0; i < token.length; i++) {
      if (this.characters[this.at + i] !== token[i]) return false;
    }
    return true;
  }

  private alternatives(): Anchored[] {
    const all: Anchored[] = this.concatenation();
    while (this.takes('|')) {
      all.push(...this.concatenation());
      if (all.length > MAX_ANCHORED) {
        const merged = mergeUnanchored(all);
        if (merged.length > MAX_ANCHORED) this.unsupported('too many alternatives with ^ or $');
        all.splice(0, all.length, ...merged);
      }
    }
    return mergeUnanchored(all);
  }

  private concatenation(): Anchored[] {
    let before: Anchored[] = [{ start: false, body: EMPTY, end: false }];
    /** Parts since the last one with an anchor. */
    let parts: Expression[] = [];
    const flush = () => {
      if (parts.length === 0) return;
      before = before.flatMap((left) =>
        concatenated(left, { start: false, body: sequence(...parts), end: false }),
      );
      parts = [];
    };
    while (this.next !== undefined && this.next !== '|' && this.next !== ')') {
      const term = this.term();
      if (term.length === 1 && !term[0].start && !term[0].end) parts.push(term[0].body);
      else {
        flush();
        before = before.flatMap((left) => term.flatMap((right) => concatenated(left, right)));
        if (before.length > MAX_ANCHORED) this.unsupported('too many alternatives with ^ or $');
      }
    }
    flush();
    return before;
  }

  private term(): Anchored[] {
    if (this.takes('^')) return [{ start: true, body: EMPTY, end: false }];
    if (this.takes('$')) return [{ start: false, body: EMPTY, end: true }];
    return this.quantified(this.atom());
  }

  private quantified(atom: Anchored[]): Anchored[] {
    const bounds = this.quantifier();
    if (bounds === null) return atom;
    this.takes('?'); // a lazy quantifier matches the same texts
    if (this.next === '+' || this.next === '*') this.unsupported('a possessive quantifier');
    const [min, max] = bounds;
    if (max !== null && max < min) this.fail(`has the quantifier {${min},${max}}`);
    if (Math.max(min, max ?? 0) > MAX_REPETITIONS) {
      this.fail(`repeats a part more than ${MAX_REPETITIONS} times`);
    }
    const isAnchored = atom.length !== 1 || atom[0].start || atom[0].end;
    if (!isAnchored) {
      return [{ start: false, body: repeat(atom[0].body, min, max), end: false }];
    }
    if (max === 1 && min === 0) return [{ start: false, body: EMPTY, end: false }, ...atom];
    if (max === 1 && min === 1) return atom;
    return this.unsupported('a repetition of ^ or $');
  }

  private quantifier(): [number, number | null] | null {
    if (this.takes('*')) return [0, null];
    if (this.takes('+')) return [1, null];
    if (this.takes('?')) return [0, 1];
    const braces = /^\{(\d+)(?:(,)(\d*))?\}/.exec(this.ahead(24));
    if (braces === null) return null;
    this.at += braces[0].length;
    const [, min, hasMax, max] = braces as (string | undefined)[];
    if (hasMax === undefined) return [Number(min), Number(min)];
    return [Number(min), max === '' ? null : Number(max)];
  }

  private atom(): Anchored[] {
    const character = this.next as string;
    const single = (body: Expression): Anchored[] => [{ start: false, body, end: false }];
    switch (character) {
      case '(':
        return this.group();
      case '[':
        return single(set(this.characterClass()));
      case '.':
        this.at++;
        return single(set(NOT_NEWLINE));
      case '\\':
        this.at++;
        return single(set(this.escape(false)));
      case '*':
      case '+':
      case '?':
        return this.fail('has a quantifier with nothing to repeat');
      case '{':
        // Python reads a{,5} as a quantifier, JavaScript as text.
        if (/^\{(?:\d+(?:,\d*)?|,\d+)\}/.test(this.ahead(24))) {
          this.fail('has a quantifier with nothing to repeat, or without its least number');
        }
        this.at++;
        return single(text(character));
      default:
        this.at++;
        return single(text(character));
    }
  }

  private group(): Anchored[] {
    this.at++;
    if (this.takes('?')) {
      if (this.takes(':')) {
        // A group without a number.
      } else if (this.startsWith('<=') || this.startsWith('<!')) {
        this.unsupported('a lookbehind');
      } else if (this.startsWith('=') || this.startsWith('!')) {
        this.unsupported('a lookahead');
      } else if (this.takes('<') || this.takes('P<')) {
        while (this.next !== undefined && this.next !== '>') this.at++;
        if (!this.takes('>')) this.fail('has a group name without its end');
      } else this.unsupported('a group of this kind');
    }
    if (++this.depth > MAX_DEPTH) this.fail(`is deeper than ${MAX_DEPTH} groups`);
    const alternatives = this.alternatives();
    this.depth--;
    if (!this.takes(')')) this.fail('has a group without its end');
    return alternatives;
  }

  /** The characters of an escape, behind its backslash. */
  private escape(isInClass: boolean): readonly CodeRange[] {
    const character = this.next;
    if (character === undefined) this.fail('ends with a backslash');
    this.at++;
    if (character in CLASSES) return CLASSES[character];
    if (character in CONTROLS) return rangesOf(CONTROLS[character]);
    if (character === 'p' || character === 'P') return this.property(character === 'P');
    if (character === 'x' || character === 'u') return this.codePoint(character);
    if (character === 'c' && /^[A-Za-z]$/.test(this.next ?? '')) {
      const code = (this.characters[this.at++].codePointAt(0) as number) % 32;
      return [[code, code]];
    }
    if (character === 'b' && isInClass) return [[8, 8]];
    if (character === 'b' || character === 'B') this.unsupported('a word boundary');
    if (character === '0' && !/^\d$/.test(this.next ?? '')) return [[0, 0]];
    if (/^[1-9k]$/.test(character)) this.unsupported('a back reference');
    if (/^[A-Za-z0-9]$/.test(character)) this.fail(`has the unknown escape \\${character}`);
    return rangesOf(character);
  }

  private codePoint(kind: string): readonly CodeRange[] {
    const rest = this.ahead(10);
    const digits =
      kind === 'x'
        ? /^([\da-fA-F]{2})/.exec(rest)
        : /^(?:([\da-fA-F]{4})|\{([\da-fA-F]{1,6})\})/.exec(rest);
    if (digits === null) return this.fail(`has an incomplete escape \\${kind}`);
    this.at += digits[0].length;
    let code = parseInt(digits.slice(1).join(''), 16);
    const low = /^\\u([dD][c-fC-F][\da-fA-F]{2})/.exec(this.ahead(6));
    if (code >= 0xd800 && code <= 0xdbff && low !== null) {
      this.at += low[0].length;
      code = 0x10000 + ((code - 0xd800) << 10) + parseInt(low[1], 16) - 0xdc00;
    }
    if (code > MAX_CODE_POINT) this.fail('has an escape above U+10FFFF');
    return intersectRanges([[code, code]], ANY_CHARACTER);
  }

  private property(isNegated: boolean): readonly CodeRange[] {
    const name = /^\{([^}]{1,64})\}/.exec(this.ahead(66));
    if (name === null) return this.fail('has \\p without a property in braces');
    this.at += name[0].length;
    const ranges = propertyRanges(name[1]);
    if (ranges === null) return this.fail(`has the unknown property ${name[1]}`);
    return isNegated ? complementRanges(ranges) : ranges;
  }

  private characterClass(): readonly CodeRange[] {
    this.at++;
    const isNegated = this.takes('^');
    const ranges: CodeRange[] = [];
    while (!this.takes(']')) {
      if (this.next === undefined) this.fail('has a [ without its ]');
      const from = this.classAtom();
      if (this.next === '-' && this.characters[this.at + 1] !== ']') {
        this.at++;
        if (this.at >= this.characters.length) this.fail('has a [ without its ]');
        const to = this.classAtom();
        const isRange = [from, to].every((one) => one.length === 1 && one[0][0] === one[0][1]);
        if (!isRange) ranges.push(...from, [0x2d, 0x2d], ...to);
        else if (from[0][0] > to[0][0]) this.fail('has a range out of order');
        else ranges.push(...intersectRanges([[from[0][0], to[0][0]]], ANY_CHARACTER));
      } else ranges.push(...from);
    }
    const normalized = normalizeRanges(ranges);
    return isNegated ? complementRanges(normalized) : normalized;
  }

  private classAtom(): readonly CodeRange[] {
    if (this.takes('\\')) return this.escape(true);
    return rangesOf(this.characters[this.at++]);
  }
}

/** Joins alternatives without anchors into one. */
function mergeUnanchored(alternatives: readonly Anchored[]): Anchored[] {
  const plain = alternatives.filter(({ start, end }) => !start && !end);
  if (plain.length < 2) return [...alternatives];
  const body = choice(plain.map((one) => one.body));
  return [
    { start: false, body, end: false },
    ...alternatives.filter(({ start, end }) => start || end),
  ];
}

/** `left` and then `right`; nothing if an anchor cannot hold there. */
function concatenated(left: Anchored, right: Anchored): Anchored[] {
  let { body: before } = left;
  let { body: after } = right;
  if (right.start && !isEmpty(before)) {
    if (!isNullable(before)) return [];
    before = EMPTY;
  }
  if (left.end && !isEmpty(after)) {
    if (!isNullable(after)) return [];
    after = EMPTY;
  }
  const body = isEmpty(before) ? after : isEmpty(after) ? before : sequence(before, after);
  return [{ start: left.start || right.start, body, end: left.end || right.end }];
}

/** Texts that match as a whole. `where` begins errors. Throws InvalidRequestError. */
export function parseRegex(pattern: string, where: string): Expression {
  return choice(new RegexParser(pattern, where).parse().map(({ body }) => body));
}

/** Texts with a match anywhere, as JSON Schema's `pattern`. */
export function parseSearch(pattern: string, where: string): Expression {
  const any = repeat(set(ANY_CHARACTER), 0, null);
  return choice(
    new RegexParser(pattern, where)
      .parse()
      .map(({ start, body, end }) => sequence(start ? EMPTY : any, body, end ? EMPTY : any)),
  );
}
