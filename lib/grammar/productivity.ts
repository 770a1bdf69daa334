/** Which expressions match any text, or the empty one, and whether a rule calls itself first. */
import { InvalidRequestError } from '../errors';
import { consistsOf, type Expression, type Leaf, type RuleSet } from './expression';

/** What holds for an expression if it consists of leaves for which it holds. */
class Property {
  private readonly rules = new Set<string>();
  private readonly known = new WeakMap<Expression, boolean>();
  private readonly test = (leaf: Leaf): boolean =>
    leaf.kind === 'rule' ? this.rules.has(leaf.name) : this.testLeaf(leaf);

  /** The least fixed point: rules are added until none is left to add. */
  constructor(
    { rules }: RuleSet,
    private readonly testLeaf: (leaf: Exclude<Leaf, { kind: 'rule' }>) => boolean,
  ) {
    for (let size = -1; size !== this.rules.size;) {
      size = this.rules.size;
      for (const [name, body] of rules) {
        if (!this.rules.has(name) && consistsOf(body, this.test)) this.rules.add(name);
      }
    }
  }

  of(expression: Expression): boolean {
    let result = this.known.get(expression);
    if (result === undefined) {
      result = consistsOf(expression, this.test);
      this.known.set(expression, result);
    }
    return result;
  }
}

export class Productivity {
  private readonly productive: Property;
  private readonly nullable: Property;

  constructor(private readonly ruleSet: RuleSet) {
    this.productive = new Property(ruleSet, (leaf) => {
      switch (leaf.kind) {
        case 'text':
          return true;
        case 'set':
          return leaf.ranges.length > 0;
        case 'automaton':
          return leaf.states.some(({ accepts }) => accepts);
      }
    });
    this.nullable = new Property(ruleSet, (leaf) => {
      switch (leaf.kind) {
        case 'text':
          return leaf.text === '';
        case 'set':
          return false;
        case 'automaton':
          return leaf.states[0].accepts;
      }
    });
  }

  /** Whether any text matches. */
  canMatch(expression: Expression): boolean {
    return this.productive.of(expression);
  }

  /** Whether the empty text matches. */
  isNullable(expression: Expression): boolean {
    return this.nullable.of(expression);
  }

  /** Throws InvalidRequestError if a rule is missing or left-recursive. */
  check(): void {
    const { root, rules } = this.ruleSet;
    const firsts = new Map<string, string[]>();
    const visit = (expression: Expression, isFirst: boolean, into: Set<string>): void => {
      switch (expression.kind) {
        case 'sequence':
          for (const part of expression.parts) {
            visit(part, isFirst, into);
            isFirst &&= this.isNullable(part);
          }
          return;
        case 'choice':
          for (const option of expression.options) visit(option, isFirst, into);
          return;
        case 'repeat':
          visit(expression.body, isFirst, into);
          return;
        case 'rule':
          if (!rules.has(expression.name)) {
            throw new InvalidRequestError(
              `structuredOutputs: the grammar has no rule ${expression.name}, which another rule uses`,
            );
          }
          if (isFirst) into.add(expression.name);
          return;
        case 'automaton':
        case 'text':
        case 'set':
      }
    };
    visit(root, false, new Set());
    for (const [name, body] of rules) {
      const into = new Set<string>();
      visit(body, true, into);
      firsts.set(name, [...into]);
    }
    refuseCycle(firsts);
  }
}

/** Throws if a rule can reach itself before it reads a character. */
function refuseCycle(firsts: ReadonlyMap<string, readonly string[]>): void {
  const OPEN = 1;
  const DONE = 2;
  const states = new Map<string, number>();
  for (const start of firsts.keys()) {
    if (states.has(start)) continue;
    const stack = [{ name: start, next: 0 }];
    states.set(start, OPEN);
    for (let top = stack.at(-1); top !== undefined; top = stack.at(-1)) {
      const callees = firsts.get(top.name) ?? [];
      if (top.next === callees.length) {
        states.set(top.name, DONE);
        stack.pop();
        continue;
      }
      const callee = callees[top.next++];
      const state = states.get(callee);
      if (state === OPEN) {
        throw new InvalidRequestError(
          `structuredOutputs: rule ${callee} is left-recursive: it can call itself before it reads a ` +
            'character; write it with a repetition',
        );
      }
      if (state === undefined) {
        states.set(callee, OPEN);
        stack.push({ name: callee, next: 0 });
      }
    }
  }
}
