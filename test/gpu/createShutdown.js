// Creates, uses and shuts down engines on a GPU; prints the process's and the GPU's usage early and at
// the end. Runs with test/executor/requireTypescript.js.
'use strict';

const path = require('node:path');
const { LLM, SamplingParams } = require('uniproc');
const { Ops } = require('../../build/Release/uniproc_testing.node');
const { footprint } = require('../support/process');

const WARM_UP_CYCLES = 50;
const CYCLES = 200;

const gpu = new Ops({ kind: 'cuda', index: 0 });
const measure = () => ({ ...footprint(), freeBytes: gpu.memory().free });

/** Enough tokens that the second and third step run as a graph. */
async function cycle() {
  const llm = await LLM.create({
    model: path.join(__dirname, '..', 'golden', 'checkpoints', 'llama3'),
    device: 'cuda',
    dtype: 'bfloat16',
    maxModelLen: 128,
    maxNumSeqs: 4,
    maxNumBatchedTokens: 128,
    kvCacheMemoryBytes: 2 ** 20,
    skipTokenizerInit: true,
  });
  const params = new SamplingParams({ maxTokens: 6, ignoreEos: true });
  await llm.generate({ promptTokenIds: [1, 2, 3] }, params);
  await llm.shutdown();
}

async function main() {
  for (let i = 0; i < WARM_UP_CYCLES; i++) await cycle();
  const before = measure();
  for (let i = 0; i < CYCLES; i++) await cycle();
  console.log(JSON.stringify({ before, after: measure() }));
}

main();
