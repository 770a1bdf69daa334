/** POST /v1/chat/completions. */
import type { SamplingParams } from '../config/samplingParams';
import type { OutputDelta, OutputStream } from '../engine/outputs';
import type { CompletionOutput, RequestOutput } from '../requestOutput';
import { CHAT_PROMPT_FIELDS, chatOptionsOf, messagesOf } from './chatFields';
import type { Exchange } from './exchange';
import { badRequest, openAiErrorBody } from './httpError';
import { jsonInPieces, jsonResponse, LazyList } from './jsonResponse';
import { chatLogprobs, promptLogprobs, tokenTextOf } from './logprobs';
import {
  COMMON_FIELDS,
  countOf,
  flagOf,
  refuseFields,
  samplingParamsOf,
  type StreamSettings,
  streamSettingsOf,
} from './samplingFields';
import { splitDelta } from './splitDelta';
import { sseEvent } from './sse';
import { answerOf, deltaBody, finishReasonOf, messageBody } from './replyParts';
import { usageBody, usageBodyOf, usageOfOutput } from './usage';

/** Not computed here; refused by name. */
const REFUSED = [
  'audio',
  'functions',
  'function_call',
  'prediction',
  'web_search_options',
  'echo',
  'use_beam_search',
  'best_of',
];

export const CHAT_FIELDS: readonly string[] = [
  ...COMMON_FIELDS,
  ...CHAT_PROMPT_FIELDS,
  ...REFUSED,
  'max_completion_tokens',
  'logprobs',
  'top_logprobs',
  'modalities',
  'verbosity',
];

export const DONE = sseEvent('[DONE]');

/** First chunks of a stream's choices in one piece: there may be thousands of choices. */
const ROLES_AT_ONCE = 64;

/** What an answer shows of logprobs and token ids. */
interface Shown {
  numTop: number | null;
  asIds: boolean;
  tokenIds: boolean;
}

export async function chatCompletions(exchange: Exchange): Promise<Response> {
  const { fields, model } = exchange;
  refuseFields(fields, REFUSED);
  const streaming = streamSettingsOf(fields);
  const shown = shownOf(exchange);
  const params = paramsOf(exchange, shown);
  const messages = messagesOf(fields);
  const options = { ...chatOptionsOf(fields), ...exchange.callOptions };
  if (streaming.isStreamed) {
    const stream = model.llm.chatStream(messages, params, options);
    return exchange.stream(chatEvents(exchange, stream, params.n, shown, streaming), {
      errorEvents: (error) => sseEvent(openAiErrorBody(error)) + DONE,
    });
  }
  const [output] = await model.llm.chat(messages, params, { ...options, progress: false });
  return answer(exchange, output, shown);
}

function shownOf({ fields }: Exchange): Shown {
  const top = countOf(fields, 'top_logprobs');
  const isWanted = flagOf(fields, 'logprobs');
  if (top !== undefined && top > 0 && !isWanted) {
    throw badRequest('when using `top_logprobs`, `logprobs` must be set to true.', 'top_logprobs');
  }
  return {
    numTop: isWanted ? (top ?? 0) : null,
    asIds: flagOf(fields, 'return_tokens_as_token_ids'),
    tokenIds: flagOf(fields, 'return_token_ids'),
  };
}

function paramsOf({ fields, model }: Exchange, { numTop }: Shown): SamplingParams {
  const maxTokens = (fields.max_completion_tokens ?? fields.max_tokens ?? undefined) as
    number | undefined;
  const own = { maxTokens, logprobs: numTop ?? undefined };
  return samplingParamsOf(fields, model, { maxTokens: null }, own);
}

function answer({ id, created, model }: Exchange, output: RequestOutput, shown: Shown): Response {
  const { promptTokenIds, outputs } = output;
  const isLarge = shown.numTop !== null || output.promptLogprobs !== null;
  const body = {
    id: `chatcmpl-${id}`,
    object: 'chat.completion',
    created,
    model: model.name,
    choices: outputs.map((each) => choiceOf(each, shown)),
    usage: usageBodyOf(usageOfOutput(output)),
    prompt_logprobs: lazyPromptLogprobs(output),
    ...(shown.tokenIds && { prompt_token_ids: promptTokenIds }),
  };
  return isLarge ? jsonInPieces(body) : jsonResponse(body);
}

export function lazyPromptLogprobs({ promptLogprobs: all }: RequestOutput): LazyList | null {
  if (all === null) return null;
  return new LazyList(all.length, (start, end) => promptLogprobs(all.slice(start, end)));
}

function choiceOf(output: CompletionOutput, { numTop, asIds, tokenIds }: Shown): object {
  const { index, finishReason, stopReason, logprobs } = output;
  const content =
    logprobs === null || numTop === null
      ? null
      : new LazyList(logprobs.length, (start, end) =>
          chatLogprobs(logprobs.slice(start, end), numTop, tokenTextOf(asIds)),
        );
  return {
    index,
    message: messageBody(output),
    logprobs: content === null ? null : { content, refusal: null },
    finish_reason: finishReasonOf(finishReason, answerOf(output).toolCalls.length > 0),
    stop_reason: stopReason,
    ...(tokenIds && { token_ids: output.tokenIds }),
  };
}

async function* chatEvents(
  { id, created, model }: Exchange,
  stream: OutputStream,
  n: number,
  shown: Shown,
  { includeUsage, continuousUsage }: StreamSettings,
): AsyncGenerator<string, void> {
  const head = {
    id: `chatcmpl-${id}`,
    object: 'chat.completion.chunk',
    created,
    model: model.name,
  };
  const usage = includeUsage && !continuousUsage ? { usage: null } : {};
  let numOutputTokens = 0;
  let hasBegun = false;
  /** Choices with a tool call. */
  const withCalls = new Set<number>();
  for await (const delta of stream) {
    const soFar = () =>
      continuousUsage ? { usage: usageBody(delta.numPromptTokens, numOutputTokens) } : usage;
    if (!hasBegun) {
      let roles = '';
      for (let index = 0; index < n; index++) {
        const role = { role: 'assistant', content: '' };
        const choices = [{ index, delta: role, logprobs: null, finish_reason: null }];
        roles += sseEvent({ ...head, choices, ...soFar() });
        if (index % ROLES_AT_ONCE === ROLES_AT_ONCE - 1) {
          yield roles;
          roles = '';
        }
      }
      hasBegun = true;
      if (roles !== '') yield roles;
    }
    for (const part of splitDelta(delta)) {
      numOutputTokens += part.tokenIds.length;
      if ((part.message?.toolCalls.length ?? 0) > 0) withCalls.add(part.index);
      yield sseEvent({
        ...head,
        choices: [chunkOf(part, withCalls.has(part.index), shown)],
        ...soFar(),
      });
    }
  }
  if (includeUsage && stream.usage !== null) {
    const last = usageBodyOf(stream.usage);
    yield sseEvent({ ...head, choices: [], usage: last });
  }
  yield DONE;
}

function chunkOf(
  delta: OutputDelta,
  hasCalls: boolean,
  { numTop, asIds, tokenIds }: Shown,
): object {
  const { index, message, finishReason, stopReason, logprobs } = delta;
  const isShown = logprobs !== undefined && numTop !== null;
  return {
    index,
    delta: deltaBody(message),
    logprobs: isShown
      ? { content: chatLogprobs(logprobs, numTop, tokenTextOf(asIds)), refusal: null }
      : null,
    finish_reason: finishReasonOf(finishReason, hasCalls),
    ...(finishReason !== null && { stop_reason: stopReason }),
    ...(tokenIds && { token_ids: delta.tokenIds }),
  };
}
