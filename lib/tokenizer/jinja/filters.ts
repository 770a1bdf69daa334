/** jinja2's filters, with transformers' tojson. */
import { bind, signature } from './arguments';
import { raise } from './errors';
import { escapeHtml } from './html';
import { toJson } from './json';
import { repr, str } from './repr';
import * as sequences from './sequenceFilters';
import { applyTest } from './tests';
import * as text from './text';
import * as texts from './textFilters';
import { isTrue, type Kwargs, Markup, textOf, toList, Undefined, type Value } from './values';

export type Filter = (args: readonly Value[], kwargs: Kwargs) => Value;

/** Filters by signature; the first parameter is the filtered value. */
const DECLARED: readonly (readonly [string, (...args: never[]) => Value])[] = [
  ['abs(x, /)', texts.absolute],
  ['attr(obj, name)', sequences.attr],
  ['batch(value, linecount, fill_with=)', sequences.batch],
  ['capitalize(s)', texts.changed(text.capitalize)],
  ['center(value, width=)', texts.center],
  ['count(obj, /)', sequences.length],
  ['default(value, default_value=, boolean=)', defaultValue],
  ['dictsort(value, case_sensitive=, by=, reverse=)', sequences.dictSort],
  ['escape(s, /)', escapeHtml],
  ['filesizeformat(value, binary=)', texts.fileSize],
  ['first(seq)', sequences.first],
  ['float(value, default=)', texts.toFloat],
  ['forceescape(value)', (value: Value) => escapeHtml(str(value))],
  ['groupby(value, attribute, default=, case_sensitive=)', sequences.groupBy],
  ['indent(s, width=, first=, blank=)', texts.indent],
  ['int(value, default=, base=)', texts.toInteger],
  ['items(value)', sequences.items],
  ['join(value, d=, attribute=)', sequences.join],
  ['last(seq)', sequences.last],
  ['length(obj, /)', sequences.length],
  ['list(value)', (value: Value) => [...toList(value)]],
  ['lower(s)', texts.changed((own) => own.toLowerCase())],
  [
    'max(value, case_sensitive=, attribute=)',
    (...args: [Value, Value?, Value?]) => sequences.extreme('>', ...args),
  ],
  [
    'min(value, case_sensitive=, attribute=)',
    (...args: [Value, Value?, Value?]) => sequences.extreme('<', ...args),
  ],
  ['pprint(value)', repr],
  ['random(seq)', sequences.random],
  ['replace(s, old, new, count=)', texts.replace],
  ['reverse(value)', sequences.reverse],
  ['round(value, precision=, method=)', texts.round],
  ['safe(value)', (value: Value) => new Markup(str(value))],
  ['slice(value, slices, fill_with=)', sequences.sliceInto],
  ['sort(value, reverse=, case_sensitive=, attribute=)', sequences.sort],
  ['string(s, /)', (value: Value) => (textOf(value) === undefined ? str(value) : value)],
  ['striptags(value)', texts.stripMarkup],
  ['sum(iterable, attribute=, start=)', sequences.sum],
  ['title(s)', texts.changed(texts.title)],
  ['trim(value, chars=)', texts.trim],
  ['truncate(s, length=, killwords=, end=, leeway=)', texts.truncate],
  ['unique(value, case_sensitive=, attribute=)', sequences.unique],
  ['upper(s)', texts.changed((own) => own.toUpperCase())],
  ['urlencode(value)', texts.urlEncode],
  ['wordcount(s)', texts.wordCount],
  ['xmlattr(d, autospace=)', texts.xmlAttributes],
];

function defaultValue(value: Value, fallback: Value = '', boolean: Value = false): Value {
  const isMissing = value instanceof Undefined || (isTrue(boolean) && !isTrue(value));
  return isMissing ? fallback : value;
}

const selecting =
  (wanted: boolean, byAttribute: boolean): Filter =>
  ([value, ...args], kwargs) =>
    sequences.select(value, args, kwargs, applyTest, { wanted, byAttribute });

const OTHERS: readonly (readonly [string, Filter])[] = [
  ['format', ([value, ...args], kwargs) => texts.format(value, args, kwargs)],
  ['map', ([value, ...args], kwargs) => sequences.map(value, args, kwargs, applyFilter)],
  ['reject', selecting(false, false)],
  ['rejectattr', selecting(false, true)],
  ['select', selecting(true, false)],
  ['selectattr', selecting(true, true)],
  ['tojson', toJson],
];

const ALIASES: readonly (readonly [string, string])[] = [
  ['d', 'default'],
  ['e', 'escape'],
];

export const FILTERS: ReadonlyMap<string, Filter> = makeFilters();

function makeFilters(): Map<string, Filter> {
  const filters = new Map<string, Filter>(OTHERS);
  for (const [declaration, body] of DECLARED) {
    const parameters = signature(declaration);
    const apply = body as (...args: (Value | undefined)[]) => Value;
    filters.set(parameters.name, (args, kwargs) => apply(...bind(parameters, args, kwargs)));
  }
  for (const [alias, name] of ALIASES) {
    const filter = filters.get(name);
    if (filter) filters.set(alias, filter);
  }
  return filters;
}

/** Applies the filter `name` to the first argument. Raises TemplateRuntimeError. */
export function applyFilter(name: Value, args: readonly Value[], kwargs: Kwargs): Value {
  const filter = FILTERS.get(textOf(name) ?? '');
  if (!filter) {
    if (name instanceof Undefined) {
      const hint = `${name.message}; did you forget to quote the callable name?`;
      raise('TemplateRuntimeError', `No filter named Undefined. (${hint})`);
    }
    raise('TemplateRuntimeError', `No filter named ${repr(name)}.`);
  }
  return filter(args, kwargs);
}
