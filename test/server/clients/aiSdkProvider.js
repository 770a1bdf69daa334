// The AI SDK, unmodified, with the models of uniproc/ai-sdk in this process; argv[2] is the package,
// argv[3] an embedding model, argv[4] a chat template with tools. Prints what it got as JSON. A program of its own, because jest cannot load
// ES modules.
'use strict';

const path = require('node:path');

async function main([root, embeddingModel, chatTemplate]) {
  const { LLM } = require(path.join(root, 'dist'));
  const { createUniproc } = require(path.join(root, 'dist', 'aiSdk'));
  const { embedMany, generateText, jsonSchema, Output, streamText, tool } = await import('ai');
  const llm = await LLM.create({ device: 'cpu', dtype: 'float32' });
  const model = createUniproc(llm)();
  const messages = [{ role: 'user', content: 'Tell me a story about a fox.' }];
  const settings = { model, messages, temperature: 0, maxOutputTokens: 8, maxRetries: 0 };

  const { text, finishReason, usage } = await generateText(settings);
  const streamed = streamText(settings);
  let joined = '';
  for await (const part of streamed.textStream) joined += part;

  const schema = jsonSchema({
    type: 'object',
    properties: { size: { enum: ['small', 'large'] } },
    required: ['size'],
    additionalProperties: false,
  });
  const { output } = await generateText({
    ...settings,
    maxOutputTokens: 60,
    output: Output.object({ schema }),
  });

  const controller = new AbortController();
  const aborted = streamText({
    ...settings,
    maxOutputTokens: 900,
    providerOptions: { uniproc: { ignoreEos: true } },
    abortSignal: controller.signal,
    onError: () => {},
  });
  let numParts = 0;
  for await (const part of aborted.fullStream) {
    if (part.type === 'text-delta' && ++numParts === 2) controller.abort();
  }
  while (llm.engine.numUnfinishedRequests > 0) await new Promise(setImmediate);

  const [direct] = await llm.chat(messages, { temperature: 0, maxTokens: 8 });
  await llm.shutdown();

  const talker = await LLM.create({ device: 'cpu', dtype: 'float32', chatTemplate });
  const parameters = {
    type: 'object',
    properties: { city: { type: 'string', maxLength: 8 } },
    required: ['city'],
    additionalProperties: false,
  };
  const calling = {
    model: createUniproc(talker)(),
    messages: [{ role: 'user', content: 'Hello' }],
    tools: { get_weather: tool({ inputSchema: jsonSchema(parameters) }) },
    toolChoice: 'required',
    temperature: 1.5,
    seed: 3,
    maxOutputTokens: 200,
    providerOptions: { uniproc: { minP: 0.01 } },
  };
  const called = await generateText(calling);
  const streamedCall = streamText(calling);
  const [call] = called.toolCalls;
  const answered = await generateText({
    ...calling,
    toolChoice: 'none',
    maxOutputTokens: 4,
    messages: [
      ...calling.messages,
      ...called.response.messages,
      {
        role: 'tool',
        content: [
          {
            type: 'tool-result',
            toolCallId: call.toolCallId,
            toolName: call.toolName,
            output: { type: 'json', value: { sunny: true } },
          },
        ],
      },
    ],
  });
  const image = new Uint8Array([137, 80, 78, 71]);
  const withImage = generateText({
    ...settings,
    messages: [{ role: 'user', content: [{ type: 'file', data: image, mediaType: 'image/png' }] }],
  });
  const { name, functionality } = await withImage.catch((error) => error);
  const shortCall = ({ toolName, input }) => ({ toolName, input });
  const tools = {
    finishReason: called.finishReason,
    whole: called.toolCalls.map(shortCall),
    streamed: (await streamedCall.toolCalls).map(shortCall),
    streamedText: await streamedCall.text,
    answered: answered.text,
  };
  await talker.shutdown();

  const embedder = await LLM.create({ model: embeddingModel, device: 'cpu', dtype: 'float32' });
  const values = ['ab', 'abc'];
  const { embeddings, usage: embeddingUsage } = await embedMany({
    model: createUniproc(embedder).embeddingModel(),
    values,
  });
  const vectors = await embedder.embed(values);
  await embedder.shutdown();

  console.log(
    JSON.stringify({
      text,
      finishReason,
      usage,
      streamed: { text: joined, finishReason: await streamed.finishReason },
      direct: direct.outputs[0].text,
      output,
      numAborted: llm.stats().numFinishedReqs.abort,
      tools,
      refused: { name, functionality },
      embeddings,
      vectors: vectors.map(({ embedding }) => Array.from(embedding)),
      embeddingUsage,
    }),
  );
}

main(process.argv.slice(2));
