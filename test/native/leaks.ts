/**
 * Makes each kind of the addon's objects, shuts some down, leaves others, and exits by itself, so that
 * Node frees its own memory and LeakSanitizer finds only the addon's leaks.
 */
import {
  native,
  type ModelLimits,
  type ModelSpec,
  type NativeCommunicator,
  type NativeDeviceThread,
  type NativeModelRunner,
  type NativeOutputThread,
} from '../../lib/native';
import { plainSpec } from '../support/plainSpec';
import { GREEDY } from '../support/sampling';

const SPEC: ModelSpec = {
  dtype: 'float32',
  vocabSize: 61,
  hiddenSize: 24,
  intermediateSize: 36,
  numLayers: 2,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 8,
  rmsNormEps: 1e-5,
  ...plainSpec(2, 8),
  tieWordEmbeddings: true,
  weightFormats: {},
};
const LIMITS: ModelLimits = {
  maxNumSeqs: 2,
  maxNumBatchedTokens: 16,
  maxModelLen: 32,
  blockSize: 8,
  numSteps: 2,
  maxLogprobs: 2,
  listMemoryBytes: 2 ** 16,
  enforceEager: true,
};
const SAMPLING = {
  ...GREEDY,
  temperature: 0.7,
  seed: 1n,
  numLogprobs: 1,
  logitBiasTokenIds: Int32Array.of(3),
  logitBiases: Float32Array.of(1),
};
const none = new Int32Array();
const addon = native();

async function startDevice(): Promise<NativeDeviceThread> {
  const device = new addon.DeviceThread('cpu', 0, 2);
  await device.open();
  return device;
}

async function startModel(device: NativeDeviceThread): Promise<NativeModelRunner> {
  const model = new addon.ModelRunner(device, SPEC, LIMITS, null);
  await model.loadDummy(1);
  await model.allocateKvCache(8);
  return model;
}

/** One step of one request, its output awaited on an output thread. */
async function step(model: NativeModelRunner, thread: NativeOutputThread): Promise<void> {
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
  await new Promise<void>((resolve, reject) => {
    thread.submit(event, (error) => (error ? reject(error) : resolve()));
  });
}

function joinGroup(device: NativeDeviceThread, rank: number): NativeCommunicator {
  const options = { rank, worldSize: 2, timeout: 600_000, customAllReduce: false };
  return new addon.Communicator(device, options);
}

async function main(): Promise<void> {
  for (const isShutDown of [true, false]) {
    const device = await startDevice();
    const model = await startModel(device);
    const thread = new addon.OutputThread('WorkerAsyncOutput');
    await step(model, thread);
    if (isShutDown) {
      await Promise.all([model.shutdown(), thread.shutdown()]);
      await device.shutdown();
    }
  }

  for (const isShutDown of [true, false]) {
    const devices = [await startDevice(), await startDevice()];
    const ranks = devices.map(joinGroup);
    const addresses = await Promise.all(ranks.map((rank) => rank.address()));
    await Promise.all(ranks.map((rank) => rank.connect(addresses)));
    const data = new Uint8Array(4096);
    await Promise.all(ranks.map((rank) => rank.allReduce(data, 'float32', 'sum')));
    const waiting = ranks[0].barrier();
    ranks[0].abort('enough');
    await waiting.catch(() => {});
    if (isShutDown) await Promise.all(devices.map((device) => device.shutdown()));
  }

  for (const isShutDown of [true, false]) {
    const grammars = new addon.GrammarThread('Grammars');
    await grammars.setVocabulary(Uint8Array.of(97, 98), Uint32Array.of(0, 1, 2), 2);
    // Reads a byte of the set of 'a', then returns.
    const program = Int32Array.of(2, 1, 0, 0, 0, 1, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0);
    await grammars.addGrammar(0, program);
    grammars.addMatcher(0, 0, Int32Array.of(1), none);
    const [mask, statuses] = [new Int32Array(1), new Int32Array(1)];
    await grammars.fill(Int32Array.of(0), Int32Array.of(0, 0), none, mask, statuses);
    await grammars.addGrammar(1, none).catch(() => {});
    if (isShutDown) await grammars.shutdown();
  }

  const failing = new addon.DeviceThread('abacus', 0, 1);
  await failing.open().catch(() => {});
  const event = new addon.Event();
  event.onReady(() => {});
  event.signal();
  new addon.Event().onReady(() => {});
}

void main();
