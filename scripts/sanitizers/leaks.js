/**
 * Makes each kind of the addon's objects, shuts some down, leaves others, and exits by itself, so that
 * Node frees its own memory and LeakSanitizer finds only the addon's leaks.
 */
'use strict';

const path = require('node:path');

const addon = require(path.resolve(__dirname, '../../build/Release/uniproc.node'));
addon.setErrorFactory((code, message) => Object.assign(new Error(message), { code }));

const SPEC = {
  dtype: 'float32',
  vocabSize: 61,
  hiddenSize: 24,
  intermediateSize: 36,
  numLayers: 2,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 8,
  rmsNormEps: 1e-5,
  ropeTheta: 10000,
  ropeScaling: { type: 'default' },
  slidingWindows: [0, 0],
  qkvBias: false,
  outputBias: false,
  mlpBias: false,
  qkNorm: false,
  tieWordEmbeddings: true,
  experts: null,
  weightFormats: {},
};
const LIMITS = {
  maxNumSeqs: 2,
  maxNumBatchedTokens: 16,
  maxModelLen: 32,
  blockSize: 8,
  numSteps: 2,
  maxLogprobs: 2,
  listMemoryBytes: 2 ** 16,
  enforceEager: true,
};
const none = new Int32Array(0);
const SAMPLING = {
  temperature: 0.7,
  topP: 1,
  topK: 0,
  minP: 0,
  presencePenalty: 0,
  frequencyPenalty: 0,
  repetitionPenalty: 1,
  seed: 1n,
  minTokens: 0,
  numLogprobs: 1,
  numPromptLogprobs: -1,
  logitBiasTokenIds: Int32Array.of(3),
  logitBiases: Float32Array.of(1),
  allowedTokenIds: none,
  badWordsTokenIds: none,
  badWordsEnds: none,
  stopTokenIds: none,
};

async function startDevice() {
  const device = new addon.DeviceThread('cpu', 0, 2);
  await device.open();
  return device;
}

async function startModel(device, communicator) {
  const model = new addon.ModelRunner(device, SPEC, LIMITS, communicator);
  await model.loadDummy(1);
  await model.allocateKvCache(8);
  return model;
}

/** One step of one request, its output awaited on an output thread. */
async function step(model, thread) {
  const tokenIds = Int32Array.of(1, 2, 3);
  const request = { tokenIds, numPromptTokens: 3, blockIds: Int32Array.of(0), sampling: SAMPLING };
  model.addRequest(0, request);
  const [buffers] = model.steps;
  buffers.slots[0] = 0;
  buffers.numComputedTokens[0] = 0;
  buffers.numScheduledTokens[0] = 3;
  buffers.sampledRows[0] = 0;
  model.forward(0, 1, 0, 1, 0);
  const event = model.sample(0, null);
  await new Promise((resolve, reject) => {
    thread.submit(event, (error) => (error ? reject(error) : resolve()));
  });
}

async function joinGroup(device, rank, worldSize) {
  const options = { rank, worldSize, timeout: 600_000, customAllReduce: false };
  return new addon.Communicator(device, options);
}

async function main() {
  for (const isShutDown of [true, false]) {
    const device = await startDevice();
    const model = await startModel(device, null);
    const thread = new addon.OutputThread('WorkerAsyncOutput');
    await step(model, thread);
    if (isShutDown) {
      await Promise.all([model.shutdown(), thread.shutdown()]);
      await device.shutdown();
    }
  }

  for (const isShutDown of [true, false]) {
    const devices = [await startDevice(), await startDevice()];
    const ranks = await Promise.all(devices.map((device, rank) => joinGroup(device, rank, 2)));
    const addresses = await Promise.all(ranks.map((rank) => rank.address()));
    await Promise.all(ranks.map((rank) => rank.connect(addresses)));
    const data = new Uint8Array(4096);
    await Promise.all(ranks.map((rank) => rank.allReduce(data, 'float32', 'sum')));
    const waiting = ranks[0].barrier();
    ranks[0].abort('enough');
    await waiting.catch(() => {});
    if (isShutDown) await Promise.all(devices.map((device) => device.shutdown()));
  }

  const failing = new addon.DeviceThread('abacus', 0, 1);
  await failing.open().catch(() => {});
  const event = new addon.Event();
  event.onReady(() => {});
  event.signal();
  new addon.Event().onReady(() => {});
}

main();
