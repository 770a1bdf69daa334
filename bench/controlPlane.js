// JavaScript-thread time of a decode step: scheduler, executor, input batch, output futures and
// output processing, over a device that does nothing. Time the event loop idles is not counted, and
// with such a device there is none. What users may do without is measured on top of it, each apart:
// text, and a stream for each request in place of one call for all.
'use strict';

const { performance } = require('node:perf_hooks');
const { LLM, SamplingParams } = require('..');
const { NullWorker } = require('./nullWorker');

const ROWS = [1, 64, 256];
const STEPS = 1000;
/** After one to warm up; the median counts. */
const RUNS = 5;
/** Most microseconds that a step may take, without text and streams. */
const maxStepMicroseconds = (numRows) => 60 + numRows;

const params = (maxTokens, detokenize) =>
  new SamplingParams({ maxTokens, ignoreEos: true, detokenize });

async function readAll(stream) {
  let numTokens = 0;
  for await (const { tokenIds } of stream) numTokens += tokenIds.length;
  return numTokens;
}

/** Each generates `numSteps` tokens for each of the prompts. */
const USES = {
  'JavaScript time per step': (llm, prompts, numSteps) =>
    llm.generate(prompts, params(numSteps, false), { progress: false }),
  '  with detokenisation': (llm, prompts, numSteps) =>
    llm.generate(prompts, params(numSteps, true), { progress: false }),
  '  with delivery to streams': (llm, prompts, numSteps) =>
    Promise.all(prompts.map((prompt) => readAll(llm.stream(prompt, params(numSteps, false))))),
};

/** Prompts that were never there before, so that the prefix cache has its full work with them. */
class FreshPrompts {
  count = 0;

  make(numRows) {
    return Array.from({ length: numRows }, () => {
      const id = this.count++;
      return { promptTokenIds: [id % 256, (id >> 8) % 256, 2, 3] };
    });
  }
}

/** Microseconds a step, the median of several runs. */
async function measure(use, llm, numRows, prompts) {
  await use(llm, prompts.make(numRows), STEPS);
  const runs = [];
  for (let i = 0; i < RUNS; i++) {
    const before = performance.eventLoopUtilization();
    await use(llm, prompts.make(numRows), STEPS);
    const { active } = performance.eventLoopUtilization(before);
    runs.push((1000 * active) / STEPS);
  }
  return runs.sort((a, b) => a - b)[RUNS >> 1];
}

async function benchControlPlane({ model }) {
  const rows = [];
  for (const numRows of ROWS) {
    const llm = await LLM.create({
      model,
      device: 'cpu',
      maxNumSeqs: numRows,
      maxNumBatchedTokens: 2048,
      maxModelLen: 1024,
      workerCls: NullWorker,
    });
    const prompts = new FreshPrompts();
    try {
      for (const [what, use] of Object.entries(USES)) {
        const isBookkeeping = use === USES['JavaScript time per step'];
        rows.push({
          bench: 'control plane',
          what: `${what}, ${numRows} rows`,
          value: await measure(use, llm, numRows, prompts),
          unit: 'µs',
          ...(isBookkeeping && { bound: maxStepMicroseconds(numRows) }),
        });
      }
    } finally {
      await llm.shutdown();
    }
  }
  return rows;
}

module.exports = { benchControlPlane };
