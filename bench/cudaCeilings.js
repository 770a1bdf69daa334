// The ceilings of a model's rates on a GPU, by a program that uses nothing of the engine's:
// bench/ceilings, build/Release/uniproc_ceilings.
'use strict';

const { execFile } = require('node:child_process');
const { existsSync } = require('node:fs');
const path = require('node:path');
const { weightShapes } = require('./products');

const PROGRAM = path.join(__dirname, '..', 'build', 'Release', 'uniproc_ceilings');

/** What the program prints; what it says meanwhile goes to stderr. */
function run(args) {
  if (!existsSync(PROGRAM)) {
    throw new Error(`${PROGRAM} is not there; npm run build:native makes it where there is nvcc`);
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
  /** `steps`: [numTokens, numSampled] of each that `seconds` will be asked for. */
  static async measure(index, { transformer: { spec }, dtype }, steps) {
    if (dtype === 'float32') {
      throw new Error('the ceilings on a GPU are those of types of two bytes, not of float32');
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

  constructor({ readBandwidth, copyBandwidth, steps }) {
    /** Bytes a second, read by kernels from the device's memory. */
    this.readBandwidth = readBandwidth;
    /** Bytes a second, copied from pinned host memory to the device. */
    this.copyBandwidth = copyBandwidth;
    this.steps = steps;
  }

  /** Seconds that a step of `numTokens` tokens, `numSampled` of them sampled from, cannot go below. */
  seconds(numTokens, numSampled) {
    return this.steps.find((step) => step.numTokens === numTokens && step.numSampled === numSampled)
      .seconds;
  }
}

module.exports = { CudaCeilings };
