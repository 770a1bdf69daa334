// The ceilings of a model's rates on a GPU, measured by a program independent of the engine:
// bench/ceilings, build/Release/uniproc_ceilings.
'use strict';

const { execFile } = require('node:child_process');
const { existsSync } = require('node:fs');
const path = require('node:path');
const { weightShapes } = require('./products');

const PROGRAM = path.join(__dirname, '..', 'build', 'Release', 'uniproc_ceilings');

/** Runs the program and returns its stdout; its progress goes to stderr. */
function run(args) {
  if (!existsSync(PROGRAM)) {
    throw new Error(`${PROGRAM} does not exist; build it with npm run build:native and nvcc`);
  }
  return new Promise((resolve, reject) => {
    const child = execFile(PROGRAM, args.map(String), (error, stdout) => {
      if (error) reject(error);
      else resolve(JSON.parse(stdout));
    });
    child.stderr.pipe(process.stderr, { end: false });
  });
}

class CudaCeilings {
  /** `steps`: [numTokens, numSampled] of each later call of `seconds`. */
  static async measure(index, { transformer: { spec }, dtype }, steps) {
    if (dtype === 'float32') {
      throw new Error('GPU ceilings exist only for two-byte types, not for float32');
    }
    const { layer, head } = weightShapes(spec);
    const shape = (weight) => weight.join('x');
    const figures = await run([
      index,
      spec.numLayers,
      layer.map(shape).join(','),
      shape(head),
      steps.map((step) => step.join(':')).join(','),
    ]);
    return new CudaCeilings(figures);
  }

  /** The device's rates, without a model's steps. */
  static async measureDevice(index) {
    return new CudaCeilings(await run([index, 1, '256x256', '256x256', '1:1']));
  }

  constructor({ readBandwidth, copyBandwidth, productRate, steps }) {
    /** Bytes per second that kernels read from device memory. */
    this.readBandwidth = readBandwidth;
    /** Bytes per second copied from pinned host memory to the device. */
    this.copyBandwidth = copyBandwidth;
    /** Operations per second of a product of 8192 x 8192 x 8192. */
    this.productRate = productRate;
    this.steps = steps;
  }

  /** Seconds of the products alone of a step with `numTokens` tokens, `numSampled` of them sampled. */
  seconds(numTokens, numSampled) {
    return this.steps.find((step) => step.numTokens === numTokens && step.numSampled === numSampled)
      .seconds;
  }
}

module.exports = { CudaCeilings };
