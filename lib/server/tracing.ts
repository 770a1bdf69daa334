/**
 * OpenTelemetry spans of requests, with the names and attributes of vLLM's, where the program has
 * `@opentelemetry/api`. Without it, or without a provider, there are none.
 */
import type { Attributes, Context, Span } from '@opentelemetry/api';
import type { SamplingParams } from '../config/samplingParams';
import type { OutputDelta, OutputStream } from '../engine/outputs';
import type { RequestMetrics, Usage } from '../requestOutput';
import type { ServableLLM, ServedModel } from './servedModels';

type Api = typeof import('@opentelemetry/api');

let found: Api | null | undefined;

/** Null if the program does not have the package. */
function openTelemetry(): Api | null {
  if (found !== undefined) return found;
  try {
    // eslint-disable-next-line @typescript-eslint/no-require-imports -- an optional package
    found = require('@opentelemetry/api') as Api;
  } catch {
    found = null;
  }
  return found;
}

const SPAN = 'llm_request';

const seconds = (ms: number | null) => (ms === null ? undefined : ms / 1000);

/** `ms` between two times of a request, in seconds; undefined if it did not get so far. */
const between = (from: number | null, to: number | null) =>
  from === null || to === null ? undefined : (to - from) / 1000;

/** What is known of a request when it ends. */
interface Ended {
  requestId: string;
  usage: Usage;
  metrics: RequestMetrics;
}

/** The model for a request with these headers: each prompt is a span in the trace that they name. */
export function tracedModel(model: ServedModel, headers: Headers): ServedModel {
  const api = openTelemetry();
  if (api === null) return model;
  const parent = api.propagation.extract(api.context.active(), Object.fromEntries(headers));
  const tracing = new RequestTracing(api, parent, model.name);
  const { llm } = model;
  const traced: Pick<ServableLLM, 'generate' | 'chat' | 'embed' | 'stream' | 'chatStream'> = {
    generate: (prompts, params, options) =>
      tracing.ofCall(params, llm.generate(prompts, params, options)),
    chat: (messages, params, options) =>
      tracing.ofCall(params, llm.chat(messages, params, options)),
    embed: (prompts, options) => tracing.ofCall(undefined, llm.embed(prompts, options)),
    stream: (prompt, params, options) =>
      tracing.ofStream(params, llm.stream(prompt, params, options), options?.signal),
    chatStream: (messages, params, options) =>
      tracing.ofStream(params, llm.chatStream(messages, params, options), options?.signal),
  };
  return { ...model, llm: Object.assign(Object.create(llm) as ServableLLM, traced) };
}

interface Output {
  requestId: string;
  promptTokenIds: readonly number[];
  numCachedTokens: number;
  metrics: RequestMetrics;
  outputs?: readonly { tokenIds: readonly number[] }[];
}

class RequestTracing {
  private readonly startTime = Date.now();

  constructor(
    private readonly api: Api,
    private readonly parent: Context,
    private readonly modelName: string,
  ) {}

  /** A span for each output, once all are there; one with the error of a call that fails. */
  ofCall<T extends Output>(params: unknown, outputs: Promise<T[]>): Promise<T[]> {
    outputs.then(
      (all) => {
        for (const output of all) this.ended(params, endOf(output));
      },
      (error: unknown) => this.failed(params, error),
    );
    return outputs;
  }

  /** A span of the stream, which ends with its last delta, its error, or the abort of `signal`. */
  ofStream(params: unknown, stream: OutputStream, signal?: AbortSignal): OutputStream {
    let isOpen = true;
    const end = (record: () => void) => {
      if (isOpen) record();
      isOpen = false;
    };
    const next = stream.next.bind(stream);
    // The stream is new, and only this exchange has it.
    stream.next = async () => {
      try {
        const result = await next();
        const { value } = result;
        if (value?.usage && value.metrics) end(() => this.ended(params, value as Last));
        return result;
      } catch (error) {
        end(() => this.failed(params, error));
        throw error;
      }
    };
    const abort = () => end(() => this.failed(params, signal?.reason));
    signal?.addEventListener('abort', abort, { once: true });
    return stream;
  }

  private start(params: unknown, startTime: number): Span {
    const { api, parent, modelName } = this;
    const { temperature, topP, maxTokens, n } = (params ?? {}) as Partial<SamplingParams>;
    const attributes = {
      'gen_ai.response.model': modelName,
      'gen_ai.request.temperature': temperature,
      'gen_ai.request.top_p': topP,
      'gen_ai.request.max_tokens': maxTokens ?? undefined,
      'gen_ai.request.n': n,
    } satisfies Attributes;
    const tracer = api.trace.getTracer('uniproc');
    return tracer.startSpan(SPAN, { kind: api.SpanKind.SERVER, startTime, attributes }, parent);
  }

  private ended(params: unknown, { requestId, usage, metrics }: Ended): void {
    const { arrivalTimeMs, queueTimeMs, timeToFirstTokenMs, timeToLastTokenMs } = metrics;
    const span = this.start(params, arrivalTimeMs);
    span.setAttributes({
      'gen_ai.request.id': requestId,
      'gen_ai.usage.prompt_tokens': usage.numPromptTokens,
      'gen_ai.usage.completion_tokens': usage.numOutputTokens,
      'gen_ai.latency.time_in_queue': seconds(queueTimeMs),
      'gen_ai.latency.time_to_first_token': seconds(timeToFirstTokenMs),
      'gen_ai.latency.e2e': seconds(timeToLastTokenMs),
      'gen_ai.latency.time_in_model_prefill': between(queueTimeMs, timeToFirstTokenMs),
      'gen_ai.latency.time_in_model_decode': between(timeToFirstTokenMs, timeToLastTokenMs),
      'gen_ai.latency.time_in_model_inference': between(queueTimeMs, timeToLastTokenMs),
    } satisfies Attributes);
    span.end(timeToLastTokenMs === null ? undefined : arrivalTimeMs + timeToLastTokenMs);
  }

  private failed(params: unknown, error: unknown): void {
    const span = this.start(params, this.startTime);
    const exception = error instanceof Error ? error : new Error(String(error));
    span.recordException(exception);
    span.setStatus({ code: this.api.SpanStatusCode.ERROR, message: exception.message });
    span.end();
  }
}

/** A delta with which a stream ends. */
type Last = OutputDelta & Required<Pick<OutputDelta, 'usage' | 'metrics'>>;

function endOf({
  requestId,
  promptTokenIds,
  numCachedTokens,
  metrics,
  outputs = [],
}: Output): Ended {
  const numOutputTokens = outputs.reduce((sum, { tokenIds }) => sum + tokenIds.length, 0);
  const numPromptTokens = promptTokenIds.length;
  return { requestId, usage: { numPromptTokens, numCachedTokens, numOutputTokens }, metrics };
}
