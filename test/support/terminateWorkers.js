// Repeatedly starts an engine in a worker thread and terminates it during generation; prints the
// footprint early and at the end.
'use strict';

const { once } = require('node:events');
const { isMainThread, parentPort, Worker } = require('node:worker_threads');
const { footprint } = require('./process');

const WARM_UP_CYCLES = 10;
const CYCLES = 40;

async function cycle() {
  const worker = new Worker(__filename);
  await once(worker, 'message');
  await worker.terminate();
}

async function main() {
  for (let i = 0; i < WARM_UP_CYCLES; i++) await cycle();
  const before = await footprint();
  for (let i = 0; i < CYCLES; i++) await cycle();
  console.log(JSON.stringify({ before, after: await footprint() }));
}

/** Generates endlessly; reports when the first tokens arrive. */
async function generate() {
  const { LLM, SamplingParams } = require('../..');
  const llm = await LLM.create({ maxModelLen: 512, maxNumSeqs: 4, maxNumBatchedTokens: 128 });
  for (;;) {
    const params = new SamplingParams({ maxTokens: 500, ignoreEos: true });
    for await (const delta of llm.stream('One day', params)) parentPort.postMessage(delta.text);
  }
}

if (isMainThread) main();
else generate();
