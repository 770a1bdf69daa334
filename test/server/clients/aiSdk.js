// The AI SDK, unmodified, against the server at argv[2]; prints what it got as JSON. A program of its
// own, because jest cannot load ES modules.
'use strict';

async function main() {
  const { createOpenAICompatible } = await import('@ai-sdk/openai-compatible');
  const { generateText, streamText } = await import('ai');

  const baseURL = `${process.argv[2]}/v1`;
  const provider = createOpenAICompatible({ name: 'uniproc', baseURL, includeUsage: true });
  const model = provider.chatModel('stories');
  const messages = [{ role: 'user', content: 'Tell me a story about a fox.' }];
  const settings = { model, messages, temperature: 0, maxOutputTokens: 8, maxRetries: 0 };

  const { text, finishReason, usage } = await generateText(settings);

  const streamed = streamText(settings);
  let joined = '';
  for await (const part of streamed.textStream) joined += part;

  const controller = new AbortController();
  const aborted = streamText({
    ...settings,
    maxOutputTokens: 900,
    // A field of the request that the SDK does not know.
    providerOptions: { uniproc: { ignore_eos: true } },
    abortSignal: controller.signal,
    onError: () => {},
  });
  let numParts = 0;
  for await (const part of aborted.fullStream) {
    if (part.type === 'text-delta' && ++numParts === 2) controller.abort();
  }

  const refused = await generateText({ ...settings, model: provider.chatModel('other') }).catch(
    (error) => error,
  );

  const completion = await generateText({
    ...settings,
    messages: undefined,
    prompt: 'Once upon a time',
    model: provider.completionModel('stories'),
  }).catch((error) => ({ text: String(error) }));

  console.log(
    JSON.stringify({
      text,
      finishReason,
      usage,
      streamed: {
        text: joined,
        finishReason: await streamed.finishReason,
        usage: await streamed.usage,
      },
      refused: { name: refused.name, statusCode: refused.statusCode, message: refused.message },
      completion: completion.text,
    }),
  );
}

main();
