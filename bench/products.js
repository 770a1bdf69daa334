// The ceiling of a model's rates: only its matrix products, on the same device and threads.
'use strict';

const os = require('node:os');
const { Ops, ReadRate } = require('../build/Release/uniproc_testing.node');

const SECONDS = 0.5;
/** Bytes that are read to measure the rate, more than caches hold. */
const READ_BYTES = 2 ** 29;
const READ_PASSES = 7;
/** A large product, [tokens, rows, cols]. */
const LARGE = [512, 4096, 4096];

/** The products of a gated MLP. */
const mlpShapes = (hiddenSize, intermediateSize) => [
  [2 * intermediateSize, hiddenSize],
  [hiddenSize, intermediateSize],
];

/**
 * The products that all tokens pass, each as its weight's [rows, cols]: those of a layer, without the
 * experts that the router selects, and the output head's.
 */
function weightShapes(spec) {
  const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim, vocabSize } = spec;
  const { experts } = spec;
  return {
    layer: [
      [(numHeads + 2 * numKvHeads) * headDim, hiddenSize],
      [hiddenSize, numHeads * headDim],
      ...(experts ? [[experts.numExperts, hiddenSize]] : []),
      ...(experts && !experts.besideMlp ? [] : mlpShapes(hiddenSize, intermediateSize)),
      ...(experts?.sharedIntermediateSize > 0
        ? mlpShapes(hiddenSize, experts.sharedIntermediateSize)
        : []),
    ],
    head: [vocabSize, hiddenSize],
  };
}

/** Seconds of a run, which returns when it is done; the mean of half a second after a first one. */
function secondsOf(run) {
  run();
  const start = performance.now();
  let runs = 0;
  while (performance.now() - start < 1000 * SECONDS) {
    run();
    runs++;
  }
  return (performance.now() - start) / 1000 / runs;
}

/** The median of several passes. */
function measureReadRate(numThreads) {
  const memory = new ReadRate(READ_BYTES, numThreads);
  const rates = Array.from({ length: READ_PASSES }, () => memory.measure()).sort((a, b) => a - b);
  return rates[READ_PASSES >> 1];
}

/** CPU counterpart of CudaCeilings. */
class Products {
  /** Bytes per second from host memory to host memory; not measured. */
  copyBandwidth = Infinity;

  constructor({ transformer: { spec }, dtype }) {
    const numThreads = os.availableParallelism();
    this.ops = new Ops({ kind: 'cpu', numThreads });
    /** Bytes per second that all threads read from memory. */
    this.readBandwidth = measureReadRate(numThreads);
    const random = (count, type) => {
      const tensor = this.ops.allocate(count, type, 'a measurement');
      this.ops.fillRandom(tensor, 0, 0.02, 1n);
      return tensor;
    };
    const weight = ([rows, cols]) => ({ data: random(rows * cols, dtype), rows, cols });
    const { layer, head } = weightShapes(spec);
    this.layers = Array.from({ length: spec.numLayers }, () => layer.map(weight)).flat();
    this.head = weight(head);
    this.random = random;
    /** Operations per second of a large product. */
    this.productRate = this.measureProductRate(dtype);
  }

  measureProductRate(dtype) {
    const [numTokens, rows, cols] = LARGE;
    const weight = { data: this.random(rows * cols, dtype), rows, cols };
    const x = this.random(numTokens * cols, 'float32');
    const out = this.random(numTokens * rows, 'float32');
    const seconds = secondsOf(() => this.ops.linear(x, numTokens, weight, null, out));
    for (const tensor of [weight.data, x, out]) this.ops.release(tensor);
    return (2 * numTokens * rows * cols) / seconds;
  }

  /** Seconds that a step of `numTokens` tokens, `numSampled` of them sampled from, cannot go below. */
  seconds(numTokens, numSampled) {
    const widest = (side) => Math.max(...[...this.layers, this.head].map((each) => each[side]));
    const x = this.random(numTokens * widest('cols'), 'float32');
    const out = this.random(numTokens * widest('rows'), 'float32');
    const step = () => {
      for (const weight of this.layers) this.ops.linear(x, numTokens, weight, null, out);
      this.ops.linear(x, numSampled, this.head, null, out);
    };
    const seconds = secondsOf(step);
    this.ops.release(x);
    this.ops.release(out);
    return seconds;
  }
}

module.exports = { mlpShapes, Products, weightShapes };
