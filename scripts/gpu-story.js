/** A few steps of the small model on the first GPU, for compute-sanitizer. */
'use strict';

const { LLM, SamplingParams } = require('..');

async function main() {
  for (const dtype of ['bfloat16', 'float32']) {
    const llm = await LLM.create({
      device: 'cuda',
      dtype,
      maxModelLen: 128,
      maxNumSeqs: 4,
      maxNumBatchedTokens: 64,
      kvCacheMemoryBytes: 8 * 2 ** 20,
    });
    try {
      const common = { maxTokens: 4, seed: 7 };
      const outputs = await llm.generate(
        ['Once upon a time', 'The little robot was very'],
        [
          new SamplingParams({ ...common, temperature: 0, logprobs: 3, promptLogprobs: 2 }),
          new SamplingParams({
            ...common,
            temperature: 0.9,
            topK: 20,
            topP: 0.9,
            minP: 0.01,
            repetitionPenalty: 1.1,
          }),
        ],
      );
      for (const {
        outputs: [{ text }],
      } of outputs)
        console.log(dtype, JSON.stringify(text));
    } finally {
      await llm.shutdown();
    }
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
