/** What a handler serves beside generation: access, several models, health, tokenizing, metrics. */
import { createHandler, type Handler, type LLM } from '../../lib';
import { stories } from '../support/stories';
import { loadStories, post, readEvents } from '../support/server';

let llm: LLM;
let handler: Handler;

beforeAll(async () => {
  llm = await loadStories();
  handler = createHandler(llm);
});

afterAll(() => llm.shutdown());

const get = (path: string, headers: Record<string, string> = {}, of = handler) =>
  of(new Request(`http://localhost${path}`, { headers }));
const jsonOf = async (response: Response | Promise<Response>) =>
  (await (await response).json()) as Record<string, unknown>;

describe('API keys', () => {
  const locked = () => createHandler(llm, { apiKeys: ['first', 'second'] });

  test.each([
    [{}, 401],
    [{ authorization: 'Bearer wrong' }, 401],
    [{ authorization: 'Bearer first ' }, 200],
    [{ authorization: 'bearer second' }, 200],
    [{ 'x-api-key': 'second' }, 200],
    [{ authorization: 'first' }, 401],
  ])('%j is answered with %i under /v1', async (headers, status) => {
    const response = await get('/v1/models', headers, locked());
    expect(response.status).toBe(status);
  });

  test('are not asked for elsewhere, and are by every path under /v1', async () => {
    expect((await get('/health', {}, locked())).status).toBe(200);
    for (const path of ['/v1/models/', '/v1/nothing', '/v1/../v1/models', '/%76%31/models']) {
      expect([401, 404]).toContain((await get(path, {}, locked())).status);
    }
  });
});

describe('CORS', () => {
  const origin = 'https://page.example';

  test('is off by default', async () => {
    const response = await get('/v1/models', { origin });
    expect(response.headers.get('access-control-allow-origin')).toBeNull();
    const asked = new Request('http://localhost/v1/models', {
      method: 'OPTIONS',
      headers: { origin },
    });
    expect((await handler(asked)).status).toBe(405);
  });

  test('lets listed origins read answers, errors and preflights', async () => {
    const open = createHandler(llm, { allowedOrigins: [origin], apiKeys: ['key'] });
    const refused = await get('/v1/models', { origin }, open);
    expect(refused.status).toBe(401);
    expect(refused.headers.get('access-control-allow-origin')).toBe(origin);
    const preflight = await open(
      new Request('http://localhost/v1/models', {
        method: 'OPTIONS',
        headers: { origin, 'access-control-request-headers': 'authorization' },
      }),
    );
    expect(preflight.status).toBe(204);
    expect(preflight.headers.get('access-control-allow-headers')).toBe('authorization');
    const other = await get('/health', { origin: 'https://other.example' }, open);
    expect(other.headers.get('access-control-allow-origin')).toBeNull();
  });
});

test('several models are served by name, the first without a name', async () => {
  const other = await loadStories({ maxModelLen: 128 });
  try {
    const both = createHandler({ models: { tall: llm, small: other, alias: other } });
    const { data } = (await jsonOf(get('/v1/models', {}, both))) as {
      data: { id: string; max_model_len: number }[];
    };
    expect(data.map(({ id, max_model_len: length }) => [id, length])).toEqual([
      ['tall', 1024],
      ['small', 128],
      ['alias', 128],
    ]);
    for (const model of ['small', 'alias']) {
      const response = await post(both, '/v1/completions', {
        model,
        prompt: 'Once',
        max_tokens: 1,
      });
      expect(await jsonOf(response)).toMatchObject({ model });
    }
    const unnamed = await post(both, '/tokenize', { prompt: 'Once' });
    expect(await jsonOf(unnamed)).toMatchObject({ max_model_len: 1024 });
    const metrics = await (await get('/metrics', {}, both)).text();
    expect(metrics).toContain('vllm:request_success_total{model_name="small",engine="0",');
    expect(metrics).not.toContain('model_name="alias"');
  } finally {
    await other.shutdown();
  }
});

test.each([[undefined], [{}], [{ models: {} }], [{ models: { a: {} } }]])(
  '%j is no model',
  (served) => {
    expect(() => createHandler(served as never)).toThrow(
      expect.objectContaining({ code: 'CONFIG_INVALID' }) as Error,
    );
  },
);

test('health is 200 while the engine runs and 503 once it is shut down', async () => {
  const other = await loadStories();
  const own = createHandler(other);
  for (const path of ['/health', '/ping']) expect((await get(path, {}, own)).status).toBe(200);
  await other.shutdown();
  for (const path of ['/health', '/ping']) expect((await get(path, {}, own)).status).toBe(503);
  const response = await post(own, '/v1/completions', { prompt: 'Once' });
  expect(response.status).toBe(503);
});

test('version is that of package.json', async () => {
  // eslint-disable-next-line @typescript-eslint/no-require-imports
  const { version } = require('../../package.json') as { version: string };
  expect(await jsonOf(get('/version'))).toEqual({ version });
});

test('load counts requests until their stream has ended', async () => {
  const load = async () => (await jsonOf(get('/load'))).server_load;
  const body = { prompt: 'Once', max_tokens: 4, ignore_eos: true, stream: true };
  const read = await post(handler, '/v1/completions', body);
  const left = await post(handler, '/v1/completions', body);
  expect(await load()).toBe(2);
  await read.text();
  expect(await load()).toBe(1);
  await left.body?.cancel();
  expect(await load()).toBe(0);
  await post(handler, '/v1/completions', { ...body, top_p: 7 });
  expect(await load()).toBe(0);
});

test('tokenize and detokenize are the tokenizer, for texts and for chats', async () => {
  const [{ prompt, promptTokenIds }] = stories.prompts;
  const tokens = await jsonOf(
    post(handler, '/tokenize', { prompt, return_token_strs: true, model: 'stories' }),
  );
  expect(tokens).toMatchObject({
    count: promptTokenIds.length,
    max_model_len: 1024,
    tokens: promptTokenIds,
  });
  expect((tokens.token_strs as string[]).slice(1).join('')).toBe(prompt);
  const bare = await jsonOf(post(handler, '/tokenize', { prompt, add_special_tokens: false }));
  expect(bare.tokens).toEqual(promptTokenIds.slice(1));
  const text = await jsonOf(post(handler, '/detokenize', { tokens: bare.tokens }));
  expect(text).toEqual({ prompt });
  const chat = await jsonOf(post(handler, '/tokenize', { messages: stories.chat.messages }));
  expect(chat.tokens).toEqual(stories.chat.promptTokenIds);
  for (const body of [{ prompt: 3 }, { messages: [] }]) {
    expect((await post(handler, '/tokenize', body)).status).toBe(400);
  }
  for (const body of [{}, { tokens: ['a'] }]) {
    expect((await post(handler, '/detokenize', body)).status).toBe(400);
  }
});

test.each(['/v1/embeddings', '/pooling'])(
  '%s is refused for a model that generates',
  async (path) => {
    const response = await post(handler, path, { input: 'Once' });
    expect(response.status).toBe(400);
    expect(await jsonOf(response)).toMatchObject({
      error: { message: expect.stringContaining('has no embeddings') as unknown },
    });
  },
);

test('a large body of many token ids is parsed as JSON.parse does', async () => {
  const tokens = Array.from({ length: 50_000 }, (_, i) => i % 2000);
  const response = await post(handler, '/detokenize', { tokens });
  const { prompt } = await jsonOf(response);
  expect(prompt).toBe(await llm.tokenizer?.decode(tokens, { skipSpecialTokens: false }));
  const long = await post(handler, '/v1/completions', { prompt: tokens });
  expect(await jsonOf(long)).toMatchObject({ error: { code: 400 } });
});

test('a body of more fields than any request has, or a field of too many members, is refused', async () => {
  const many = (count: number) =>
    Object.fromEntries(Array.from({ length: count }, (_, i) => [`f${i}`, 1]));
  for (const [body, error] of [
    [many(1025), { message: 'the body has 1025 fields; the limit is 1024' }],
    [many(20_000), { message: 'the body has 20000 fields; the limit is 1024' }],
    [
      { prompt: 'Once', logit_bias: many(65_537) },
      { param: 'logit_bias', message: 'logit_bias has 65537 members; the limit is 65536' },
    ],
  ] as const) {
    const response = await post(handler, '/v1/completions', body);
    expect(response.status).toBe(400);
    expect(await jsonOf(response)).toMatchObject({ error });
  }
});

describe('metrics', () => {
  /** Samples by name and labels. */
  async function samples(): Promise<Map<string, number>> {
    const response = await get('/metrics');
    expect(response.headers.get('content-type')).toMatch(/^text\/plain; version=0\.0\.4/);
    const lines = (await response.text()).trimEnd().split('\n');
    const types = new Map<string, string>();
    const found = new Map<string, number>();
    for (const line of lines) {
      const [, name, type] = /^# TYPE (\S+) (\w+)$/.exec(line) ?? [];
      if (name) types.set(name, type);
      if (line.startsWith('#')) continue;
      const [, sample, value] = /^([a-z0-9_:]+\{[^}]*\}) (\S+)$/.exec(line) ?? [];
      expect(Number.isNaN(Number(value))).toBe(false);
      const family = sample.split('{')[0].replace(/_(bucket|sum|count)$/, '');
      expect(types.has(family) || types.has(sample.split('{')[0])).toBe(true);
      found.set(sample, Number(value));
    }
    return found;
  }
  const labels = 'model_name="stories",engine="0"';

  test('count tokens and requests by reason', async () => {
    const before = await samples();
    const body = { prompt: [1, 2, 3], max_tokens: 5, ignore_eos: true };
    await post(handler, '/v1/completions', body);
    const after = await samples();
    const gained = (name: string) => Number(after.get(name)) - Number(before.get(name));
    expect(gained(`vllm:prompt_tokens_total{${labels}}`)).toBe(3);
    expect(gained(`vllm:generation_tokens_total{${labels}}`)).toBe(5);
    expect(gained(`vllm:request_success_total{${labels},finished_reason="length"}`)).toBe(1);
    expect(gained(`vllm:time_to_first_token_seconds_count{${labels}}`)).toBe(1);
    expect(gained(`vllm:inter_token_latency_seconds_count{${labels}}`)).toBe(4);
    expect(gained(`vllm:request_generation_tokens_sum{${labels}}`)).toBe(5);
    expect(gained(`vllm:request_generation_tokens_bucket{${labels},le="2.0"}`)).toBe(0);
    expect(gained(`vllm:request_generation_tokens_bucket{${labels},le="5.0"}`)).toBe(1);
    expect(after.get(`vllm:num_requests_running{${labels}}`)).toBe(0);
  });

  test("have vLLM's buckets, cumulative, the last of them the count", async () => {
    const found = await samples();
    const bounds = (name: string) =>
      [...found.keys()]
        .filter((key) => key.startsWith(`vllm:${name}_bucket{`))
        .map((key) => /le="(.+)"/.exec(key)?.[1]);
    expect(bounds('time_to_first_token_seconds').join(' ')).toBe(
      '0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 ' +
        '160.0 640.0 2560.0 +Inf',
    );
    expect(bounds('inter_token_latency_seconds').join(' ')).toBe(
      '0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 +Inf',
    );
    expect(bounds('e2e_request_latency_seconds').join(' ')).toBe(
      '0.3 0.5 0.8 1.0 1.5 2.0 2.5 5.0 10.0 15.0 20.0 30.0 40.0 50.0 60.0 120.0 240.0 480.0 960.0 ' +
        '1920.0 7680.0 +Inf',
    );
    expect(bounds('request_prompt_tokens').join(' ')).toBe(
      '1.0 2.0 5.0 10.0 20.0 50.0 100.0 200.0 500.0 1000.0 +Inf',
    );
    let last = 0;
    for (const [key, value] of found) {
      if (!key.startsWith('vllm:inter_token_latency_seconds_bucket')) continue;
      expect(value).toBeGreaterThanOrEqual(last);
      last = value;
    }
    expect(last).toBe(found.get(`vllm:inter_token_latency_seconds_count{${labels}}`));
  });
});

describe('/v1/messages', () => {
  const hello = { messages: [{ role: 'user', content: 'Hello' }], max_tokens: 4 };

  test('takes system, blocks and results of tools as turns of the template', async () => {
    const body = {
      system: [{ type: 'text', text: 'Be kind.' }],
      messages: [
        { role: 'user', content: [{ type: 'text', text: 'Hello' }] },
        { role: 'assistant', content: 'Hi' },
        { role: 'user', content: 'Go on' },
      ],
    };
    const counted = await jsonOf(post(handler, '/v1/messages/count_tokens', body));
    const turns = await llm.tokenizer?.applyChatTemplate([
      { role: 'system', content: 'Be kind.' },
      { role: 'user', content: 'Hello' },
      { role: 'assistant', content: 'Hi' },
      { role: 'user', content: 'Go on' },
    ]);
    expect(counted).toEqual({ input_tokens: turns?.length });
  });

  test("has errors of Anthropic's form", async () => {
    for (const [body, message] of [
      [{ ...hello, max_tokens: undefined }, /max_tokens/],
      [{ ...hello, temperature: -1 }, /^temperature is -1/],
      [{ ...hello, tool_choice: { type: 'any' }, tools: [] }, /tool_choice/],
    ] as const) {
      const response = await post(handler, '/v1/messages', body);
      expect(response.status).toBe(400);
      expect(await jsonOf(response)).toEqual({
        type: 'error',
        error: {
          type: 'invalid_request_error',
          message: expect.stringMatching(message) as unknown,
        },
      });
    }
  });

  test('holds the text to the schema of output_config.format', async () => {
    const format = { type: 'json_schema', schema: { enum: ['kind'] } };
    const body = { ...hello, max_tokens: 20, output_config: { format } };
    const { content } = await jsonOf(post(handler, '/v1/messages', body));
    expect(content).toMatchObject([{ text: '"kind"' }]);
    const other = {
      ...body,
      output_config: { format: { type: 'json_schema', schema: { not: {} } } },
    };
    expect(await jsonOf(post(handler, '/v1/messages', other))).toMatchObject({
      error: { message: expect.stringMatching(/^output_config\.format: #\/not/) as unknown },
    });
  });

  test('names its events, and pings while there are none', async () => {
    const impatient = createHandler(llm, { heartbeatMs: 1 });
    // Longer than a millisecond to the first token.
    const content = 'Once upon a time. '.repeat(100);
    const response = await post(impatient, '/v1/messages', {
      messages: [{ role: 'user', content }],
      max_tokens: 40,
      stream: true,
    });
    const { events } = await readEvents(response);
    for (const { event, data } of events)
      expect((JSON.parse(data) as { type: string }).type).toBe(event);
    const names = events.map(({ event }) => event).filter((event) => event !== 'ping');
    expect(names.slice(0, 2)).toEqual(['message_start', 'content_block_start']);
    expect(names.slice(-3)).toEqual(['content_block_stop', 'message_delta', 'message_stop']);
    expect(events.some(({ event }) => event === 'ping')).toBe(true);
  });
});

test.each(['previous_response_id', 'conversation', 'background'])(
  '/v1/responses refuses %s by name',
  async (param) => {
    const response = await post(handler, '/v1/responses', { input: 'Once', [param]: 'x' });
    expect(await jsonOf(response)).toMatchObject({ error: { param, code: 400 } });
  },
);
