// A worker with a device that does nothing: all JavaScript runs as over a real one, and each step
// completes when it is launched.
'use strict';

const { HostEvent, KVCacheSpec, ModelRunner, WorkerBase } = require('..');

const TOKEN = 7;

class NullModel {
  constructor({ maxNumSeqs, maxNumBatchedTokens }) {
    const ints = (length) => new Int32Array(length);
    this.steps = [0, 1].map(() => ({
      slots: ints(maxNumSeqs),
      numComputedTokens: ints(maxNumSeqs),
      numScheduledTokens: ints(maxNumSeqs),
      blockUpdates: ints(3 * (maxNumBatchedTokens + 2 * maxNumSeqs)),
      sampledRows: ints(maxNumSeqs),
      promptLogprobRows: ints(maxNumSeqs),
      sampledTokenIds: ints(maxNumSeqs).fill(TOKEN),
      numNans: ints(maxNumSeqs),
    }));
  }
  checkRequest() {}
  addRequest() {}
  removeRequest() {}
  forward() {}
  sample() {
    const event = new HostEvent();
    event.signal();
    return event;
  }
}

class NullWorker extends WorkerBase {
  initDevice() {}
  loadModel() {
    const { model, scheduler } = this.args.config;
    this.modelRunner = new ModelRunner(
      new NullModel(scheduler),
      model.transformer.spec.vocabSize,
      scheduler.maxNumSeqs,
    );
  }
  getKvCacheSpec() {
    return new Map([['null', new KVCacheSpec(16, 1, 16, 'float32', null)]]);
  }
  determineAvailableMemory() {
    return 2 ** 30;
  }
  initializeFromConfig() {}
  compileOrWarmUpModel() {
    return 0;
  }
  executeModel(schedulerOutput) {
    return this.modelRunner.executeModel(schedulerOutput);
  }
  sampleTokens(grammarOutput) {
    return this.modelRunner.sampleTokens(grammarOutput);
  }
  checkHealth() {}
  shutdown() {}
}

module.exports = { NullWorker };
