/** OpenTelemetry's spans of requests, with the API package and a provider of the test's own. */
import * as api from '@opentelemetry/api';
import { createHandler, type Handler, type LLM } from '../../lib';
import { loadStories, post, until } from '../support/server';

interface Recorded {
  name: string;
  options: api.SpanOptions;
  parent: unknown;
  attributes: api.Attributes;
  status?: api.SpanStatus;
  exception?: unknown;
  end?: unknown;
}

const spans: Recorded[] = [];
const TRACE = api.createContextKey('traceparent of the test');

beforeAll(() => {
  const tracer = {
    startSpan(name: string, options: api.SpanOptions, context: api.Context) {
      const attributes = { ...options.attributes };
      const span: Recorded = { name, options, parent: context.getValue(TRACE), attributes };
      spans.push(span);
      return {
        setAttributes: (more: api.Attributes) => void Object.assign(attributes, more),
        setStatus: (status: api.SpanStatus) => void (span.status = status),
        recordException: (exception: unknown) => void (span.exception = exception),
        end: (time: unknown) => void (span.end = time ?? 'now'),
      } as unknown as api.Span;
    },
  };
  api.trace.setGlobalTracerProvider({ getTracer: () => tracer as unknown as api.Tracer });
  api.propagation.setGlobalPropagator({
    inject: () => {},
    fields: () => [],
    extract: (context, carrier) =>
      context.setValue(TRACE, (carrier as Record<string, string>).traceparent),
  });
});

let llm: LLM;
let handler: Handler;
beforeAll(async () => {
  llm = await loadStories();
  handler = createHandler(llm);
});
afterAll(() => llm.shutdown());
beforeEach(() => (spans.length = 0));

const traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
const chat = { messages: [{ role: 'user', content: 'Tell me a story' }], max_tokens: 8 };

test.each([
  ['/v1/chat/completions', { ...chat, temperature: 0, top_p: 0.9 }],
  ['/v1/chat/completions', { ...chat, temperature: 0, top_p: 0.9, stream: true }],
  ['/v1/completions', { prompt: 'Once', max_tokens: 8, temperature: 0, top_p: 0.9 }],
])("a request of %s is a span with vLLM's attributes: %j", async (path, body) => {
  await (await post(handler, path, body, { headers: { traceparent } })).text();
  const [{ name, options, parent, attributes, end }] = spans;
  expect(spans).toHaveLength(1);
  expect(name).toBe('llm_request');
  expect(parent).toBe(traceparent);
  expect(options.kind).toBe(api.SpanKind.SERVER);
  expect(attributes).toMatchObject({
    'gen_ai.response.model': 'stories',
    'gen_ai.request.id': expect.any(String) as string,
    'gen_ai.request.temperature': 0,
    'gen_ai.request.top_p': 0.9,
    'gen_ai.request.max_tokens': 8,
    'gen_ai.request.n': 1,
    'gen_ai.usage.completion_tokens': 8,
  });
  const seconds = (name_: string) => attributes[`gen_ai.latency.${name_}`] as number;
  expect(attributes['gen_ai.usage.prompt_tokens']).toBeGreaterThan(0);
  expect(seconds('time_to_first_token')).toBeLessThan(seconds('e2e'));
  expect(
    seconds('time_in_queue') + seconds('time_in_model_prefill') + seconds('time_in_model_decode'),
  ).toBeCloseTo(seconds('e2e'), 6);
  expect((end as number) - (options.startTime as number)).toBeCloseTo(1000 * seconds('e2e'), 3);
});

test('a refused request is a span with the error', async () => {
  await post(handler, '/v1/completions', { prompt: 'Once', temperature: -1 });
  expect(spans).toHaveLength(0); // refused before its call
  await post(handler, '/v1/completions', { prompt: [9999], max_tokens: 1 });
  expect(spans).toHaveLength(1);
  expect(spans[0].status).toMatchObject({ code: api.SpanStatusCode.ERROR });
  expect(String(spans[0].exception)).toContain('9999');
});

test('a stream that its reader leaves is a span that ends', async () => {
  const response = await post(handler, '/v1/chat/completions', {
    ...chat,
    max_tokens: 500,
    ignore_eos: true,
    stream: true,
  });
  await response.body?.cancel();
  await until(() => spans.length > 0);
  expect(spans).toHaveLength(1);
  expect(spans[0]).toMatchObject({ end: 'now', status: { code: api.SpanStatusCode.ERROR } });
});
