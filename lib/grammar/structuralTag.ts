/** Structural tags to a grammar. */
import {
  type StructuralFormat,
  type StructuralTag,
  type TagFormat,
  tagFormatOf,
  type TagText,
} from '../config/structuralTag';
import { InvalidRequestError } from '../errors';
import { argumentRules } from './argumentStyles';
import { parseEbnf } from './ebnf';
import {
  choice,
  EMPTY,
  type Expression,
  optional,
  repeat,
  rule,
  type RuleSet,
  sequence,
  text,
  tokenText,
} from './expression';
import { freeText, textNotStarting } from './freeText';
import { type JsonSchemaOptions, parseJsonSchema } from './jsonSchema';
import { parseRegex } from './regex';
import { isSchema } from './schemaDocument';

const WHERE = 'structuredOutputs.structuralTag';

function fail(path: string, message: string): InvalidRequestError {
  return new InvalidRequestError(`${WHERE}: ${path}: ${message}`);
}

export const literal = (content: TagText): Expression =>
  text(typeof content === 'string' ? content : tokenText(content.token));

class TagGrammar {
  private readonly rules = new Map<string, Expression>();
  /** Rules of a schema, by its text: a schema is often in several tags. */
  private readonly schemas = new Map<string, Expression>();
  private numScopes = 0;

  constructor(private readonly options: JsonSchemaOptions) {}

  build(format: StructuralFormat): RuleSet {
    return { root: this.of(format, 'format', []), rules: this.rules };
  }

  /** `ends`: what may end the text around, so that free text does not contain it. */
  private of(format: StructuralFormat, path: string, ends: readonly TagText[]): Expression {
    switch (format.type) {
      case 'const_string':
        return text(format.value);
      case 'token':
        return literal(format);
      case 'regex':
        return parseRegex(format.pattern, `${WHERE}: ${path}.pattern`);
      case 'grammar':
        return this.scoped(parseEbnf(format.grammar));
      case 'json_schema':
      case 'qwen_xml_parameter':
      case 'pythonic_arguments':
      case 'gemma_arguments':
        return this.schema(format, path);
      case 'any_text':
        return freeText(
          [...ends, ...(format.excludes ?? [])].flatMap((end) =>
            typeof end === 'string' && end !== '' ? [{ text: end, after: null }] : [],
          ),
        );
      case 'sequence':
      case 'or': {
        const parts = format.elements.map((element, i) => {
          const next = format.type === 'sequence' ? format.elements[i + 1] : undefined;
          const after = next === undefined ? ends : beginningOf(next);
          return this.of(element, `${path}.elements[${i}]`, after);
        });
        return format.type === 'or' ? choice(parts) : sequence(...parts);
      }
      case 'optional':
        return optional(this.of(format.content, `${path}.content`, ends));
      case 'star':
        return repeat(this.of(format.content, `${path}.content`, ends), 0, null);
      case 'tag':
        return sequence(literal(format.begin), this.afterBegin(format, '', path));
      case 'triggered_tags':
        return this.triggered(format, path, ends);
      case 'leading_tags': {
        const content = this.of(format.content, `${path}.content`, ends);
        return choice([content, textNotStarting(format.triggers)]);
      }
      case 'tags_with_separator': {
        const tag = choice(format.tags.map((one, i) => this.of(one, `${path}.tags[${i}]`, ends)));
        const more = repeat(sequence(text(format.separator), tag), 0, null);
        const list = format.stop_after_first === true ? tag : sequence(tag, more);
        return format.at_least_one === true ? list : optional(list);
      }
    }
  }

  /** A tag behind the part of its `begin` that a trigger has. */
  private afterBegin(
    { begin, content, end }: TagFormat,
    trigger: string,
    path: string,
  ): Expression {
    const rest = typeof begin === 'string' ? text(begin.slice(trigger.length)) : EMPTY;
    const start = trigger === '' ? EMPTY : rest;
    return sequence(start, this.of(content, `${path}.content`, [end]), literal(end));
  }

  private triggered(
    {
      triggers,
      tags,
      at_least_one: atLeastOne,
      stop_after_first: stopsAfterFirst,
    }: Extract<StructuralFormat, { type: 'triggered_tags' }>,
    path: string,
    ends: readonly TagText[],
  ): Expression {
    const whole = () => choice(tags.map((tag, i) => this.of(tag, `${path}.tags[${i}]`, ends)));
    if (atLeastOne === true && stopsAfterFirst === true) return whole();
    const name = `tags ${this.numScopes++}`;
    /** What follows each trigger. */
    const opened = triggers.map((trigger) => {
      const own = tags.flatMap((tag, i) => {
        const opens =
          typeof trigger === 'string'
            ? typeof tag.begin === 'string' && tag.begin.startsWith(trigger)
            : typeof tag.begin !== 'string' && tag.begin.token === trigger.token;
        const prefix = typeof trigger === 'string' ? trigger : '';
        return opens ? [this.afterBegin(tag, prefix, `${path}.tags[${i}]`)] : [];
      });
      return { trigger, after: choice(own) };
    });
    const strings = opened.flatMap(({ trigger, after }) =>
      typeof trigger === 'string' ? [{ text: trigger, after }] : [],
    );
    const tokens = opened.flatMap(({ trigger, after }) =>
      typeof trigger === 'string' ? [] : [{ text: literal(trigger), after }],
    );
    const excluded = ends.flatMap((end) =>
      typeof end === 'string' && end !== '' ? [{ text: end, after: null }] : [],
    );
    if (stopsAfterFirst === true) {
      const before = [...strings.map(({ text: own }) => ({ text: own, after: null })), ...excluded];
      return sequence(freeText(before), optional(whole()));
    }
    this.rules.set(name, freeText([...strings, ...excluded], tokens));
    return atLeastOne === true ? sequence(whole(), rule(name)) : rule(name);
  }

  private schema(
    format: Extract<StructuralFormat, { json_schema: boolean | object }>,
    path: string,
  ): Expression {
    const key = JSON.stringify(format);
    const known = this.schemas.get(key);
    if (known !== undefined) return known;
    const { json_schema: schema } = format;
    if (!isSchema(schema)) throw fail(`${path}.json_schema`, 'it must be an object, true or false');
    let made: Expression;
    try {
      made = this.scoped(
        format.type === 'json_schema'
          ? parseJsonSchema(schema, this.options)
          : argumentRules(schema, format, this.options),
      );
    } catch (error) {
      if (!(error instanceof InvalidRequestError)) throw error;
      const message = error.message.replace(/^structuredOutputs\.json: /, '');
      const { where } = format;
      if (where !== undefined)
        throw new InvalidRequestError(`${where}: ${message}`, { cause: error });
      throw fail(`${path}.json_schema`, message);
    }
    this.schemas.set(key, made);
    return made;
  }

  /** Adds the rules under names of their own; returns the root. */
  private scoped({ root, rules }: RuleSet): Expression {
    const scope = `${this.numScopes++} `;
    const renamed = new Map<Expression, Expression>();
    const rename = (expression: Expression): Expression => {
      let known = renamed.get(expression);
      if (known === undefined) renamed.set(expression, (known = renameParts(expression)));
      return known;
    };
    const renameParts = (expression: Expression): Expression => {
      switch (expression.kind) {
        case 'rule':
          return rule(scope + expression.name);
        case 'sequence':
          return { kind: 'sequence', parts: expression.parts.map(rename) };
        case 'choice':
          return { kind: 'choice', options: expression.options.map(rename) };
        case 'repeat':
          return { ...expression, body: rename(expression.body) };
        case 'automaton':
          return {
            kind: 'automaton',
            states: expression.states.map(({ accepts, edges }) => ({
              accepts,
              edges: edges.map(({ on, to }) => ({ on: rename(on), to })),
            })),
          };
        default:
          return expression;
      }
    };
    for (const [name, body] of rules) this.rules.set(scope + name, rename(body));
    return rename(root);
  }
}

/** The text with which a part must begin; none if it may begin with several. */
function beginningOf(format: StructuralFormat): readonly TagText[] {
  switch (format.type) {
    case 'const_string':
      return [format.value];
    case 'token':
      return [format];
    case 'tag':
      return [format.begin];
    case 'sequence':
      return format.elements.length > 0 ? beginningOf(format.elements[0]) : [];
    case 'or':
      return format.elements.flatMap(beginningOf);
    default:
      return [];
  }
}

/** Throws InvalidRequestError, which names the path of what is wrong or not supported. */
export function parseStructuralTag(tag: StructuralTag, options: JsonSchemaOptions): RuleSet {
  return new TagGrammar(options).build(tagFormatOf(tag));
}
