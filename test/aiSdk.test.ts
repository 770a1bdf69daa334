/** `uniproc/ai-sdk`: the AI SDK with models in the process. */
import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';
import { messagesOf } from '../lib/aiSdkMessages';
import { InvalidRequestError } from '../lib/errors';
import { TEMPLATES } from './reply/templates';
import { embeddingModel, writeTokenizer } from './support/embeddingModel';

const run = promisify(execFile);
const ROOT = path.join(__dirname, '..');

test('generates, streams, makes objects, calls tools, aborts and embeds', async () => {
  const folder = await embeddingModel();
  await writeTokenizer(folder);
  const client = path.join(__dirname, 'server', 'clients', 'aiSdkProvider.js');
  const { stdout } = await run(process.execPath, [client, ROOT, folder, TEMPLATES.hermes]);
  const result = JSON.parse(stdout) as Record<string, unknown>;
  const { text, streamed, direct, output, embeddings, vectors } = result;
  expect(text).toBe(direct);
  expect(text).toMatch(/\w+ \w+/);
  expect(streamed).toEqual({ text, finishReason: 'length' });
  expect(result).toMatchObject({
    finishReason: 'length',
    usage: { outputTokens: 8 },
    numAborted: 1,
    refused: {
      name: 'AI_UnsupportedFunctionalityError',
      functionality: 'file in a message of role user',
    },
    tools: {
      finishReason: 'tool-calls',
      streamedText: '',
      whole: [{ toolName: 'get_weather', input: { city: expect.any(String) as string } }],
      answered: expect.any(String) as string,
    },
    embeddingUsage: { tokens: 7 },
  });
  expect(['small', 'large']).toContain((output as { size: string }).size);
  const { whole, streamed: inParts } = result.tools as Record<string, unknown>;
  expect(inParts).toEqual(whole);
  expect(embeddings).toEqual(vectors);
}, 30_000);

test('an input of a call that JSON lacks is a typed error', () => {
  const call = { type: 'tool-call', toolCallId: '1', toolName: 'f', input: { a: 1n } } as const;
  const make = () => messagesOf({ role: 'assistant', content: [call] });
  expect(make).toThrow(InvalidRequestError);
  expect(make).toThrow(/^the input of the call of f cannot be written as JSON: /);
});
