// A whole engine with random weights in a known model's shape, from loading to decode steps, each
// figure with its ceiling on the device.
'use strict';

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { createUniprocConfig, LLM } = require('..');
const { SHAPES, writeSyntheticCheckpoint } = require('../scripts/synthetic-checkpoint');
const { CudaCeilings } = require('./cudaCeilings');
const { cacheBytesOfStep, measureDecode, tokensToGenerate } = require('./decode');
const { EXPECTED, LEAST_LOAD_RATE, LLAMA_CPP, MOST_IDLE, VLLM } = require('./expected');
const { floorSeconds, productSeconds } = require('./floor');
const { Products } = require('./products');
const { measurePrefill } = require('./prefill');
const { sampled } = require('./prompts');
const { RecordingExecutor } = require('./recordingExecutor');
const { measureStartUp, startUpRows } = require('./startUp');
const { figure } = require('./table');

const DECODE_ROWS = [1, 8, 32, 64, 128, 256];
const DECODE_CONTEXTS = [128, 1024];
/** [prompts, tokens of each], all in one step. */
const PREFILLS = [
  [1, 512],
  [1, 2048],
  [1, 8192],
  [8, 1024],
];
const MAX_STEP_TOKENS = 8192;

function progress(text) {
  console.error(`${(performance.now() / 1000).toFixed(1).padStart(6)} s  ${text}`);
}

/** The cases above that fit the model's length. */
function measurements({ maxModelLen }) {
  const growth = (numRows, context) => tokensToGenerate(numRows, context, MAX_STEP_TOKENS);
  return {
    decodes: DECODE_CONTEXTS.flatMap((context) =>
      DECODE_ROWS.map((numRows) => ({ numRows, context })),
    ).filter(({ numRows, context }) => context + growth(numRows, context) <= maxModelLen),
    prefills: PREFILLS.filter(([, length]) => length < maxModelLen),
  };
}

function measureCeilings({ model, device }) {
  if (device.kind === 'cpu') return new Products(model);
  const { prefills } = measurements(model);
  const steps = [
    ...DECODE_ROWS.map((numRows) => [numRows, numRows]),
    ...prefills.map(([count, length]) => [count * length, count]),
  ];
  return CudaCeilings.measure(device.index ?? 0, model, steps);
}

/** Rows of a shape, with its expected figures. */
class ShapeBench {
  constructor(name, engineArgs, config) {
    this.name = name;
    this.engineArgs = engineArgs;
    this.config = config;
    this.onGpu = config.device.kind === 'cuda';
    this.expected = (this.onGpu && EXPECTED[name]) || { decode: {}, prefill: {} };
    this.vllm = (this.onGpu && VLLM.shapes[name]) || { decode: {}, prefill: {} };
    this.rows = [];
  }

  add(what, value, unit, against = {}) {
    // Print immediately, so that an interrupted run has results.
    progress(`${this.name}: ${what}: ${figure(value)} ${unit}`);
    this.rows.push({ bench: this.name, what, value, unit, ...against });
  }

  /** Measures in separate processes, before this one opens the device. */
  async measureApart() {
    progress(`${this.name}: ceilings`);
    this.ceilings = await measureCeilings(this.config);
    const { readBandwidth, copyBandwidth, productRate } = this.ceilings;
    this.add('ceiling: reading memory', readBandwidth / 1e9, 'GB/s');
    this.add('ceiling: a large product', productRate / 1e12, 'TFLOP/s');
    if (this.onGpu) this.add('ceiling: copying to the device', copyBandwidth / 1e9, 'GB/s');

    progress(`${this.name}: start of a process to its first token`);
    if (this.onGpu) {
      const { firstToken } = await measureStartUp(this.engineArgs);
      this.add('first start on a machine to first token', firstToken, 's');
    }
    const startUp = await measureStartUp(this.engineArgs);
    const { bytes, loadSeconds, firstToken, weightsIn } = startUp;
    this.add('load of the checkpoint', bytes / loadSeconds / 1e9, 'GB/s', {
      ...(this.onGpu && {
        ceiling: copyBandwidth / 1e9,
        ceilingOf: 'copying alone',
        least: LEAST_LOAD_RATE,
      }),
    });
    for (const [what, value] of startUpRows(startUp)) {
      const isWhole = what === 'start to first token';
      this.add(what, value, 's', isWhole ? { bound: this.expected.firstToken } : {});
    }
    this.add('weights in to first token', firstToken - weightsIn, 's', {
      bound: this.expected.afterWeights,
    });
  }

  async measureEngine() {
    progress(`${this.name}: creating the engine`);
    const llm = await LLM.create({
      ...this.engineArgs,
      maxNumSeqs: Math.max(...DECODE_ROWS),
      maxNumBatchedTokens: MAX_STEP_TOKENS,
      enablePrefixCaching: false, // The prompts repeat.
      distributedExecutorBackend: RecordingExecutor,
    });
    try {
      const { deviceProperties } = llm.engine.executor.driverWorker.worker;
      const isH200 = deviceProperties.name.includes('H200');
      this.llamaCpp = (isH200 && LLAMA_CPP[this.name]) || { decode: {}, prefill: {} };
      const { decodes, prefills } = measurements(this.config.model);
      for (const [count, length] of prefills) await this.measurePrefill(llm, count, length);
      for (const { numRows, context } of decodes) await this.measureDecode(llm, numRows, context);
      if (decodes.length > 0) await this.measureSampling(llm, decodes[0].context);
    } finally {
      await llm.shutdown();
    }
  }

  async measurePrefill(llm, count, length) {
    const key = `${count} x ${length}`;
    const seconds = await measurePrefill(llm, count, length);

    const numTokens = count * length;
    const ceiling = numTokens / this.products(numTokens, count);
    const share = this.expected.prefill[key];
    const step = { numTokens, numSampled: count, prompts: { count, length } };
    const rate = (floor) => numTokens / floor;
    const vllm = this.vllm.prefill[key];
    this.add(`prefill ${key}`, numTokens / seconds, 'tok/s', {
      floor: rate(this.floor(step)),
      ceiling,
      least: share && share * ceiling,
      peers: this.peers(this.llamaCpp.prefill[key], vllm, () => rate(this.floor(step, VLLM.card))),
    });
  }

  /** Seconds of a step's floor on this machine or another card. */
  floor(step, card = this.ceilings) {
    return floorSeconds(this.config.model, card, step);
  }

  /** Seconds of a step's products on this machine. */
  products(numTokens, numSampled) {
    return productSeconds(this.config.model, this.ceilings, numTokens, numSampled);
  }

  /** The peers that have a figure for a row. */
  peers(llamaCpp, vllm, vllmFloor) {
    return [
      ...(llamaCpp === undefined ? [] : [{ name: 'llama.cpp', value: llamaCpp }]),
      ...(vllm === undefined ? [] : [{ name: VLLM.name, value: vllm, floor: vllmFloor() }]),
    ];
  }

  async measureDecode(llm, numRows, context) {
    const key = `${numRows} after ${context}`;
    const what = `${numRows} ${numRows === 1 ? 'row' : 'rows'} after ${context}`;
    const step = await measureDecode(llm, numRows, context);
    const products = this.products(numRows, numRows);
    const cache = step.cacheBytes / this.ceilings.readBandwidth;
    const bound = this.expected.decode[key]?.(products, cache);
    const rows = { numTokens: numRows, numSampled: numRows };
    const vllmFloor = () => {
      const contexts = new Array(numRows).fill(context + VLLM.meanGenerated - 1);
      const cacheBytes = cacheBytesOfStep(this.config.model, contexts);
      return 1000 * this.floor({ ...rows, cacheBytes }, VLLM.card);
    };
    this.add(`decode ${what}`, 1000 * step.seconds, 'ms/step', {
      floor: 1000 * this.floor({ ...rows, cacheBytes: step.cacheBytes }),
      ceiling: 1000 * (products + cache),
      ceilingOf: 'products and cache',
      bound: bound && 1000 * bound,
      peers: this.peers(this.llamaCpp.decode[key], this.vllm.decode[key], vllmFloor),
      cacheBytes: step.cacheBytes,
    });
    if (context !== DECODE_CONTEXTS[0]) return;
    this.add(`  device idle, ${what}`, 1e6 * step.idleSeconds, 'µs/step', {
      ...(this.onGpu && { bound: MOST_IDLE }),
    });
    this.add(`  JavaScript, ${what}`, 1e6 * step.javaScriptSeconds, 'µs/step');
  }

  /** What temperature and top-p add to a step of one row, by the device's clock. */
  async measureSampling(llm, context) {
    const plain = await measureDecode(llm, 1, context);
    const random = await measureDecode(llm, 1, context, { sampling: sampled });
    const what = 'temperature 0.6, top-p 0.9 above greedy, 1 row';
    this.add(what, 1e6 * (random.busySeconds - plain.busySeconds), 'µs/step');
  }
}

/** Those whose checkpoints fit in most machines' memory: qwen3-30b-a3b's has 61 GB. */
const DEFAULT_SHAPES = Object.keys(SHAPES).filter((name) => name !== 'qwen3-30b-a3b');

/**
 * The given model, or synthetic checkpoints, in memory if the system has /dev/shm. A synthetic one is
 * deleted when its load is measured; its engine then has random weights of the same distribution.
 */
async function benchShapes({ model, shape: shapes = DEFAULT_SHAPES, device, dtype }) {
  const folder = fs.mkdtempSync(
    path.join(fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir(), 'uniproc-bench-'),
  );
  // An empty folder each, so that the first start of each shape is the first on a machine.
  const { UNIPROC_CACHE_ROOT: cacheRoot } = process.env;
  const useCacheOf = (name) => {
    process.env.UNIPROC_CACHE_ROOT = path.join(folder, 'cache', name);
  };
  try {
    const benches = [];
    for (const shape of model ? [model] : shapes) {
      const name = path.basename(shape, '.json');
      const checkpoint = model ?? path.join(folder, name);
      if (!model) {
        progress(`${name}: writing a checkpoint to ${checkpoint}`);
        await writeSyntheticCheckpoint(checkpoint, shape);
      }
      const engineArgs = { model: checkpoint, device, dtype, skipTokenizerInit: true };
      const bench = new ShapeBench(name, engineArgs, await createUniprocConfig(engineArgs));
      useCacheOf(name);
      await bench.measureApart();
      if (!model) {
        deleteWeights(checkpoint);
        Object.assign(bench.engineArgs, { loadFormat: 'dummy', seed: 0 });
      }
      benches.push(bench);
    }
    for (const bench of benches) {
      useCacheOf(bench.name);
      await bench.measureEngine();
    }
    progress('done');
    return benches.flatMap(({ rows }) => rows);
  } finally {
    if (cacheRoot === undefined) delete process.env.UNIPROC_CACHE_ROOT;
    else process.env.UNIPROC_CACHE_ROOT = cacheRoot;
    fs.rmSync(folder, { recursive: true });
  }
}

function deleteWeights(checkpoint) {
  for (const file of fs.readdirSync(checkpoint)) {
    if (file !== 'config.json') fs.rmSync(path.join(checkpoint, file));
  }
}

module.exports = { benchShapes };
