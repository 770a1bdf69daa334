/** jinja2's tests: `x is name`. */
import { bind, signature } from './arguments';
import { contains, isEqual, isOrdered } from './compare';
import { raise } from './errors';
import { FILTERS } from './filters';
import { calculate } from './operators';
import { repr, str } from './repr';
import { isCase } from './text';
import {
  Callable,
  Dict,
  hashKey,
  isList,
  isNumber,
  iteratorOf,
  type Kwargs,
  Markup,
  Range,
  textOf,
  Tuple,
  Undefined,
  type Value,
} from './values';

type Test = (value: Value, other: Value) => boolean;

const isZero = (value: Value): boolean => isEqual(value, 0n);

function isSequence(value: Value): boolean {
  return (
    textOf(value) !== undefined ||
    isList(value) ||
    value instanceof Tuple ||
    value instanceof Dict ||
    value instanceof Range ||
    value instanceof Undefined
  );
}

const ordered =
  (order: '<' | '<=' | '>' | '>='): Test =>
  (a, b) =>
    isOrdered(order, a, b);

const UNARY: readonly (readonly [string, (value: Value) => boolean])[] = [
  ['boolean', (value) => typeof value === 'boolean'],
  ['callable', (value) => value instanceof Callable || value instanceof Undefined],
  ['defined', (value) => !(value instanceof Undefined)],
  ['escaped', (value) => value instanceof Markup],
  ['even', (value) => isZero(calculate('%', value, 2n))],
  ['false', (value) => value === false],
  ['filter', (value) => isName(FILTERS, value)],
  ['float', (value) => typeof value === 'number'],
  ['integer', (value) => typeof value === 'bigint'],
  ['iterable', (value) => iteratorOf(value) !== undefined],
  ['lower', (value) => isCase(str(value), 'lower')],
  ['mapping', (value) => value instanceof Dict],
  ['none', (value) => value === null],
  ['number', (value) => value !== null && isNumber(value)],
  ['odd', (value) => isEqual(calculate('%', value, 2n), 1n)],
  ['sequence', isSequence],
  ['string', (value) => textOf(value) !== undefined],
  ['test', (value) => isName(TESTS, value)],
  ['true', (value) => value === true],
  ['undefined', (value) => value instanceof Undefined],
  ['upper', (value) => isCase(str(value), 'upper')],
];

function isName(table: ReadonlyMap<string, unknown>, value: Value): boolean {
  hashKey(value);
  return table.has(textOf(value) ?? '');
}

const BINARY: readonly (readonly [readonly string[], Test])[] = [
  [['divisibleby'], (value, other) => isZero(calculate('%', value, other))],
  [['==', 'eq', 'equalto'], isEqual],
  [['!=', 'ne'], (a, b) => !isEqual(a, b)],
  [['>', 'gt', 'greaterthan'], ordered('>')],
  [['>=', 'ge'], ordered('>=')],
  [['<', 'lt', 'lessthan'], ordered('<')],
  [['<=', 'le'], ordered('<=')],
  [['in'], (value, container) => contains(container, value)],
  [['sameas'], (a, b) => (typeof a === 'number' && a === b) || Object.is(a, b)],
];

export const TESTS: ReadonlyMap<string, (args: readonly Value[], kwargs: Kwargs) => boolean> =
  makeTests();

function makeTests(): Map<string, (args: readonly Value[], kwargs: Kwargs) => boolean> {
  const tests = new Map<string, (args: readonly Value[], kwargs: Kwargs) => boolean>();
  for (const [name, test] of UNARY) {
    const parameters = { ...signature('test(value)'), name };
    tests.set(name, (args, kwargs) => test(bind(parameters, args, kwargs)[0] ?? null));
  }
  for (const [names, test] of BINARY) {
    for (const name of names) {
      const second = { divisibleby: 'num', in: 'seq' }[name] ?? 'other';
      const parameters = { ...signature(`test(value, ${second})`), name };
      tests.set(name, (args, kwargs) => {
        const [value = null, other = null] = bind(parameters, args, kwargs);
        return test(value, other);
      });
    }
  }
  return tests;
}

/** Applies the test `name` to the first argument. Raises TemplateRuntimeError. */
export function applyTest(name: Value, args: readonly Value[], kwargs: Kwargs): boolean {
  const test = TESTS.get(textOf(name) ?? '');
  if (!test) {
    if (name instanceof Undefined) {
      const hint = `${name.message}; did you forget to quote the callable name?`;
      raise('TemplateRuntimeError', `No test named Undefined. (${hint})`);
    }
    raise('TemplateRuntimeError', `No test named ${repr(name)}.`);
  }
  return test(args, kwargs);
}
