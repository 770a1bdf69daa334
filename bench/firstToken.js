// Loads a model and generates a token: node bench/firstToken.js ENGINE_ARGS_AS_JSON. Prints the
// times of each stage, in milliseconds since 1970, the bytes of the weights, and the seconds of
// processor time without their load.
'use strict';

const { LLM, SamplingParams, Worker } = require('..');

const now = () => performance.timeOrigin + performance.now();
/** Seconds of processor time of all threads since the process start. */
const cpuSeconds = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};
const times = { required: now() };
let loadCpuSeconds = 0;

class TimedWorker extends Worker {
  async initDevice() {
    await super.initDevice();
    times.deviceOpen = now();
  }

  async loadModel() {
    times.loadBegins = now();
    const before = cpuSeconds();
    await super.loadModel(({ totalBytes }) => (times.bytes = totalBytes));
    times.weightsIn = now();
    loadCpuSeconds = cpuSeconds() - before;
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
  times.cpuSecondsBesideLoad = cpuSeconds() - loadCpuSeconds;
  await llm.shutdown();
  console.log(JSON.stringify(times));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
