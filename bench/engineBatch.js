// A batch of simultaneous requests: throughput and device utilisation.
'use strict';

const { performance } = require('node:perf_hooks');
const { checkLength } = require('./engineWorkload');

/**
 * Observes the steps of one batch. Its decode-heavy part is the steps after the last prefill, up to the
 * first with less than an eighth of the requests.
 */
class BatchWatch {
  constructor(numRequests, device) {
    this.numRequests = numRequests;
    this.device = device;
    this.numStarted = 0;
    this.whole = new Steps();
    this.decode = new Steps();
  }

  stepDone({ numScheduledTokens, totalNumScheduledTokens, scheduledNewReqs }) {
    const numRows = numScheduledTokens.size;
    // The clock starts after the first step: the idle time before it does not count.
    if (this.whole.begin === undefined) this.whole.begin = this.now();
    else this.whole.add(numRows);

    this.numStarted += scheduledNewReqs.length;
    const isDecode = this.numStarted === this.numRequests && totalNumScheduledTokens === numRows;
    // A preempted request is prefilled again; discard the decoded steps before.
    if (!isDecode) this.decode = new Steps();
    else if (this.decode.begin === undefined) this.decode.begin = this.now();
    else if (this.decode.end === undefined) {
      this.decode.add(numRows);
      if (numRows < this.numRequests / 8) this.decode.end = this.now();
    }
  }

  now() {
    return {
      utilization: performance.eventLoopUtilization(),
      stepTimes: this.device.stepTimes(),
    };
  }

  async figures() {
    this.whole.end = this.now();
    const { decode, whole } = this;
    if (decode.end === undefined) {
      throw new Error('every step had a prefill; the KV cache may be too small');
    }
    return { whole: await whole.figures(), decode: await decode.figures() };
  }
}

/** Steps completed after `begin`, up to `end`. */
class Steps {
  numSteps = 0;
  numRows = 0;

  add(numRows) {
    this.numSteps++;
    this.numRows += numRows;
  }

  async figures() {
    const { begin, end, numSteps, numRows } = this;
    const { active } = performance.eventLoopUtilization(end.utilization, begin.utilization);
    const [before, after] = await Promise.all([begin.stepTimes, end.stepTimes]);
    const busy = after.busyMs - before.busyMs;
    const idle = after.idleMs - before.idleMs;
    return {
      numSteps,
      meanRows: numRows / numSteps,
      busyShare: busy / (busy + idle),
      javaScriptSeconds: active / 1000 / numSteps,
    };
  }
}

/**
 * Measures an engine on a RecordingExecutor. Returns `seconds`, `numPromptTokens`, `numOutputTokens`;
 * and for the whole batch and its decode-heavy part `numSteps`, `meanRows`, the device's `busyShare`,
 * and `javaScriptSeconds` per step.
 */
async function measureBatch(llm, requests) {
  const { executor } = llm.engine;
  const watch = new BatchWatch(requests.length, executor.driverWorker.worker.device);
  executor.onStep = (step) => watch.stepDone(step);
  const start = performance.now();
  const outputs = await llm.generate(
    requests.map(({ prompt }) => prompt),
    requests.map(({ params }) => params),
    { progress: false },
  );
  const seconds = (performance.now() - start) / 1000;
  executor.onStep = null;
  outputs.forEach(({ outputs: [{ tokenIds }] }, i) => checkLength(requests[i], tokenIds.length));
  const count = (tokensOf) => outputs.reduce((sum, output) => sum + tokensOf(output).length, 0);
  return {
    seconds,
    numPromptTokens: count(({ promptTokenIds }) => promptTokenIds),
    numOutputTokens: count(({ outputs: [{ tokenIds }] }) => tokenIds),
    ...(await watch.figures()),
  };
}

module.exports = { measureBatch };
