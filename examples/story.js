// Streams a story: npm start, or npm start -- "A prompt".
'use strict';

const { LLM, SamplingParams } = require('..');

async function main() {
  const prompt = process.argv.slice(2).join(' ') || 'Once upon a time';
  const llm = await LLM.create();
  const params = new SamplingParams({ temperature: 0.8, topP: 0.95, maxTokens: 300 });

  process.stdout.write(prompt);
  const start = performance.now();
  let firstToken = 0;
  let numTokens = 0;
  for await (const delta of llm.stream(prompt, params)) {
    firstToken ||= performance.now();
    numTokens += delta.tokenIds.length;
    process.stdout.write(delta.text);
  }
  const seconds = (performance.now() - firstToken) / 1000;
  const rate = numTokens > 1 ? Math.round((numTokens - 1) / seconds) : 0;
  console.log(
    `\n\n${numTokens} tokens, ${rate} tokens/s, first after ${Math.round(firstToken - start)} ms`,
  );
  await llm.shutdown();
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
