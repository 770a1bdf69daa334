// The workload of nano-vllm's benchmark: on a GPU 256 requests, prompts of 100 to 1,024 random
// tokens, outputs of 100 to 1,024; on a CPU a quarter of each number.
'use strict';

const { SamplingParams } = require('..');
const { randomInteger } = require('./random');

const WORKLOADS = {
  cuda: {
    numRequests: 256,
    promptTokens: [100, 1024],
    outputTokens: [100, 1024],
    /** Seconds of arrivals at each rate. */
    arrivalSeconds: 6,
  },
  cpu: {
    numRequests: 64,
    promptTokens: [25, 256],
    outputTokens: [25, 256],
    arrivalSeconds: 4,
  },
};

/** `count` requests of a workload's lengths: { prompt, params }. */
function makeRequests(count, { promptTokens, outputTokens }, vocabSize, random) {
  return Array.from({ length: count }, () => ({
    prompt: {
      promptTokenIds: Array.from({ length: randomInteger(random, ...promptTokens) }, () =>
        randomInteger(random, 0, vocabSize - 1),
      ),
    },
    params: new SamplingParams({
      temperature: 0.6,
      ignoreEos: true,
      maxTokens: randomInteger(random, ...outputTokens),
      detokenize: false,
    }),
  }));
}

/** Throws unless the request generated `maxTokens` tokens. */
function checkLength({ params }, numTokens) {
  if (numTokens === params.maxTokens) return;
  throw new Error(`a request for ${params.maxTokens} tokens generated ${numTokens}`);
}

module.exports = { WORKLOADS, checkLength, makeRequests };
