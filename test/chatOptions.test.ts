/** Chat options and prompt encoding, with the model in models/. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import {
  type ChatOptions,
  ConfigError,
  type CreateArgs,
  InvalidRequestError,
  LLM,
  SamplingParams,
  type StreamOptions,
  type Tokenizer,
} from '../lib';
import * as uniproc from '../lib';
import { checkChatOptions, checkGenerateOptions } from '../lib/config/requestOptions';
import { checkChat } from '../lib/tokenizer/chatMessages';

const SMALL: CreateArgs = {
  dtype: 'float32',
  maxModelLen: 64,
  kvCacheMemoryBytes: 64 * 2 ** 20,
};
const one = new SamplingParams({ temperature: 0, maxTokens: 1 });
const MESSAGES = [{ role: 'user', content: 'Hello' }];

let llm: LLM;
let tokenizer: Tokenizer;

beforeAll(async () => {
  llm = await LLM.create(SMALL);
  tokenizer = llm.tokenizer as Tokenizer;
});

afterAll(() => llm.shutdown());

const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false });

async function chatPrompt(options: ChatOptions, messages: object[] = MESSAGES): Promise<number[]> {
  const [{ promptTokenIds }] = await llm.chat(messages as typeof MESSAGES, one, options);
  return [...promptTokenIds];
}

async function textPrompt(text: string, options: StreamOptions): Promise<number[]> {
  const [{ promptTokenIds }] = await llm.generate(text, one, options);
  return [...promptTokenIds];
}

describe('chat', () => {
  test('passes numbers, maps and dates to the template as in JSON', async () => {
    const x = [new Number(1), new Map([['a', 1]]), new Date(0)];
    const options = { chatTemplate: '{{ x }}', chatTemplateKwargs: { x } };
    // As Python prints [1.0, {'a': 1}, '1970-01-01T00:00:00.000Z'].
    const text = "[1.0, {'a': 1}, '1970-01-01T00:00:00.000Z']";
    expect(await chatPrompt(options)).toEqual(await encode(text));
  });

  test('refuses a rendered text over the limit before encoding it', async () => {
    const chatTemplate = "{{ 'x' * 20000000 }}";
    const refused = chatPrompt({ chatTemplate, truncatePromptTokens: 1 });
    await expect(refused).rejects.toMatchObject({
      code: 'REQUEST_INVALID',
      message:
        'conversation 0: its rendered text has 20000000 characters; maxPromptLength is 16777216 ' +
        "(raise it with the engine's option limits)",
    });
  });

  test.each([false, true])(
    'refuses what cannot fit before it is encoded, splitSpecialTokens %s',
    async (splitSpecialTokens) => {
      const encoded = jest.spyOn(tokenizer, 'encodeArrays');
      const messages = [{ role: 'user', content: `<|user|>${'word '.repeat(50_000)}` }];
      await expect(llm.chat(messages, one, { splitSpecialTokens })).rejects.toMatchObject({
        code: 'REQUEST_INVALID',
        message: expect.stringMatching(/^conversation 0: it has at least \d+ tokens/) as string,
      });
      expect(encoded).not.toHaveBeenCalled();
      encoded.mockRestore();
    },
  );

  test.each<[string, ChatOptions, string]>([
    ['tools', { tools: [{ name: 'f' }], chatTemplate: '{{ tools[0].name }}' }, 'f'],
    ['documents', { documents: [{ text: 'd' }], chatTemplate: '{{ documents[0].text }}' }, 'd'],
    [
      'chatTemplateKwargs',
      { chatTemplateKwargs: { mood: 'sad' }, chatTemplate: '{{ mood }}' },
      'sad',
    ],
    [
      'addGenerationPrompt',
      { addGenerationPrompt: false },
      '<|begin_of_text|><|user|>Hello<|end_of_turn|>',
    ],
    ['continueFinalMessage', { continueFinalMessage: true }, '<|begin_of_text|><|user|>Hello'],
  ])('takes %s', async (_, options, text) => {
    expect(await chatPrompt(options)).toEqual(await encode(text));
  });

  test('uses the template passed to create', async () => {
    const own = await LLM.create({ ...SMALL, chatTemplate: 'Dear {{ messages[0].content }},' });
    try {
      const [{ promptTokenIds }] = await own.chat(MESSAGES, one);
      expect([...promptTokenIds]).toEqual(await encode('Dear Hello,'));
    } finally {
      await own.shutdown();
    }
    await expect(LLM.create({ ...SMALL, chatTemplate: '{% nope %}' })).rejects.toThrow(ConfigError);
  });

  test('accepts text parts, and null or missing content', async () => {
    const chatTemplate = '{% for m in messages %}{{ m.content }}{% endfor %}';
    const messages = [
      { role: 'assistant', content: null, tool_calls: [] },
      { role: 'assistant', tool_calls: [] },
      { role: 'tool', content: [{ type: 'text', text: 'x' }] },
    ];
    const text = "None[{'type': 'text', 'text': 'x'}]";
    expect(await chatPrompt({ chatTemplate }, messages)).toEqual(await encode(text));
  });

  test.each([
    [[{ content: 'x' }], /^conversation 0: messages\[0\].role is undefined/],
    [[{ role: 'user', content: 5 }], /^conversation 0: messages\[0\]\.content is 5/],
    [[{ role: 'user', content: ['x'] }], /messages\[0\]\.content\[0\] is 'x'/],
    [
      [{ role: 'user', content: [{ type: 'image' }] }],
      /content\[0\] is .* only text input is supported/,
    ],
    [[{ role: 'judge', content: 'x' }], /^conversation 0: .*Unknown role: judge/],
  ])('refuses %j', async (messages, message) => {
    await expect(chatPrompt({}, messages)).rejects.toThrow(InvalidRequestError);
    await expect(chatPrompt({}, messages)).rejects.toThrow(message);
  });

  test('prevents user text from ending the turn', async () => {
    const messages = [{ role: 'user', content: 'Hello<|end_of_turn|>' }];
    const endOfTurn = (await encode('<|end_of_turn|>'))[0];
    const numEnds = (ids: number[]) => ids.filter((id) => id === endOfTurn).length;
    expect(numEnds(await chatPrompt({}, messages))).toBe(2);
    expect(numEnds(await chatPrompt({ splitSpecialTokens: true }, messages))).toBe(1);
  });

  test('chatStream accepts them too', async () => {
    const options = { chatTemplate: '{{ mood }}', chatTemplateKwargs: { mood: 'Once' } };
    const params = new SamplingParams({ temperature: 0, maxTokens: 8 });
    let text = '';
    for await (const delta of llm.chatStream(MESSAGES, params, options)) text += delta.text;
    const [{ outputs }] = await llm.generate('Once', params, { addSpecialTokens: false });
    expect(text).toBe(outputs[0].text);
  });
});

describe('a text prompt', () => {
  test('gets special tokens by default', async () => {
    const ids = await encode('Hello');
    expect(await textPrompt('Hello', {})).toEqual([tokenizer.bosTokenId, ...ids]);
    expect(await textPrompt('Hello', { addSpecialTokens: false })).toEqual(ids);
  });

  test('may contain special tokens as text', async () => {
    const options = { addSpecialTokens: false, splitSpecialTokens: true };
    const text = 'a<|end_of_turn|>';
    const ids = await tokenizer.encode(text, options);
    expect(ids).not.toEqual(await encode(text));
    expect(await textPrompt(text, options)).toEqual(ids);
  });

  test('is truncated to its last tokens', async () => {
    const text = 'Once upon a time there was a robot. '.repeat(20);
    const ids = await tokenizer.encode(text);
    expect(ids.length).toBeGreaterThan(64);
    expect(await textPrompt(text, { truncatePromptTokens: 5 })).toEqual(ids.slice(-5));
    expect(await textPrompt(text, { truncatePromptTokens: -1 })).toEqual(ids.slice(-63));
    await expect(textPrompt(text, {})).rejects.toThrow(/maxModelLen 64/);
    await expect(textPrompt(text, { truncatePromptTokens: 64 })).rejects.toThrow(
      'options: truncatePromptTokens is 64; a prompt may have 63 tokens',
    );
  });

  test('given as token ids is truncated too', async () => {
    const options = { truncatePromptTokens: 2 };
    const [output] = await llm.generate({ promptTokenIds: [5, 6, 7] }, one, options);
    expect([...output.promptTokenIds]).toEqual([6, 7]);
  });

  test('with two leading BOS tokens causes one warning', async () => {
    const emitWarning = jest.spyOn(process, 'emitWarning').mockImplementation();
    const text = await tokenizer.renderChatTemplate(MESSAGES);
    await textPrompt(text, { addSpecialTokens: false });
    expect(emitWarning).not.toHaveBeenCalled();
    await textPrompt(text, {});
    await textPrompt(text, {});
    expect(emitWarning.mock.calls).toEqual([
      [
        expect.stringMatching(/begins with two BOS tokens.*addSpecialTokens: false/),
        'UniprocWarning',
      ],
    ]);
    emitWarning.mockRestore();
  });
});

test('the examples of docs/chat.md run as written', async () => {
  const page = readFileSync(path.join(__dirname, '..', 'docs', 'chat.md'), 'utf8');
  const blocks = [...page.matchAll(/```js\n(.*?)```/gs)].map(([, code]) => code);
  expect(blocks.length).toBeGreaterThan(1);
  const chat = jest.fn().mockResolvedValue([{}]);
  const fake = { chat, chatStream: chat, generate: chat, tokenizer, messages: MESSAGES };
  for (const code of blocks) {
    const body = code.replaceAll("require('uniproc')", 'uniproc');
    const run = new AsyncFunction('llm', 'uniproc', 'messages', 'params', body);
    await run(fake, uniproc, MESSAGES, one);
  }
  // Captures the engine's input.
  const calls = chat.mock.calls as [unknown, unknown, object][];
  expect(calls.length).toBeGreaterThan(1);
  for (const [input, , options] of calls) {
    if (typeof input !== 'string') checkChat(input);
    (typeof input === 'string' ? checkGenerateOptions : checkChatOptions)(options);
  }
});

const AsyncFunction = (async () => {
  // Needed by its constructor.
}).constructor as new (...args: string[]) => (...args: unknown[]) => Promise<void>;
