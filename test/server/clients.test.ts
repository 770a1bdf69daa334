/** Clients of others, unmodified, against `uniproc serve`'s server. */
import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';
import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';
import { stories } from '../support/stories';
import { type RunningServer, startServer, until } from '../support/server';

const KEY = 'secret';
let running: RunningServer;
let openai: OpenAI;
let anthropic: Anthropic;

beforeAll(async () => {
  running = await startServer({}, { apiKeys: [KEY] });
  openai = new OpenAI({ baseURL: `${running.url}/v1`, apiKey: KEY, maxRetries: 0 });
  anthropic = new Anthropic({ baseURL: running.url, apiKey: KEY, maxRetries: 0 });
});

afterAll(() => running.close());

const model = 'stories';
const messages = stories.chat.messages as { role: 'user'; content: string }[];
const greedy = { model, messages, temperature: 0, max_completion_tokens: 8 };
const endless = { model, messages, max_completion_tokens: 900, stream: true } as const;
const idle = () => until(() => running.llm.engine.numUnfinishedRequests === 0);

describe('openai', () => {
  test('lists the models', async () => {
    const page = await openai.models.list();
    expect(page.data.map(({ id }) => id)).toEqual([model]);
    expect((await openai.models.retrieve(model)).id).toBe(model);
  });

  test('chats, whole and streamed', async () => {
    const whole = await openai.chat.completions.create(greedy);
    const [{ message, finish_reason: reason }] = whole.choices;
    expect(stories.chat.text.startsWith(message.content ?? '')).toBe(true);
    expect(message.content).not.toBe('');
    expect(reason).toBe('length');
    const runner = openai.chat.completions.stream({
      ...greedy,
      stream_options: { include_usage: true },
    });
    let text = '';
    runner.on('content', (delta) => (text += delta));
    const final = await runner.finalChatCompletion();
    expect(text).toBe(message.content);
    expect(final.choices[0]).toMatchObject({ finish_reason: 'length', message: { content: text } });
    expect(final.usage?.completion_tokens).toBe(8);
  });

  test('has logprobs and n answers', async () => {
    const wanted = { ...greedy, temperature: 1, seed: 1, n: 2, logprobs: true, top_logprobs: 2 };
    const { choices } = await openai.chat.completions.create(wanted);
    expect(choices).toHaveLength(2);
    for (const { logprobs, message } of choices) {
      expect(logprobs?.content?.map(({ token }) => token).join('')).toBe(message.content);
      expect(logprobs?.content?.every(({ top_logprobs: top }) => top.length === 2)).toBe(true);
    }
  });

  test('completes texts', async () => {
    const prompt = stories.prompts[0].prompt;
    const wanted = { model, prompt: [prompt, prompt], temperature: 0, max_tokens: 8, logprobs: 1 };
    const { choices } = await openai.completions.create(wanted);
    expect(choices.map(({ index }) => index)).toEqual([0, 1]);
    expect(stories.prompts[0].text.startsWith(choices[0].text)).toBe(true);
    let streamed = '';
    for await (const chunk of await openai.completions.create({ ...wanted, stream: true })) {
      streamed += chunk.choices
        .filter(({ index }) => index === 1)
        .map(({ text }) => text)
        .join('');
    }
    expect(streamed).toBe(choices[0].text);
  });

  test('creates responses, whole and streamed', async () => {
    const wanted = { model, input: messages, temperature: 0, max_output_tokens: 8 };
    const whole = await openai.responses.create(wanted);
    expect(stories.chat.text.startsWith(whole.output_text)).toBe(true);
    expect(whole).toMatchObject({
      status: 'incomplete',
      incomplete_details: { reason: 'max_output_tokens' },
      usage: { output_tokens: 8 },
    });
    const stream = openai.responses.stream(wanted);
    let text = '';
    stream.on('response.output_text.delta', ({ delta }) => (text += delta));
    const final = await stream.finalResponse();
    expect(text).toBe(whole.output_text);
    expect(final.output_text).toBe(whole.output_text);
  });

  test('throws its own errors for what is refused', async () => {
    const asked = (extra: object) => openai.chat.completions.create({ ...greedy, ...extra });
    await expect(asked({ top_p: 2 })).rejects.toMatchObject({
      constructor: OpenAI.BadRequestError,
      status: 400,
      param: 'top_p',
    });
    await expect(asked({ model: 'gpt' })).rejects.toBeInstanceOf(OpenAI.NotFoundError);
    const stranger = new OpenAI({ baseURL: `${running.url}/v1`, apiKey: 'guess', maxRetries: 0 });
    await expect(stranger.models.list()).rejects.toBeInstanceOf(OpenAI.AuthenticationError);
    await expect(
      openai.embeddings.create({ model, input: 'Once', encoding_format: 'float' }),
    ).rejects.toMatchObject({ status: 400 });
  });

  test('aborts, and leaves the loop', async () => {
    const stream = await openai.chat.completions.create(endless);
    for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
    await idle();
    const controller = new AbortController();
    const call = openai.chat.completions.create(
      { ...greedy, max_completion_tokens: 900 },
      { signal: controller.signal },
    );
    await until(() => running.llm.engine.numUnfinishedRequests > 0);
    controller.abort();
    await expect(call).rejects.toBeInstanceOf(OpenAI.APIUserAbortError);
    await idle();
  });

  test('its timeout ends the request here, too', async () => {
    const long = { ...greedy, n: 32, temperature: 1, max_completion_tokens: 900, ignore_eos: true };
    const call = openai.chat.completions.create(long, { timeout: 50 });
    await expect(call).rejects.toBeInstanceOf(OpenAI.APIConnectionError);
    await idle();
  });
});

describe('@anthropic-ai/sdk', () => {
  const wanted = { model, max_tokens: 8, temperature: 0, messages };

  test('sends messages, whole and streamed', async () => {
    const whole = await anthropic.messages.create(wanted);
    const [block] = whole.content;
    const text = block.type === 'text' ? block.text : '';
    expect(text).not.toBe('');
    expect(stories.chat.text.startsWith(text)).toBe(true);
    expect(whole).toMatchObject({ role: 'assistant', stop_reason: 'max_tokens' });
    expect(whole.usage.output_tokens).toBe(8);
    const stream = anthropic.messages.stream(wanted);
    let streamed = '';
    stream.on('text', (delta) => (streamed += delta));
    const final = await stream.finalMessage();
    expect(streamed).toBe(text);
    expect(final.content[0]).toMatchObject({ type: 'text', text });
    expect(final.stop_reason).toBe('max_tokens');
    expect(final.usage.output_tokens).toBe(8);
  });

  test('names the stop sequence, and counts tokens', async () => {
    const stopped = await anthropic.messages.create({ ...wanted, stop_sequences: [' '] });
    expect(stopped).toMatchObject({ stop_reason: 'stop_sequence', stop_sequence: ' ' });
    const { input_tokens: count } = await anthropic.messages.countTokens({ model, messages });
    expect(count).toBe(stories.chat.promptTokenIds.length);
  });

  test('throws its own errors, and aborts', async () => {
    const { BadRequestError, NotFoundError } = Anthropic;
    const wrong = { ...wanted, top_p: 7 };
    await expect(anthropic.messages.create(wrong)).rejects.toBeInstanceOf(BadRequestError);
    const other = anthropic.messages.create({ ...wanted, model: 'other' });
    await expect(other).rejects.toBeInstanceOf(NotFoundError);
    const stream = anthropic.messages.stream({ ...wanted, max_tokens: 900 });
    for await (const event of stream) if (event.type === 'content_block_delta') break;
    stream.abort();
    await idle();
  });
});

test('the AI SDK generates, streams, aborts and reports errors', async () => {
  const open = await startServer();
  try {
    const script = path.join(__dirname, 'clients', 'aiSdk.js');
    const { stdout } = await promisify(execFile)(process.execPath, [script, open.url]);
    const got = JSON.parse(stdout) as Record<string, unknown>;
    const { text } = got;
    expect(text).not.toBe('');
    expect(got).toMatchObject({
      finishReason: 'length',
      usage: { outputTokens: 8 },
      streamed: { text, finishReason: 'length', usage: { outputTokens: 8 } },
      refused: { statusCode: 404, message: 'The model `other` does not exist.' },
    });
    expect(got.completion).not.toBe('');
    await until(() => open.llm.engine.numUnfinishedRequests === 0);
    expect(open.llm.stats().numFinishedReqs.abort).toBe(1);
  } finally {
    await open.close();
  }
});
