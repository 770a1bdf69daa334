/** Tool calls and reasoning of `chat`, with the model in models/ and templates of each family. */
import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import Ajv2020 from 'ajv/dist/2020';
import {
  type AssistantMessage,
  type ChatOptions,
  ConfigError,
  InvalidRequestError,
  LLM,
  renderChatTemplate,
  SamplingParams,
  type SamplingParamsOptions,
} from '../lib';
import { replyFormatOf } from '../lib/reply/replyFormat';
import { ReplyParser } from '../lib/reply/replyParser';
import { mergeMessages } from '../lib/reply/replySink';
import { TEMPLATES } from './reply/templates';
import { folderWith } from './support/folder';

const MODEL = path.join(__dirname, '..', 'models', 'stories');

const WEATHER = {
  type: 'object',
  properties: {
    city: { type: 'string', minLength: 1, maxLength: 6 },
    unit: { enum: ['°C', 'F'] },
    days: { $ref: '#/$defs/count' },
    at: {
      type: 'object',
      properties: {
        lat: { type: 'number', minimum: -90, maximum: 90 },
        tags: { type: 'array', items: { type: 'string', pattern: '^[a-zé]{1,3}$' }, maxItems: 2 },
      },
      required: ['lat'],
      additionalProperties: false,
    },
    note: { anyOf: [{ type: 'string', maxLength: 4 }, { type: 'null' }] },
  },
  required: ['city', 'days'],
  additionalProperties: false,
  $defs: { count: { type: 'integer', minimum: 1, maximum: 30 } },
};
const tools = [
  { type: 'function', function: { name: 'get_weather', parameters: WEATHER } },
  { type: 'function', function: { name: 'stop' } },
];
const ajv = new Ajv2020({ strict: false });
const isWeather = ajv.compile(WEATHER);
const MESSAGES = [{ role: 'user', content: 'What is the weather?' }];

let llm: LLM;

beforeAll(async () => {
  // Mistral's special tokens in place of those of turns.
  const folder = await folderWith({});
  cpSync(MODEL, folder, { recursive: true });
  for (const name of ['tokenizer.json', 'tokenizer_config.json']) {
    const file = path.join(folder, name);
    const text = readFileSync(file, 'utf8')
      .replaceAll('<|system|>', '[TOOL_CALLS]')
      .replaceAll('<|user|>', '[/THINK]');
    writeFileSync(file, text);
  }
  llm = await LLM.create({
    model: folder,
    device: 'cpu',
    dtype: 'float32',
    maxModelLen: 1024,
    maxNumSeqs: 16,
    kvCacheMemoryBytes: 64 * 2 ** 20,
  });
  rmSync(path.join(folder, 'README.md'));
});

afterAll(() => llm.shutdown());

async function messagesOf(
  options: ChatOptions,
  params: SamplingParamsOptions = {},
  count = 4,
): Promise<Reply[]> {
  const conversations = Array.from({ length: count }, () => MESSAGES);
  const list = conversations.map(
    (_, seed) => new SamplingParams({ temperature: 1.5, maxTokens: 200, seed, ...params }),
  );
  const outputs = await llm.chat(conversations, list, { tools, progress: false, ...options });
  return outputs.map(({ outputs: [{ message, finishReason }] }) => {
    const { content, reasoning, toolCalls } = message as AssistantMessage;
    // The small model hardly ends a list of calls: of what is cut off, all calls but the last are whole.
    return finishReason === 'stop'
      ? { content, reasoning, toolCalls }
      : { content: '', reasoning, toolCalls: toolCalls.slice(0, -1), isCut: true };
  });
}

type Reply = AssistantMessage & { isCut?: boolean };

function expectCalls({ content, toolCalls, isCut = false }: Reply): void {
  expect(content).toBe('');
  if (!isCut) expect(toolCalls.length).toBeGreaterThan(0);
  for (const call of toolCalls) {
    const given: unknown = JSON.parse(call.arguments);
    if (call.name === 'stop') expect(given).toEqual({});
    else expect([call.name, given, isWeather(given)]).toEqual(['get_weather', given, true]);
  }
}

describe.each(Object.entries(TEMPLATES))('%s', (name, chatTemplate) => {
  test('is found from the template, and reads what the template writes', () => {
    const format = replyFormatOf(chatTemplate);
    expect(format.isHarmony ? ['openai'] : format.tools?.names).toContain(name.split(' ')[0]);
    const given = {
      city: 'São "P" \\ \n<x>',
      days: 2,
      at: { lat: 1.5, tags: ['a', 'b'] },
      note: null,
    };
    const call = { id: '1', type: 'function', function: { name: 'get_weather', arguments: given } };
    const messages = [{ role: 'assistant', content: '', tool_calls: [call] }];
    const text = renderChatTemplate(chatTemplate, messages).replace(/^<assistant>|\n$/g, '');
    const parser = new ReplyParser({
      format,
      calls: format.tools,
      tools: [{ name: 'get_weather', parameters: WEATHER }],
      isOpened: false,
    });
    for (const character of text) parser.push(character);
    parser.finish();
    const [{ name: called, arguments: written }] = parser.message.toolCalls;
    // One template writes Python's dictionaries.
    if (name !== 'mistral names')
      expect([called, JSON.parse(written)]).toEqual(['get_weather', given]);
  });

  test('required: every call parses and validates', async () => {
    for (const message of await messagesOf({ chatTemplate, toolChoice: 'required' })) {
      expectCalls(message);
    }
  });

  test('a named tool is the one that is called, once', async () => {
    const toolChoice = { name: 'get_weather' };
    const options = { chatTemplate, toolChoice, parallelToolCalls: false };
    for (const message of await messagesOf(options, { maxTokens: 400 }, 4)) {
      expectCalls(message);
      const names = message.toolCalls.map((call) => call.name);
      expect(names).toEqual(message.isCut === true ? [] : ['get_weather']);
    }
  });
});

test('without a notation in the template, required calls are a JSON list', async () => {
  const chatTemplate = '{{ messages[0].content }}{{ tools[0].function.name }}';
  for (const message of await messagesOf({ chatTemplate, toolChoice: 'required' })) {
    expectCalls(message);
  }
});

describe('auto', () => {
  const TOOL_CALLS = 3;

  test('a call that the model opens is held to its schema', async () => {
    for (const name of ['mistral list', 'mistral args', 'mistral names']) {
      const options = { chatTemplate: TEMPLATES[name], parallelToolCalls: false };
      const opened = { logitBias: { [TOOL_CALLS]: 100 } };
      for (const message of await messagesOf(options, opened)) expectCalls(message);
    }
  });

  test('a call behind text, and a whole reply that begins as one', async () => {
    const bracket = (await llm.tokenizer?.encode('[', { addSpecialTokens: false })) as number[];
    const options = { chatTemplate: TEMPLATES.pythonic, toolChoice: 'auto' as const };
    const begun = { logitBias: { [bracket.at(-1) as number]: 100 } };
    const { outputs } = (
      await llm.chat(
        MESSAGES,
        { ...begun, seed: 1, maxTokens: 300, temperature: 1.5 },
        { tools, ...options },
      )
    )[0];
    expect(outputs[0].text).toMatch(/^\[(?:get_weather|stop)\(/);
    const chatTemplate = TEMPLATES['mistral args'];
    const late = { logitBias: { [TOOL_CALLS]: 7 }, stopTokenIds: [] };
    const called = await messagesOf({ chatTemplate, parallelToolCalls: false }, late, 16);
    expect(called.some(({ content }) => content !== '')).toBe(true);
    for (const { toolCalls } of called) {
      if (toolCalls.length > 0) expectCalls({ content: '', reasoning: null, toolCalls });
    }
  });

  test('free text has the tokens that it has without tools', async () => {
    const chatTemplate = TEMPLATES.hermes.replace('{{ tools | tojson }}', '');
    const params = { temperature: 0, maxTokens: 30 };
    const [free] = await llm.chat(MESSAGES, params, { chatTemplate });
    const [held] = await llm.chat(MESSAGES, params, { chatTemplate, tools });
    expect(held.outputs[0].tokenIds).toEqual(free.outputs[0].tokenIds);
    expect(held.outputs[0].message).toEqual({
      content: held.outputs[0].text,
      reasoning: null,
      toolCalls: [],
    });
  });

  test('a call or structured content', async () => {
    const content = { structuredOutputs: { regex: '\\d{4}' } };
    const options = { chatTemplate: TEMPLATES['mistral args'] };
    const messages = await messagesOf(options, { ...content, logitBias: { [TOOL_CALLS]: 5 } }, 8);
    expect(messages.some(({ toolCalls }) => toolCalls.length > 0)).toBe(true);
    for (const message of messages) {
      if (message.toolCalls.length > 0 || message.isCut) expectCalls(message);
      else expect(message.content).toMatch(/^\d{4}$/);
    }
  });

  test('strict: false leaves a tool its own arguments', async () => {
    const own = {
      type: 'function',
      function: { name: 'f', parameters: { not: {} }, strict: false },
    };
    const chatTemplate = TEMPLATES['mistral args'];
    const params = { logitBias: { [TOOL_CALLS]: 100 }, maxTokens: 30 };
    const [{ outputs }] = await llm.chat(MESSAGES, params, { tools: [own], chatTemplate });
    expect(outputs[0].message?.toolCalls[0].name).toBe('f');
  });
});

describe('reasoning', () => {
  const END = 4;
  const chatTemplate =
    TEMPLATES['mistral args'] +
    '{% if enable_thinking | default(true) %}[THINK]{% endif %}{# [/THINK] #}';

  test('a grammar begins behind it', async () => {
    const structuredOutputs = { regex: '[a-z]{3}' };
    const params = { maxTokens: 300, seed: 2, logitBias: { [END]: 7 }, structuredOutputs };
    const [{ outputs }] = await llm.chat(MESSAGES, params, { chatTemplate });
    const { text, tokenIds, message, numReasoningTokens } = outputs[0];
    expect(text.replaceAll('\n', '')).toMatch(/^.+[a-z]{3}$/);
    expect(message?.content).toBe(text.slice(-3));
    expect(message?.reasoning).toBe(text.slice(0, -3).trim());
    expect(numReasoningTokens).toBe(tokenIds.indexOf(END) + 1);
  });

  test('a call follows it', async () => {
    const options = { chatTemplate, toolChoice: 'required' as const };
    const params = { logitBias: { [END]: 100 } };
    for (const message of await messagesOf(options, params)) {
      expect(message.reasoning).toBe('');
      expectCalls(message);
    }
  });

  test('false turns it off by the switch of the template', async () => {
    const params = { temperature: 1.5, seed: 1, structuredOutputs: { regex: '[a-z]{3}' } };
    const [{ outputs }] = await llm.chat(MESSAGES, params, { chatTemplate, reasoning: false });
    expect(outputs[0].message).toEqual({
      content: outputs[0].text,
      reasoning: null,
      toolCalls: [],
    });
    expect(outputs[0].text).toMatch(/^[a-z]{3}$/);
    const plain = llm.chat(MESSAGES, {}, { chatTemplate: TEMPLATES.hermes, reasoning: false });
    await expect(plain).resolves.toHaveLength(1);
  });

  test('false is refused if the template has no switch', async () => {
    const refused = llm.chat(MESSAGES, {}, { chatTemplate: '<think></think>', reasoning: false });
    await expect(refused).rejects.toThrow(/no switch that turns reasoning off/);
    const harmony = llm.chat(MESSAGES, {}, { chatTemplate: TEMPLATES.openai, reasoning: false });
    await expect(harmony).rejects.toThrow(/reasoning_effort/);
  });

  test('is in the usage of a stream', async () => {
    const stream = llm.chatStream(MESSAGES, { maxTokens: 12, temperature: 0 }, { chatTemplate });
    let reasoning = '';
    for await (const delta of stream) reasoning += delta.message?.reasoning ?? '';
    expect(reasoning).not.toBe('');
    expect(stream.usage).toMatchObject({ numOutputTokens: 12, numReasoningTokens: 12 });
  });
});

test('the deltas of a stream are the message', async () => {
  const options = {
    chatTemplate: TEMPLATES['mistral args'],
    tools,
    toolChoice: 'required' as const,
  };
  const params = { temperature: 1.5, seed: 3, maxTokens: 300, n: 2 };
  const all = [0, 1].map(() => ({ content: '', reasoning: '', toolCalls: [] }));
  for await (const { index, message } of llm.chatStream(MESSAGES, params, options)) {
    if (message !== undefined) mergeMessages(all[index], message);
  }
  const [{ outputs }] = await llm.chat(MESSAGES, params, options);
  for (const [i, { message }] of outputs.entries()) {
    const plain = (calls: readonly { name?: string; arguments: string }[]) =>
      calls.map((call) => [call.name, call.arguments]);
    expect(plain(all[i].toolCalls)).toEqual(plain(message?.toolCalls ?? []));
    expect(message?.toolCalls[0].id).toMatch(/^[a-z0-9]{9}$/);
  }
});

test('stop strings end the message where they end the text', async () => {
  const options = {
    chatTemplate: TEMPLATES['mistral args'],
    tools,
    toolChoice: 'required' as const,
  };
  const params = { temperature: 1.5, seed: 3, maxTokens: 300, stop: ['":'] };
  const [{ outputs }] = await llm.chat(MESSAGES, params, options);
  const [{ text, message }] = outputs;
  const [{ name, arguments: given }] = message?.toolCalls ?? [];
  expect(name + '[ARGS]' + given).toBe(text);
});

test("toolChoice 'none': the template gets no tools, and calls are content", async () => {
  const options = { chatTemplate: TEMPLATES['mistral args'], tools, toolChoice: 'none' as const };
  const [output] = await llm.chat(MESSAGES, { maxTokens: 3, logitBias: { 3: 100 } }, options);
  const [plain] = await llm.chat(
    MESSAGES,
    { maxTokens: 3 },
    { chatTemplate: TEMPLATES['mistral args'] },
  );
  expect(output.promptTokenIds).toEqual(plain.promptTokenIds);
  expect(output.outputs[0].message?.toolCalls).toEqual([]);
});

const bad = { type: 'object', properties: { a: { not: {} } } };
const HERMES = TEMPLATES.hermes;

test.each<[string, ChatOptions, RegExp]>([
  [
    'an unknown tool',
    { toolChoice: { name: 'other' } },
    /toolChoice names 'other'; the tools are get_weather, stop/,
  ],
  [
    'no tools',
    { toolChoice: 'required', tools: [] },
    /toolChoice is 'required', but there are no tools/,
  ],
  ['a choice', { toolChoice: 'any' as 'auto' }, /toolChoice is 'any'/],
  [
    'a name that the notation cannot write',
    {
      chatTemplate: TEMPLATES.pythonic,
      tools: [{ type: 'function', function: { name: 'my "tool"' } }],
    },
    /tools\[0\]\.function\.name is 'my "tool"', which the notation .* cannot write/,
  ],
  [
    'half of a character in a name without quotes',
    {
      tools: [{ function: { name: 'f\udc00' } }],
      chatTemplate: TEMPLATES.qwen3_coder,
    },
    /tools\[0\]\.function\.name is .*, which the notation .* cannot write/,
  ],
  [
    'a schema that is no JSON',
    { tools: [{ function: { name: 'f', parameters: { properties: { a: { minimum: NaN } } } } }] },
    /tools\[0\]\.function\.parameters has NaN, which JSON cannot write/,
  ],
  [
    'a schema with a Map',
    { tools: [{ function: { name: 'f', parameters: { properties: new Map([['a', {}]]) } } }] },
    /tools\[0\]\.function\.parameters has .*, which JSON cannot write/,
  ],
  [
    'more tools than 1024',
    { tools: Array.from({ length: 1025 }, (_, i) => ({ function: { name: `f${i}` } })) },
    /the chat has 1025 tools; the limit is 1024/,
  ],
  [
    'a call that continues a message of gpt-oss',
    {
      chatTemplate: TEMPLATES.openai,
      tools,
      toolChoice: 'required',
      addGenerationPrompt: false,
      continueFinalMessage: true,
    },
    /toolChoice is 'required', but the reply continues a message/,
  ],
  [
    'a template without tools',
    { toolChoice: 'required', chatTemplate: 'x' },
    /the chat template takes no tools/,
  ],
  ['a parser', { toolCallParser: 'none at all' }, /toolCallParser is 'none at all'/],
  [
    'a schema',
    { tools: [{ type: 'function', function: { name: 'f', parameters: bad } }] },
    /tools\[0\]\.function\.parameters: #\/properties\/a\/not: this keyword is not supported/,
  ],
  [
    'a name',
    { tools: [{ type: 'function', function: {} }], toolChoice: 'required' },
    /tools\[0\]\.function\.name is undefined/,
  ],
])('refuses %s', async (_, options, message) => {
  const run = llm.chat(MESSAGES, {}, { chatTemplate: HERMES, tools, ...options });
  await expect(run).rejects.toThrow(message);
  await expect(run).rejects.toThrow(InvalidRequestError);
});

test('refuses structuredOutputs with a required call, and a parser of LLM.create', async () => {
  const params = { structuredOutputs: { regex: 'a' } };
  const run = llm.chat(MESSAGES, params, { chatTemplate: HERMES, tools, toolChoice: 'required' });
  await expect(run).rejects.toThrow(/toolChoice and structuredOutputs both decide/);
  const created = LLM.create({ reasoningParser: 'x' });
  await expect(created).rejects.toThrow(ConfigError);
});
