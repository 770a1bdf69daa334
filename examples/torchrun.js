// The same prompts and the same seed on every rank; every rank prints the same text:
//   torchrun --standalone --local-addr 127.0.0.1 --no-python --nproc-per-node 2 node examples/torchrun.js
//   npx uniproc launch --nproc-per-node 2 examples/torchrun.js
'use strict';

const path = require('node:path');
const { LLM, SamplingParams } = require('..');

async function main() {
  const prompts = ['Once upon a time', 'The little robot', 'One day, a cat', 'It was raining'];
  const params = new SamplingParams({ temperature: 0.8, topP: 0.95, maxTokens: 24 });

  const llm = await LLM.create({
    model: path.join(__dirname, '..', 'models', 'stories'),
    tensorParallelSize: Number(process.env.WORLD_SIZE ?? 1),
    distributedExecutorBackend: 'external_launcher',
    seed: 1,
  });
  for (const { prompt, outputs } of await llm.generate(prompts, params)) {
    console.log(JSON.stringify(prompt + outputs[0].text));
  }
  await llm.shutdown();
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
