/** jinja2's lexer with trim_blocks and lstrip_blocks. */
import { TemplateSyntaxError } from './errors';
import { SPACES, strip } from './text';

export type TokenType =
  | 'data'
  | 'block_begin'
  | 'block_end'
  | 'variable_begin'
  | 'variable_end'
  | 'name'
  | 'string'
  | 'integer'
  | 'float'
  | 'operator'
  | 'eof';

export interface Token {
  readonly type: TokenType;
  /** The value of a string literal; the text of other tokens. */
  readonly value: string;
  readonly line: number;
}

const S = `[${SPACES}]*`;
const RAW_BEGIN = `\\{%([-+]?)${S}raw${S}(?:-%\\}${S}|%\\})`;
const TAG = new RegExp(`${RAW_BEGIN}|(\\{%|\\{\\{|\\{#)([-+]?)`, 'g');
const COMMENT_END = new RegExp(`\\+#\\}|-#\\}${S}|#\\}\\n?`, 'g');
const RAW_END = new RegExp(`\\{%([-+]?)${S}endraw${S}(?:\\+%\\}|-%\\}${S}|%\\}\\n?)`, 'g');
const BLOCK_END = new RegExp(`\\+%\\}|-%\\}${S}|%\\}\\n?`, 'y');
const VARIABLE_END = new RegExp(`-\\}\\}${S}|\\}\\}`, 'y');
const SPACE = new RegExp(`[${SPACES}]+`, 'y');
const ONLY_SPACE = new RegExp(`^[${SPACES}]+$`);

const FLOAT = /(?<!\.)(?:\d+_)*\d+(?:(?:\.(?:\d+_)*\d+)?e[+-]?(?:\d+_)*\d+|\.(?:\d+_)*\d+)/iy;
const INTEGER = /0b(?:_?[01])+|0o(?:_?[0-7])+|0x(?:_?[\da-f])+|[1-9](?:_?\d)*|0(?:_?0)*/iy;
const NAME = /[\p{L}\p{M}\p{N}\p{Pc}\u00b7\u0387\u212e]+/uy;
const IDENTIFIER = /^[\p{XID_Start}_][\p{XID_Continue}]*$/u;
const STRING = /'([^'\\]*(?:\\.[^'\\]*)*)'|"([^"\\]*(?:\\.[^"\\]*)*)"/sy;
const OPERATOR = /\/\/|\*\*|==|!=|>=|<=|[-+/*%~[\](){}><=.:|,;]/y;

const CLOSERS: Readonly<Record<string, string>> = { '(': ')', '[': ']', '{': '}' };

const ESCAPE =
  /\\(?:x([\da-fA-F]{2})|u([\da-fA-F]{4})|U([\da-fA-F]{8})|([0-7]{1,3})|([xuUN])|([^]))/g;
const SIMPLE_ESCAPES: Partial<Record<string, string>> = {
  '\n': '',
  '\\': '\\',
  "'": "'",
  '"': '"',
  a: '\x07',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
  v: '\v',
};

/** Decodes the inside of a string literal as Python's unicode-escape does. */
function unescape(text: string, line: number): string {
  return text.replace(
    ESCAPE,
    (all, x?: string, u?: string, wide?: string, octal?: string, bad?: string, char?: string) => {
      const hex = x ?? u ?? wide;
      if (hex !== undefined) {
        const code = parseInt(hex, 16);
        if (code > 0x10ffff) throw new TemplateSyntaxError('illegal Unicode character', line);
        return String.fromCodePoint(code);
      }
      if (octal !== undefined) return String.fromCodePoint(parseInt(octal, 8));
      if (bad !== undefined) throw new TemplateSyntaxError(`truncated \\${bad} escape`, line);
      return SIMPLE_ESCAPES[char ?? ''] ?? all;
    },
  );
}

/** Throws TemplateSyntaxError. */
export function tokenize(template: string): Token[] {
  return new Lexer(template.replace(/\r\n|\r/g, '\n').replace(/\n$/, '')).run();
}

class Lexer {
  private readonly tokens: Token[] = [];
  private at = 0;
  private line = 1;
  /** Whether the last read text ended a line. */
  private lineStarting = true;

  constructor(private readonly source: string) {}

  run(): Token[] {
    while (this.at < this.source.length) this.root();
    this.push('eof', '');
    return this.tokens;
  }

  private push(type: TokenType, value: string): void {
    this.tokens.push({ type, value, line: this.line });
  }

  private fail(reason: string): never {
    throw new TemplateSyntaxError(reason, this.line);
  }

  /** Advances past `text`, which starts here. */
  private skip(text: string): void {
    this.at += text.length;
    for (const char of text) if (char === '\n') this.line++;
    this.lineStarting = text.endsWith('\n');
  }

  private match(rule: RegExp): RegExpExecArray | null {
    rule.lastIndex = this.at;
    return rule.exec(this.source);
  }

  /** Reads text up to the next tag, and that tag. */
  private root(): void {
    const tag = this.match(TAG);
    if (!tag) {
      this.push('data', this.source.slice(this.at));
      this.at = this.source.length;
      return;
    }
    const [all, rawSign, begin, sign] = tag as (string | undefined)[];
    this.data(this.source.slice(this.at, tag.index), rawSign ?? sign ?? '', begin === '{{');
    if (begin === '{#') {
      const end = this.after(COMMENT_END, tag.index + 2);
      if (!end) this.fail('Missing end of comment tag');
      this.skip(this.source.slice(this.at, end.index + end[0].length));
    } else if (begin === '{%') {
      this.push('block_begin', begin);
      this.skip(all ?? '');
      this.tag('block_end', BLOCK_END);
    } else if (begin === '{{') {
      this.push('variable_begin', begin);
      this.skip(all ?? '');
      this.tag('variable_end', VARIABLE_END);
    } else {
      this.skip(all ?? '');
      const end = this.after(RAW_END, this.at);
      if (!end) this.fail('Missing end of raw directive');
      this.data(this.source.slice(this.at, end.index), end[1], false);
      this.skip(end[0]);
    }
  }

  private after(rule: RegExp, from: number): RegExpExecArray | null {
    rule.lastIndex = from;
    return rule.exec(this.source);
  }

  /** `text` before a tag, without the white space that the tag strips. */
  private data(text: string, sign: string, isVariable: boolean): void {
    let kept = text;
    if (sign === '-') {
      kept = strip(text, undefined, 'right');
    } else if (sign !== '+' && !isVariable) {
      const start = text.lastIndexOf('\n') + 1;
      if ((start > 0 || this.lineStarting) && ONLY_SPACE.test(text.slice(start))) {
        kept = text.slice(0, start);
      }
    }
    if (kept !== '') this.push('data', kept);
    this.skip(text);
  }

  /** Reads the tokens inside a tag, and its end. */
  private tag(endType: TokenType, endRule: RegExp): void {
    const open: string[] = [];
    for (;;) {
      const end = open.length === 0 ? this.match(endRule) : null;
      if (end) {
        this.push(endType, end[0]);
        this.skip(end[0]);
        return;
      }
      const space = this.match(SPACE);
      if (space) {
        this.skip(space[0]);
        continue;
      }
      if (this.at >= this.source.length) return;
      this.skip(this.token(open));
    }
  }

  /** Pushes the token that starts here, and returns its text. */
  private token(open: string[]): string {
    const rules = [
      ['float', FLOAT],
      ['integer', INTEGER],
      ['name', NAME],
      ['string', STRING],
      ['operator', OPERATOR],
    ] as const;
    for (const [type, rule] of rules) {
      const found = this.match(rule);
      if (!found) continue;
      const [text] = found;
      if (type === 'name' && !IDENTIFIER.test(text)) this.fail('Invalid character in identifier');
      if (type === 'operator') this.balance(open, text);
      this.push(type, type === 'string' ? unescape(text.slice(1, -1), this.line) : text);
      return text;
    }
    return this.fail(`unexpected char '${this.source[this.at]}' at ${this.at}`);
  }

  private balance(open: string[], operator: string): void {
    if (operator in CLOSERS) open.push(CLOSERS[operator]);
    if (!')]}'.includes(operator)) return;
    const expected = open.pop();
    if (expected === undefined) this.fail(`unexpected '${operator}'`);
    if (expected !== operator) this.fail(`unexpected '${operator}', expected '${expected}'`);
  }
}
