// The CPU beside llama.cpp's, through node-llama-cpp: the same shape in bfloat16 or with layers in a
// quantized format, or the same GGUF file; the same threads, one after the other in every round, so that
// other processes slow both.
'use strict';

const fs = require('node:fs');
const { createRequire } = require('node:module');
const os = require('node:os');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const { createUniprocConfig, LLM } = require('..');
const { ReadRate } = require('../build/Release/uniproc_testing.node');
const { readShape, writeSyntheticCheckpoint } = require('../scripts/synthetic-checkpoint');
const { measureDecode } = require('./decode');
const { FORMATS, int4 } = require('./formats');
const { FORMATS: GGUF_FORMATS, writeGguf } = require('./gguf');
const { greedy, makePrompts } = require('./prompts');
const { RecordingExecutor } = require('./recordingExecutor');
const { figure } = require('./table');

const VERSION = '3.22.1';
const ROWS = [1, 4, 8, 16, 32];
const CONTEXT = 16;
const PREFILL = 512;
const ROUNDS = 3;
const PEER_WARM_UP = 3;
const PEER_STEPS = 16;
const READ_BYTES = 2 ** 30;

/** Of each --format, llama.cpp's of the same size. */
const QUANTIZED = {
  int8: { gguf: 'q8_0', quantization: FORMATS['int8 by channel'] },
  int4: { gguf: 'q4_0', quantization: int4(32) },
};

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

function progress(text) {
  console.error(`${(performance.now() / 1000).toFixed(1).padStart(6)} s  ${text}`);
}

/** node-llama-cpp, installed in `folder` or, by default, where the project's packages are. */
async function loadPeer(folder = path.join(__dirname, '..')) {
  const found = createRequire(path.join(path.resolve(folder), 'package.json'));
  // The package exports nothing to require.resolve.
  const entry = (found.resolve.paths('node-llama-cpp') ?? [])
    .map((modules) => path.join(modules, 'node-llama-cpp', 'dist', 'index.js'))
    .find((file) => fs.existsSync(file));
  if (!entry) {
    const platform = `@node-llama-cpp/${process.platform}-${process.arch}@${VERSION}`;
    throw new Error(
      `cpu-peers: no node-llama-cpp in ${path.resolve(folder)}; install it in a folder of its own, ` +
        `npm install --prefix DIR --omit=optional node-llama-cpp@${VERSION} ${platform}, ` +
        `and run npm run bench -- cpu-peers --peer DIR`,
    );
  }
  return import(pathToFileURL(entry).href);
}

class Peer {
  static async open(library, modelPath, maxThreads) {
    const { getLlama, LlamaLogLevel } = library;
    const llama = await getLlama({
      gpu: false,
      build: 'never',
      maxThreads,
      logLevel: LlamaLogLevel.error,
    });
    const peer = new Peer();
    peer.model = await llama.loadModel({ modelPath });
    peer.maxThreads = maxThreads;
    return peer;
  }

  /** Runs `work` with this many sequences of a new context. */
  async withSequences(count, tokensEach, work) {
    const context = await this.model.createContext({
      sequences: count,
      contextSize: tokensEach,
      batchSize: Math.max(PREFILL, count),
      threads: { ideal: this.maxThreads, min: this.maxThreads },
    });
    try {
      return await work(Array.from({ length: count }, () => context.getSequence()));
    } finally {
      await context.dispose();
    }
  }

  /** Seconds of a step that decodes one token for each of the prompts. */
  decode(prompts) {
    const tokensEach = CONTEXT + PEER_WARM_UP + PEER_STEPS + 8;
    return this.withSequences(prompts.length, tokensEach, async (sequences) => {
      const tokens = sequences.map((sequence, i) =>
        sequence.evaluate(prompts[i].promptTokenIds, { temperature: 0, yieldEogToken: true }),
      );
      const step = () => Promise.all(tokens.map((each) => each.next()));
      for (let i = 0; i < PEER_WARM_UP; ++i) await step();
      const begin = performance.now();
      for (let i = 0; i < PEER_STEPS; ++i) await step();
      const seconds = (performance.now() - begin) / 1000 / PEER_STEPS;
      await Promise.all(tokens.map((each) => each.return()));
      return seconds;
    });
  }

  /** Seconds from a prompt to its first token. */
  prefill([{ promptTokenIds }]) {
    return this.withSequences(1, PREFILL + 8, async ([sequence]) => {
      const tokens = sequence.evaluate(promptTokenIds, { temperature: 0, yieldEogToken: true });
      const begin = performance.now();
      await tokens.next();
      const seconds = (performance.now() - begin) / 1000;
      await tokens.return();
      return seconds;
    });
  }
}

async function prefillSeconds(llm, prompts) {
  const begin = performance.now();
  await llm.generate(prompts, greedy(1));
  return (performance.now() - begin) / 1000;
}

/** Medians of rounds of `ours`, `theirs` and of the ratio within a round. */
async function compare(ours, theirs) {
  const rounds = [];
  for (let i = 0; i < ROUNDS; ++i) {
    const our = await ours();
    const their = await theirs();
    rounds.push({ our, their, ratio: their / our });
  }
  const of = (key) => median(rounds.map((round) => round[key]));
  return { our: of('our'), their: of('their'), ratio: of('ratio') };
}

async function measure({ bench, engineArgs, gguf, library }) {
  const config = await createUniprocConfig(engineArgs);
  const { vocabSize } = config.model.transformer.spec;
  const rows = [];
  const add = (what, value, unit, against = {}) => {
    progress(`${bench}: ${what}: ${figure(value)} ${unit}`);
    rows.push({ bench, what, value, unit, ...against });
  };

  const llm = await LLM.create({
    ...engineArgs,
    maxModelLen: 1024,
    maxNumSeqs: Math.max(...ROWS),
    kvCacheMemoryBytes: 2 ** 28,
    enablePrefixCaching: false, // The prompts repeat.
    distributedExecutorBackend: RecordingExecutor,
  });
  let peer;
  try {
    const { numThreads } = llm.engine.executor.driverWorker.worker.deviceProperties;
    peer = await Peer.open(library, gguf, numThreads);
    const memory = new ReadRate(READ_BYTES, numThreads);
    const readRates = [];
    const { weightBytes } = llm.startup;
    for (const numRows of ROWS) {
      const prompts = makePrompts(numRows, CONTEXT, vocabSize);
      const reads = [];
      const { our, their, ratio } = await compare(
        async () => {
          reads.push(memory.measure());
          return (await measureDecode(llm, numRows, CONTEXT, { numRuns: 1 })).seconds;
        },
        () => peer.decode(prompts),
      );
      readRates.push(...reads);
      const what = `${numRows} ${numRows === 1 ? 'row' : 'rows'}`;
      add(`decode ${what}`, 1000 * our, 'ms/step', {
        ceiling: (1000 * weightBytes) / median(reads),
        ceilingOf: 'reading the weights',
        peers: [{ name: 'llama.cpp', value: 1000 * their }],
      });
      add(`  speed beside llama.cpp, ${what}`, ratio, 'times');
    }
    const prompts = makePrompts(1, PREFILL, vocabSize);
    await prefillSeconds(llm, prompts);
    const { our, their, ratio } = await compare(
      () => prefillSeconds(llm, prompts),
      () => peer.prefill(prompts),
    );
    add(`prefill 1 x ${PREFILL}`, PREFILL / our, 'tok/s', {
      peers: [{ name: 'llama.cpp', value: PREFILL / their }],
    });
    add(`  speed beside llama.cpp, 1 x ${PREFILL}`, ratio, 'times');
    const threads = numThreads === 1 ? '1 thread' : `${numThreads} threads`;
    add(`reading memory, ${threads}`, median(readRates) / 1e9, 'GB/s');
    return rows;
  } finally {
    await llm.shutdown();
    await peer?.model.dispose();
  }
}

/** A GGUF file, also beside the same model in `model`, or a synthetic checkpoint of a shape. */
async function benchCpuPeers(options) {
  const { model, gguf, shape: [shape] = ['llama-3.2-1b'], dtype, peer, format } = options;
  const quantized = QUANTIZED[format];
  const inGguf = format in GGUF_FORMATS;
  if (format && ((!quantized && !inGguf) || gguf)) {
    const formats = [...Object.keys(QUANTIZED), ...Object.keys(GGUF_FORMATS)].join(', ');
    throw new Error(`cpu-peers takes --format ${formats}, of a shape`);
  }
  const library = await loadPeer(peer);
  if (model !== undefined && gguf === undefined) {
    throw new Error('cpu-peers takes --model DIR with --gguf FILE, the same model');
  }
  const bench = gguf ? path.basename(gguf, '.gguf') : path.basename(shape, '.json');
  const common = { device: 'cpu', dtype, skipTokenizerInit: true };
  if (gguf) {
    return measure({ bench, engineArgs: { ...common, model: model ?? gguf }, gguf, library });
  }
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'uniproc-bench-'));
  try {
    progress(`${bench}: writing a checkpoint and a GGUF file to ${folder}`);
    const checkpoint = path.join(folder, bench);
    const file = path.join(folder, `${bench}.gguf`);
    await writeSyntheticCheckpoint(checkpoint, shape);
    writeGguf(file, checkpoint, quantized?.gguf ?? format, quantized !== undefined);
    if (inGguf) {
      const name = `${bench}, ${format}`;
      return await measure({
        bench: name,
        engineArgs: { ...common, model: file },
        gguf: file,
        library,
      });
    }
    const engineArgs = { ...common, model: checkpoint };
    if (!quantized) return await measure({ bench, engineArgs, gguf: file, library });
    const config = { ...readShape(shape), quantization_config: quantized.quantization };
    fs.writeFileSync(path.join(checkpoint, 'config.json'), JSON.stringify(config));
    return await measure({
      bench: `${bench}, ${format} beside ${quantized.gguf}`,
      engineArgs: { ...engineArgs, loadFormat: 'dummy', seed: 0 },
      gguf: file,
      library,
    });
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

module.exports = { benchCpuPeers };
