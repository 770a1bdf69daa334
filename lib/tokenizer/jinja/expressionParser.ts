/** Parses expressions with the grammar of jinja2's parser. */
import type { Arguments, CompareOperator, Expression, FilterNode, Target } from './nodes';
import type { BinaryOperator } from './operators';
import { describe, type TokenStream } from './tokenStream';
import type { Value } from './values';

const COMPARE_OPERATORS: readonly string[] = ['==', '!=', '<', '<=', '>', '>='];
const NO_ARGUMENTS: Arguments = { args: [], kwargs: [], dynArgs: null, dynKwargs: null };
const CONSTANTS: ReadonlyMap<string, Value> = new Map<string, Value>([
  ['true', true],
  ['True', true],
  ['false', false],
  ['False', false],
  ['none', null],
  ['None', null],
]);

export interface TupleOptions {
  conditional?: boolean;
  /** A name that ends the tuple. */
  end?: string;
  parenthesized?: boolean;
}

export class ExpressionParser {
  constructor(protected readonly stream: TokenStream) {}

  expression(conditional = true): Expression {
    return this.stream.nested(() => (conditional ? this.conditional() : this.or()));
  }

  /** An expression, or a tuple without parentheses. */
  tuple({ conditional = true, end, parenthesized = false }: TupleOptions = {}): Expression {
    const items: Expression[] = [];
    let isTuple = false;
    for (;;) {
      if (items.length > 0) this.stream.expect('operator', ',');
      if (this.atTupleEnd(end)) break;
      items.push(this.expression(conditional));
      if (!this.stream.isOperator(',')) break;
      isTuple = true;
    }
    if (!isTuple) {
      if (items.length > 0) return items[0];
      if (!parenthesized) {
        this.stream.fail(`Expected an expression, got '${describe(this.stream.current)}'`);
      }
    }
    return { type: 'tuple', items };
  }

  private atTupleEnd(end: string | undefined): boolean {
    const { type } = this.stream.current;
    if (type === 'variable_end' || type === 'block_end' || this.stream.isOperator(')')) return true;
    return end !== undefined && this.stream.isName(end);
  }

  private conditional(): Expression {
    let { line } = this.stream.current;
    let then = this.or();
    while (this.stream.skipIf('name', 'if')) {
      const test = this.or();
      const otherwise = this.stream.skipIf('name', 'else')
        ? this.stream.nested(() => this.conditional())
        : null;
      then = { type: 'conditional', test, then, otherwise, line };
      line = this.stream.current.line;
    }
    return then;
  }

  private or(): Expression {
    let left = this.and();
    while (this.stream.skipIf('name', 'or')) left = { type: 'or', left, right: this.and() };
    return left;
  }

  private and(): Expression {
    let left = this.not();
    while (this.stream.skipIf('name', 'and')) left = { type: 'and', left, right: this.not() };
    return left;
  }

  private not(): Expression {
    if (!this.stream.skipIf('name', 'not')) return this.compare();
    return { type: 'not', operand: this.stream.nested(() => this.not()) };
  }

  private compare(): Expression {
    const left = this.sum();
    const rest: [CompareOperator, Expression][] = [];
    for (;;) {
      if (this.stream.isOperator(...COMPARE_OPERATORS)) {
        const { value } = this.stream.next();
        rest.push([value as CompareOperator, this.sum()]);
      } else if (this.stream.skipIf('name', 'in')) {
        rest.push(['in', this.sum()]);
      } else if (this.stream.isName('not') && this.lookIs('in')) {
        this.stream.next();
        this.stream.next();
        rest.push(['not in', this.sum()]);
      } else {
        return rest.length === 0 ? left : { type: 'compare', left, rest };
      }
    }
  }

  private lookIs(name: string): boolean {
    const { type, value } = this.stream.look();
    return type === 'name' && value === name;
  }

  private binary(operators: readonly BinaryOperator[], operand: () => Expression): Expression {
    let left = operand();
    while (this.stream.isOperator(...operators)) {
      const operator = this.stream.next().value as BinaryOperator;
      left = { type: 'binary', operator, left, right: operand() };
    }
    return left;
  }

  private sum(): Expression {
    return this.binary(['+', '-'], () => this.concat());
  }

  private concat(): Expression {
    const items = [this.product()];
    while (this.stream.skipIf('operator', '~')) items.push(this.product());
    return items.length === 1 ? items[0] : { type: 'concat', items };
  }

  private product(): Expression {
    return this.binary(['*', '/', '//', '%'], () => this.power());
  }

  private power(): Expression {
    return this.binary(['**'], () => this.unary());
  }

  private unary(withFilter = true): Expression {
    let node: Expression;
    if (this.stream.isOperator('-', '+')) {
      const operator = this.stream.next().value as '-' | '+';
      node = { type: 'unary', operator, operand: this.stream.nested(() => this.unary(false)) };
    } else {
      node = this.primary();
    }
    node = this.postfix(node);
    return withFilter ? this.filterExpression(node) : node;
  }

  private primary(): Expression {
    const token = this.stream.current;
    const { type, value } = token;
    if (type === 'name') {
      this.stream.next();
      const constant = CONSTANTS.get(value);
      return constant === undefined
        ? { type: 'name', name: value }
        : { type: 'const', value: constant };
    }
    if (type === 'string') {
      let text = '';
      while (this.stream.current.type === 'string') text += this.stream.next().value;
      return { type: 'const', value: text };
    }
    if (type === 'integer') {
      this.stream.next();
      return { type: 'const', value: BigInt(value.replaceAll('_', '')) };
    }
    if (type === 'float') {
      this.stream.next();
      return { type: 'const', value: Number(value.replaceAll('_', '')) };
    }
    if (this.stream.skipIf('operator', '(')) {
      const node = this.tuple({ parenthesized: true });
      this.stream.expect('operator', ')');
      return node;
    }
    if (this.stream.skipIf('operator', '[')) {
      return { type: 'list', items: this.list(']', () => this.expression()) };
    }
    if (this.stream.skipIf('operator', '{')) {
      const pair = (): readonly [Expression, Expression] => {
        const key = this.expression();
        this.stream.expect('operator', ':');
        return [key, this.expression()];
      };
      return { type: 'dict', items: this.list('}', pair) };
    }
    return this.stream.fail(`unexpected '${describe(token)}'`);
  }

  /** Comma-separated items up to `close`, with an optional trailing comma. */
  private list<T>(close: string, item: () => T): T[] {
    const items: T[] = [];
    while (!this.stream.isOperator(close)) {
      if (items.length > 0) this.stream.expect('operator', ',');
      if (this.stream.isOperator(close)) break;
      items.push(item());
    }
    this.stream.expect('operator', close);
    return items;
  }

  private postfix(start: Expression): Expression {
    let node = start;
    for (;;) {
      if (this.stream.isOperator('.', '[')) node = this.subscript(node);
      else if (this.stream.isOperator('(')) node = this.callOn(node);
      else return node;
    }
  }

  private filterExpression(start: Expression): Expression {
    let node = start;
    for (;;) {
      if (this.stream.isOperator('|')) node = this.filters(node) ?? node;
      else if (this.stream.isName('is')) node = this.test(node);
      else if (this.stream.isOperator('(')) node = this.callOn(node);
      else return node;
    }
  }

  private callOn(callee: Expression): Expression {
    return { type: 'call', callee, ...this.callArguments() };
  }

  private subscript(object: Expression): Expression {
    if (this.stream.next().value === '.') {
      const { type, value, line } = this.stream.next();
      if (type === 'name') return { type: 'attribute', object, name: value };
      if (type !== 'integer') this.stream.fail('expected name or number', line);
      const key = { type: 'const', value: BigInt(value.replaceAll('_', '')) } as const;
      return { type: 'item', object, key };
    }
    const keys: Expression[] = [];
    while (!this.stream.isOperator(']')) {
      if (keys.length > 0) this.stream.expect('operator', ',');
      keys.push(this.subscribed(object));
    }
    this.stream.expect('operator', ']');
    const [key] = keys;
    if (keys.length === 1 && key.type === 'slice' && key.object === object) return key;
    if (keys.some((part) => part.type === 'slice' && part.object === object)) {
      this.stream.fail('a slice among several subscripts is not supported');
    }
    return { type: 'item', object, key: keys.length === 1 ? key : { type: 'tuple', items: keys } };
  }

  private subscribed(object: Expression): Expression {
    const part = (): Expression | null =>
      this.stream.isOperator(':', ']', ',') ? null : this.expression();
    const start = part();
    if (start !== null && !this.stream.isOperator(':')) return start;
    this.stream.expect('operator', ':');
    const stop = part();
    const step = this.stream.skipIf('operator', ':') ? part() : null;
    return { type: 'slice', object, start, stop, step };
  }

  protected callArguments(): Arguments {
    const { line } = this.stream.expect('operator', '(');
    const args: Expression[] = [];
    const kwargs: [string, Expression][] = [];
    let dynArgs: Expression | null = null;
    let dynKwargs: Expression | null = null;
    const ensure = (allowed: boolean) => {
      if (!allowed) this.stream.fail('invalid syntax for function call expression', line);
    };
    for (let first = true; !this.stream.isOperator(')'); first = false) {
      if (!first) {
        this.stream.expect('operator', ',');
        if (this.stream.isOperator(')')) break;
      }
      const { type, value } = this.stream.current;
      const { type: nextType, value: nextValue } = this.stream.look();
      if (this.stream.skipIf('operator', '*')) {
        ensure(dynArgs === null && dynKwargs === null);
        dynArgs = this.expression();
      } else if (this.stream.skipIf('operator', '**')) {
        ensure(dynKwargs === null);
        dynKwargs = this.expression();
      } else if (type === 'name' && nextType === 'operator' && nextValue === '=') {
        ensure(dynKwargs === null);
        this.stream.next();
        this.stream.next();
        kwargs.push([value, this.expression()]);
      } else {
        ensure(dynArgs === null && dynKwargs === null && kwargs.length === 0);
        args.push(this.expression());
      }
    }
    this.stream.expect('operator', ')');
    return { args, kwargs, dynArgs, dynKwargs };
  }

  private dottedName(): string {
    let name = this.stream.expect('name').value;
    while (this.stream.skipIf('operator', '.')) name += `.${this.stream.expect('name').value}`;
    return name;
  }

  /** `|name(...)|...` after `operand`; `startInline`: the first filter has no bar. */
  protected filters(operand: Expression | null, startInline = false): FilterNode | null {
    let node: FilterNode | null = null;
    let bare = startInline;
    while (bare || this.stream.isOperator('|')) {
      if (!bare) this.stream.next();
      const { line } = this.stream.current;
      const name = this.dottedName();
      const own = this.stream.isOperator('(') ? this.callArguments() : NO_ARGUMENTS;
      node = { type: 'filter', operand: node ?? operand, name, line, ...own };
      bare = false;
    }
    return node;
  }

  private test(operand: Expression): Expression {
    const { line } = this.stream.next();
    const negated = this.stream.skipIf('name', 'not');
    const name = this.dottedName();
    let own = NO_ARGUMENTS;
    const { type } = this.stream.current;
    if (this.stream.isOperator('(')) {
      own = this.callArguments();
    } else if (
      (['name', 'string', 'integer', 'float'].includes(type) || this.stream.isOperator('[', '{')) &&
      !this.stream.isName('else', 'or', 'and')
    ) {
      if (this.stream.isName('is')) this.stream.fail('You cannot chain multiple tests with is');
      own = { ...NO_ARGUMENTS, args: [this.postfix(this.primary())] };
    }
    const node: Expression = { type: 'test', operand, name, line, ...own };
    return negated ? { type: 'not', operand: node } : node;
  }

  /** Names or tuples of names; also `ns.name` with `withNamespace`. */
  protected target(withNamespace: boolean, end?: string): Target {
    const { line } = this.stream.current;
    const items: Target[] = [];
    let isTuple = false;
    for (;;) {
      if (items.length > 0) this.stream.expect('operator', ',');
      if (this.atTupleEnd(end)) break;
      items.push(this.primaryTarget(withNamespace, line));
      if (!this.stream.isOperator(',')) break;
      isTuple = true;
    }
    if (!isTuple && items.length === 0) {
      this.stream.fail(`Expected an expression, got '${describe(this.stream.current)}'`);
    }
    return isTuple ? { type: 'tuple', items } : items[0];
  }

  private primaryTarget(withNamespace: boolean, line: number): Target {
    if (withNamespace && this.stream.current.type === 'name') {
      const { type, value } = this.stream.look();
      if (type === 'operator' && value === '.' && !CONSTANTS.has(this.stream.current.value)) {
        const name = this.stream.next().value;
        this.stream.next();
        return { type: 'namespace', name, attribute: this.stream.expect('name').value };
      }
    }
    return this.asTarget(this.primary(), line);
  }

  private asTarget(node: Expression, line: number): Target {
    if (node.type === 'name') return node;
    if (node.type !== 'tuple') this.stream.fail(`can't assign to '${node.type}'`, line);
    return { type: 'tuple', items: node.items.map((item) => this.asTarget(item, line)) };
  }
}
