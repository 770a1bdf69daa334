// Repeatedly creates, uses and shuts down an engine; prints the footprint early and at the end.
'use strict';

const { LLM, SamplingParams } = require('../..');
const { footprint } = require('./process');

const WARM_UP_CYCLES = 100;
const CYCLES = 200;

async function cycle() {
  const llm = await LLM.create({ maxModelLen: 128, maxNumSeqs: 4, maxNumBatchedTokens: 128 });
  await llm.generate(['One day'], new SamplingParams({ maxTokens: 4 }));
  await llm.shutdown();
}

async function main() {
  for (let i = 0; i < WARM_UP_CYCLES; i++) await cycle();
  const before = await footprint();
  for (let i = 0; i < CYCLES; i++) await cycle();
  console.log(JSON.stringify({ before, after: await footprint() }));
}

main();
