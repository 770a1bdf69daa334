/**
 * `uniproc/ai-sdk`: a provider of the AI SDK whose models run in this process. Of `@ai-sdk/provider` it
 * has the types alone.
 */
import type {
  EmbeddingModelV4,
  JSONValue,
  LanguageModelV4,
  LanguageModelV4CallOptions,
  LanguageModelV4StreamPart,
  LanguageModelV4Usage,
  SharedV4Warning,
} from '@ai-sdk/provider' with { 'resolution-mode': 'import' };
import { SamplingParams, type SamplingParamsOptions } from './config/samplingParams';
import { contentOf, finishReasonOf, messagesOf, StreamParts, toolOptionsOf } from './aiSdkMessages';
import type { FinishReason, ServableLLM, Usage } from './index';
import { modelNameOf } from './server/servedModels';

/** Models of the AI SDK over one LLM. */
export interface UniprocProvider {
  readonly specificationVersion: 'v4';
  (): LanguageModelV4;
  /** For generateText, streamText and structured objects. `providerOptions.uniproc`: sampling parameters. */
  languageModel(): LanguageModelV4;
  /** For embed and embedMany, with an embedding model. */
  embeddingModel(): EmbeddingModelV4;
}

/** A provider over `llm`, which it does not shut down. */
export function createUniproc(llm: ServableLLM): UniprocProvider {
  const languageModel = () => languageModelOf(llm);
  return Object.assign(() => languageModelOf(llm), {
    specificationVersion: 'v4' as const,
    languageModel,
    embeddingModel: () => embeddingModelOf(llm),
  });
}

const PROVIDER = 'uniproc';

function languageModelOf(llm: ServableLLM): LanguageModelV4 {
  return {
    specificationVersion: 'v4',
    provider: PROVIDER,
    modelId: modelNameOf(llm),
    supportedUrls: {},
    doGenerate: async (options) => {
      const { messages, params, callOptions, warnings } = callOf(llm, options);
      const [output] = await llm.chat(messages, params, { ...callOptions, progress: false });
      const [{ text, message, finishReason, tokenIds, numReasoningTokens }] = output.outputs;
      const answer = message ?? { content: text, reasoning: null, toolCalls: [] };
      const usage = {
        numPromptTokens: output.promptTokenIds.length,
        numCachedTokens: output.numCachedTokens,
        numOutputTokens: tokenIds.length,
        numReasoningTokens,
      };
      return {
        content: contentOf(answer),
        finishReason: finishReasonOf(finishReason, answer.toolCalls.length > 0),
        usage: usageOf(usage),
        warnings,
      };
    },
    doStream: (options) => {
      const { messages, params, callOptions, warnings } = callOf(llm, options);
      const deltas = llm.chatStream(messages, params, callOptions);
      const parts = partsOf(deltas, warnings);
      const stream = new ReadableStream<LanguageModelV4StreamPart>(
        {
          pull: async (controller) => {
            const { done, value } = await parts.next();
            if (done === true) controller.close();
            else controller.enqueue(value);
          },
          // Aborts the request.
          cancel: async () => {
            await deltas.return();
          },
        },
        { highWaterMark: 0 },
      );
      return Promise.resolve({ stream });
    },
  };
}

async function* partsOf(
  deltas: ReturnType<ServableLLM['chatStream']>,
  warnings: SharedV4Warning[],
): AsyncGenerator<LanguageModelV4StreamPart, void> {
  yield { type: 'stream-start', warnings };
  const parts = new StreamParts();
  let reason: FinishReason | null = null;
  try {
    for await (const { message, finishReason } of deltas) {
      reason = finishReason;
      // Without a message, the text is of a call or a mark that is not complete.
      if (message !== undefined) yield* parts.of(message);
    }
    yield* parts.end();
    const finishReason = finishReasonOf(reason, parts.hasCalls);
    yield { type: 'finish', finishReason, usage: usageOf(deltas.usage) };
  } catch (error) {
    yield { type: 'error', error };
  }
}

function callOf({ engine }: ServableLLM, options: LanguageModelV4CallOptions) {
  const { responseFormat, reasoning, abortSignal } = options;
  const warnings: SharedV4Warning[] = [];
  const isSet = reasoning !== undefined && reasoning !== 'provider-default';
  if (isSet && reasoning !== 'none') {
    const details = 'the model reasons or not, without degrees';
    warnings.push({ type: 'compatibility', feature: 'reasoning', details });
  }
  const given: SamplingParamsOptions = withoutAbsent({
    maxTokens: options.maxOutputTokens,
    temperature: options.temperature,
    topP: options.topP,
    topK: options.topK,
    presencePenalty: options.presencePenalty,
    frequencyPenalty: options.frequencyPenalty,
    stop: options.stopSequences,
    seed: options.seed,
    ...(responseFormat?.type === 'json' && {
      structuredOutputs:
        responseFormat.schema === undefined
          ? { jsonObject: true }
          : { json: responseFormat.schema },
    }),
    ...(options.providerOptions?.[PROVIDER] as Record<string, JSONValue> | undefined),
  });
  const { generation } = engine.config.model;
  return {
    messages: options.prompt.flatMap(messagesOf),
    params: SamplingParams.fromDefaults({ maxTokens: null, ...generation }, given),
    callOptions: {
      ...toolOptionsOf(options),
      ...(isSet && { reasoning: reasoning !== 'none' }),
      ...(abortSignal !== undefined && { signal: abortSignal }),
    },
    warnings,
  };
}

function withoutAbsent(options: Readonly<Record<string, unknown>>): SamplingParamsOptions {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}

function usageOf(usage: Usage | null): LanguageModelV4Usage {
  const total = usage?.numPromptTokens;
  const cacheRead = usage?.numCachedTokens;
  return {
    inputTokens: {
      total,
      noCache: usage === null ? undefined : usage.numPromptTokens - usage.numCachedTokens,
      cacheRead,
      cacheWrite: undefined,
    },
    outputTokens: {
      total: usage?.numOutputTokens,
      text: usage === null ? undefined : usage.numOutputTokens - (usage.numReasoningTokens ?? 0),
      reasoning: usage?.numReasoningTokens,
    },
  };
}

function embeddingModelOf(llm: ServableLLM): EmbeddingModelV4 {
  return {
    specificationVersion: 'v4',
    provider: PROVIDER,
    modelId: modelNameOf(llm),
    maxEmbeddingsPerCall: llm.engine.config.limits.maxPromptsPerCall,
    supportsParallelCalls: true,
    doEmbed: async ({ values, dimensions, abortSignal }) => {
      const outputs = await llm.embed(values, {
        ...(dimensions !== undefined && { dimensions }),
        ...(abortSignal !== undefined && { signal: abortSignal }),
        progress: false,
      });
      const tokens = outputs.reduce((sum, { promptTokenIds }) => sum + promptTokenIds.length, 0);
      return {
        embeddings: outputs.map(({ embedding }) => Array.from(embedding)),
        usage: { tokens },
        warnings: [],
      };
    },
  };
}
