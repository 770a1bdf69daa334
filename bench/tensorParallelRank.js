// One rank of bench/tensorParallel.js: node bench/tensorParallelRank.js { engineArgs, rows, context } as
// JSON, with a launcher's variables. Sends [{ numRows, ...result of measureDecode }].
'use strict';

const { LLM } = require('..');
const { measureDecode } = require('./decode');
const { RecordingExecutor, RecordingRank } = require('./recordingExecutor');

/** Number of measurements; the result is the median. */
const RUNS = 5;

async function main({ engineArgs, rows, context }) {
  const isAlone = engineArgs.tensorParallelSize === 1;
  const llm = await LLM.create({
    ...engineArgs,
    distributedExecutorBackend: isAlone ? RecordingExecutor : RecordingRank,
  });
  const steps = [];
  for (const numRows of rows) {
    steps.push({ numRows, ...(await measureDecode(llm, numRows, context, { numRuns: RUNS })) });
  }
  await llm.shutdown();
  process.send(steps, () => process.disconnect());
}

main(JSON.parse(process.argv[2])).catch((error) => {
  console.error(error);
  process.exit(1);
});
