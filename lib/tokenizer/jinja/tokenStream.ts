/** A stream of tokens with the error messages of jinja2's parser. */
import { TemplateSyntaxError } from './errors';
import type { Token, TokenType } from './lexer';

const DESCRIPTIONS: Partial<Record<TokenType, string>> = {
  block_begin: 'begin of statement block',
  block_end: 'end of statement block',
  variable_begin: 'begin of print statement',
  variable_end: 'end of print statement',
  data: 'template data / text',
  eof: 'end of template',
};

export function describe({ type, value }: Token): string {
  return DESCRIPTIONS[type] ?? value;
}

/** Maximum nesting, similar to Python's recursion limit. */
const MAX_DEPTH = 150;

export class TokenStream {
  private at = 0;
  private depth = 0;

  constructor(private readonly tokens: readonly Token[]) {}

  get current(): Token {
    return this.tokens[this.at];
  }

  look(): Token {
    return this.tokens[Math.min(this.at + 1, this.tokens.length - 1)];
  }

  next(): Token {
    const token = this.current;
    if (this.at < this.tokens.length - 1) this.at++;
    return token;
  }

  is(type: 'name' | 'operator', ...values: readonly string[]): boolean {
    return this.current.type === type && values.includes(this.current.value);
  }

  isOperator(...values: readonly string[]): boolean {
    return this.is('operator', ...values);
  }

  isName(...values: readonly string[]): boolean {
    return this.is('name', ...values);
  }

  skipIf(type: 'name' | 'operator', value: string): boolean {
    const found = this.is(type, value);
    if (found) this.next();
    return found;
  }

  expect(type: TokenType, value?: string): Token {
    const { current } = this;
    if (current.type === type && (value === undefined || current.value === value)) {
      return this.next();
    }
    const expected = value ?? DESCRIPTIONS[type] ?? type;
    if (current.type === 'eof') this.fail(`unexpected end of template, expected '${expected}'.`);
    return this.fail(`expected token '${expected}', got '${describe(current)}'`);
  }

  fail(reason: string, line = this.current.line): never {
    throw new TemplateSyntaxError(reason, line);
  }

  /** Runs `parse` one level deeper. */
  nested<T>(parse: () => T): T {
    if (++this.depth > MAX_DEPTH) this.fail('the template is nested too deeply');
    const result = parse();
    this.depth--;
    return result;
  }
}
