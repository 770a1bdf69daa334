/**
 * `response_format` (OpenAI's) and `structured_outputs` (vLLM's) as the sampling parameter
 * `structuredOutputs`.
 */
import type { StructuralTag } from '../config/structuralTag';
import type { StructuredOutputsOptions } from '../config/structuredOutputs';
import type { Fields } from './body';
import { badRequest, HttpError, notSupported, snakeCase } from './httpError';

/** Fields of the parameter; vLLM's have the same names in snake case. */
const FIELDS: ReadonlyMap<string, string> = new Map(
  (
    [
      'json',
      'regex',
      'choice',
      'grammar',
      'jsonObject',
      'structuralTag',
      'whitespacePattern',
      'disableAdditionalProperties',
    ] satisfies (keyof StructuredOutputsOptions)[]
  ).map((name) => [snakeCase(name), name]),
);

const VLLM = 'structured_outputs';
const OPENAI = 'response_format';

/** Earlier names of vLLM: ignored, they would leave the text free. */
const EARLIER = ['guided_json', 'guided_regex', 'guided_choice', 'guided_grammar'];

/** The parameter, which the engine checks; null if the request asks for no structure. Throws HttpError. */
export function structuredOutputsOf(fields: Fields): StructuredOutputsOptions | null {
  const earlier = EARLIER.find((name) => fields[name] != null);
  if (earlier !== undefined) throw notSupported(earlier, `is not supported; set ${VLLM}`);
  const fromFormat = fromOpenAi(fields[OPENAI]);
  const structured = fields[VLLM] ?? null;
  if (structured === null) return fromFormat;
  if (fromFormat === null) return fromVllm(structured);
  throw badRequest(`${VLLM} and ${OPENAI} are both set; set one of them`, VLLM);
}

/** An error about the structure, named after the field `formatField` if that asked for it. */
export function structureError(error: HttpError, fields: Fields, formatField: string): HttpError {
  const isAboutIt = error.param === VLLM || error.param === OPENAI;
  if (!isAboutIt || fields[VLLM] != null) return error;
  const message = error.message.replace(
    /^(?:structured_outputs(?:\.json)?|response_format)/,
    formatField,
  );
  return new HttpError(error.status, message, formatField);
}

/** The format of another dialect, where the schema is a member, as OpenAI's `response_format`. */
export function responseFormatOf(format: unknown): unknown {
  if (!isObject(format) || format.type !== 'json_schema') return format;
  const { name, schema, strict } = format;
  return { type: 'json_schema', json_schema: { name, schema, strict } };
}

const isObject = (value: unknown): value is Fields =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

function fromVllm(structured: unknown): StructuredOutputsOptions {
  if (!isObject(structured)) throw badRequest(`${VLLM} must be an object`, VLLM);
  const given: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(structured)) {
    const field = FIELDS.get(name);
    if (field !== undefined) given[field] = value;
    // What asks for nothing is accepted, such as disable_fallback: false.
    else if (value !== null && value !== false) {
      throw notSupported(VLLM, `has the field ${name.slice(0, 64)}, which is not supported`);
    }
  }
  return given;
}

function fromOpenAi(format: unknown): StructuredOutputsOptions | null {
  if (format === undefined || format === null) return null;
  if (!isObject(format)) throw badRequest(`${OPENAI} must be an object`, OPENAI);
  if (format.type === 'text') return null;
  if (format.type === 'json_object') return { jsonObject: true };
  if (format.type === 'structural_tag')
    return { structuralTag: format as unknown as StructuralTag };
  const wrapped = format.json_schema;
  if (format.type === 'json_schema' && isObject(wrapped) && isObject(wrapped.schema)) {
    return { json: wrapped.schema };
  }
  throw badRequest(
    `${OPENAI}.type must be 'text', 'json_object', 'structural_tag', or 'json_schema' with json_schema.schema`,
    OPENAI,
  );
}
