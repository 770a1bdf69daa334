/** Evaluates expressions as the Python code that jinja2 compiles them to. */
import { getAttribute, getItem, slice } from './attributes';
import { spend } from './budget';
import { contains, isEqual, isOrdered } from './compare';
import { raise } from './errors';
import { applyFilter, FILTERS } from './filters';
import type { Arguments, CompareOperator, Expression } from './nodes';
import { calculate, negate } from './operators';
import { repr, str } from './repr';
import { call, type Scope } from './runtime';
import { applyTest, TESTS } from './tests';
import { checkLength } from './text';
import {
  Dict,
  isList,
  isTrue,
  iterate,
  textOf,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from './values';

export class Evaluator {
  /** Evaluates `node` and spends steps for its result's size. */
  evaluate(node: Expression, scope: Scope): Value {
    const value = this.valueOf(node, scope);
    if (typeof value === 'string') spend(value.length >> 8);
    // Reading a list from a variable is cheaper than creating it.
    else if (isList(value)) spend(value.length >> (node.type === 'name' ? 8 : 3));
    spend(1);
    return value;
  }

  private valueOf(node: Expression, scope: Scope): Value {
    switch (node.type) {
      case 'const':
        return node.value;
      case 'name':
        return scope.get(node.name);
      case 'list':
        return node.items.map((item) => this.evaluate(item, scope));
      case 'tuple':
        return new Tuple(node.items.map((item) => this.evaluate(item, scope)));
      case 'dict':
        return new Dict(
          node.items.map(
            ([key, value]) => [this.evaluate(key, scope), this.evaluate(value, scope)] as const,
          ),
        );
      case 'binary':
        return calculate(
          node.operator,
          this.evaluate(node.left, scope),
          this.evaluate(node.right, scope),
        );
      case 'unary':
        return negate(node.operator, this.evaluate(node.operand, scope));
      case 'not':
        return !isTrue(this.evaluate(node.operand, scope));
      case 'and': {
        const left = this.evaluate(node.left, scope);
        return isTrue(left) ? this.evaluate(node.right, scope) : left;
      }
      case 'or': {
        const left = this.evaluate(node.left, scope);
        return isTrue(left) ? left : this.evaluate(node.right, scope);
      }
      case 'concat': {
        const text = node.items.map((item) => str(this.evaluate(item, scope))).join('');
        checkLength(text.length);
        return text;
      }
      case 'compare':
        return this.compare(node, scope);
      case 'conditional':
        if (isTrue(this.evaluate(node.test, scope))) return this.evaluate(node.then, scope);
        if (node.otherwise) return this.evaluate(node.otherwise, scope);
        return new Undefined(
          `the inline if-expression on line ${node.line} evaluated to false and no else section ` +
            'was defined.',
        );
      case 'attribute':
        return getAttribute(this.evaluate(node.object, scope), node.name);
      case 'item':
        return getItem(this.evaluate(node.object, scope), this.evaluate(node.key, scope));
      case 'slice': {
        const part = (limit: Expression | null) => (limit ? this.evaluate(limit, scope) : null);
        const object = this.evaluate(node.object, scope);
        return slice(object, part(node.start), part(node.stop), part(node.step));
      }
      case 'call':
        return this.call(node, scope, null);
      case 'filter':
        return this.filter(node, scope, node.operand ? this.evaluate(node.operand, scope) : null);
      case 'test': {
        const operand = this.evaluate(node.operand, scope);
        const { args, kwargs } = this.arguments(node, scope);
        checkName('test', TESTS, node.name);
        return applyTest(node.name, [operand, ...args], kwargs);
      }
    }
  }

  /** Applies one filter to `operand`. */
  filter(node: Extract<Expression, { type: 'filter' }>, scope: Scope, operand: Value): Value {
    const { args, kwargs } = this.arguments(node, scope);
    checkName('filter', FILTERS, node.name);
    return applyFilter(node.name, [operand, ...args], kwargs);
  }

  /** Applies the filters of a filter block to the block's `text`. */
  filterBlock(node: Extract<Expression, { type: 'filter' }>, scope: Scope, text: string): Value {
    const { operand } = node;
    const input = operand?.type === 'filter' ? this.filterBlock(operand, scope, text) : text;
    return this.filter(node, scope, input);
  }

  call(node: Extract<Expression, { type: 'call' }>, scope: Scope, caller: Value | null): Value {
    const callee = this.evaluate(node.callee, scope);
    const { args, kwargs } = this.arguments(node, scope);
    if (caller !== null) {
      if (kwargs.has('caller')) raise('TypeError', "got multiple values for keyword 'caller'");
      kwargs.set('caller', caller);
    }
    return call(callee, args, kwargs);
  }

  private arguments(node: Arguments, scope: Scope) {
    const args = node.args.map((arg) => this.evaluate(arg, scope));
    const kwargs = new Map<string, Value>();
    for (const [name, value] of node.kwargs) kwargs.set(name, this.evaluate(value, scope));
    if (node.dynArgs) args.push(...iterate(this.evaluate(node.dynArgs, scope)));
    if (node.dynKwargs) {
      const named = this.evaluate(node.dynKwargs, scope);
      if (!(named instanceof Dict)) {
        raise('TypeError', `argument after ** must be a mapping, not ${typeName(named)}`);
      }
      for (const [key, value] of named.items()) {
        const name = textOf(key);
        if (name === undefined) raise('TypeError', 'keywords must be strings');
        if (kwargs.has(name)) {
          raise('TypeError', `got multiple values for keyword argument ${repr(name)}`);
        }
        kwargs.set(name, value);
      }
    }
    return { args, kwargs };
  }

  private compare(node: Extract<Expression, { type: 'compare' }>, scope: Scope): Value {
    let left = this.evaluate(node.left, scope);
    for (const [operator, operand] of node.rest) {
      const right = this.evaluate(operand, scope);
      if (!holds(operator, left, right)) return false;
      left = right;
    }
    return true;
  }
}

/** Unknown names inside conditions are reported only when they are evaluated. */
function checkName(what: string, table: ReadonlyMap<string, unknown>, name: string): void {
  if (!table.has(name)) raise('TemplateRuntimeError', `No ${what} named '${name}' found.`);
}

function holds(operator: CompareOperator, left: Value, right: Value): boolean {
  switch (operator) {
    case '==':
      return isEqual(left, right);
    case '!=':
      return !isEqual(left, right);
    case 'in':
      return contains(right, left);
    case 'not in':
      return !contains(right, left);
    default:
      return isOrdered(operator, left, right);
  }
}
