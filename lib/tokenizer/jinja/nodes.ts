/** The syntax tree of a template: jinja2's nodes for a single template. */
import type { BinaryOperator } from './operators';
import type { Value } from './values';

export interface Arguments {
  readonly args: readonly Expression[];
  readonly kwargs: readonly (readonly [string, Expression])[];
  readonly dynArgs: Expression | null;
  readonly dynKwargs: Expression | null;
}

export type CompareOperator = '==' | '!=' | '<' | '<=' | '>' | '>=' | 'in' | 'not in';

export type Expression =
  | { readonly type: 'const'; readonly value: Value }
  | { readonly type: 'name'; readonly name: string }
  | { readonly type: 'list' | 'tuple'; readonly items: readonly Expression[] }
  | { readonly type: 'dict'; readonly items: readonly (readonly [Expression, Expression])[] }
  | {
      readonly type: 'binary';
      readonly operator: BinaryOperator;
      readonly left: Expression;
      readonly right: Expression;
    }
  | { readonly type: 'unary'; readonly operator: '+' | '-'; readonly operand: Expression }
  | { readonly type: 'not'; readonly operand: Expression }
  | { readonly type: 'and' | 'or'; readonly left: Expression; readonly right: Expression }
  | { readonly type: 'concat'; readonly items: readonly Expression[] }
  | {
      readonly type: 'compare';
      readonly left: Expression;
      readonly rest: readonly (readonly [CompareOperator, Expression])[];
    }
  | {
      readonly type: 'conditional';
      readonly test: Expression;
      readonly then: Expression;
      readonly otherwise: Expression | null;
      readonly line: number;
    }
  | { readonly type: 'attribute'; readonly object: Expression; readonly name: string }
  | { readonly type: 'item'; readonly object: Expression; readonly key: Expression }
  | {
      readonly type: 'slice';
      readonly object: Expression;
      readonly start: Expression | null;
      readonly stop: Expression | null;
      readonly step: Expression | null;
    }
  | ({ readonly type: 'call'; readonly callee: Expression } & Arguments)
  | ({
      readonly type: 'filter';
      readonly operand: Expression | null;
      readonly name: string;
      readonly line: number;
    } & Arguments)
  | ({
      readonly type: 'test';
      readonly operand: Expression;
      readonly name: string;
      readonly line: number;
    } & Arguments);

export type FilterNode = Extract<Expression, { type: 'filter' }>;
export type CallNode = Extract<Expression, { type: 'call' }>;

/** An assignment target. */
export type Target =
  | { readonly type: 'name'; readonly name: string }
  | { readonly type: 'namespace'; readonly name: string; readonly attribute: string }
  | { readonly type: 'tuple'; readonly items: readonly Target[] };

/** A body with its own scope. */
export interface Frame {
  readonly body: readonly Statement[];
  /**
   * Variables that are undefined at the start of the body even if the context has them, because the
   * body assigns them before reading them. Set by the scope analysis.
   */
  hidden: readonly string[];
}

export interface Parameters {
  readonly params: readonly string[];
  readonly defaults: readonly Expression[];
}

export interface MacroBody extends Parameters {
  readonly frame: Frame;
  /** Which of caller, kwargs and varargs the body reads. Set by the scope analysis. */
  specials: readonly string[];
}

export type Statement = { readonly line: number } & (
  | { readonly type: 'output'; readonly parts: readonly (string | Expression)[] }
  | {
      readonly type: 'if';
      readonly branches: readonly (readonly [Expression, readonly Statement[]])[];
      readonly otherwise: readonly Statement[];
    }
  | {
      readonly type: 'for';
      readonly target: Target;
      readonly iterable: Expression;
      readonly test: Expression | null;
      readonly recursive: boolean;
      readonly frame: Frame;
      readonly otherwise: Frame;
    }
  | { readonly type: 'break' | 'continue' }
  | { readonly type: 'set'; readonly target: Target; readonly value: Expression }
  | {
      readonly type: 'set block';
      readonly target: Target;
      readonly filter: FilterNode | null;
      readonly frame: Frame;
    }
  | { readonly type: 'macro'; readonly name: string; readonly macro: MacroBody }
  | { readonly type: 'call block'; readonly call: CallNode; readonly macro: MacroBody }
  | { readonly type: 'generation'; readonly frame: Frame }
  | { readonly type: 'filter block'; readonly filter: FilterNode; readonly frame: Frame }
  | {
      readonly type: 'with';
      readonly targets: readonly Target[];
      readonly values: readonly Expression[];
      readonly frame: Frame;
    }
  | { readonly type: 'block'; readonly name: string; readonly frame: Frame }
  | { readonly type: 'other template'; readonly tag: string; readonly names: readonly string[] }
);
