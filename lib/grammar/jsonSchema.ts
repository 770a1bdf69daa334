/** JSON Schema (draft 2020-12) to a grammar. What no grammar here expresses is refused by its path. */
import { choice, type Expression, NEVER, rule, type RuleSet, sequence, text } from './expression';
import { anyJsonRules, type JsonPunctuation } from './jsonText';
import { numberExpression, stringExpression } from './scalarSchemas';
import { alternativesOf, type Part, type Type, typesOf, valuesOf } from './schemaConjunction';
import { locate } from './schemaConjunction';
import { isObject, type Located, type Schema, SchemaDocument } from './schemaDocument';
import { schemaError } from './schemaDocument';
import { checkForm } from './schemaForm';
import { arrayExpression, objectExpression, type SchemaRules } from './structureSchemas';
import { isType, memberSchemas, validates } from './schemaValidator';

/** Most rules of a schema's grammar. */
const MAX_RULES = 20_000;
/** Most values of enum. */
const MAX_VALUES = 20_000;

export interface JsonSchemaOptions {
  readonly punctuation: JsonPunctuation;
  /** Objects have no properties that their schema does not name, unless it says so. */
  readonly disableAdditionalProperties: boolean;
}

/** An argument of a function. */
export interface Member {
  readonly name: string;
  readonly isRequired: boolean;
  /** The schemas of its value. */
  readonly located: readonly Located[];
}

export class SchemaGrammar implements SchemaRules {
  readonly rules: Map<string, Expression>;
  readonly punctuation: JsonPunctuation;
  readonly allowsAdditional: boolean;
  readonly document: SchemaDocument;
  /** Rules by the paths of their schemas. */
  private readonly names = new Map<string, string>();
  private readonly pending: { name: string; located: readonly Located[] }[] = [];

  constructor(root: Schema, options: JsonSchemaOptions) {
    this.document = new SchemaDocument(root);
    checkForm(this.document);
    this.punctuation = options.punctuation;
    this.allowsAdditional = !options.disableAdditionalProperties;
    this.rules = new Map(anyJsonRules(options.punctuation));
  }

  build(root: Schema): RuleSet {
    return this.finish(this.valueOf([{ schema: root, path: '#' }]));
  }

  /** All rules, those that `start` needs among them. */
  finish(start: Expression): RuleSet {
    for (let next = this.pending.pop(); next !== undefined; next = this.pending.pop()) {
      this.rules.set(next.name, this.expressionOf(next.located));
    }
    return { root: start, rules: this.rules };
  }

  /** The rule of values that satisfy all schemas. */
  valueOf(located: readonly Located[]): Expression {
    const relevant = located.filter(({ schema }) => schema !== true);
    if (relevant.some(({ schema }) => schema === false)) return NEVER;
    if (relevant.length === 0) return rule('json.value');
    const paths = [...new Set(relevant.map(({ path }) => path))].sort();
    const key = paths.join(' ');
    let name = this.names.get(key);
    if (name === undefined) {
      name = key;
      this.names.set(key, name);
      this.pending.push({ name, located: relevant });
      this.countRule(paths[0]);
    }
    return rule(name);
  }

  addRule(path: string, expression: Expression): Expression {
    const name = `${path} ${this.rules.size}`;
    this.rules.set(name, expression);
    this.countRule(path);
    return rule(name);
  }

  private countRule(path: string): void {
    if (this.rules.size + this.pending.length > MAX_RULES) {
      throw schemaError(
        path,
        `the schema is too large: its grammar has more than ${MAX_RULES} rules`,
      );
    }
  }

  alternativesOf(located: readonly Located[]): Part[][] {
    return alternativesOf(this.document, located);
  }

  /** The properties of an object, those that its schema names. */
  membersOf(parts: readonly Part[]): readonly Member[] {
    const required = new Set<string>();
    const names = new Set<string>();
    for (const { schema } of parts) {
      for (const name of Object.keys(schema.properties ?? {})) names.add(name);
      for (const name of (schema.required as readonly string[] | undefined) ?? [])
        required.add(name);
    }
    for (const name of required) names.add(name);
    return [...names].map((name) => ({
      name,
      isRequired: required.has(name),
      located: parts.flatMap(({ schema, path }) => memberSchemas(schema, name, path)),
    }));
  }

  private expressionOf(located: readonly Located[]): Expression {
    const alternatives = alternativesOf(this.document, located);
    return choice(alternatives.map((parts) => this.conjunctionOf(parts)));
  }

  private conjunctionOf(parts: readonly Part[]): Expression {
    if (parts.length === 0) return rule('json.value');
    const types = typesOf(parts);
    const values = valuesOf(parts);
    if (values !== null) return this.valuesExpression(parts, types, values);
    return choice([...types].map((type) => this.typeExpression(type, parts)));
  }

  private valuesExpression(
    parts: readonly Part[],
    types: ReadonlySet<Type>,
    values: readonly unknown[],
  ): Expression {
    if (values.length > MAX_VALUES) {
      throw schemaError(parts[0].path, `it has more than ${MAX_VALUES} values`);
    }
    return choice(
      this.valuesAmong(parts, types, values).map((value) => this.valueExpression(value)),
    );
  }

  /** The values that satisfy all parts. */
  valuesAmong(
    parts: readonly Part[],
    types: ReadonlySet<Type>,
    values: readonly unknown[],
  ): readonly unknown[] {
    const located = parts.map(({ schema, path }) => locate(schema, path));
    return values.filter(
      (value) =>
        [...types].some((type) => isType(value, type)) && validates(this.document, located, value),
    );
  }

  /** A value as JSON, with white space where the pattern allows it. */
  valueExpression(value: unknown): Expression {
    const { punctuation } = this;
    if (Array.isArray(value)) {
      return punctuation.enclosed(
        '[',
        this.between(value.map((one) => this.valueExpression(one))),
        ']',
      );
    }
    if (isObject(value)) {
      const members = Object.entries(value).map(([name, member]) =>
        sequence(text(JSON.stringify(name)), punctuation.colon, this.valueExpression(member)),
      );
      return punctuation.enclosed('{', this.between(members), '}');
    }
    return text(JSON.stringify(value));
  }

  private between(items: readonly Expression[]): Expression | null {
    if (items.length === 0) return null;
    return sequence(
      ...items.flatMap((item, i) => (i === 0 ? [item] : [this.punctuation.comma, item])),
    );
  }

  typeExpression(type: Type, parts: readonly Part[]): Expression {
    switch (type) {
      case 'string':
        return stringExpression(parts);
      case 'number':
      case 'integer':
        return numberExpression(parts, type === 'integer');
      case 'boolean':
        return choice([text('true'), text('false')]);
      case 'null':
        return text('null');
      case 'object':
        return objectExpression(this, parts);
      case 'array':
        return arrayExpression(this, parts);
    }
  }
}

/** Throws InvalidRequestError, which names the path of what is wrong or not supported. */
export function parseJsonSchema(schema: Schema, options: JsonSchemaOptions): RuleSet {
  return new SchemaGrammar(schema, options).build(schema);
}
