/**
 * LangChain and OpenAI's client for Python, unmodified, each a program of its own against a server of two
 * models.
 * Python's is skipped without the package (UNIPROC_REFERENCE_PYTHON names a Python that has it).
 */
import { execFile, spawnSync } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';
import { createHandler, type LLM } from '../../lib';
import { NodeServer } from '../../lib/server/nodeServer';
import { TEMPLATES } from '../reply/templates';
import { embeddingModel, writeTokenizer } from '../support/embeddingModel';
import { loadStories, SERVER, until } from '../support/server';
import { stories } from '../support/stories';

const PYTHON = process.env.UNIPROC_REFERENCE_PYTHON ?? 'python3';
const hasOpenai = spawnSync(PYTHON, ['-c', 'import openai']).status === 0;

let llm: LLM;
let embedder: LLM;
let server: NodeServer;

beforeAll(async () => {
  const folder = await embeddingModel({ isAlone: true });
  await writeTokenizer(folder);
  llm = await loadStories({ chatTemplate: TEMPLATES.hermes });
  embedder = await loadStories({ model: folder, maxNumBatchedTokens: 64, maxNumSeqs: 4 });
  const models = { stories: llm, embedder };
  server = await NodeServer.listen(createHandler({ models }, { apiKeys: ['secret'] }), SERVER);
});

afterAll(async () => {
  await server.drain(0, new AbortController().signal);
  await Promise.all([llm.shutdown(), embedder.shutdown()]);
});

/** What a client's program prints. */
async function outputOf(program: string, script: string): Promise<Record<string, unknown>> {
  const file = path.join(__dirname, 'clients', script);
  const { stdout } = await promisify(execFile)(program, [file, server.url]);
  return JSON.parse(stdout) as Record<string, unknown>;
}

/** The engine's own greedy answer of 8 tokens to the clients' question. */
async function answer(): Promise<string> {
  const [{ outputs }] = await llm.chat(
    [{ role: 'user', content: 'Tell me a story about a fox.' }],
    { temperature: 0, maxTokens: 8, ignoreEos: true },
  );
  return outputs[0].text;
}

/** Logprobs have special tokens, too, which a text leaves out. */
const textOf = (tokens: unknown) => (tokens as string[]).join('').replace(/<\|\w+\|>/g, '');

/** The client has left one stream. */
async function expectAbort(before: number): Promise<void> {
  await until(() => llm.engine.numUnfinishedRequests === 0);
  expect(llm.stats().numFinishedReqs.abort).toBeGreaterThan(before);
}

async function expectEmbeddings(found: unknown): Promise<void> {
  const outputs = await embedder.embed(['a', 'b', 'a']);
  const expected = outputs.map((output) => Array.from(output.embedding));
  expect(found).toEqual(expected);
}

test('LangChain chats, streams, calls tools, embeds, aborts and reports errors', async () => {
  const before = llm.stats().numFinishedReqs.abort;
  const got = await outputOf(process.execPath, 'langChain.js');
  const text = await answer();
  expect(got).toMatchObject({
    text,
    finishReason: 'length',
    usage: { output_tokens: 8 },
    streamed: text,
    streamUsage: { output_tokens: 8 },
    batch: [text, text],
    call: { name: 'get_weather', args: { city: expect.any(String) as unknown } },
    answered: 'string',
    structured: { city: expect.any(String) as unknown },
    refused: { status: 404, message: expect.stringContaining('`other` does not exist') as unknown },
    aborted: 'AbortError',
  });
  expect(textOf(got.logprobs)).toBe(text);
  expect(stories.prompts[0].text.startsWith(got.completed as string)).toBe(true);
  await expectEmbeddings(got.embeddings);
  await expectAbort(before);
});

const pythonTest = hasOpenai ? test : test.skip;

pythonTest(
  "Python's openai chats, streams, calls tools, embeds, leaves, reports errors",
  async () => {
    const before = llm.stats().numFinishedReqs.abort;
    const got = await outputOf(PYTHON, 'openaiPython.py');
    const text = await answer();
    expect(got).toMatchObject({
      models: ['stories', 'embedder'],
      text,
      finish_reason: 'length',
      streamed: { text, completion_tokens: 8 },
      logprobs: { tops: new Array(8).fill(2) },
      tool_call: { name: 'get_weather', parsed: true },
      json_schema: true,
      // Of /v1/responses the text ends with the model's turn.
      responses: { text: text[0], streamed: text[0], status: 'completed' },
      errors: [
        { name: 'NotFoundError', status: 404 },
        { name: 'BadRequestError', status: 400, param: 'top_p' },
        { name: 'AuthenticationError', status: 401 },
        { name: 'APITimeoutError', status: null },
      ],
      left: true,
    });
    expect(textOf((got.logprobs as { tokens: unknown }).tokens)).toBe(text);
    expect(stories.prompts[0].text.startsWith(got.completion as string)).toBe(true);
    await expectEmbeddings(got.embeddings);
    await expectAbort(before + 1); // the timeout's, too
  },
);
