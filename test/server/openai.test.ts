/** /v1/chat/completions and /v1/completions: replies, streams and errors, as vLLM's server has them. */
import { createHandler, type Handler, type LLM } from '../../lib';
import { stories } from '../support/stories';
import { loadStories, post, readChunks, readEvents, until } from '../support/server';

let llm: LLM;
let handler: Handler;

beforeAll(async () => {
  llm = await loadStories();
  handler = createHandler(llm);
});

afterAll(() => llm.shutdown());

interface Logprobs {
  content: { token: string; logprob: number; bytes: number[]; top_logprobs: object[] }[];
  tokens: string[];
  token_logprobs: (number | null)[];
  text_offset: number[];
  top_logprobs: (Record<string, number> | null)[];
}
interface Choice {
  index: number;
  text: string;
  message: { role: string; content: string };
  delta: { role?: string; content?: string };
  finish_reason: string | null;
  stop_reason?: string | number | null;
  token_ids?: number[];
  logprobs: Logprobs | null;
  prompt_logprobs?: (Record<string, { logprob: number; rank: number }> | null)[];
}
interface Body {
  id: string;
  object: string;
  model: string;
  choices: Choice[];
  usage?: {
    prompt_tokens: number;
    completion_tokens: number;
    total_tokens: number;
    prompt_tokens_details?: { cached_tokens: number };
  } | null;
  prompt_token_ids?: number[];
}
interface ErrorReply {
  error: { message: string; type: string; param: string | null; code: number };
}

const CHAT = '/v1/chat/completions';
const TEXT = '/v1/completions';
const messages = stories.chat.messages;
const [first, second] = stories.prompts;
const greedy = { temperature: 0, max_tokens: 8 };

const reply = async (path: string, body: object): Promise<Body> => {
  const response = await post(handler, path, body);
  expect(response.status).toBe(200);
  expect(response.headers.get('content-type')).toBe('application/json');
  return (await response.json()) as Body;
};
const chunksOf = async (path: string, body: object) =>
  readChunks<Body>(await post(handler, path, { stream: true, ...body }));
const errorOf = async (path: string, body: unknown, init: RequestInit = {}) => {
  const response = await post(handler, path, body, init);
  return { status: response.status, ...((await response.json()) as ErrorReply).error };
};

describe('a chat', () => {
  test("is transformers' greedy answer, with usage", async () => {
    const maxTokens = stories.chat.tokenIds.length;
    const body = await reply(CHAT, {
      messages,
      temperature: 0,
      max_completion_tokens: maxTokens,
      max_tokens: 1,
    });
    expect(body).toMatchObject({ object: 'chat.completion', model: 'stories' });
    expect(body.choices).toHaveLength(1);
    const [{ message }] = body.choices;
    expect(message.role).toBe('assistant');
    expect(message.content).toBe(stories.chat.text);
    const numPromptTokens = stories.chat.promptTokenIds.length;
    expect(body.usage).toMatchObject({
      prompt_tokens: numPromptTokens,
      completion_tokens: maxTokens,
      total_tokens: numPromptTokens + maxTokens,
    });
  });

  test('streams the role first, then deltas, the finish reason, the usage and [DONE]', async () => {
    const chunks = await chunksOf(CHAT, {
      messages,
      ...greedy,
      stream_options: { include_usage: true },
    });
    const [role, ...rest] = chunks;
    expect(role.choices[0]).toMatchObject({
      delta: { role: 'assistant', content: '' },
      finish_reason: null,
    });
    const usage = rest.pop();
    expect(usage?.choices).toEqual([]);
    expect(usage?.usage).toMatchObject({ completion_tokens: 8 });
    expect(rest.every((chunk) => chunk.usage === null)).toBe(true);
    expect(rest.at(-1)?.choices[0].finish_reason).toBe('length');
    expect(rest.slice(0, -1).every(({ choices }) => choices[0].finish_reason === null)).toBe(true);
    const text = rest.map(({ choices }) => choices[0].delta.content).join('');
    const whole = await reply(CHAT, { messages, ...greedy });
    expect(text).toBe(whole.choices[0].message.content);
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
  });

  test('without stream_options has no usage, and with continuous_usage_stats in every chunk', async () => {
    for (const chunk of await chunksOf(CHAT, { messages, ...greedy })) {
      expect(chunk).not.toHaveProperty('usage');
    }
    const options = { include_usage: true, continuous_usage_stats: true };
    const chunks = await chunksOf(CHAT, { messages, ...greedy, stream_options: options });
    const counts = chunks.map(({ usage }) => usage?.completion_tokens);
    expect(counts[0]).toBe(0);
    expect(counts.at(-1)).toBe(8);
    expect([...counts].sort((a, b) => Number(a) - Number(b))).toEqual(counts);
  });

  test('has logprobs of each token and the likeliest, whole and streamed', async () => {
    const wanted = { messages, ...greedy, logprobs: true, top_logprobs: 3 };
    const whole = await reply(CHAT, wanted);
    const content = whole.choices[0].logprobs?.content ?? [];
    expect(content).toHaveLength(8);
    expect(content.map(({ token }) => token).join('')).toBe(whole.choices[0].message.content);
    for (const { token, logprob, bytes, top_logprobs: top } of content) {
      expect(top).toHaveLength(3);
      expect(top[0]).toMatchObject({ token, logprob });
      expect(Buffer.from(bytes).toString()).toBe(token);
    }
    const chunks = await chunksOf(CHAT, wanted);
    const streamed = chunks.flatMap(({ choices }) => choices[0].logprobs?.content ?? []);
    expect(streamed).toEqual(content);
  });

  test('has n answers, each with its role, deltas and finish reason', async () => {
    const sampled = { messages, max_tokens: 4, n: 3, seed: 7, temperature: 1 };
    const whole = await reply(CHAT, sampled);
    expect(whole.choices.map(({ index }) => index)).toEqual([0, 1, 2]);
    expect(whole.usage?.completion_tokens).toBe(12);
    const chunks = await chunksOf(CHAT, sampled);
    for (const { index, message } of whole.choices) {
      const own = chunks.flatMap(({ choices }) => choices.filter((each) => each.index === index));
      expect(own[0].delta.role).toBe('assistant');
      expect(own.map(({ delta }) => delta.content).join('')).toBe(message.content);
      expect(own.at(-1)?.finish_reason).toBe('length');
    }
  });

  test('takes the defaults of generation_config.json, and the request before them', async () => {
    const asked = { messages, max_tokens: 12, seed: 3 };
    const byDefault = await reply(CHAT, asked);
    const explicit = await reply(CHAT, { ...asked, temperature: 0.8, top_p: 0.95 });
    expect(byDefault.choices[0].message).toEqual(explicit.choices[0].message);
  });

  test('stops at a stop string and names it', async () => {
    const { choices } = await reply(CHAT, { messages, temperature: 0, stop: [' '] });
    expect(choices[0]).toMatchObject({ finish_reason: 'stop', stop_reason: ' ' });
  });

  test('returns token ids on request, and tokens as ids', async () => {
    const body = await reply(CHAT, {
      messages,
      ...greedy,
      logprobs: true,
      return_token_ids: true,
      return_tokens_as_token_ids: true,
    });
    expect(body.prompt_token_ids).toEqual(stories.chat.promptTokenIds);
    const ids = stories.chat.tokenIds.slice(0, 8);
    expect(body.choices[0].token_ids).toEqual(ids);
    expect(body.choices[0].logprobs?.content.map(({ token }) => token)).toEqual(
      ids.map((id) => `token_id:${id}`),
    );
  });

  test('continues its last message', async () => {
    const { usage } = await reply(CHAT, {
      messages: [...(messages as object[]), { role: 'assistant', content: 'Once' }],
      continue_final_message: true,
      add_generation_prompt: false,
      ...greedy,
    });
    expect(usage?.prompt_tokens).toBe(stories.chat.promptTokenIds.length + 1);
  });
});

describe('a completion', () => {
  test("is transformers' greedy text, of text and of token ids", async () => {
    const max_tokens = first.tokenIds.length;
    for (const prompt of [first.prompt, first.promptTokenIds]) {
      const { choices } = await reply(TEXT, { prompt, temperature: 0, max_tokens });
      expect(choices[0].text).toBe(first.text);
    }
  });

  test('of several prompts has choices in order, whole and streamed', async () => {
    const wanted = { prompt: [first.prompt, second.promptTokenIds], ...greedy };
    const whole = await reply(TEXT, wanted);
    expect(whole.choices.map(({ index }) => index)).toEqual([0, 1]);
    expect(first.text.startsWith(whole.choices[0].text)).toBe(true);
    expect(second.text.startsWith(whole.choices[1].text)).toBe(true);
    const chunks = await chunksOf(TEXT, { ...wanted, stream_options: { include_usage: true } });
    const usage = chunks.pop();
    expect(usage?.usage).toEqual({
      ...whole.usage,
      prompt_tokens_details: expect.anything() as unknown,
    });
    for (const { index, text } of whole.choices) {
      const own = chunks.map(({ choices }) => choices[0]).filter((each) => each.index === index);
      expect(own.map((each) => each.text).join('')).toBe(text);
      expect(own.at(-1)?.finish_reason).toBe('length');
    }
  });

  test('generates 16 tokens by default', async () => {
    const { usage } = await reply(TEXT, { prompt: 'Once', ignore_eos: true });
    expect(usage?.completion_tokens).toBe(16);
  });

  test('has logprobs in the form of completions, with offsets, whole and streamed', async () => {
    const wanted = { prompt: first.prompt, ...greedy, logprobs: 2 };
    const { choices } = await reply(TEXT, wanted);
    const { logprobs } = choices[0];
    const { tokens = [], token_logprobs: values = [] } = logprobs ?? ({} as Partial<Logprobs>);
    expect(tokens.join('')).toBe(choices[0].text);
    const expected = tokens.map((_, i) => tokens.slice(0, i).join('').length);
    expect(logprobs?.text_offset).toEqual(expected);
    tokens.forEach((token, i) => expect(logprobs?.top_logprobs[i]?.[token]).toBe(values[i]));
    const chunks = await chunksOf(TEXT, wanted);
    const offsets = chunks.flatMap(({ choices: [own] }) => own.logprobs?.text_offset ?? []);
    expect(offsets).toEqual(expected);
  });

  test('echoes its prompt, with its logprobs', async () => {
    const { choices } = await reply(TEXT, { prompt: 'Once', ...greedy, echo: true, logprobs: 1 });
    const [{ text, logprobs }] = choices;
    expect(text.startsWith('Once')).toBe(true);
    expect(logprobs?.token_logprobs[0]).toBeNull();
    expect(logprobs?.tokens.slice(1).join('')).toBe(text);
  });

  test('has prompt_logprobs by token id', async () => {
    const { choices } = await reply(TEXT, { prompt: first.prompt, ...greedy, prompt_logprobs: 1 });
    const [none, ...rest] = choices[0].prompt_logprobs ?? [];
    expect(none).toBeNull();
    first.promptTokenIds.slice(1).forEach((id, i) => {
      expect(rest[i]?.[String(id)].logprob).toBeLessThanOrEqual(0);
    });
  });
});

describe('an error', () => {
  test.each([
    ['top_p', { prompt: 'Once', top_p: 3 }, /^top_p is 3; it must be/],
    ['max_tokens', { prompt: 'Once', max_tokens: 'many' }, /^max_tokens is 'many'/],
    ['prompt', { prompt: 5 }, /^prompt must be/],
    ['stream', { prompt: 'Once', stream: 'yes' }, /^stream must be true or false/],
    ['suffix', { prompt: 'Once', suffix: 'end' }, /^suffix is not supported/],
    ['best_of', { prompt: 'Once', best_of: 2 }, /^best_of is not supported/],
    [
      'stream_options',
      { prompt: 'Once', stream_options: {} },
      /only be defined when `stream=True`/,
    ],
    ['prompt_logprobs', { prompt: 'Once', stream: true, prompt_logprobs: 1 }, /not available when/],
    ['echo', { prompt: 'Once', stream: true, echo: true }, /^echo is not supported with stream/],
  ])('of %s in a completion names it', async (param, body, message) => {
    expect(await errorOf(TEXT, body)).toEqual({
      status: 400,
      type: 'BadRequestError',
      param,
      code: 400,
      message: expect.stringMatching(message) as unknown,
    });
  });

  test.each([
    ['messages', { messages: [] }],
    ['messages', { messages: 'Hello' }],
    ['top_logprobs', { messages, top_logprobs: 2 }],
    ['tool_choice', { messages, tools: [{}], tool_choice: 'required' }],
    ['tool_choice', { messages, tool_choice: { type: 'function', function: { name: 'f' } } }],
    ['functions', { messages, functions: [] }],
    ['modalities', { messages, modalities: ['text', 'audio'] }],
  ])('of %s in a chat names it', async (param, body) => {
    expect(await errorOf(CHAT, body)).toMatchObject({ status: 400, param });
  });

  test('of a message of the engine about a prompt is a 400 before any event of a stream', async () => {
    const prompt = 'Once upon a time '.repeat(2000);
    const error = await errorOf(TEXT, { prompt, stream: true });
    expect(error).toMatchObject({ status: 400, type: 'BadRequestError' });
    const picture = { type: 'image_url', image_url: { url: 'data:' } };
    const chat = await errorOf(CHAT, { messages: [{ role: 'user', content: [picture] }] });
    expect(chat.message).toContain('only text input is supported');
  });

  test('is 404 for another model, as for another path; 405 for another method', async () => {
    expect(await errorOf(TEXT, { model: 'gpt', prompt: 'Once' })).toMatchObject({
      status: 404,
      type: 'NotFoundError',
      message: 'The model `gpt` does not exist.',
    });
    expect(await errorOf('/v1/nothing', {})).toMatchObject({ status: 404 });
    const got = await handler(new Request(`http://localhost${TEXT}`));
    expect([got.status, got.headers.get('allow')]).toEqual([405, 'POST']);
  });

  test('is 400 for what is not JSON or not an object, 415 for another content type', async () => {
    for (const body of ['', '{', '[]', '"text"', 'null', '{"prompt": NaN}']) {
      expect(await errorOf(TEXT, body)).toMatchObject({ status: 400 });
    }
    expect(await errorOf(TEXT, '{}', { headers: { 'content-type': 'text/plain' } })).toMatchObject({
      status: 415,
    });
  });

  test('is 413 for a body above the limit, announced or not', async () => {
    const small = createHandler(llm, { maxBodyBytes: 100 });
    const announced = await post(small, TEXT, { prompt: 'x'.repeat(100) });
    expect(announced.status).toBe(413);
    let numPulled = 0;
    const endless = new ReadableStream({
      pull: (controller) => {
        numPulled++;
        controller.enqueue(Buffer.from(' '.repeat(60)));
      },
    });
    const init = { body: endless, duplex: 'half' } as RequestInit;
    expect((await post(small, TEXT, '', init)).status).toBe(413);
    expect(numPulled).toBeLessThan(5);
  });

  test('is 504 when a generation takes longer than the limit', async () => {
    const hasty = createHandler(llm, { requestTimeoutMs: 1 });
    const response = await post(hasty, TEXT, { prompt: 'Once', max_tokens: 900, ignore_eos: true });
    expect(response.status).toBe(504);
  });

  test('after the first event is an event, and [DONE] follows', async () => {
    const slow = createHandler(llm, { requestTimeoutMs: 150 });
    // The unread stream ends with the time limit.
    const response = await post(slow, TEXT, {
      prompt: 'Once',
      n: 64,
      max_tokens: 1000,
      ignore_eos: true,
      stream: true,
    });
    const { events } = await readEvents(response);
    const [error, done] = events.slice(-2);
    expect(JSON.parse(error.data)).toMatchObject({
      error: { type: 'GatewayTimeoutError', code: 504 },
    });
    expect(done.data).toBe('[DONE]');
  });
});

describe('structured outputs', () => {
  const schema = {
    type: 'object',
    properties: { name: { enum: ['Tim'] }, age: { type: 'integer', minimum: 7, maximum: 9 } },
    required: ['name', 'age'],
    additionalProperties: false,
  };
  const jsonSchema = { type: 'json_schema', json_schema: { name: 'child', schema, strict: true } };
  const isChild = (text: string) =>
    expect(JSON.parse(text)).toEqual({ name: 'Tim', age: expect.any(Number) as unknown });

  test.each([false, true])(
    'response_format json_schema holds a chat to it (stream: %s)',
    async (stream) => {
      const body = { messages, response_format: jsonSchema, seed: 1 };
      if (stream) {
        const chunks = await chunksOf(CHAT, body);
        isChild(chunks.map(({ choices: [own] }) => own.delta.content ?? '').join(''));
        expect(chunks.at(-1)?.choices[0].finish_reason).toBe('stop');
      } else {
        const { choices } = await reply(CHAT, body);
        isChild(choices[0].message.content);
        expect(choices[0].finish_reason).toBe('stop');
      }
    },
  );

  test('response_format json_object makes a JSON object', async () => {
    const { choices } = await reply(CHAT, {
      messages,
      response_format: { type: 'json_object' },
      max_tokens: 200,
      seed: 3,
    });
    expect(choices[0].message.content).toMatch(/^\{\s*("|\}$)/);
  });

  test.each([
    [{ regex: 'a+b{2}c' }, /^a+bbc$/],
    [{ choice: ['yes', 'no'] }, /^(yes|no)$/],
    [{ grammar: 'root ::= "x" [0-9] "y"' }, /^x\dy$/],
    [{ json: schema, whitespace_pattern: '' }, /^\{"name":"Tim","age":[789]\}$/],
    [{ json: JSON.stringify(schema), disable_fallback: false }, /^\{\s*"name"/],
  ])('structured_outputs %j holds each output of a completion to it', async (structured, form) => {
    const wanted = {
      prompt: 'Once',
      structured_outputs: structured,
      n: 2,
      max_tokens: 100,
      seed: 5,
    };
    const { choices } = await reply(TEXT, wanted);
    expect(choices).toHaveLength(2);
    for (const { text } of choices) expect(text).toMatch(form);
  });

  test('text.format of a response holds it to a schema', async () => {
    const format = { type: 'json_schema', name: 'child', schema, strict: true };
    const response = await post(handler, '/v1/responses', { input: 'Hello', text: { format } });
    expect(response.status).toBe(200);
    const { output } = (await response.json()) as { output: { content: { text: string }[] }[] };
    isChild(output[0].content[0].text);
  });

  test.each([
    [CHAT, { response_format: 'json' }, 'response_format', /^response_format must be an object/],
    [CHAT, { response_format: { type: 'xml' } }, 'response_format', /^response_format\.type must/],
    [CHAT, { response_format: { type: 'json_schema' } }, 'response_format', /json_schema\.schema/],
    [
      CHAT,
      {
        response_format: {
          type: 'json_schema',
          json_schema: { schema: { properties: { topP: { not: {} } } } },
        },
      },
      'response_format',
      /^response_format: #\/properties\/topP\/not: this keyword is not supported/,
    ],
    [
      '/v1/responses',
      { input: 'Hello', text: { format: { type: 'json_schema', schema: { not: {} } } } },
      'text.format',
      /^text\.format: #\/not: this keyword is not supported/,
    ],
    [
      '/v1/responses',
      { input: 'Hello', text: { format: { type: 'xml' } } },
      'text.format',
      /^text\.format/,
    ],
    [
      TEXT,
      { structured_outputs: { regex: '(' } },
      'structured_outputs',
      /^structured_outputs\.regex/,
    ],
    [
      TEXT,
      { guided_json: {} },
      'guided_json',
      /^guided_json is not supported; set structured_outputs/,
    ],
    [TEXT, { structured_outputs: {} }, 'structured_outputs', /^structured_outputs: it has none/],
    [
      TEXT,
      { structured_outputs: { regex: 'a', json_object: true } },
      'structured_outputs',
      /regex, json_object/,
    ],
    [
      TEXT,
      { structured_outputs: { regx: 'a', regex: 'a' } },
      'structured_outputs',
      /the field regx/,
    ],
    [
      TEXT,
      { structured_outputs: { structural_tag: {} } },
      'structured_outputs',
      /structural_tag|structuralTag/,
    ],
    [
      TEXT,
      { structured_outputs: { regex: 'a' }, response_format: { type: 'json_object' } },
      'structured_outputs',
      /both set/,
    ],
  ])('%s refuses %j', async (path, body, param, message) => {
    const own = path === TEXT ? { prompt: 'Once' } : path === CHAT ? { messages } : {};
    for (const stream of [false, true]) {
      expect(await errorOf(path, { ...own, ...body, stream })).toMatchObject({
        status: 400,
        param,
        message: expect.stringMatching(message) as unknown,
      });
    }
  });

  test('of type text asks for nothing', async () => {
    const free = await reply(CHAT, { messages, ...greedy });
    const asked = await reply(CHAT, { messages, ...greedy, response_format: { type: 'text' } });
    expect(asked.choices).toEqual(free.choices);
  });
});

test('a stream that is read late has the same logprobs, in events of bounded size', async () => {
  const wanted = { prompt: 'Once', temperature: 0, max_tokens: 700, ignore_eos: true, logprobs: 1 };
  const whole = await reply(TEXT, wanted);
  const response = await post(handler, TEXT, { ...wanted, stream: true });
  await until(() => llm.engine.numUnfinishedRequests === 0);
  const chunks = await readChunks<Body>(response);
  const sizes = chunks.map(({ choices: [own] }) => own.logprobs?.tokens.length ?? 0);
  expect(Math.max(...sizes)).toBe(256);
  expect(chunks.map(({ choices: [own] }) => own.text).join('')).toBe(whole.choices[0].text);
  const values = chunks.flatMap(({ choices: [own] }) => own.logprobs?.token_logprobs ?? []);
  expect(values).toEqual(whole.choices[0].logprobs?.token_logprobs);
  expect(chunks.at(-1)?.choices[0].finish_reason).toBe('length');
});

test('an unknown field is ignored with one warning, and null counts as absent', async () => {
  const warned = jest.spyOn(process, 'emitWarning').mockImplementation(() => {});
  try {
    for (let i = 0; i < 2; i++) await reply(CHAT, { messages, ...greedy, frobnicate: 1, n: null });
    expect(warned.mock.calls).toEqual([
      ['/v1/chat/completions: the field "frobnicate" is unknown and ignored', 'UniprocWarning'],
    ]);
  } finally {
    warned.mockRestore();
  }
});

test('a stream of many choices has their roles first, in pieces of bounded size', async () => {
  const body = { messages, n: 200, max_tokens: 1, stream: true };
  const response = await post(handler, CHAT, body);
  const sizes: number[] = [];
  let text = '';
  const decoder = new TextDecoder();
  for await (const bytes of response.body as unknown as AsyncIterable<Uint8Array>) {
    sizes.push(bytes.length);
    text += decoder.decode(bytes, { stream: true });
  }
  expect(Math.max(...sizes)).toBeLessThan(64 * 300);
  const roles = [...text.matchAll(/"index":(\d+),"delta":\{"role":"assistant"/g)];
  expect(roles.map(([, index]) => Number(index))).toEqual([...Array(200).keys()]);
});

test('a stream without events sends comments', async () => {
  const impatient = createHandler(llm, { heartbeatMs: 1 });
  // Longer than a millisecond to the first token.
  const prompt = 'Once upon a time. '.repeat(100);
  const response = await post(impatient, TEXT, { prompt, max_tokens: 40, stream: true });
  const { comments, events } = await readEvents(response);
  expect(comments.length).toBeGreaterThan(0);
  expect(new Set(comments)).toEqual(new Set([': heartbeat']));
  expect(events.at(-1)?.data).toBe('[DONE]');
});
