/** jinja2's global functions and those that transformers adds. */
import { bind, signature, toText } from './arguments';
import { raise } from './errors';
import { str } from './repr';
import { strftime } from './strftime';
import {
  Callable,
  Dict,
  intOf,
  iterate,
  iteratorOf,
  type Kwargs,
  Namespace,
  Range,
  textOf,
  typeName,
  Undefined,
  type Value,
} from './values';

/** The longest range that the sandbox allows. */
const MAX_RANGE = 100_000;

function range(args: readonly Value[]): Value {
  if (args.length < 1 || args.length > 3) {
    raise('TypeError', `range expected from 1 to 3 arguments, got ${args.length}`);
  }
  const ints = args.map((arg) => {
    const int = intOf(arg);
    if (int !== undefined) return int;
    if (arg instanceof Undefined) arg.fail();
    return raise('TypeError', `'${typeName(arg)}' object cannot be interpreted as an integer`);
  });
  const [start, stop, step = 1n] = ints.length === 1 ? [0n, ints[0]] : ints;
  if (step === 0n) raise('ValueError', 'range() arg 3 must not be zero');
  const made = new Range(start, stop, step);
  if (made.length > MAX_RANGE) {
    raise(
      'OverflowError',
      `Range too big. The sandbox blocks ranges larger than MAX_RANGE (${MAX_RANGE}).`,
    );
  }
  return made;
}

function dict(args: readonly Value[], kwargs: Kwargs): Dict {
  if (args.length > 1) raise('TypeError', `dict expected at most 1 argument, got ${args.length}`);
  const made = new Dict();
  const [source] = args;
  if (source instanceof Dict) {
    for (const [key, value] of source.items()) made.set(key, value);
  } else if (args.length === 1) {
    let at = 0;
    for (const item of iterate(source)) {
      const pair = iteratorOf(item);
      if (pair === undefined) {
        raise(
          'TypeError',
          `cannot convert dictionary update sequence element #${at} to a sequence`,
        );
      }
      const [key, value, ...rest] = pair;
      if ((value as Value | undefined) === undefined || rest.length > 0) {
        const length = Array.from(pair).length;
        raise(
          'ValueError',
          `dictionary update sequence element #${at} has length ${length}; 2 is required`,
        );
      }
      made.set(key, value);
      at++;
    }
  }
  for (const [key, value] of kwargs) made.set(key, value);
  return made;
}

function namespace(args: readonly Value[], kwargs: Kwargs): Namespace {
  const made = new Namespace();
  for (const [key, value] of dict(args, kwargs).items()) {
    made.attributes.set(textOf(key) ?? str(key), value);
  }
  return made;
}

function cycler(args: readonly Value[]): Value {
  if (args.length === 0) raise('RuntimeError', 'at least one item has to be provided');
  let at = 0;
  const next = () => {
    const item = args[at];
    at = (at + 1) % args.length;
    return item;
  };
  const reset = () => {
    at = 0;
    return null;
  };
  const attributes = new Map<string, () => Value>([
    ['current', () => args[at]],
    ['items', () => args],
    ['pos', () => BigInt(at)],
    ['next', () => new Callable('next', next)],
    ['reset', () => new Callable('reset', reset)],
  ]);
  const refuse = () => raise('TypeError', "'Cycler' object is not callable");
  return new Callable('cycler', refuse, 'Cycler', attributes, 'jinja2.utils');
}

const JOINER = signature('joiner(sep=)');

function joiner(args: readonly Value[], kwargs: Kwargs): Value {
  const [separator = ', '] = bind(JOINER, args, kwargs);
  let used = false;
  const next = () => {
    const text = used ? separator : '';
    used = true;
    return text;
  };
  const attributes = new Map<string, () => Value>([
    ['sep', () => separator],
    ['used', () => used],
  ]);
  return new Callable('joiner', next, 'Joiner', attributes, 'jinja2.utils');
}

const RAISE_EXCEPTION = signature('raise_exception(message)');
const STRFTIME_NOW = signature('strftime_now(format)');

const raiseException = (args: readonly Value[], kwargs: Kwargs): Value => {
  const [message = null] = bind(RAISE_EXCEPTION, args, kwargs);
  return raise('TemplateError', str(message));
};

const strftimeNow = (args: readonly Value[], kwargs: Kwargs): Value => {
  const [format] = bind(STRFTIME_NOW, args, kwargs);
  if (format instanceof Undefined) format.fail();
  return strftime(new Date(), toText(format, 'strftime() argument 1'));
};

const define = (
  name: string,
  body: (args: readonly Value[], kwargs: Kwargs) => Value,
  type?: string,
) => [name, new Callable(name, body, type)] as const;

export const GLOBALS: ReadonlyMap<string, Value> = new Map([
  define('range', range),
  define('dict', dict, 'type'),
  define('namespace', namespace, 'type'),
  define('cycler', cycler, 'type'),
  define('joiner', joiner, 'type'),
  define('raise_exception', raiseException),
  define('strftime_now', strftimeNow),
  // jinja2's reference to the template's blocks, which are only rendered in place here.
  define('self', () => raise('TypeError', "'TemplateReference' object is not callable")),
]);
