// The engine under load: a batch of requests, random arrivals at rising rates, and the JavaScript
// time of a step.
'use strict';

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { LLM } = require('..');
const { readShape } = require('../scripts/synthetic-checkpoint');
const { benchControlPlane } = require('./controlPlane');
const { measureArrivals, PERCENTILES } = require('./engineArrivals');
const { measureBatch } = require('./engineBatch');
const { makeRequests, WORKLOADS } = require('./engineWorkload');
const { greedy, makePrompts } = require('./prompts');
const { seededRandom } = require('./random');
const { RecordingExecutor } = require('./recordingExecutor');
const { figure } = require('./table');

/** Arrival rates, as shares of the batch's requests per second. */
const RATES = [0.25, 0.5, 0.75, 0.9];
/** Minimum share of busy time of a GPU while the batch decodes. */
const LEAST_BUSY = 0.95;

class EngineBench {
  constructor(name, llm, workload) {
    this.name = name;
    this.llm = llm;
    this.workload = workload;
    this.vocabSize = llm.engine.config.model.transformer.spec.vocabSize;
    this.onGpu = llm.engine.config.device.kind === 'cuda';
    this.rows = [];
  }

  add(what, value, unit, against = {}) {
    // Print immediately, so that an interrupted run has results.
    console.error(`${this.name}: ${what}: ${figure(value)} ${unit}`);
    this.rows.push({ bench: this.name, what, value, unit, ...against });
  }

  async measure() {
    const { numRequests } = this.workload;
    const random = seededRandom(0);
    await this.llm.generate(makePrompts(1, 16, this.vocabSize), greedy(16));
    const seconds = await this.measureBatch(this.requests(numRequests, random));
    for (const share of RATES) await this.measureArrivals(share, numRequests / seconds, random);
    return this.rows;
  }

  requests(count, random) {
    return makeRequests(count, this.workload, this.vocabSize, random);
  }

  async measureBatch(requests) {
    const { promptTokens, outputTokens } = this.workload;
    const { seconds, whole, decode, ...tokens } = await measureBatch(this.llm, requests);
    this.add(
      `${requests.length} prompts of ${range(promptTokens)}`,
      tokens.numPromptTokens,
      'tokens',
    );
    this.add(`  their outputs, of ${range(outputTokens)}`, tokens.numOutputTokens, 'tokens');
    this.add('  time', seconds, 's');
    this.add('  throughput', tokens.numOutputTokens / seconds, 'tok/s');
    this.add('  steps', whole.numSteps, 'steps');
    this.add('  requests in a step', whole.meanRows, 'rows/step');
    this.add('  device busy', whole.busyShare, 'of the time');
    this.add('decode-heavy part: steps', decode.numSteps, 'steps');
    this.add('  requests in a step of it', decode.meanRows, 'rows/step');
    this.add('  device busy in it', decode.busyShare, 'of the time', {
      ...(this.onGpu && { least: LEAST_BUSY }),
    });
    this.add('  JavaScript in it', 1e6 * decode.javaScriptSeconds, 'µs/step');
    return seconds;
  }

  async measureArrivals(share, throughput, random) {
    const rate = share * throughput;
    const count = Math.max(1, Math.round(rate * this.workload.arrivalSeconds));
    const figures = await measureArrivals(this.llm, this.requests(count, random), rate, random);
    const at = `at ${share}`;
    this.add(`${count} arrivals ${at} of that throughput`, rate, 'req/s');
    this.add(`  throughput ${at}`, figures.numTokens / figures.seconds, 'tok/s');
    for (const [what, times] of [
      ['time to first token', figures.timeToFirstToken],
      ['inter-token latency', figures.interTokenLatency],
    ]) {
      for (const percent of PERCENTILES) {
        this.add(`  ${what} ${at}, ${percent}th percentile`, times[percent], 'ms');
      }
    }
  }
}

const range = ([least, most]) => `${least} to ${most}`;

/** A folder with the config.json of a shape, for dummy weights. */
function writeConfig(folder, shape) {
  fs.writeFileSync(path.join(folder, 'config.json'), JSON.stringify(readShape(shape)));
}

/** A checkpoint, or random weights in a model's shape. */
async function benchModel(name, engineArgs, workload) {
  const llm = await LLM.create({
    ...engineArgs,
    maxModelLen: workload.promptTokens[1] + workload.outputTokens[1],
    skipTokenizerInit: true,
    distributedExecutorBackend: RecordingExecutor,
  });
  try {
    return await new EngineBench(name, llm, workload).measure();
  } finally {
    await llm.shutdown();
  }
}

async function benchShape(shape, engineArgs, workload) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'uniproc-bench-'));
  try {
    writeConfig(folder, shape);
    const args = { ...engineArgs, model: folder, loadFormat: 'dummy' };
    return await benchModel(path.basename(shape, '.json'), args, workload);
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

/**
 * Measures the model in the given folder, or random weights in the given shapes; default: Qwen3-0.6B's
 * shape on a GPU, the package's small model on a CPU.
 */
async function benchEngine({ model, shape, device, dtype }) {
  const kind = device.split(':')[0];
  const shapes = shape ?? (kind === 'cuda' ? ['qwen3-0.6b'] : []);
  const engineArgs = { device, dtype };
  const rows = [];
  if (model !== undefined || shapes.length === 0) {
    const name = model === undefined ? 'stories' : path.basename(model);
    rows.push(...(await benchModel(name, { ...engineArgs, model }, WORKLOADS[kind])));
  } else {
    for (const each of shapes) rows.push(...(await benchShape(each, engineArgs, WORKLOADS[kind])));
  }
  return [...rows, ...(await benchControlPlane({}))];
}

module.exports = { benchEngine };
