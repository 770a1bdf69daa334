// JavaScript thread time of a decode step (scheduler, executor, input batch, output futures, output
// processing) over a device that does nothing, so the event loop never idles. Optional features are
// measured separately on top: detokenisation, and a stream per request in place of one call.
'use strict';

const { performance } = require('node:perf_hooks');
const { LLM, SamplingParams } = require('..');
const { NullWorker } = require('./nullWorker');

const ROWS = [1, 64, 256];
const STEPS = 1000;
/** Runs after one warm-up; the result is the median. */
const RUNS = 5;
/** Maximum microseconds of a step without text and streams. */
const maxStepMicroseconds = (numRows) => 60 + numRows;

const params = (maxTokens, detokenize) =>
  new SamplingParams({ maxTokens, ignoreEos: true, detokenize });

async function readAll(stream) {
  let numTokens = 0;
  for await (const { tokenIds } of stream) numTokens += tokenIds.length;
  return numTokens;
}

/** Each way generates `numSteps` tokens per prompt. */
const USES = {
  'JavaScript time per step': (llm, prompts, numSteps) =>
    llm.generate(prompts, params(numSteps, false), { progress: false }),
  '  with detokenisation': (llm, prompts, numSteps) =>
    llm.generate(prompts, params(numSteps, true), { progress: false }),
  '  with delivery to streams': (llm, prompts, numSteps) =>
    Promise.all(prompts.map((prompt) => readAll(llm.stream(prompt, params(numSteps, false))))),
};

/** New prompts, so that the prefix cache finds nothing. */
class FreshPrompts {
  count = 0;

  make(numRows) {
    return Array.from({ length: numRows }, () => {
      const id = this.count++;
      return { promptTokenIds: [id % 256, (id >> 8) % 256, 2, 3] };
    });
  }
}

/** Microseconds per step, the median of several runs. */
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
