// JavaScript-thread time of a decode step: scheduler, executor, input batch, output futures and
// output processing, over a device that does nothing. Time the event loop idles is not counted.
'use strict';

const { performance } = require('node:perf_hooks');
const { LLM, SamplingParams } = require('..');
const { NullWorker } = require('./nullWorker');

const ROWS = [1, 64, 256];
const STEPS = 1000;
const WARM_UP_STEPS = 300;
/** Most microseconds a step of 64 rows may take. */
const MAX_STEP_MICROSECONDS = { 64: 150 };

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
    try {
      const generate = (numSteps) =>
        llm.generate(
          Array.from({ length: numRows }, (_, row) => ({ promptTokenIds: [row % 7, 1, 2, 3] })),
          new SamplingParams({ maxTokens: numSteps, ignoreEos: true, detokenize: false }),
        );
      await generate(WARM_UP_STEPS);
      const before = performance.eventLoopUtilization();
      await generate(STEPS);
      const { active } = performance.eventLoopUtilization(before);
      rows.push({
        bench: 'control plane',
        what: `JavaScript time per step, ${numRows} rows`,
        value: (1000 * active) / STEPS,
        unit: 'µs',
        bound: MAX_STEP_MICROSECONDS[numRows],
      });
    } finally {
      await llm.shutdown();
    }
  }
  return rows;
}

module.exports = { benchControlPlane };
