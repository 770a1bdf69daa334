/** Runtime of a rendering: scopes, loops and calls. */
import { raise } from './errors';
import type { MacroBody } from './nodes';
import { stringRepr } from './repr';
import { isEqual } from './compare';
import {
  Callable,
  Dict,
  iterate,
  iteratorOf,
  type Kwargs,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from './values';

/** Variables of a body and its enclosing scopes. */
export class Scope {
  private readonly variables: Map<string, Value | Missing>;

  constructor(
    private readonly parent: Scope | null,
    variables: Iterable<readonly [string, Value]> = [],
  ) {
    this.variables = new Map(variables);
  }

  /** Makes `names` undefined, hiding enclosing scopes. */
  hide(names: readonly string[]): void {
    for (const name of names) {
      if (!this.variables.has(name)) this.variables.set(name, MISSING);
    }
  }

  set(name: string, value: Value): void {
    this.variables.set(name, value);
  }

  get(name: string): Value {
    const found = this.find(name);
    if (found !== undefined && found !== MISSING) return found;
    return new Undefined(`${stringRepr(name)} is undefined`);
  }

  private find(name: string): Value | Missing | undefined {
    const own = this.variables.get(name);
    return own === undefined ? this.parent?.find(name) : own;
  }
}

const MISSING = Symbol('missing');
type Missing = typeof MISSING;

/** `callee(*args, **kwargs)`. */
export function call(callee: Value, args: readonly Value[], kwargs: Kwargs): Value {
  if (callee instanceof Undefined) callee.fail();
  if (callee instanceof Callable) return callee.invoke(args, kwargs);
  return raise('TypeError', `'${typeName(callee)}' object is not callable`);
}

/** Unpacks `value` into exactly `count` items. */
export function unpack(value: Value, count: number): Value[] {
  if (iteratorOf(value) === undefined) {
    raise('TypeError', `cannot unpack non-iterable ${typeName(value)} object`);
  }
  const items: Value[] = [];
  for (const item of iterate(value)) {
    if (items.push(item) > count) {
      raise('ValueError', `too many values to unpack (expected ${count})`);
    }
  }
  if (items.length < count) {
    raise('ValueError', `not enough values to unpack (expected ${count}, got ${items.length})`);
  }
  return items;
}

/** The variable `loop`. `recurse` renders a recursive loop over other items; else null. */
export class Loop {
  private at = -1;
  private lastChanged: Value | null = null;
  readonly value: Callable;

  constructor(
    private readonly items: readonly Value[],
    private readonly depth0: number,
    recurse: ((items: Value, depth0: number) => Value) | null,
  ) {
    const invoke = ([inner]: readonly Value[]) => {
      if (!recurse) {
        raise('TypeError', "The loop must have the 'recursive' marker to be called recursively.");
      }
      return recurse(inner, depth0 + 1);
    };
    this.value = new Callable(
      'loop',
      invoke,
      'LoopContext',
      this.attributes(),
      'jinja2.runtime',
      () => items.length,
    );
  }

  next(): void {
    this.at++;
  }

  private attributes(): Map<string, () => Value> {
    const int = (value: () => number) => () => BigInt(value());
    const { length } = this.items;
    const neighbour = (step: number, name: string) => () => {
      const i = this.at + step;
      return i >= 0 && i < length ? this.items[i] : new Undefined(`there is no ${name} item`);
    };
    return new Map<string, () => Value>([
      ['index', int(() => this.at + 1)],
      ['index0', int(() => this.at)],
      ['revindex', int(() => length - this.at)],
      ['revindex0', int(() => length - this.at - 1)],
      ['length', int(() => length)],
      ['depth', int(() => this.depth0 + 1)],
      ['depth0', int(() => this.depth0)],
      ['first', () => this.at === 0],
      ['last', () => this.at === length - 1],
      ['previtem', neighbour(-1, 'previous')],
      ['nextitem', neighbour(1, 'next')],
      ['cycle', () => new Callable('cycle', (args) => this.cycle(args))],
      ['changed', () => new Callable('changed', (args) => this.changed(args))],
    ]);
  }

  private cycle(args: readonly Value[]): Value {
    if (args.length === 0) raise('TypeError', 'no items for cycling given');
    return args[this.at % args.length];
  }

  private changed(args: readonly Value[]): Value {
    const now = new Tuple(args);
    if (this.lastChanged !== null && isEqual(this.lastChanged, now)) return false;
    this.lastChanged = now;
    return true;
  }
}

/** Binds a macro's parameters as in jinja2; undefined for a missing argument. */
export function bindMacro(
  name: string | null,
  { params, specials }: MacroBody,
  args: readonly Value[],
  kwargs: Kwargs,
): Map<string, Value | undefined> {
  const label = name === null ? 'None' : stringRepr(name);
  const rest = new Map(kwargs);
  const bound = new Map<string, Value | undefined>();
  params.forEach((param, i) => {
    bound.set(param, i < args.length ? args[i] : rest.get(param));
    if (i >= args.length) rest.delete(param);
  });
  if (specials.includes('caller')) {
    bound.set('caller', rest.get('caller') ?? new Undefined('No caller defined'));
    rest.delete('caller');
  }
  if (specials.includes('kwargs')) {
    bound.set('kwargs', new Dict(rest));
  } else if (rest.size > 0) {
    const [first] = rest.keys();
    raise(
      'TypeError',
      rest.has('caller')
        ? `macro ${label} was invoked with two values for the special caller argument. ` +
            'This is most likely a bug.'
        : `macro ${label} takes no keyword argument ${stringRepr(first)}`,
    );
  }
  if (specials.includes('varargs')) {
    bound.set('varargs', new Tuple(args.slice(params.length)));
  } else if (args.length > params.length) {
    raise('TypeError', `macro ${label} takes not more than ${params.length} argument(s)`);
  }
  return bound;
}
