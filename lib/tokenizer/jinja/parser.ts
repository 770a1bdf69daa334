/** Parses statements: jinja2's, its loop controls and transformers' `generation`. */
import { ExpressionParser } from './expressionParser';
import { tokenize } from './lexer';
import type { Expression, Frame, MacroBody, Parameters, Statement, Target } from './nodes';
import { TokenStream } from './tokenStream';

const frame = (body: readonly Statement[]): Frame => ({ body, hidden: [] });

/** Throws TemplateSyntaxError. */
export function parse(template: string): Frame {
  return frame(new Parser(new TokenStream(tokenize(template))).statements([]));
}

class Parser extends ExpressionParser {
  /** Open tags, the innermost last. */
  private readonly open: string[] = [];
  private endTags: readonly string[] = [];

  /** Statements and text up to a tag in `end`, which becomes the current token. */
  statements(end: readonly string[]): Statement[] {
    return this.stream.nested(() => this.parseStatements(end));
  }

  private parseStatements(end: readonly string[]): Statement[] {
    const outerEnd = this.endTags;
    this.endTags = end;
    const body: Statement[] = [];
    let parts: (string | Expression)[] = [];
    let { line } = this.stream.current;
    const flush = () => {
      if (parts.length > 0) body.push({ type: 'output', parts, line });
      parts = [];
    };
    while (this.stream.current.type !== 'eof') {
      const token = this.stream.next();
      if (token.type === 'data') {
        parts.push(token.value);
      } else if (token.type === 'variable_begin') {
        // Separate outputs, so that an error names its line.
        flush();
        line = token.line;
        parts.push(this.tuple());
        this.stream.expect('variable_end');
        flush();
      } else {
        flush();
        if (this.stream.isName(...end)) {
          this.endTags = outerEnd;
          return body;
        }
        body.push(this.statement());
        this.stream.expect('block_end');
      }
    }
    flush();
    if (end.length > 0) this.failUnclosed(null);
    return body;
  }

  private failUnclosed(tag: string | null): never {
    const wanted = this.endTags.map((name) => `'${name}'`).join(' or ');
    const innermost = this.open.at(-1);
    const parts = [
      tag === null ? 'Unexpected end of template.' : `Encountered unknown tag '${tag}'.`,
      wanted && `Jinja was looking for the following tags: ${wanted}.`,
      innermost && `The innermost block that needs to be closed is '${innermost}'.`,
    ];
    this.stream.fail(parts.filter(Boolean).join(' '));
  }

  private statement(): Statement {
    const token = this.stream.current;
    if (token.type !== 'name') this.stream.fail('tag name expected');
    const parseTag = TAGS.get(token.value);
    if (!parseTag) return this.failUnclosed(token.value);
    this.open.push(token.value);
    this.stream.next();
    const node = parseTag(this, token.line);
    this.open.pop();
    return node;
  }

  /** A tag's body, up to a tag in `end`. */
  body(...end: readonly string[]): Statement[] {
    this.stream.skipIf('operator', ':');
    this.stream.expect('block_end');
    return this.statements(end);
  }

  /** A tag's body, including its end tag. */
  frameUntil(end: string): Frame {
    const body = this.body(end);
    this.stream.next();
    return frame(body);
  }

  set(line: number): Statement {
    const target = this.target(true);
    if (this.stream.skipIf('operator', '=')) {
      return { type: 'set', target, value: this.tuple(), line };
    }
    const filter = this.filters(null);
    return { type: 'set block', target, filter, frame: this.frameUntil('endset'), line };
  }

  for(line: number): Statement {
    const target = this.target(false, 'in');
    this.stream.expect('name', 'in');
    const iterable = this.tuple({ conditional: false, end: 'recursive' });
    const test = this.stream.skipIf('name', 'if') ? this.expression() : null;
    const recursive = this.stream.skipIf('name', 'recursive');
    const own = frame(this.body('endfor', 'else'));
    const hasElse = this.stream.next().value === 'else';
    const otherwise = hasElse ? this.frameUntil('endfor') : frame([]);
    return { type: 'for', target, iterable, test, recursive, frame: own, otherwise, line };
  }

  if(line: number): Statement {
    const branches: [Expression, Statement[]][] = [];
    let otherwise: Statement[] = [];
    let tag = 'if';
    while (tag === 'if' || tag === 'elif') {
      const test = this.tuple({ conditional: false });
      branches.push([test, this.body('elif', 'else', 'endif')]);
      tag = this.stream.next().value;
    }
    if (tag === 'else') {
      otherwise = this.body('endif');
      this.stream.next();
    }
    return { type: 'if', branches, otherwise, line };
  }

  with(line: number): Statement {
    const targets: Target[] = [];
    const values: Expression[] = [];
    while (this.stream.current.type !== 'block_end') {
      if (targets.length > 0) this.stream.expect('operator', ',');
      targets.push(this.target(false));
      this.stream.expect('operator', '=');
      values.push(this.expression());
    }
    return { type: 'with', targets, values, frame: this.frameUntil('endwith'), line };
  }

  private signature(): Parameters {
    const params: string[] = [];
    const defaults: Expression[] = [];
    this.stream.expect('operator', '(');
    while (!this.stream.isOperator(')')) {
      if (params.length > 0) this.stream.expect('operator', ',');
      params.push(this.stream.expect('name').value);
      if (this.stream.skipIf('operator', '=')) defaults.push(this.expression());
      else if (defaults.length > 0) {
        this.stream.fail('non-default argument follows default argument');
      }
    }
    this.stream.next();
    return { params, defaults };
  }

  private macroBody(parameters: Parameters, end: string): MacroBody {
    return { ...parameters, frame: this.frameUntil(end), specials: [] };
  }

  macro(line: number): Statement {
    const name = this.stream.expect('name').value;
    return { type: 'macro', name, macro: this.macroBody(this.signature(), 'endmacro'), line };
  }

  call(line: number): Statement {
    const parameters = this.stream.isOperator('(')
      ? this.signature()
      : { params: [], defaults: [] };
    const call = this.expression();
    if (call.type !== 'call') this.stream.fail('expected call', line);
    return { type: 'call block', call, macro: this.macroBody(parameters, 'endcall'), line };
  }

  filter(line: number): Statement {
    const filter = this.filters(null, true);
    if (filter === null) this.stream.fail('expected a filter', line);
    return { type: 'filter block', filter, frame: this.frameUntil('endfilter'), line };
  }

  generation(line: number): Statement {
    return { type: 'generation', frame: this.frameUntil('endgeneration'), line };
  }

  print(line: number): Statement {
    const parts: Expression[] = [];
    while (this.stream.current.type !== 'block_end') {
      if (parts.length > 0) this.stream.expect('operator', ',');
      parts.push(this.expression());
    }
    return { type: 'output', parts, line };
  }

  block(line: number): Statement {
    const name = this.stream.expect('name').value;
    this.stream.skipIf('name', 'scoped');
    if (this.stream.isName('required')) this.stream.fail('required blocks are not supported');
    const own = this.frameUntil('endblock');
    this.stream.skipIf('name', name);
    return { type: 'block', name, frame: own, line };
  }

  autoescape(line: number): Statement {
    const value = this.expression();
    if (value.type !== 'const' || value.value !== false) {
      this.stream.fail("only 'autoescape false' is supported", line);
    }
    return { type: 'with', targets: [], values: [], frame: this.frameUntil('endautoescape'), line };
  }

  /** A tag that loads another template, which fails when executed because there is none. */
  otherTemplate(tag: string, line: number): Statement {
    this.expression();
    const names: string[] = [];
    if (tag === 'import') {
      this.stream.expect('name', 'as');
      names.push(this.stream.expect('name').value);
    } else if (tag === 'from') {
      this.stream.expect('name', 'import');
    }
    while (this.stream.current.type !== 'block_end') {
      const { type, value } = this.stream.next();
      if (type === 'name' && tag === 'from') names.push(value);
      if (type === 'eof') this.failUnclosed(null);
    }
    return { type: 'other template', tag, names, line };
  }
}

type ParseTag = (parser: Parser, line: number) => Statement;

const TAGS: ReadonlyMap<string, ParseTag> = new Map<string, ParseTag>([
  ['set', (parser, line) => parser.set(line)],
  ['for', (parser, line) => parser.for(line)],
  ['if', (parser, line) => parser.if(line)],
  ['with', (parser, line) => parser.with(line)],
  ['macro', (parser, line) => parser.macro(line)],
  ['call', (parser, line) => parser.call(line)],
  ['filter', (parser, line) => parser.filter(line)],
  ['generation', (parser, line) => parser.generation(line)],
  ['print', (parser, line) => parser.print(line)],
  ['block', (parser, line) => parser.block(line)],
  ['autoescape', (parser, line) => parser.autoescape(line)],
  ['break', (_, line) => ({ type: 'break', line })],
  ['continue', (_, line) => ({ type: 'continue', line })],
  ...['include', 'import', 'from', 'extends'].map((tag): [string, ParseTag] => [
    tag,
    (parser, line) => parser.otherTemplate(tag, line),
  ]),
]);
