/** Executes statements as jinja2's compiled templates do. */
import { nested, spend, withBudget } from './budget';
import { raise, TemplateRuntimeError } from './errors';
import { Evaluator } from './evaluator';
import { GLOBALS } from './globals';
import type { Frame, MacroBody, Statement, Target } from './nodes';
import { str } from './repr';
import { bindMacro, Loop, Scope, unpack } from './runtime';
import { checkLength } from './text';
import { Callable, isTrue, Namespace, toList, Tuple, Undefined, type Value } from './values';

/** The statement that left a body early. */
type Jump = 'break' | 'continue' | null;

type ForNode = Extract<Statement, { type: 'for' }>;

export class Interpreter {
  private readonly evaluator = new Evaluator();
  private readonly globals: Scope;
  private root: Scope;
  private output: string[] = [];
  private length = 0;
  private line = 1;

  constructor(variables: Iterable<readonly [string, Value]>) {
    this.globals = new Scope(new Scope(null, GLOBALS), variables);
    this.root = this.globals;
  }

  /** Throws TemplateRuntimeError. */
  render(frame: Frame): string {
    this.root = new Scope(this.globals);
    try {
      withBudget(() => this.runFrame(frame, this.root));
      return this.output.join('');
    } catch (error) {
      throw this.asRuntimeError(error);
    }
  }

  private asRuntimeError(error: unknown): unknown {
    // JavaScript's stack overflowed: values or expressions are nested too deeply.
    const isStack = error instanceof RangeError && /call stack/i.test(error.message);
    const known = isStack
      ? new TemplateRuntimeError('RecursionError', 'maximum recursion depth exceeded')
      : error;
    if (known instanceof TemplateRuntimeError) known.line ??= this.line;
    return known;
  }

  private write(text: string): void {
    checkLength((this.length += text.length));
    this.output.push(text);
  }

  /** Captures the output of `body`. */
  private capture(body: () => void): string {
    const outer = this.output;
    this.output = [];
    try {
      body();
      return this.output.join('');
    } finally {
      this.output = outer;
    }
  }

  private runFrame(frame: Frame, scope: Scope): Jump {
    scope.hide(frame.hidden);
    return this.run(frame.body, scope);
  }

  private run(body: readonly Statement[], scope: Scope): Jump {
    for (const node of body) {
      this.line = node.line;
      spend(1);
      const jump = this.execute(node, scope);
      if (jump !== null) return jump;
    }
    return null;
  }

  private execute(node: Statement, scope: Scope): Jump {
    const { evaluator } = this;
    switch (node.type) {
      case 'output':
        for (const part of node.parts) {
          this.write(typeof part === 'string' ? part : str(evaluator.evaluate(part, scope)));
        }
        return null;
      case 'if':
        for (const [test, body] of node.branches) {
          if (isTrue(evaluator.evaluate(test, scope))) return this.run(body, scope);
        }
        return this.run(node.otherwise, scope);
      case 'for':
        this.runFor(node, evaluator.evaluate(node.iterable, scope), scope, 0);
        return null;
      case 'break':
      case 'continue':
        return node.type;
      case 'set':
        this.checkNamespaces(node.target, scope);
        this.assign(node.target, evaluator.evaluate(node.value, scope), scope);
        return null;
      case 'set block': {
        const inner = new Scope(scope);
        const text = this.capture(() => this.runFrame(node.frame, inner));
        const { filter } = node;
        const value = filter ? evaluator.filterBlock(filter, inner, text) : text;
        this.checkNamespaces(node.target, scope);
        this.assign(node.target, value, scope);
        return null;
      }
      case 'macro':
        scope.set(node.name, this.macro(node.name, node.macro, scope));
        return null;
      case 'call block': {
        const caller = this.macro(null, node.macro, scope);
        this.write(str(evaluator.call(node.call, scope, caller)));
        return null;
      }
      case 'generation':
        this.runFrame(node.frame, new Scope(scope));
        return null;
      case 'filter block': {
        const inner = new Scope(scope);
        const text = this.capture(() => this.runFrame(node.frame, inner));
        this.write(str(evaluator.filterBlock(node.filter, inner, text)));
        return null;
      }
      case 'with': {
        const inner = new Scope(scope);
        node.targets.forEach((target, i) =>
          this.assign(target, evaluator.evaluate(node.values[i], scope), inner),
        );
        return this.runFrame(node.frame, inner);
      }
      case 'block':
        this.runFrame(node.frame, new Scope(this.root));
        return null;
      case 'other template':
        raise('TypeError', 'no loader for this environment specified');
    }
  }

  /** Requires each name before a dot to be a namespace. */
  private checkNamespaces(target: Target, scope: Scope): void {
    if (target.type === 'tuple') {
      for (const item of target.items) this.checkNamespaces(item, scope);
    } else if (target.type === 'namespace' && !(scope.get(target.name) instanceof Namespace)) {
      raise('TemplateRuntimeError', 'cannot assign attribute on non-namespace object');
    }
  }

  private assign(target: Target, value: Value, scope: Scope): void {
    if (target.type === 'name') {
      scope.set(target.name, value);
    } else if (target.type === 'namespace') {
      const owner = scope.get(target.name);
      if (owner instanceof Namespace) owner.attributes.set(target.attribute, value);
    } else {
      const items = unpack(value, target.items.length);
      target.items.forEach((item, i) => this.assign(item, items[i], scope));
    }
  }

  private runFor(node: ForNode, iterable: Value, scope: Scope, depth0: number): void {
    const all = toList(iterable);
    const { test } = node;
    const items = !test
      ? all
      : all.filter((item) => {
          const inner = new Scope(scope);
          this.assign(node.target, item, inner);
          return isTrue(this.evaluator.evaluate(test, inner));
        });
    const recurse = (inner: Value, depth: number) =>
      nested(() => this.capture(() => this.runFor(node, inner, scope, depth)));
    const loop = new Loop(items, depth0, node.recursive ? recurse : null);
    // As in jinja2's code, one body that runs to its end disables the else.
    let hasFinished = false;
    for (const item of items) {
      spend(1);
      loop.next();
      const inner = new Scope(scope, [['loop', loop.value]]);
      this.assign(node.target, item, inner);
      const jump = this.runFrame(node.frame, inner);
      if (jump === 'break') break;
      hasFinished ||= jump === null;
    }
    if (!hasFinished) this.runFrame(node.otherwise, new Scope(scope));
  }

  private macro(name: string | null, body: MacroBody, scope: Scope): Callable {
    const { params, defaults, frame, specials } = body;
    const invoke = (args: readonly Value[], kwargs: ReadonlyMap<string, Value>) =>
      nested(() => {
        const inner = new Scope(scope);
        const bound = bindMacro(name, body, args, kwargs);
        for (const special of specials) inner.set(special, bound.get(special) ?? null);
        inner.hide(params);
        for (const param of params) {
          const given = bound.get(param);
          if (given !== undefined) inner.set(param, given);
        }
        params.forEach((param, i) => {
          if (bound.get(param) !== undefined) return;
          const fallback = i - (params.length - defaults.length);
          const value =
            fallback >= 0
              ? this.evaluator.evaluate(defaults[fallback], inner)
              : new Undefined(`parameter '${param}' was not provided`);
          inner.set(param, value);
        });
        return this.capture(() => this.runFrame(frame, inner));
      });
    const attributes = new Map<string, () => Value>([
      ['name', () => name],
      ['arguments', () => new Tuple(params)],
      ['catch_kwargs', () => specials.includes('kwargs')],
      ['catch_varargs', () => specials.includes('varargs')],
      ['caller', () => specials.includes('caller')],
    ]);
    return new Callable(name ?? 'None', invoke, 'Macro', attributes, 'jinja2.runtime');
  }
}
