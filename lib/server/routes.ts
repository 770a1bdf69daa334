/** The server's endpoints. */

import { CHAT_FIELDS, chatCompletions } from './chatCompletions';
import { COMPLETION_FIELDS, completions } from './completions';
import { EMBEDDING_FIELDS, embeddings, pooling, POOLING_FIELDS } from './embeddings';
import type { Exchange } from './exchange';
import { anthropicErrorBody, type HttpError, openAiErrorBody } from './httpError';
import { jsonResponse } from './jsonResponse';
import { MESSAGES_FIELDS } from './anthropicFields';
import { countTokens, messages } from './messages';
import { metricsText } from './modelMetrics';
import { CONTENT_TYPE } from './prometheus';
import { responses } from './responses';
import { RESPONSES_FIELDS } from './responsesFields';
import type { ServedModel, ServedModels } from './servedModels';
import { DETOKENIZE_FIELDS, detokenize, tokenize, TOKENIZE_FIELDS } from './tokenizing';
import { packageVersion } from './version';

/** An endpoint with a JSON body. */
export interface PostRoute {
  /** The fields that it knows; others are ignored with a warning. */
  fields: readonly string[];
  /** Whether it generates, and so counts as load. */
  isLoad: boolean;
  errorBody: (error: HttpError) => object;
  /** The field of the dialect that asks for a form of the text. */
  formatField: string;
  answer: (exchange: Exchange) => Promise<Response>;
}

const post = (
  fields: readonly string[],
  answer: PostRoute['answer'],
  options: Partial<PostRoute> = {},
): PostRoute => ({
  fields,
  answer,
  isLoad: true,
  errorBody: openAiErrorBody,
  formatField: 'response_format',
  ...options,
});

const anthropic = { errorBody: anthropicErrorBody, formatField: 'output_config.format' };

export const POST_ROUTES: ReadonlyMap<string, PostRoute> = new Map([
  ['/v1/chat/completions', post(CHAT_FIELDS, chatCompletions)],
  ['/v1/completions', post(COMPLETION_FIELDS, completions)],
  ['/v1/responses', post(RESPONSES_FIELDS, responses, { formatField: 'text.format' })],
  ['/v1/messages', post(MESSAGES_FIELDS, messages, anthropic)],
  [
    '/v1/messages/count_tokens',
    post(MESSAGES_FIELDS, countTokens, { ...anthropic, isLoad: false }),
  ],
  ['/v1/embeddings', post(EMBEDDING_FIELDS, embeddings)],
  ['/pooling', post(POOLING_FIELDS, pooling)],
  ['/tokenize', post(TOKENIZE_FIELDS, tokenize, { isLoad: false })],
  ['/detokenize', post(DETOKENIZE_FIELDS, detokenize, { isLoad: false })],
]);

/** What endpoints without a body tell of. */
export interface ServerState {
  models: ServedModels;
  /** Requests that generate now. */
  readonly load: number;
}

export type GetRoute = (state: ServerState) => Response | Promise<Response>;

const GET_ROUTES: ReadonlyMap<string, GetRoute> = new Map<string, GetRoute>([
  ['/health', health],
  ['/ping', health],
  ['/version', () => jsonResponse({ version: packageVersion() })],
  ['/load', ({ load }) => jsonResponse({ server_load: load })],
  ['/v1/models', listModels],
  [
    '/metrics',
    ({ models }) =>
      new Response(metricsText(models.all), { headers: { 'content-type': CONTENT_TYPE } }),
  ],
]);

/** 200 if every engine runs, else 503. */
async function health({ models }: ServerState): Promise<Response> {
  try {
    await Promise.all(models.all.map(({ llm }) => llm.checkHealth()));
    return new Response(null, { status: 200 });
  } catch {
    return new Response(null, { status: 503 });
  }
}

function listModels({ models }: ServerState): Response {
  return jsonResponse({ object: 'list', data: models.all.map(modelBody) });
}

const modelBody = ({ name, created, llm }: ServedModel) => ({
  id: name,
  object: 'model',
  created,
  owned_by: 'uniproc',
  root: llm.engine.config.model.path,
  parent: null,
  max_model_len: llm.engine.config.model.maxModelLen,
});

const MODEL = /^\/v1\/models\/(.+)$/;

/** The route of a path for GET: one of the table, or that of one model. */
export function getRouteOf(path: string): GetRoute | undefined {
  const name = MODEL.exec(path)?.[1];
  if (name === undefined) return GET_ROUTES.get(path);
  return ({ models }) => jsonResponse(modelBody(models.find(decoded(name))));
}

function decoded(name: string): string {
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}
