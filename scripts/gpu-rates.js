/**
 * Rates of single operations on the first GPU, as a table: bfloat16, shapes of Llama-3.1-8B. `npm run
 * bench` measures the whole engine.
 */
'use strict';

const { printTable } = require('../bench/table');

const addon = require('../build/Release/uniproc_testing.node');
const ops = new addon.Ops({ kind: 'cuda', index: 0 });
const rows = [];

/** Seconds per run of `count` runs enqueued together. */
function seconds(run, count) {
  for (let i = 0; i < 3; ++i) run(i);
  ops.synchronize();
  const start = performance.now();
  for (let i = 0; i < count; ++i) run(i);
  ops.synchronize();
  return (performance.now() - start) / 1000 / count;
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
  // More weights than fit in the L2 cache.
  const copies = Math.ceil(4e8 / (2 * weightRows * cols));
  const weights = Array.from({ length: copies }, () => random(weightRows * cols, 0.02));
  const x = random(numTokens * cols);
  const out = ops.allocate(numTokens * weightRows, 'bfloat16', 'a measurement');
  const weightOf = (i) => ({ data: weights[i % copies], rows: weightRows, cols });
  const time = seconds((i) => ops.linear(x, numTokens, weightOf(i), null, out), 200);
  const flops = 2 * numTokens * weightRows * cols;
  rows.push(
    numTokens <= 64
      ? {
          bench: 'matmul',
          what: `${name}, ${numTokens} rows`,
          value: (2 * weightRows * cols) / time / 1e9,
          unit: 'GB/s',
        }
      : {
          bench: 'matmul',
          what: `${name}, ${numTokens} rows`,
          value: flops / time / 1e12,
          unit: 'TFLOP/s',
        },
  );
  release(x, out, ...weights);
}

/** numRows requests with numComputed cached and numScheduled new tokens. */
function measureAttention(numRows, numComputed, numScheduled, numHeads, numKvHeads, headDim) {
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
  };
  ops.prepareInputs(requests, null, 0, blockSize, batch);
  const cacheSize = numBlocks * blockSize * numKvHeads * headDim;
  const copies = Math.max(1, Math.ceil(4e8 / (4 * cacheSize)));
  const caches = Array.from({ length: copies }, () => ({
    keys: random(cacheSize),
    values: random(cacheSize),
    blockSize,
  }));
  const qkv = random(numTokens * (numHeads + 2 * numKvHeads) * headDim);
  const out = ops.allocate(numTokens * numHeads * headDim, 'bfloat16', 'a measurement');
  const shape = { numHeads, numKvHeads, headDim, slidingWindow: 0 };
  const run = (i) => ops.attention(qkv, batch, shape, caches[i % copies], requests, out);
  const time = seconds(run, numScheduled === 1 ? 200 : 20);
  const what = `${numRows} x ${numScheduled} after ${numComputed}, ${numHeads}/${numKvHeads} heads of ${headDim}`;
  if (numScheduled === 1) {
    const bytes = numRows * length * 2 * numKvHeads * headDim * 2;
    rows.push({ bench: 'attention', what, value: bytes / time / 1e9, unit: 'GB/s' });
    rows.push({ bench: 'attention', what, value: time * 1e6, unit: 'us' });
  } else {
    const pairs = numRows * (numScheduled * numComputed + (numScheduled * (numScheduled + 1)) / 2);
    rows.push({
      bench: 'attention',
      what,
      value: (4 * pairs * numHeads * headDim) / time / 1e12,
      unit: 'TFLOP/s',
    });
  }
  release(qkv, out, ...caches.flatMap(({ keys, values }) => [keys, values]));
}

for (const numTokens of [1, 64, 2048, 8192]) {
  measureMatmul('qkv', 6144, 4096, numTokens);
  measureMatmul('gateUp', 28672, 4096, numTokens);
  measureMatmul('down', 4096, 14336, numTokens);
}
measureAttention(1, 1023, 1, 32, 8, 128);
measureAttention(1, 32767, 1, 32, 8, 128);
measureAttention(64, 1023, 1, 32, 8, 128);
measureAttention(64, 1023, 1, 32, 8, 64);
measureAttention(8, 0, 1024, 32, 8, 128);
measureAttention(1, 0, 8192, 32, 8, 128);
printTable(rows);
