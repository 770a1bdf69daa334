/**
 * Times of single operations on the first GPU beside their floors, as a table: bfloat16, shapes of
 * Llama-3.1-8B. `npm run bench` measures the whole engine.
 *
 * The floor is the larger of the bytes that an operation must move over the read bandwidth, and its
 * operations over the rate of a product of 8192 x 8192 x 8192, both measured first. Operations are
 * timed in CUDA graphs, over more weights or caches than the L2 cache holds; the median of the samples.
 */
'use strict';

const { CudaCeilings } = require('../bench/cudaCeilings');
const { printTable } = require('../bench/table');

const { Ops } = require('../build/Release/uniproc_testing.node');

const SAMPLES = 7;
/** At least this many bytes are read before an operation reads the same again. */
const COLD_BYTES = 4e8;

const rows = [];
let ops;
let ceilings;

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

/** Seconds per run of `perGraph` runs in a graph; run i of a graph is given i. */
function seconds(run, perGraph) {
  const graphs = ops.makeGraphs();
  const launch = () =>
    ops.launchGraph(graphs, 0, () => {
      for (let i = 0; i < perGraph; i++) run(i);
    });
  for (let i = 0; i < 3; i++) launch(); // as it is, recorded, and once again
  ops.synchronize();
  const start = performance.now();
  launch();
  ops.synchronize();
  // Long enough that the launch and the synchronization do not count.
  const launches = Math.min(50, Math.ceil(20 / (performance.now() - start)));
  const samples = Array.from({ length: SAMPLES }, () => {
    const begin = performance.now();
    for (let i = 0; i < launches; i++) launch();
    ops.synchronize();
    return (performance.now() - begin) / 1000 / launches / perGraph;
  });
  ops.dropGraphs(graphs);
  return median(samples);
}

/** Adds an operation's time beside its floor, and its rate by whichever of the two bounds it. */
function add(bench, what, time, bytes, operations) {
  const reading = bytes / ceilings.readBandwidth;
  const computing = operations / ceilings.productRate;
  const floor = 1e6 * Math.max(reading, computing);
  rows.push({ bench, what, value: 1e6 * time, unit: 'µs', floor });
  rows.push(
    reading > computing
      ? { bench, what: '  its rate', value: bytes / time / 1e9, unit: 'GB/s' }
      : { bench, what: '  its rate', value: operations / time / 1e12, unit: 'TFLOP/s' },
  );
}

function random(count, std = 1) {
  const tensor = ops.allocate(count, 'bfloat16', 'a measurement');
  ops.fillRandom(tensor, 0, std, BigInt(count));
  return tensor;
}

function ints(values) {
  const tensor = ops.allocate(values.length, 'int32', 'a measurement');
  ops.copyToDevice(tensor, Int32Array.from(values));
  return tensor;
}

function release(...tensors) {
  for (const tensor of tensors) ops.release(tensor);
}

function measureMatmul(name, weightRows, cols, numTokens) {
  const copies = Math.ceil(COLD_BYTES / (2 * weightRows * cols));
  const weights = Array.from({ length: copies }, () => random(weightRows * cols, 0.02));
  const x = random(numTokens * cols);
  const out = ops.allocate(numTokens * weightRows, 'bfloat16', 'a measurement');
  const weightOf = (i) => ({ data: weights[i % copies], rows: weightRows, cols });
  const time = seconds((i) => ops.linear(x, numTokens, weightOf(i), null, out), copies);
  const bytes = 2 * (weightRows * cols + numTokens * (weightRows + cols));
  const of = `${name}, ${numTokens} ${numTokens === 1 ? 'row' : 'rows'}`;
  add('matmul', of, time, bytes, 2 * numTokens * weightRows * cols);
  release(x, out, ...weights);
}

/** cos and sin of each position's angles: [length, 2, headDim / 2], float32. */
function makeRope(length, headDim) {
  const half = headDim / 2;
  const values = new Float32Array(length * headDim);
  for (let position = 0; position < length; position++) {
    for (let i = 0; i < half; i++) {
      const angle = position * 500000 ** (-i / half);
      values[position * headDim + i] = Math.cos(angle);
      values[position * headDim + half + i] = Math.sin(angle);
    }
  }
  const tensor = ops.allocate(values.length, 'float32', 'a measurement');
  ops.copyToDevice(tensor, values);
  return tensor;
}

/**
 * numRows requests with numComputed cached and numScheduled new tokens; with rope if rotating q and k
 * and writing k and v to the cache counts as part of it.
 */
function measureAttention(numRows, numComputed, numScheduled, numHeads, numKvHeads, headDim, rope) {
  const blockSize = 16;
  const length = numComputed + numScheduled;
  const blocksPerRow = Math.ceil(length / blockSize);
  const numBlocks = numRows * blocksPerRow;
  const requests = ops.makeRequests({
    vocabSize: 2,
    maxNumSeqs: numRows,
    maxModelLen: length,
    blockSize,
    maxLogprobs: 0,
  });
  const empty = new Int32Array();
  for (let slot = 0; slot < numRows; ++slot) {
    const request = {
      tokenIds: new Int32Array(length),
      numPromptTokens: length,
      blockIds: Int32Array.from(
        { length: blocksPerRow },
        (_, i) => ((i * 7919) % blocksPerRow) * numRows + slot,
      ),
      sampling: {
        temperature: 0,
        topP: 1,
        topK: 0,
        minP: 0,
        presencePenalty: 0,
        frequencyPenalty: 0,
        repetitionPenalty: 1,
        seed: 0n,
        minTokens: 0,
        numLogprobs: -1,
        numPromptLogprobs: -1,
        logitBiasTokenIds: empty,
        logitBiases: new Float32Array(),
        allowedTokenIds: empty,
        badWordsTokenIds: empty,
        badWordsEnds: empty,
        stopTokenIds: empty,
      },
    };
    ops.addRequest(requests, slot, request, numBlocks);
  }
  const numTokens = numRows * numScheduled;
  const batch = {
    numRows,
    numTokens,
    slots: ints(Array.from({ length: numRows }, (_, i) => i)),
    numComputedTokens: ints(new Array(numRows).fill(numComputed)),
    queryStarts: ints(Array.from({ length: numRows + 1 }, (_, i) => i * numScheduled)),
    tokenIds: ints(new Int32Array(numTokens)),
    positions: ints(new Int32Array(numTokens)),
    cacheSlots: ints(new Int32Array(numTokens)),
    maxQueryLen: numScheduled,
    numDecodeRows: numScheduled === 1 ? numRows : 0,
    isDecode: numScheduled === 1,
    // As in native/ops/batch.h.
    hasFewKeys: numRows <= 8 && numRows * length <= 4096,
  };
  ops.prepareInputs(requests, null, 0, blockSize, batch);
  const cacheSize = numBlocks * blockSize * numKvHeads * headDim;
  const copies = Math.max(1, Math.ceil(COLD_BYTES / (4 * cacheSize)));
  const caches = Array.from({ length: copies }, () => ({
    keys: random(cacheSize),
    values: random(cacheSize),
    blockSize,
  }));
  const qkvSize = (numHeads + 2 * numKvHeads) * headDim;
  const qkv = random(numTokens * qkvSize);
  const out = ops.allocate(numTokens * numHeads * headDim, 'bfloat16', 'a measurement');
  const table = makeRope(length, headDim);
  const shape = { numHeads, numKvHeads, headDim, slidingWindow: 0 };
  const time = seconds(
    (i) => {
      const cache = caches[i % copies];
      if (rope) {
        ops.ropeAndAttention(qkv, batch, shape, null, null, 0, table, cache, requests, out);
      } else {
        ops.attention(qkv, batch, shape, cache, requests, out);
      }
    },
    Math.max(copies, numScheduled === 1 ? 20 : 1),
  );
  const heads = `${numHeads}/${numKvHeads} heads of ${headDim}`;
  const what = `${numRows} x ${numScheduled} after ${numComputed}, ${heads}`;
  const cacheBytes = numRows * length * 2 * numKvHeads * headDim * 2;
  const pairs = numRows * (numScheduled * numComputed + (numScheduled * (numScheduled + 1)) / 2);
  const bytes = cacheBytes + 2 * numTokens * (qkvSize + numHeads * headDim);
  add(rope ? 'rope, attention' : 'attention', what, time, bytes, 4 * pairs * numHeads * headDim);
  release(qkv, out, table, ...caches.flatMap(({ keys, values }) => [keys, values]));
}

async function main() {
  // Before this process opens the device.
  ceilings = await CudaCeilings.measureDevice(0);
  ops = new Ops({ kind: 'cuda', index: 0 });
  for (const numTokens of [1, 8, 64, 128, 256, 2048, 8192]) {
    measureMatmul('qkv', 6144, 4096, numTokens);
    measureMatmul('o', 4096, 4096, numTokens);
    measureMatmul('gateUp', 28672, 4096, numTokens);
    measureMatmul('down', 4096, 14336, numTokens);
  }
  for (const numComputed of [127, 255, 1023]) {
    measureAttention(1, numComputed, 1, 32, 8, 128, true);
  }
  measureAttention(1, 1023, 1, 32, 8, 128, false);
  measureAttention(1, 32767, 1, 32, 8, 128, false);
  measureAttention(64, 1023, 1, 32, 8, 128, false);
  measureAttention(64, 1023, 1, 32, 8, 64, false);
  measureAttention(64, 4095, 1, 32, 8, 128, false);
  measureAttention(8, 0, 1024, 32, 8, 128, false);
  measureAttention(1, 0, 8192, 32, 8, 128, false);
  printTable(rows);
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
