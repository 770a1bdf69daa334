// LangChain, unmodified, against the server at argv[2]; prints what it got as JSON. A program of its own,
// because jest cannot load ES modules.
'use strict';

async function main() {
  const { ChatOpenAI, OpenAI, OpenAIEmbeddings } = await import('@langchain/openai');
  const { HumanMessage, ToolMessage } = await import('@langchain/core/messages');

  const configuration = { baseURL: `${process.argv[2]}/v1` };
  const server = { apiKey: 'secret', maxRetries: 0, configuration };
  const common = { ...server, model: 'stories', temperature: 0 };
  const modelKwargs = { ignore_eos: true };
  const chat = new ChatOpenAI({ ...common, maxTokens: 8, modelKwargs });
  const question = 'Tell me a story about a fox.';

  const whole = await chat.invoke(question);
  let streamed = '';
  let streamUsage;
  for await (const chunk of await chat.stream(question)) {
    streamed += chunk.content;
    streamUsage = chunk.usage_metadata ?? streamUsage;
  }
  const batch = await chat.batch([question, question]);
  const scored = await new ChatOpenAI({
    ...common,
    maxTokens: 8,
    modelKwargs,
    logprobs: true,
    topLogprobs: 2,
  }).invoke(question);
  const completed = await new OpenAI({ ...common, maxTokens: 8 }).invoke('Once upon a time');

  const parameters = {
    type: 'object',
    properties: { city: { type: 'string', maxLength: 8 } },
    required: ['city'],
    additionalProperties: false,
  };
  const creative = new ChatOpenAI({
    ...common,
    temperature: 1,
    maxTokens: 200,
    modelKwargs: { seed: 3 },
  });
  const tool = { type: 'function', function: { name: 'get_weather', parameters } };
  const bound = creative.bindTools([tool], { tool_choice: 'required', parallel_tool_calls: false });
  const called = await bound.invoke('Hello');
  const [call] = called.tool_calls;
  const answered = await chat.invoke([
    new HumanMessage('Hello'),
    called,
    new ToolMessage({ content: '21', tool_call_id: call.id }),
  ]);
  const structured = await creative
    .withStructuredOutput({ title: 'place', ...parameters }, { method: 'jsonSchema' })
    .invoke('Hello');

  const embeddings = new OpenAIEmbeddings({ ...server, model: 'embedder' });
  const [first, second] = await embeddings.embedDocuments(['a', 'b']);
  const query = await embeddings.embedQuery('a');

  const refused = await new ChatOpenAI({ ...common, model: 'other' })
    .invoke(question)
    .catch(({ status, message }) => ({ status, message }));
  const controller = new AbortController();
  let aborted;
  try {
    const endless = new ChatOpenAI({ ...common, modelKwargs });
    for await (const chunk of await endless.stream(question, { signal: controller.signal })) {
      if (chunk.content !== '') controller.abort();
    }
  } catch (error) {
    aborted = error.name;
  }
  const { content, usage_metadata: usage, response_metadata: metadata } = whole;
  console.log(
    JSON.stringify({
      text: content,
      usage,
      finishReason: metadata.finish_reason,
      streamed,
      streamUsage,
      batch: batch.map((message) => message.content),
      logprobs: scored.response_metadata.logprobs?.content?.map(({ token }) => token),
      completed,
      call,
      answered: typeof answered.content,
      structured,
      embeddings: [first, second, query],
      refused,
      aborted,
    }),
  );
}

void main();
