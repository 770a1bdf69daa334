/** Every reply of OpenAI's endpoints has the type that the openai package declares for it. */
import path from 'node:path';
import ts from 'typescript';
import { createHandler, type Handler, type LLM } from '../../lib';
import { TEMPLATES } from '../reply/templates';
import { embeddingModel, writeTokenizer } from '../support/embeddingModel';
import { stories } from '../support/stories';
import { loadStories, post, readChunks, readEvents } from '../support/server';

let llm: LLM;
let embedder: LLM;
let handler: Handler;

beforeAll(async () => {
  const folder = await embeddingModel({ isAlone: true });
  await writeTokenizer(folder);
  llm = await loadStories({
    chatTemplate: `${TEMPLATES.hermes}{% if enable_thinking | default(false) %}<think>{% endif %}{# </think> #}`,
  });
  embedder = await loadStories({ model: folder, maxNumBatchedTokens: 64, maxNumSeqs: 4 });
  handler = createHandler({ models: { stories: llm, embedder } });
});

afterAll(() => Promise.all([llm.shutdown(), embedder.shutdown()]));

/** The value as an expression whose strings keep their own types. */
function literal(value: unknown): string {
  if (typeof value === 'string') return `${JSON.stringify(value)} as const`;
  if (Array.isArray(value)) return `[${value.map(literal).join()}]`;
  if (typeof value !== 'object' || value === null) return String(value);
  const fields = Object.entries(value).map(
    ([name, own]) => `${JSON.stringify(name)}: ${literal(own)}`,
  );
  return `same({${fields.join()}})`;
}

/** Files of the package and of the language, parsed once. */
const parsed = new Map<string, ts.SourceFile | undefined>();

/**
 * The compiler's messages for values of types of the openai package. A value may have fields that its type
 * lacks: vLLM's.
 */
function faultsOf(type: string, values: readonly unknown[]): string[] {
  // In the repository, so that the package is found.
  const file = path.join(__dirname, 'replies.ts');
  const text = [
    `import type OpenAI from 'openai';`,
    // Its result is not fresh, so that a value may have fields that its type lacks.
    'declare function same<T>(value: T): T;',
    ...values.map(
      (value, i) => `const own${i} = ${literal(value)}; const its${i}: ${type} = own${i};`,
    ),
  ].join('\n');
  const options: ts.CompilerOptions = {
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    types: ['node'],
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.Node16,
    moduleResolution: ts.ModuleResolutionKind.Node16,
  };
  const host = ts.createCompilerHost(options);
  const fileExists = host.fileExists.bind(host);
  const getSourceFile = host.getSourceFile.bind(host);
  host.fileExists = (name) => name === file || fileExists(name);
  host.getSourceFile = (name, ...rest) => {
    if (name === file) return ts.createSourceFile(file, text, ts.ScriptTarget.ES2022);
    if (!parsed.has(name)) parsed.set(name, getSourceFile(name, ...rest));
    return parsed.get(name);
  };
  const program = ts.createProgram([file], options, host);
  return ts
    .getPreEmitDiagnostics(program)
    .map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, '\n'));
}

const { messages } = stories.chat;
const [{ prompt }] = stories.prompts;
const CHAT = '/v1/chat/completions';
const TEXT = '/v1/completions';
const short = { temperature: 0, max_tokens: 8 };
const chat = { messages, ...short };
const PARAMETERS = {
  type: 'object',
  properties: { city: { type: 'string', maxLength: 8 } },
  required: ['city'],
  additionalProperties: false,
};
const withTool = {
  messages,
  max_tokens: 200,
  temperature: 0,
  tools: [{ type: 'function', function: { name: 'get_weather', parameters: PARAMETERS } }],
  tool_choice: 'required',
  parallel_tool_calls: false,
};
const usage = { stream_options: { include_usage: true } };
const thinking = { chat_template_kwargs: { enable_thinking: true } };
const response = { input: messages, temperature: 0, max_output_tokens: 8 };
const responseTool = {
  input: messages,
  temperature: 0,
  max_output_tokens: 200,
  tools: [{ type: 'function', name: 'get_weather', parameters: PARAMETERS, strict: true }],
  tool_choice: 'required',
};

async function reply(request: string, body: object): Promise<unknown> {
  const answer = await post(handler, request, body);
  expect(answer.status).toBe(200);
  return answer.json();
}

const replies = (request: string, bodies: readonly object[]): Promise<unknown[]> =>
  Promise.all(bodies.map((body) => reply(request, body)));

/** The chunks of all streams; each must have several. */
async function chunks(request: string, bodies: readonly object[]): Promise<unknown[]> {
  const all: unknown[] = [];
  for (const body of bodies) {
    const own = await readChunks(await post(handler, request, { ...body, stream: true }));
    expect(own.length).toBeGreaterThan(2);
    all.push(...own);
  }
  return all;
}

async function get(request: string): Promise<unknown> {
  return (await handler(new Request(`http://localhost${request}`))).json();
}

const chats = [
  chat,
  { ...chat, n: 2, temperature: 1, seed: 1, logprobs: true, top_logprobs: 2 },
  { ...chat, ...thinking },
  withTool,
];
const texts = [
  { prompt, ...short },
  { prompt: [prompt, prompt], ...short, logprobs: 2 },
];

test('chat completions, with logprobs, reasoning and tool calls', async () => {
  const all = await replies(CHAT, [...chats, { ...chat, logprobs: true, prompt_logprobs: 1 }]);
  expect(JSON.stringify(all)).toContain('"tool_calls":[{');
  expect(faultsOf('OpenAI.ChatCompletion', all)).toEqual([]);
});

test('chunks of chat completions', async () => {
  const all = await chunks(CHAT, [
    ...chats.map((body) => ({ ...body, ...usage })),
    { ...chat, stream_options: { include_usage: true, continuous_usage_stats: true } },
  ]);
  expect(JSON.stringify(all)).toContain('"tool_calls":[{');
  // A delta of vLLM's reasoning alone has no field that the type knows.
  const known = (all as { choices: { delta: object }[] }[]).map(({ choices, ...rest }) => ({
    ...rest,
    choices: choices.map((each) => ({ ...each, delta: { content: undefined, ...each.delta } })),
  }));
  expect(faultsOf('OpenAI.ChatCompletionChunk', known)).toEqual([]);
});

test('completions', async () => {
  const all = await replies(TEXT, [...texts, { ...texts[0], echo: true }]);
  expect(faultsOf('OpenAI.Completion', all)).toEqual([]);
});

test('chunks of completions, which have null until there is a value, as the API documents', async () => {
  const all = await chunks(TEXT, [texts[0], { ...texts[1], ...usage }]);
  const choice =
    "Omit<OpenAI.CompletionChoice, 'finish_reason'> & { finish_reason: OpenAI.CompletionChoice['finish_reason'] | null }";
  const type = `Omit<OpenAI.Completion, 'choices' | 'usage'> & { choices: (${choice})[]; usage?: OpenAI.CompletionUsage | null }`;
  expect(faultsOf(type, all)).toEqual([]);
});

test('responses', async () => {
  const all = await replies('/v1/responses', [
    response,
    { ...response, ...thinking },
    responseTool,
  ]);
  expect(JSON.stringify(all)).toContain('"function_call"');
  // The package adds `output_text` itself.
  expect(faultsOf("Omit<OpenAI.Responses.Response, 'output_text'>", all)).toEqual([]);
});

test('events of responses', async () => {
  const events: unknown[] = [];
  for (const body of [response, { ...response, ...thinking }, responseTool]) {
    const streamed = await readEvents(
      await post(handler, '/v1/responses', { ...body, stream: true }),
    );
    events.push(...streamed.events.map(({ data }) => JSON.parse(data) as unknown));
  }
  const types = new Set(events.map((event) => (event as { type: string }).type));
  expect(types).toContain('response.function_call_arguments.done');
  const values = events.map((event) => {
    const { response: own, ...rest } = event as { response?: { usage: unknown } };
    if (own === undefined) return rest;
    // The package adds `output_text` itself; usage is null until the end, as the API documents.
    return { ...rest, response: { ...own, usage: own.usage ?? undefined, output_text: '' } };
  });
  expect(faultsOf('OpenAI.Responses.ResponseStreamEvent', values)).toEqual([]);
});

test('embeddings and models', async () => {
  const all = await replies('/v1/embeddings', [{ model: 'embedder', input: ['a', 'b'] }]);
  expect(faultsOf('OpenAI.CreateEmbeddingResponse', all)).toEqual([]);
  const { data } = (await get('/v1/models')) as { data: unknown[] };
  expect(data).toHaveLength(2);
  expect(faultsOf('OpenAI.Model', [...data, await get('/v1/models/stories')])).toEqual([]);
});

test('errors, whose code is a number as in vLLM', async () => {
  const answers = [
    await post(handler, CHAT, { ...chat, top_p: 2 }),
    await post(handler, CHAT, { ...chat, model: 'other' }),
  ];
  const bodies = await Promise.all(answers.map((each) => each.json()));
  const type = "{ error: Omit<OpenAI.ErrorObject, 'code'> & { code: number } }";
  expect(faultsOf(type, bodies)).toEqual([]);
});

test('a field that is missing or of another type is a fault', async () => {
  const whole = (await reply(CHAT, chat)) as { choices: [Record<string, unknown>] };
  const [choice] = whole.choices;
  const wrong = [
    { ...whole, created: '1' },
    { ...whole, id: undefined },
    { ...whole, choices: [{ ...choice, finish_reason: 'end' }] },
    { ...whole, choices: [{ ...choice, message: undefined }] },
  ];
  for (const each of wrong) expect(faultsOf('OpenAI.ChatCompletion', [each])).not.toEqual([]);
  expect(faultsOf('OpenAI.ChatCompletion', [{ ...whole, own: 1 }])).toEqual([]);
});
