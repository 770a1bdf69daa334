// The ceiling of a model's rates: only its matrix products, on the same device and threads.
'use strict';

const os = require('node:os');
const { Ops } = require('../build/Release/uniproc_testing.node');

const SECONDS = 0.5;

/** A layer's products and the output head's, each as its weight's [rows, cols]. */
function weightShapes(spec) {
  const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim, vocabSize } = spec;
  return {
    layer: [
      [(numHeads + 2 * numKvHeads) * headDim, hiddenSize],
      [hiddenSize, numHeads * headDim],
      [2 * intermediateSize, hiddenSize],
      [hiddenSize, intermediateSize],
    ],
    head: [vocabSize, hiddenSize],
  };
}

/** CPU counterpart of CudaCeilings. */
class Products {
  /** Bytes per second; not measured on the CPU, where only the products count. */
  readBandwidth = Infinity;
  copyBandwidth = Infinity;

  constructor({ transformer: { spec }, dtype }) {
    this.ops = new Ops({ kind: 'cpu', numThreads: os.availableParallelism() });
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
    step();
    const start = performance.now();
    let steps = 0;
    while (performance.now() - start < 1000 * SECONDS) {
      step();
      steps++;
    }
    const seconds = (performance.now() - start) / 1000 / steps;
    this.ops.release(x);
    this.ops.release(out);
    return seconds;
  }
}

module.exports = { Products, weightShapes };
