// A decode step of a whole engine: duration, device idle time before it, JavaScript time.
//
// Measured within the run over steps in which every row decodes one token and nothing is prefilled,
// between JavaScript's receipts of the first and the last step's tokens. Nothing is subtracted, and
// each step's actual contexts are known.
'use strict';

const { performance } = require('node:perf_hooks');
const { greedy, makePrompts } = require('./prompts');

/** Warm-up steps, enough to capture the step's graph. */
const WARM_UP_STEPS = 8;
const STEPS = 32;
/** Shorter measurements are repeated; the result is the median. */
const MIN_SECONDS = 1;

/** Observes one run with `numRows` rows. */
class DecodeWindow {
  constructor(numRows, device) {
    this.numRows = numRows;
    this.device = device;
    this.numSeen = 0;
    /** [STEPS][numRows]: tokens in the cache before each step. */
    this.numComputedTokens = [];
  }

  stepDone({ numScheduledTokens, totalNumScheduledTokens, scheduledCachedReqs }) {
    const { numRows } = this;
    if (numScheduledTokens.size !== numRows || totalNumScheduledTokens !== numRows) return;
    this.numSeen++;
    if (this.numSeen === WARM_UP_STEPS) this.begin = this.now();
    if (this.numSeen <= WARM_UP_STEPS || this.numSeen > WARM_UP_STEPS + STEPS) return;
    this.numComputedTokens.push(scheduledCachedReqs.numComputedTokens);
    if (this.numSeen === WARM_UP_STEPS + STEPS) this.end = this.now();
  }

  now() {
    return {
      milliseconds: performance.now(),
      utilization: performance.eventLoopUtilization(),
      stepTimes: this.device.stepTimes(),
    };
  }

  async figures() {
    const { begin, end } = this;
    if (!end) {
      throw new Error(
        `${this.numSeen} steps computed one token for each of ${this.numRows} rows; ` +
          `${WARM_UP_STEPS + STEPS} were needed. Is there too little memory for their KV cache?`,
      );
    }
    const { active } = performance.eventLoopUtilization(end.utilization, begin.utilization);
    const [before, after] = await Promise.all([begin.stepTimes, end.stepTimes]);
    return {
      seconds: (end.milliseconds - begin.milliseconds) / 1000 / STEPS,
      javaScriptSeconds: active / 1000 / STEPS,
      idleSeconds: (after.idleMs - before.idleMs) / 1000 / (after.numSteps - before.numSteps),
      busySeconds: (after.busyMs - before.busyMs) / 1000 / (after.numSteps - before.numSteps),
      numComputedTokens: this.numComputedTokens,
    };
  }
}

/** Tokens per request, so that the last one prefilled still decodes with all others. */
function tokensToGenerate(numRows, context, maxNumBatchedTokens) {
  const prefillSteps = Math.ceil((numRows * context) / (maxNumBatchedTokens - numRows)) + 1;
  return prefillSteps + WARM_UP_STEPS + STEPS + 1;
}

/** Bytes of keys and values that a step reads, given the tokens in the cache before it. */
function cacheBytesOfStep({ transformer: { spec }, dtype }, numComputedTokens) {
  const bytesPerToken = 2 * spec.numKvHeads * spec.headDim * (dtype === 'float32' ? 4 : 2);
  let tokens = 0;
  for (const window of spec.slidingWindows) {
    const most = window === 0 ? Infinity : window;
    for (const computed of numComputedTokens) tokens += Math.min(computed + 1, most);
  }
  return bytesPerToken * tokens;
}

async function measureOnce(llm, numRows, context, sampling) {
  const { executor } = llm.engine;
  const { model, scheduler } = executor.config;
  const window = new DecodeWindow(numRows, executor.driverWorker.worker.device);
  executor.onStep = (step) => window.stepDone(step);
  await llm.generate(
    makePrompts(numRows, context, model.transformer.spec.vocabSize),
    sampling(tokensToGenerate(numRows, context, scheduler.maxNumBatchedTokens)),
  );
  executor.onStep = null;
  return window.figures();
}

/**
 * Measures an engine on a RecordingExecutor with prompts of `context` tokens. Returns, per step,
 * `seconds`, `javaScriptSeconds`, the device's `idleSeconds` before it and `busySeconds` in it, and
 * `cacheBytes` read. Ranks must set `numRuns`, so that all make the same calls. `sampling`: the
 * parameters that generate a number of tokens.
 */
async function measureDecode(llm, numRows, context, { numRuns, sampling = greedy } = {}) {
  const start = performance.now();
  const isEnough = (count) =>
    numRuns === undefined ? performance.now() - start >= 1000 * MIN_SECONDS : count >= numRuns;
  const runs = [];
  do runs.push(await measureOnce(llm, numRows, context, sampling));
  while (!isEnough(runs.length));
  runs.sort((a, b) => a.seconds - b.seconds);
  const { numComputedTokens, ...figures } = runs[runs.length >> 1];
  const bytes = numComputedTokens.map((step) => cacheBytesOfStep(llm.engine.config.model, step));
  return { ...figures, cacheBytes: bytes.reduce((a, b) => a + b) / bytes.length };
}

module.exports = { cacheBytesOfStep, measureDecode, tokensToGenerate };
