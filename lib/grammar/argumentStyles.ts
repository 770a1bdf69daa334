/** A function's arguments in the notations of tool calls that are not JSON. */
import type { StructuralFormat } from '../config/structuralTag';
import {
  type AutomatonState,
  choice,
  type Expression,
  type RuleSet,
  sequence,
  set,
  text,
  tokenText,
} from './expression';
import { freeText } from './freeText';
import { type JsonSchemaOptions, SchemaGrammar } from './jsonSchema';
import { complementRanges, rangesOf, repeat } from './expression';
import { stringExpression } from './scalarSchemas';
import { type Part, typesOf, valuesOf } from './schemaConjunction';
import { type Located, type Schema, schemaError, under } from './schemaDocument';

type ArgumentFormat = Extract<
  StructuralFormat,
  { type: 'qwen_xml_parameter' | 'pythonic_arguments' | 'gemma_arguments' }
>;

/** How a notation writes arguments; what it does not write in its own way is JSON. */
interface Style {
  /** Around each argument. */
  argument(name: string, value: Expression): Expression;
  separator: string;
  /** Names that the notation can write. */
  readonly names: RegExp;
  /** A string must not contain this, since it has no escapes; null: strings are JSON. */
  readonly rawEnd: string | null;
  /** Strings have no quotes. */
  readonly isBare: boolean;
  string(content: Expression): Expression;
  readonly words: Readonly<Record<'true' | 'false' | 'null', string>>;
}

const JSON_WORDS = { true: 'true', false: 'false', null: 'null' };

function styleOf(format: ArgumentFormat): Style {
  switch (format.type) {
    case 'qwen_xml_parameter':
      return {
        argument: (name, value) =>
          sequence(text(`<parameter=${name}>\n`), value, text('\n</parameter>\n')),
        separator: '',
        names: /^[^<>\s]+$/,
        rawEnd: '</parameter>',
        isBare: true,
        string: (content) => content,
        words: JSON_WORDS,
      };
    case 'pythonic_arguments':
      return {
        argument: (name, value) => sequence(text(`${name}=`), value),
        separator: ', ',
        names: /^[A-Za-z_]\w*$/,
        rawEnd: null,
        isBare: false,
        string: (content) => content,
        words: { true: 'True', false: 'False', null: 'None' },
      };
    case 'gemma_arguments': {
      const { quote } = format;
      const mark = text(typeof quote === 'string' ? quote : tokenText(quote.token));
      return {
        argument: (name, value) => sequence(text(`${name}:`), value),
        separator: ',',
        names: /^[^\s:,{}[\]<>|"]+$/,
        rawEnd: typeof quote === 'string' ? quote : '',
        isBare: false,
        string: (content) => sequence(mark, content, mark),
        words: JSON_WORDS,
      };
    }
  }
}

class ArgumentGrammar {
  constructor(
    private readonly schema: SchemaGrammar,
    private readonly style: Style,
  ) {}

  /** The root schema's object. */
  arguments(parts: readonly Part[]): Expression {
    const members = this.schema.membersOf(parts).map(({ name, isRequired, located }) => {
      if (!this.style.names.test(name)) {
        throw schemaError(
          under('#', 'properties', name),
          'the notation of tool calls of this model cannot write the name',
        );
      }
      return { isRequired, pair: this.style.argument(name, this.value(located)) };
    });
    return listOf(members, this.style.separator);
  }

  private value(located: readonly Located[]): Expression {
    const { schema, style } = this;
    const alternatives = schema.alternativesOf(located);
    const kinds = new Set<string>();
    for (const parts of alternatives) {
      const values = parts.length === 0 ? null : valuesOf(parts);
      const types = typesOf(parts);
      for (const type of values === null ? types : schema.valuesAmong(parts, types, values)) {
        kinds.add(values === null ? String(type) : type === null ? 'null' : typeof type);
      }
    }
    // A bare string could be read as JSON of another type: the value is JSON, strings too.
    const isMixed =
      kinds.has('string') && [...kinds].some((kind) => !/^(?:string|null)$/.test(kind));
    if (isMixed && style.isBare) return schema.valueOf(located);
    return choice(alternatives.map((parts) => this.alternative(parts)));
  }

  private alternative(parts: readonly Part[]): Expression {
    const { schema, style } = this;
    const types = typesOf(parts);
    const values = parts.length === 0 ? null : valuesOf(parts);
    if (values !== null) {
      return choice(
        schema.valuesAmong(parts, types, values).map((value) => {
          if (typeof value === 'string' && style.rawEnd !== null) {
            if (style.rawEnd !== '' && value.includes(style.rawEnd)) {
              throw schemaError(
                parts[0].path,
                `a value has ${style.rawEnd}, which ends the argument`,
              );
            }
            if (/\p{Surrogate}/u.test(value)) {
              throw schemaError(parts[0].path, 'a value has half of a surrogate pair');
            }
            return style.string(text(value));
          }
          const word = String(value) as keyof Style['words'];
          if (typeof value === 'boolean' || value === null) return text(style.words[word]);
          return schema.valueExpression(value);
        }),
      );
    }
    return choice(
      [...types].map((type) => {
        if (type === 'boolean') return choice([text(style.words.true), text(style.words.false)]);
        if (type === 'null') return text(style.words.null);
        if (type === 'string' && style.rawEnd !== null)
          return style.string(this.raw(parts, style.rawEnd));
        return schema.typeExpression(type, parts);
      }),
    );
  }

  /** A string without quotes. One with conditions has no character that begins `end`. */
  private raw(parts: readonly Part[], end: string): Expression {
    const isFree = parts.every(({ schema }) =>
      ['minLength', 'maxLength', 'pattern', 'format'].every((name) => schema[name] === undefined),
    );
    if (isFree) return freeText(end === '' ? [] : [{ text: end, after: null }]);
    const allowed = complementRanges(end === '' ? [] : rangesOf(end[0]));
    return stringExpression(parts, { character: allowed, content: repeat(set(allowed), 0, null) });
  }
}

/** Members in order; optional ones may be left out. */
function listOf(
  members: readonly { isRequired: boolean; pair: Expression }[],
  separator: string,
): Expression {
  // State 2 i + s: member i is next, and something was written before it if s is 1.
  const states: AutomatonState[] = [];
  for (let i = 0; i <= members.length; i++) {
    for (const hasBefore of [false, true]) {
      const edges: { on: Expression; to: number }[] = [];
      let accepts = true;
      for (let j = i; j < members.length; j++) {
        const { isRequired, pair } = members[j];
        const on = hasBefore && separator !== '' ? sequence(text(separator), pair) : pair;
        edges.push({ on, to: 2 * (j + 1) + 1 });
        if (isRequired) {
          accepts = false;
          break;
        }
      }
      states.push({ accepts, edges });
    }
  }
  return { kind: 'automaton', states };
}

/** Throws InvalidRequestError for a schema that is not one of an object with properties. */
export function argumentRules(
  root: Schema,
  format: ArgumentFormat,
  options: JsonSchemaOptions,
): RuleSet {
  const schema = new SchemaGrammar(root, options);
  const alternatives = schema.alternativesOf([{ schema: root, path: '#' }]);
  if (alternatives.length !== 1) {
    throw schemaError(
      '#',
      'the arguments of a function must be one object, without anyOf and oneOf',
    );
  }
  const grammar = new ArgumentGrammar(schema, styleOf(format));
  return schema.finish(grammar.arguments(alternatives[0]));
}
