/**
 * Scope analysis, and jinja2's compile-time checks. A variable that a body assigns before reading is
 * undefined until the assignment, even if the context has that name, because jinja2 resolves names at
 * compile time (jinja2/idtracking.py).
 */
import { TemplateSyntaxError } from './errors';
import { FILTERS } from './filters';
import type { Expression, Frame, MacroBody, Statement, Target } from './nodes';
import { TESTS } from './tests';

/** The source of a variable's initial value. */
type Start = 'parameter' | 'outer' | 'context' | 'undefined';

class Symbols {
  private readonly starts: Map<string, Start>;
  private readonly stored: Set<string>;

  constructor(
    private readonly parent: Symbols | null,
    from?: Symbols,
  ) {
    this.starts = new Map(from?.starts);
    this.stored = new Set(from?.stored);
  }

  private knows(name: string): boolean {
    return this.starts.has(name) || (this.parent?.knows(name) ?? false);
  }

  load(name: string): void {
    if (!this.knows(name)) this.starts.set(name, 'context');
  }

  store(name: string): void {
    this.stored.add(name);
    if (this.starts.has(name)) return;
    this.starts.set(name, this.parent?.knows(name) ? 'outer' : 'undefined');
  }

  declare(name: string): void {
    this.stored.add(name);
    this.starts.set(name, 'parameter');
  }

  branch(): Symbols {
    return new Symbols(this.parent, this);
  }

  /** Merges the branches of an `if`: a variable assigned only in them may keep its previous value. */
  merge(branches: readonly Symbols[]): void {
    const stored = new Set(branches.flatMap((branch) => [...branch.stored]));
    for (const name of this.stored) stored.delete(name);
    for (const branch of branches) {
      for (const [name, start] of branch.starts) this.starts.set(name, start);
      for (const name of branch.stored) this.stored.add(name);
    }
    for (const name of stored) {
      this.starts.set(name, this.parent?.knows(name) ? 'outer' : 'context');
    }
  }

  get hidden(): string[] {
    return [...this.starts].filter(([, start]) => start === 'undefined').map(([name]) => name);
  }
}

/** Subexpressions of an expression. */
export function children(node: Expression): readonly (Expression | null)[] {
  switch (node.type) {
    case 'const':
    case 'name':
      return [];
    case 'list':
    case 'tuple':
    case 'concat':
      return node.items;
    case 'dict':
      return node.items.flat();
    case 'binary':
    case 'and':
    case 'or':
      return [node.left, node.right];
    case 'unary':
    case 'not':
      return [node.operand];
    case 'compare':
      return [node.left, ...node.rest.map(([, operand]) => operand)];
    case 'conditional':
      return [node.test, node.then, node.otherwise];
    case 'attribute':
      return [node.object];
    case 'item':
      return [node.object, node.key];
    case 'slice':
      return [node.object, node.start, node.stop, node.step];
    case 'call':
    case 'filter':
    case 'test': {
      const subject = node.type === 'call' ? node.callee : node.operand;
      const named = node.kwargs.map(([, value]) => value);
      return [subject, ...node.args, ...named, node.dynArgs, node.dynKwargs];
    }
  }
}

function visitNames(node: Expression | null, visit: (name: string) => void): void {
  if (node === null) return;
  if (node.type === 'name') visit(node.name);
  for (const child of children(node)) visitNames(child, visit);
}

/** Rejects unknown filters and tests, except inside conditions. */
function checkNames(node: Expression | null, isGuarded: boolean): void {
  if (node === null) return;
  if ((node.type === 'filter' || node.type === 'test') && !isGuarded) {
    const table: ReadonlyMap<string, unknown> = node.type === 'filter' ? FILTERS : TESTS;
    if (!table.has(node.name)) {
      throw new TemplateSyntaxError(`No ${node.type} named '${node.name}'.`, node.line);
    }
  }
  for (const child of children(node)) {
    checkNames(child, isGuarded || node.type === 'conditional');
  }
}

function eachName(target: Target, visit: (name: string) => void): void {
  if (target.type === 'tuple') for (const item of target.items) eachName(item, visit);
  else visit(target.name);
}

/** The expressions of a statement that are evaluated in the enclosing body. */
function expressionsOf(node: Statement): readonly (Expression | null)[] {
  switch (node.type) {
    case 'output':
      return node.parts.filter((part) => typeof part !== 'string');
    case 'for':
      return [node.iterable];
    case 'set':
      return [node.value];
    case 'call block':
      return [node.call];
    case 'filter block':
      return [node.filter];
    case 'with':
      return node.values;
    default:
      return [];
  }
}

function targetOf(node: Statement): Target | null {
  if (node.type === 'set' || node.type === 'set block') return node.target;
  return node.type === 'macro' ? { type: 'name', name: node.name } : null;
}

function analyze(body: readonly Statement[], symbols: Symbols): void {
  for (const node of body) {
    for (const expression of expressionsOf(node)) {
      visitNames(expression, (name) => symbols.load(name));
    }
    if (node.type === 'if') {
      visitNames(node.branches[0][0], (name) => symbols.load(name));
      const [first, ...rest] = node.branches;
      const taken = symbols.branch();
      analyze(first[1], taken);
      // jinja2 analyzes the other branches in sequence, as one branch.
      const others = symbols.branch();
      for (const [test, own] of rest) {
        visitNames(test, (name) => others.load(name));
        const inner = others.branch();
        analyze(own, inner);
        others.merge([inner]);
      }
      const otherwise = symbols.branch();
      analyze(node.otherwise, otherwise);
      symbols.merge([taken, others, otherwise]);
    }
    const target = targetOf(node);
    if (!target) continue;
    const visitTarget = (part: Target): void => {
      if (part.type === 'tuple') part.items.forEach(visitTarget);
      else if (part.type === 'namespace') symbols.load(part.name);
      else symbols.store(part.name);
    };
    visitTarget(target);
  }
}

interface Place {
  inLoop: boolean;
  /** Inside an `if`. */
  isGuarded: boolean;
}

/** Sets `hidden` and `specials` in `frame` and nested bodies. Throws TemplateSyntaxError. */
export function resolveScopes(frame: Frame): void {
  resolveFrame(frame, new Symbols(null), { inLoop: false, isGuarded: false });
}

function resolveFrame(frame: Frame, symbols: Symbols, place: Place): void {
  analyze(frame.body, symbols);
  frame.hidden = symbols.hidden;
  for (const node of frame.body) resolveStatement(node, symbols, place);
}

function resolveMacro(macro: MacroBody, symbols: Symbols, line: number): void {
  const inner = new Symbols(symbols);
  for (const param of macro.params) inner.declare(param);
  const read = new Set<string>();
  readNames(macro.frame.body, (name) => read.add(name));
  macro.specials = ['caller', 'kwargs', 'varargs'].filter(
    (name) => read.has(name) && !macro.params.includes(name),
  );
  const at = macro.params.indexOf('caller');
  if (read.has('caller') && at >= 0 && at < macro.params.length - macro.defaults.length) {
    throw new TemplateSyntaxError(
      'When defining macros or call blocks the special "caller" argument must be omitted or be ' +
        'given a default.',
      line,
    );
  }
  for (const name of macro.specials) inner.declare(name);
  for (const value of macro.defaults) {
    visitNames(value, (name) => inner.load(name));
    checkNames(value, false);
  }
  resolveFrame(macro.frame, inner, { inLoop: false, isGuarded: false });
}

/** Visits each name that is read in `body` and nested bodies. */
function readNames(body: readonly Statement[], visit: (name: string) => void): void {
  for (const node of body) {
    for (const expression of expressionsOf(node)) visitNames(expression, visit);
    if (node.type === 'if') {
      for (const [test, own] of node.branches) {
        visitNames(test, visit);
        readNames(own, visit);
      }
      readNames(node.otherwise, visit);
    }
    if (node.type === 'for') {
      visitNames(node.test, visit);
      readNames(node.otherwise.body, visit);
    }
    if (node.type === 'set block') visitNames(node.filter, visit);
    if (node.type === 'macro' || node.type === 'call block') {
      for (const value of node.macro.defaults) visitNames(value, visit);
      readNames(node.macro.frame.body, visit);
    } else if ('frame' in node && node.type !== 'block') {
      readNames(node.frame.body, visit);
    }
  }
}

function resolveStatement(node: Statement, symbols: Symbols, place: Place): void {
  const inner = new Symbols(symbols);
  const unguarded = { ...place, isGuarded: false };
  for (const expression of expressionsOf(node)) {
    checkNames(expression, place.isGuarded && node.type !== 'filter block');
  }
  switch (node.type) {
    case 'if':
      for (const [test, body] of node.branches) {
        checkNames(test, true);
        for (const own of body) resolveStatement(own, symbols, { ...place, isGuarded: true });
      }
      for (const own of node.otherwise) {
        resolveStatement(own, symbols, { ...place, isGuarded: true });
      }
      return;
    case 'for': {
      eachName(node.target, (name) => {
        if (name === 'loop') {
          throw new TemplateSyntaxError(
            "Can't assign to special loop variable in for-loop target",
            node.line,
          );
        }
        inner.declare(name);
      });
      checkNames(node.test, false);
      inner.declare('loop');
      resolveFrame(node.frame, inner, { inLoop: true, isGuarded: false });
      resolveFrame(node.otherwise, new Symbols(symbols), unguarded);
      return;
    }
    case 'break':
    case 'continue':
      if (!place.inLoop) {
        throw new TemplateSyntaxError(`'${node.type}' outside of a loop`, node.line);
      }
      return;
    case 'macro':
    case 'call block':
      resolveMacro(node.macro, symbols, node.line);
      return;
    case 'generation':
      resolveFrame(node.frame, inner, { inLoop: false, isGuarded: false });
      return;
    case 'set block':
      checkNames(node.filter, false);
      resolveFrame(node.frame, inner, unguarded);
      return;
    case 'filter block':
      resolveFrame(node.frame, inner, unguarded);
      return;
    case 'with':
      for (const target of node.targets) eachName(target, (name) => inner.declare(name));
      resolveFrame(node.frame, inner, unguarded);
      return;
    case 'block':
      resolveFrame(node.frame, new Symbols(null), { inLoop: false, isGuarded: false });
      return;
    default:
  }
}
