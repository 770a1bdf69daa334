// Loads a model and generates a token: node bench/firstToken.js ENGINE_ARGS_AS_JSON. Prints the
// times of each stage, in milliseconds since 1970, and the bytes of the weights.
'use strict';

const { LLM, SamplingParams, Worker } = require('..');

const now = () => performance.timeOrigin + performance.now();
const times = { required: now() };

class TimedWorker extends Worker {
  async initDevice() {
    await super.initDevice();
    times.deviceOpen = now();
  }

  async loadModel() {
    times.loadBegins = now();
    await super.loadModel(({ totalBytes }) => (times.bytes = totalBytes));
    times.weightsIn = now();
  }
}

async function main() {
  const llm = await LLM.create({ ...JSON.parse(process.argv[2]), workerCls: TimedWorker });
  times.created = now();
  await llm.generate(
    { promptTokenIds: [1, 2, 3, 4, 5, 6, 7, 8] },
    new SamplingParams({ maxTokens: 1, detokenize: false }),
  );
  times.firstToken = now();
  await llm.shutdown();
  console.log(JSON.stringify(times));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
