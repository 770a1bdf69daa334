/** Compiles structuredOutputs to a program. */
import type { StructuralTag } from '../config/structuralTag';
import type { StructuredOutputs } from '../config/structuredOutputs';
import { InvalidRequestError } from '../errors';
import { parseEbnf } from './ebnf';
import { choice, rule, type RuleSet, text } from './expression';
import { parseJsonSchema } from './jsonSchema';
import { anyJsonRules, DEFAULT_WHITESPACE, JsonPunctuation } from './jsonText';
import { compileProgram } from './program';
import { parseRegex } from './regex';
import { isSchema } from './schemaDocument';
import { parseStructuralTag } from './structuralTag';

const NO_RULES: RuleSet['rules'] = new Map();

function ruleSetOf(outputs: StructuredOutputs): RuleSet {
  const { json, regex, choice: texts, grammar } = outputs;
  if (regex !== undefined) {
    return { root: parseRegex(regex, 'structuredOutputs.regex'), rules: NO_RULES };
  }
  if (texts !== undefined) return { root: choice(texts.map(text)), rules: NO_RULES };
  if (grammar !== undefined) return parseEbnf(grammar);
  const punctuation = new JsonPunctuation(
    parseRegex(
      outputs.whitespacePattern ?? DEFAULT_WHITESPACE,
      'structuredOutputs.whitespacePattern',
    ),
  );
  const disableAdditionalProperties = outputs.disableAdditionalProperties ?? false;
  if (outputs.structuralTag !== undefined) {
    const tag = JSON.parse(outputs.structuralTag) as StructuralTag;
    return parseStructuralTag(tag, { punctuation, disableAdditionalProperties });
  }
  if (json === undefined) {
    return { root: rule('json.object'), rules: new Map(anyJsonRules(punctuation)) };
  }
  const schema: unknown = JSON.parse(json);
  if (!isSchema(schema)) {
    throw new InvalidRequestError('structuredOutputs.json: it must be an object, true or false');
  }
  return parseJsonSchema(schema, {
    punctuation,
    disableAdditionalProperties,
  });
}

/** Throws InvalidRequestError, which says what is wrong or not supported, and where. */
export function compileStructuredOutputs(outputs: StructuredOutputs): Int32Array {
  try {
    return compileProgram(ruleSetOf(outputs));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new InvalidRequestError('structuredOutputs: the grammar is nested too deeply', {
      cause: error,
    });
  }
}
