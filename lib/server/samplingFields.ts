/** A request's fields as sampling parameters of the engine. */
import { SamplingParams, type SamplingParamsOptions } from '../config/samplingParams';
import type { Fields } from './body';
import { badRequest, notSupported } from './httpError';
import type { ServedModel } from './servedModels';
import { structuredOutputsOf } from './structuredOutputs';

/** Sampling parameters by the field that sets them, OpenAI's and vLLM's. */
const PARAMETERS: Readonly<Record<string, keyof SamplingParamsOptions>> = {
  n: 'n',
  temperature: 'temperature',
  top_p: 'topP',
  top_k: 'topK',
  min_p: 'minP',
  presence_penalty: 'presencePenalty',
  frequency_penalty: 'frequencyPenalty',
  repetition_penalty: 'repetitionPenalty',
  logit_bias: 'logitBias',
  allowed_token_ids: 'allowedTokenIds',
  bad_words: 'badWords',
  seed: 'seed',
  stop: 'stop',
  stop_token_ids: 'stopTokenIds',
  include_stop_str_in_output: 'includeStopStrInOutput',
  ignore_eos: 'ignoreEos',
  min_tokens: 'minTokens',
  prompt_logprobs: 'promptLogprobs',
  skip_special_tokens: 'skipSpecialTokens',
};

/** Fields that every generating endpoint of OpenAI's dialect knows. */
export const COMMON_FIELDS: readonly string[] = [
  ...Object.keys(PARAMETERS),
  'model',
  'stream',
  'stream_options',
  'max_tokens',
  'response_format',
  'structured_outputs',
  'priority',
  'cache_salt',
  'truncate_prompt_tokens',
  'add_special_tokens',
  'return_token_ids',
  'return_tokens_as_token_ids',
  // These change nothing of the answer.
  'user',
  'metadata',
  'store',
  'service_tier',
  'safety_identifier',
  'prompt_cache_key',
  'prompt_cache_retention',
];

/** Refuses fields of other engines by name; null and false ask for nothing. */
export function refuseFields(fields: Fields, refused: readonly string[]): void {
  for (const name of refused) {
    const value = fields[name];
    if (value !== undefined && value !== null && value !== false) throw notSupported(name);
  }
}

export interface SamplingDefaults {
  /** maxTokens without the client's and generation_config.json's. */
  maxTokens: number | null;
}

/**
 * The parameters: the client's, else generation_config.json's, else the defaults. A field that is null
 * counts as absent. Throws InvalidRequestError or HttpError.
 */
export function samplingParamsOf(
  fields: Fields,
  { llm }: ServedModel,
  defaults: SamplingDefaults,
  own: SamplingParamsOptions,
): SamplingParams {
  const options: Record<string, unknown> = {};
  for (const [field, name] of Object.entries(PARAMETERS)) {
    const value = fields[field];
    if (value !== undefined && value !== null) options[name] = value;
  }
  const given = Object.entries(own).filter(([, value]) => value !== undefined);
  const structuredOutputs = structuredOutputsOf(fields);
  return SamplingParams.fromDefaults(
    { ...defaults, ...llm.engine.config.model.generation },
    {
      ...options,
      ...(structuredOutputs !== null && { structuredOutputs }),
      ...Object.fromEntries(given),
    },
  );
}

/** A field that is true or false; absent is false. Throws HttpError. */
export function flagOf(fields: Fields, name: string): boolean {
  const value = fields[name] ?? false;
  if (typeof value === 'boolean') return value;
  throw badRequest(`${name} must be true or false`, name);
}

/** A field that is an integer of at least 0, or absent. Throws HttpError. */
export function countOf(fields: Fields, name: string): number | undefined {
  const value = fields[name] ?? undefined;
  if (value === undefined || (Number.isInteger(value) && (value as number) >= 0)) {
    return value as number | undefined;
  }
  throw badRequest(`${name} must be an integer of at least 0`, name);
}

export interface StreamSettings {
  isStreamed: boolean;
  /** A chunk with the usage at the end. */
  includeUsage: boolean;
  /** The usage so far in every chunk. */
  continuousUsage: boolean;
}

/** Throws HttpError. */
export function streamSettingsOf(fields: Fields): StreamSettings {
  const isStreamed = flagOf(fields, 'stream');
  const options = fields.stream_options ?? {};
  if (typeof options !== 'object')
    throw badRequest('stream_options must be an object', 'stream_options');
  if (!isStreamed && fields.stream_options != null) {
    throw badRequest('Stream options can only be defined when `stream=True`.', 'stream_options');
  }
  if (isStreamed && fields.prompt_logprobs != null) {
    throw badRequest('`prompt_logprobs` are not available when `stream=True`.', 'prompt_logprobs');
  }
  const includeUsage = flagOf(options as Fields, 'include_usage');
  const continuousUsage = includeUsage && flagOf(options as Fields, 'continuous_usage_stats');
  return { isStreamed, includeUsage, continuousUsage };
}
