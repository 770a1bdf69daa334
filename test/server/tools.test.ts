/** Tool calls and reasoning by the server's APIs, with clients of others. */
import Anthropic from '@anthropic-ai/sdk';
import Ajv2020 from 'ajv/dist/2020';
import OpenAI from 'openai';
import { TEMPLATES } from '../reply/templates';
import { chatFieldsOf } from '../../lib/server/anthropicFields';
import { partsOf } from '../../lib/server/replyParts';
import { type RunningServer, startServer } from '../support/server';

const PARAMETERS = {
  type: 'object',
  properties: { city: { type: 'string', maxLength: 8 }, days: { type: 'integer', maximum: 99 } },
  required: ['city', 'days'],
  additionalProperties: false,
};
const validate = new Ajv2020().compile(PARAMETERS);
const model = 'stories';
const messages = [{ role: 'user' as const, content: 'Hello' }];
const settings = { model, messages, temperature: 1.5, seed: 3, max_completion_tokens: 200 };
const tools = [
  { type: 'function' as const, function: { name: 'get_weather', parameters: PARAMETERS } },
];
const required = {
  ...settings,
  tools,
  tool_choice: 'required',
  parallel_tool_calls: false,
} as const;

let running: RunningServer;
let openai: OpenAI;
let anthropic: Anthropic;

beforeAll(async () => {
  const chatTemplate = `${TEMPLATES.hermes}{% if enable_thinking | default(false) %}<think>{% endif %}{# </think> #}`;
  running = await startServer({ chatTemplate }, {});
  openai = new OpenAI({ baseURL: `${running.url}/v1`, apiKey: 'x', maxRetries: 0 });
  anthropic = new Anthropic({ baseURL: running.url, apiKey: 'x', maxRetries: 0 });
});

afterAll(() => running.close());

function expectCall(name: string | undefined, given: string): void {
  expect(name).toBe('get_weather');
  expect([given, validate(JSON.parse(given))]).toEqual([given, true]);
}

test.each([
  ['/v1/chat/completions', { messages, tools: { function: {} } }],
  ['/v1/responses', { input: 'Hello', tools: { type: 'function' } }],
  ['/v1/messages', { messages, max_tokens: 1, tools: {} }],
  ['/v1/messages/count_tokens', { messages, tools: {} }],
  ['/tokenize', { messages, tools: { function: {} } }],
])('%s refuses too many tools', async (path, { tools: tool, ...body }) => {
  const response = await fetch(running.url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model, ...body, tools: Array(1025).fill(tool) }),
  });
  expect(response.status).toBe(400);
  expect(await response.text()).toContain('tools has 1025 entries; the limit is 1024');
});

describe('/v1/chat/completions', () => {
  test('a call, whole and streamed', async () => {
    const whole = await openai.chat.completions.create(required);
    const [{ message, finish_reason: reason }] = whole.choices;
    expect(reason).toBe('tool_calls');
    expect(message.content).toBeNull();
    const [call] = message.tool_calls ?? [];
    expect(call.id).toMatch(/^call_/);
    if (call.type !== 'function') throw new Error('not a function');
    expectCall(call.function.name, call.function.arguments);

    const runner = openai.chat.completions.stream(required);
    const final = await runner.finalChatCompletion();
    expect(final.choices[0].finish_reason).toBe('tool_calls');
    expect(final.choices[0].message.tool_calls).toMatchObject([{ function: call.function }]);
  });

  test('a stream has the id and name first, then fragments of the arguments', async () => {
    const stream = await openai.chat.completions.create({ ...required, stream: true });
    const deltas = [];
    for await (const { choices } of stream) deltas.push(...(choices[0].delta.tool_calls ?? []));
    const [first, ...rest] = deltas;
    expect(first).toMatchObject({ index: 0, type: 'function', function: { name: 'get_weather' } });
    expect(rest.length).toBeGreaterThan(2);
    expect(rest.every(({ index, id }) => index === 0 && id === undefined)).toBe(true);
    const given = deltas.map((delta) => delta.function?.arguments ?? '').join('');
    expectCall(first.function?.name, given);
  });

  test('a named function', async () => {
    const tool_choice = { type: 'function', function: { name: 'get_weather' } } as const;
    const { choices } = await openai.chat.completions.create({ ...required, tool_choice });
    expect(choices[0].message.tool_calls).toHaveLength(1);
    const other = { type: 'function', function: { name: 'other' } } as const;
    const refused = openai.chat.completions.create({ ...required, tool_choice: other });
    await expect(refused).rejects.toMatchObject({ status: 400, param: 'tool_choice' });
  });

  test('a schema that is not supported is refused by its path', async () => {
    const bad = { name: 'f', parameters: { type: 'object', properties: { a: { not: {} } } } };
    const refused = openai.chat.completions.create({
      ...settings,
      tools: [{ type: 'function', function: bad }],
    });
    await expect(refused).rejects.toMatchObject({
      status: 400,
      param: 'tools',
      message: expect.stringMatching(
        /tools\[0\]\.function\.parameters: #\/properties\/a\/not/,
      ) as unknown,
    });
  });

  test('reasoning, and its tokens in the usage', async () => {
    const body = {
      ...settings,
      max_completion_tokens: 10,
      chat_template_kwargs: { enable_thinking: true },
    };
    const { choices, usage } = await openai.chat.completions.create(body);
    const {
      content,
      reasoning,
      reasoning_content: same,
    } = choices[0].message as unknown as Record<string, string>;
    expect(content).toBe('');
    expect(reasoning).not.toBe('');
    expect(same).toBe(reasoning);
    expect(usage?.completion_tokens_details).toEqual({ reasoning_tokens: 10 });
  });

  test('a structural tag as response_format', async () => {
    const response_format = {
      type: 'structural_tag',
      format: {
        type: 'tag',
        begin: '<a>',
        content: { type: 'regex', pattern: 'x{2}' },
        end: '</a>',
      },
    };
    const { choices } = await openai.chat.completions.create({
      ...settings,
      ...{ chat_template_kwargs: { enable_thinking: false } },
      response_format: response_format as unknown as { type: 'text' },
    });
    expect(choices[0].message.content).toBe('<a>xx</a>');
  });
});

test('the rest of a call comes before what follows it, if a delta has both', () => {
  const toolCalls = [
    { index: 0, arguments: '1}' },
    { index: 1, id: 'b', name: 'g', arguments: '{}' },
  ];
  expect(partsOf({ message: { content: 'x', reasoning: 'r', toolCalls } })).toEqual([
    { kind: 'call', index: 0, text: '1}' },
    { kind: 'reasoning', text: 'r' },
    { kind: 'text', text: 'x' },
    { kind: 'call', index: 1, id: 'b', name: 'g', text: '{}' },
  ]);
});

test('/v1/responses: a call, whole and streamed, and its result as input', async () => {
  const body = {
    model,
    input: 'Hello',
    temperature: 1.5,
    max_output_tokens: 200,
    tools: [
      { type: 'function' as const, name: 'get_weather', parameters: PARAMETERS, strict: true },
    ],
    tool_choice: { type: 'function' as const, name: 'get_weather' },
    parallel_tool_calls: false,
  };
  const { output } = await openai.responses.create(body);
  expect(output).toHaveLength(1);
  const [call] = output;
  if (call.type !== 'function_call') throw new Error(`it is ${call.type}`);
  expectCall(call.name, call.arguments);

  const stream = openai.responses.stream(body);
  let given = '';
  stream.on('response.function_call_arguments.delta', ({ delta }) => (given += delta));
  const [streamed] = (await stream.finalResponse()).output;
  expect(streamed).toMatchObject({ type: 'function_call', name: 'get_weather', arguments: given });
  expectCall('get_weather', given);

  const result = { type: 'function_call_output' as const, call_id: call.call_id, output: '21' };
  const next = await openai.responses.create({
    ...body,
    max_output_tokens: 4,
    tool_choice: 'auto',
    input: [{ role: 'user', content: 'Hello' }, call, result],
  });
  expect(next.output[0].type).toBe('message');
});

test('/v1/messages: a tool_use block, whole and streamed, and its result', async () => {
  const body = {
    model,
    messages,
    temperature: 1,
    max_tokens: 200,
    tools: [{ name: 'get_weather', input_schema: PARAMETERS as Anthropic.Tool.InputSchema }],
    tool_choice: { type: 'any' as const, disable_parallel_tool_use: true },
  };
  const whole = await anthropic.messages.create(body);
  expect(whole.stop_reason).toBe('tool_use');
  const [block] = whole.content;
  if (block.type !== 'tool_use') throw new Error(`it is ${block.type}`);
  expectCall(block.name, JSON.stringify(block.input));

  const final = await anthropic.messages.stream(body).finalMessage();
  expect(final.stop_reason).toBe('tool_use');
  const [streamed] = final.content;
  if (streamed.type !== 'tool_use') throw new Error(`it is ${streamed.type}`);
  expectCall(streamed.name, JSON.stringify(streamed.input));

  const search = { type: 'web_search_20250305' as const, name: 'web_search' as const };
  await expect(anthropic.messages.create({ ...body, tools: [search] })).rejects.toMatchObject({
    status: 400,
    message: expect.stringContaining("'web_search_20250305' are not supported") as unknown,
  });

  const next = await anthropic.messages.create({
    ...body,
    max_tokens: 4,
    tool_choice: { type: 'auto' },
    messages: [
      ...messages,
      { role: 'assistant', content: whole.content },
      { role: 'user', content: [{ type: 'tool_result', tool_use_id: block.id, content: '21' }] },
    ],
  });
  expect(next.content[0].type).toBe('text');
});

test.each([
  [undefined, null],
  [{ type: 'enabled', budget_tokens: 1024 }, true],
  [{ type: 'disabled' }, false],
])("Anthropic's thinking %j", (thinking, reasoning) => {
  expect(chatFieldsOf({ messages, thinking })).toMatchObject({ reasoning });
});
