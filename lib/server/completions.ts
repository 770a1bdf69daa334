/** POST /v1/completions. */
import { limitedBy } from '../config/limits';
import type { SamplingParams } from '../config/samplingParams';
import type { Prompt } from '../engine/inputProcessor';
import type { OutputDelta, OutputStream } from '../engine/outputs';
import type { CompletionOutput, RequestOutput } from '../requestOutput';
import { slicedWork } from '../slicedWork';
import { DONE, lazyPromptLogprobs } from './chatCompletions';
import { tokenizingOptionsOf } from './chatFields';
import { promptsOf } from './completionFields';
import type { Exchange } from './exchange';
import { badRequest, openAiErrorBody } from './httpError';
import { jsonInPieces, jsonResponse } from './jsonResponse';
import { CompletionLogprobs, type TokenText, tokenTextOf } from './logprobs';
import { mergeStreams } from './mergeStreams';
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
import { usageBody } from './usage';

/** Not computed here; refused by name. */
const REFUSED = ['suffix', 'best_of', 'use_beam_search', 'prompt_embeds'];

export const COMPLETION_FIELDS: readonly string[] = [
  ...COMMON_FIELDS,
  ...REFUSED,
  'prompt',
  'echo',
  'logprobs',
];

interface Shown {
  numTop: number | null;
  text: TokenText;
  tokenIds: boolean;
  echo: boolean;
}

export async function completions(exchange: Exchange): Promise<Response> {
  const { fields, model, callOptions } = exchange;
  refuseFields(fields, REFUSED);
  const streaming = streamSettingsOf(fields);
  const numTop = countOf(fields, 'logprobs') ?? null;
  const shown: Shown = {
    numTop,
    text: tokenTextOf(flagOf(fields, 'return_tokens_as_token_ids')),
    tokenIds: flagOf(fields, 'return_token_ids'),
    echo: flagOf(fields, 'echo'),
  };
  if (shown.echo && streaming.isStreamed) {
    throw badRequest('echo is not supported with stream', 'echo');
  }
  const prompts = promptsOf(fields);
  const maxTokens = (fields.max_tokens ?? undefined) as number | undefined;
  const params = samplingParamsOf(
    fields,
    model,
    { maxTokens: 16 },
    {
      maxTokens,
      logprobs: numTop ?? undefined,
      // An echoed prompt has logprobs, too.
      ...(shown.echo && numTop !== null && { promptLogprobs: numTop }),
    },
  );
  const options = { ...tokenizingOptionsOf(fields), ...callOptions };
  if (streaming.isStreamed) {
    return stream(exchange, prompts, params, options, shown, streaming);
  }
  const outputs = await model.llm.generate(prompts, params, { ...options, progress: false });
  return answer(exchange, outputs, shown);
}

async function answer(
  { id, created, model, fields }: Exchange,
  outputs: readonly RequestOutput[],
  shown: Shown,
): Promise<Response> {
  const choices: object[] = [];
  let numPromptTokens = 0;
  let numOutputTokens = 0;
  let numCachedTokens = 0;
  let hasPromptLogprobs = false;
  for (const output of outputs) {
    numPromptTokens += output.promptTokenIds.length;
    numCachedTokens += output.numCachedTokens;
    const prompt = shown.echo ? await promptText(model.llm.tokenizer, output) : '';
    for (const each of output.outputs) {
      numOutputTokens += each.tokenIds.length;
      const logprobs = await logprobsOf(output, each, shown, model.llm.tokenizer);
      choices.push({
        index: choices.length,
        text: prompt + each.text,
        logprobs,
        finish_reason: each.finishReason,
        stop_reason: each.stopReason,
        // With echo, the prompt's are in `logprobs`.
        prompt_logprobs: fields.prompt_logprobs != null ? lazyPromptLogprobs(output) : null,
        ...(shown.tokenIds && {
          prompt_token_ids: output.promptTokenIds,
          token_ids: each.tokenIds,
        }),
      });
    }
    hasPromptLogprobs ||= output.promptLogprobs !== null;
  }
  const body = {
    id: `cmpl-${id}`,
    object: 'text_completion',
    created,
    model: model.name,
    choices,
    usage: usageBody(numPromptTokens, numOutputTokens, numCachedTokens),
  };
  return shown.numTop !== null || hasPromptLogprobs ? jsonInPieces(body) : jsonResponse(body);
}

type MaybeTokenizer = Exchange['model']['llm']['tokenizer'];

async function promptText(tokenizer: MaybeTokenizer, output: RequestOutput): Promise<string> {
  if (output.prompt !== null) return output.prompt;
  return (await tokenizer?.decode(output.promptTokenIds)) ?? '';
}

async function logprobsOf(
  { promptLogprobs, promptTokenIds }: RequestOutput,
  { logprobs }: CompletionOutput,
  { numTop, text, echo }: Shown,
  tokenizer: MaybeTokenizer,
): Promise<object | null> {
  if (logprobs === null || numTop === null) return null;
  const all = new CompletionLogprobs(numTop, text, 0);
  const first = tokenizer?.idToToken(promptTokenIds[0]);
  function* appending(): Generator<void, void> {
    for (const position of echo ? (promptLogprobs ?? []) : []) {
      all.append(position, first);
      yield;
    }
    for (const position of logprobs ?? []) {
      all.append(position);
      yield;
    }
  }
  await slicedWork.finish(appending());
  return all.lists;
}

function stream(
  exchange: Exchange,
  prompts: readonly Prompt[],
  params: SamplingParams,
  options: object,
  shown: Shown,
  streaming: StreamSettings,
): Promise<Response> {
  const { llm } = exchange.model;
  const { limits } = llm.engine.config;
  if (prompts.length > limits.maxPromptsPerCall) {
    throw badRequest(
      `the call has ${prompts.length} prompts; ${limitedBy(limits, 'maxPromptsPerCall')}`,
      'prompt',
    );
  }
  const start = (index: number) => llm.stream(prompts[index], params, options);
  const all = events(exchange, prompts.length, start, params.n, shown, streaming);
  return exchange.stream(all, {
    errorEvents: (error) => sseEvent(openAiErrorBody(error)) + DONE,
  });
}

async function* events(
  { id, created, model }: Exchange,
  numPrompts: number,
  start: (index: number) => OutputStream,
  n: number,
  shown: Shown,
  { includeUsage, continuousUsage }: StreamSettings,
): AsyncGenerator<string, void> {
  const head = { id: `cmpl-${id}`, object: 'text_completion', created, model: model.name };
  const usage = includeUsage && !continuousUsage ? { usage: null } : {};
  const streams: OutputStream[] = [];
  const offsets = new Float64Array(numPrompts * n);
  const numOutputTokens = new Float64Array(numPrompts);
  for await (const { index, delta } of mergeStreams(numPrompts, start, streams)) {
    const choice = index * n + delta.index;
    for (const part of splitDelta(delta)) {
      numOutputTokens[index] += part.tokenIds.length;
      const soFar = continuousUsage
        ? { usage: usageBody(delta.numPromptTokens, numOutputTokens[index]) }
        : usage;
      yield sseEvent({ ...head, choices: [chunkOf(part, choice, shown, offsets)], ...soFar });
    }
  }
  if (includeUsage) {
    const all = streams.map((each) => each.usage).filter((each) => each !== null);
    const sum = (name: 'numPromptTokens' | 'numOutputTokens' | 'numCachedTokens') =>
      all.reduce((total, u) => total + u[name], 0);
    const total = usageBody(sum('numPromptTokens'), sum('numOutputTokens'), sum('numCachedTokens'));
    yield sseEvent({ ...head, choices: [], usage: total });
  }
  yield DONE;
}

/** `offsets`: characters of each choice so far. */
function chunkOf(
  delta: OutputDelta,
  index: number,
  { numTop, text, tokenIds }: Shown,
  offsets: Float64Array,
): object {
  let logprobs: object | null = null;
  if (delta.logprobs !== undefined && numTop !== null) {
    const all = new CompletionLogprobs(numTop, text, offsets[index]);
    for (const position of delta.logprobs) all.append(position);
    offsets[index] = all.offset;
    logprobs = all.lists;
  }
  return {
    index,
    text: delta.text,
    logprobs,
    finish_reason: delta.finishReason,
    ...(delta.finishReason !== null && { stop_reason: delta.stopReason }),
    ...(tokenIds && { token_ids: delta.tokenIds }),
  };
}
