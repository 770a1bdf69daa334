/** EBNF as llama.cpp (GBNF) and xgrammar write it. */
import { InvalidRequestError } from '../errors';
import {
  ANY_CHARACTER,
  choice,
  type CodeRange,
  complementRanges,
  type Expression,
  MAX_CODE_POINT,
  normalizeRanges,
  rangesOf,
  repeat,
  rule,
  type RuleSet,
  sequence,
  set,
  text,
} from './expression';

const MAX_DEPTH = 200;
const MAX_REPETITIONS = 100_000;
const NAME = /[A-Za-z_][\w.-]*/y;
const ESCAPES: Readonly<Record<string, string>> = {
  n: '\n',
  r: '\r',
  t: '\t',
  f: '\f',
  b: '\b',
  v: '\v',
  a: '\x07',
  0: '\0',
};

class EbnfParser {
  private at = 0;
  private depth = 0;

  constructor(private readonly grammar: string) {}

  parse(): RuleSet {
    const rules = new Map<string, Expression>();
    this.skipSpace();
    while (this.at < this.grammar.length) {
      const name = this.name();
      if (name === null) this.fail('a rule must begin with its name');
      this.skipSpace();
      if (!this.takes('::=')) this.fail(`expected ::= behind ${name}`);
      if (rules.has(name)) this.fail(`rule ${name} is defined twice`);
      rules.set(name, this.alternatives());
      this.skipSpace();
    }
    if (!rules.has('root')) {
      throw new InvalidRequestError(
        'structuredOutputs.grammar: it has no rule root, which begins it',
      );
    }
    return { root: rule('root'), rules };
  }

  private fail(what: string): never {
    const line = this.grammar.slice(0, this.at).split('\n').length;
    throw new InvalidRequestError(`structuredOutputs.grammar: line ${line}: ${what}`);
  }

  private skipSpace(): void {
    for (; this.at < this.grammar.length; this.at++) {
      const character = this.grammar[this.at];
      if (character === '#') {
        const end = this.grammar.indexOf('\n', this.at);
        this.at = end < 0 ? this.grammar.length : end;
      } else if (!' \t\r\n'.includes(character)) return;
    }
  }

  private takes(token: string): boolean {
    if (!this.grammar.startsWith(token, this.at)) return false;
    this.at += token.length;
    return true;
  }

  private name(): string | null {
    NAME.lastIndex = this.at;
    const name = NAME.exec(this.grammar);
    if (name === null) return null;
    this.at += name[0].length;
    return name[0];
  }

  /** Whether the name here begins the next rule. */
  private beginsRule(): boolean {
    const { at } = this;
    const isName = this.name() !== null;
    this.skipSpace();
    const begins = isName && this.grammar.startsWith('::=', this.at);
    this.at = at;
    return begins;
  }

  private alternatives(): Expression {
    const options = [this.concatenation()];
    this.skipSpace();
    while (this.takes('|')) {
      options.push(this.concatenation());
      this.skipSpace();
    }
    return choice(options);
  }

  private concatenation(): Expression {
    const parts: Expression[] = [];
    for (;;) {
      this.skipSpace();
      const element = this.element();
      if (element === null) return sequence(...parts);
      parts.push(this.quantified(element));
    }
  }

  /** Null at the end of the concatenation. */
  private element(): Expression | null {
    const character = this.grammar.at(this.at);
    if (character === '"') return text(this.string());
    if (character === '[') return set(this.characterClass());
    if (this.takes('.')) return set(ANY_CHARACTER);
    if (this.takes('(')) {
      if (this.grammar.startsWith('=', this.at)) this.fail('a lookahead (= ) is not supported');
      if (++this.depth > MAX_DEPTH) this.fail(`groups are nested deeper than ${MAX_DEPTH}`);
      const group = this.alternatives();
      this.depth--;
      this.skipSpace();
      if (!this.takes(')')) this.fail('a group has no end');
      return group;
    }
    if (character === undefined || character === '|' || character === ')') return null;
    if (this.beginsRule()) return null;
    const name = this.name();
    if (name !== null) return rule(name);
    return this.fail(`unexpected ${JSON.stringify(character)}`);
  }

  private quantified(element: Expression): Expression {
    for (;;) {
      const { at } = this;
      this.skipSpace();
      const braces = /\{\s*(\d{1,9})\s*(?:(,)\s*(\d{0,9})\s*)?\}/y;
      braces.lastIndex = this.at;
      if (this.takes('*')) element = repeat(element, 0, null);
      else if (this.takes('+')) element = repeat(element, 1, null);
      else if (this.takes('?')) element = repeat(element, 0, 1);
      else {
        const bounds = braces.exec(this.grammar);
        if (bounds === null) {
          if (this.grammar.startsWith('{', this.at)) this.fail('unexpected "{"');
          this.at = at;
          return element;
        }
        this.at += bounds[0].length;
        const [, first, hasMax, last] = bounds as (string | undefined)[];
        const min = Number(first);
        const max = hasMax === undefined ? min : last === '' ? null : Number(last);
        if (max !== null && max < min) this.fail(`{${min},${max}} is out of order`);
        if (Math.max(min, max ?? 0) > MAX_REPETITIONS) {
          this.fail(`a part is repeated more than ${MAX_REPETITIONS} times`);
        }
        element = repeat(element, min, max);
      }
    }
  }

  private string(): string {
    this.at++;
    let content = '';
    while (!this.takes('"')) content += this.character('"');
    return content;
  }

  /** The next character, which may be escaped. */
  private character(end: string): string {
    const code = this.grammar.codePointAt(this.at);
    if (code === undefined || code === 10) return this.fail(`a ${end} is missing`);
    const character = String.fromCodePoint(code);
    this.at += character.length;
    if (character !== '\\') return character;
    const escaped = this.grammar.charAt(this.at++);
    if (escaped in ESCAPES) return ESCAPES[escaped];
    const length = escaped === 'x' ? 2 : escaped === 'u' ? 4 : escaped === 'U' ? 8 : null;
    if (length === null) {
      if (/[A-Za-z\d]/.test(escaped) || escaped === '') this.fail(`unknown escape \\${escaped}`);
      return escaped;
    }
    const digits = this.grammar.slice(this.at, this.at + length);
    const value = /^[\da-fA-F]+$/.test(digits) ? parseInt(digits, 16) : NaN;
    const isCharacter = value <= MAX_CODE_POINT && !(value >= 0xd800 && value <= 0xdfff);
    if (digits.length !== length || !isCharacter)
      this.fail(`\\${escaped}${digits} is no character`);
    this.at += length;
    return String.fromCodePoint(value);
  }

  private characterClass(): readonly CodeRange[] {
    this.at++;
    const isNegated = this.takes('^');
    const ranges: CodeRange[] = [];
    while (!this.takes(']')) {
      const [[from]] = rangesOf(this.character(']'));
      let to = from;
      if (/^-[^\]]/.test(this.grammar.slice(this.at, this.at + 2))) {
        this.at++;
        [[to]] = rangesOf(this.character(']'));
        if (to < from) this.fail('a range of characters is out of order');
      }
      ranges.push([from, to]);
    }
    const normalized = complementRanges(complementRanges(normalizeRanges(ranges)));
    return isNegated ? complementRanges(normalized) : normalized;
  }
}

/** Throws InvalidRequestError, which names the line. */
export function parseEbnf(grammar: string): RuleSet {
  return new EbnfParser(grammar).parse();
}
