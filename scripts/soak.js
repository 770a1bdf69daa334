/**
 * Runs a service's traffic, compressed, on one engine, then checks for leaks:
 *
 *     node --expose-gc scripts/soak.js [--seconds 240] [--rate 40] [--seed 1] [--device cpu]
 *                                      [--model DIR] [--json FILE]
 *
 * Requests arrive at random (a Poisson process, with bursts), with random lengths and many common
 * prefixes; some ask for several samples, some are read slowly, left early, aborted, timed out or
 * invalid. The KV cache is too small and the queue limited, to cause preemptions and refusals. Four
 * minutes at `--rate 40` have the calls of nearly four hours at one per second.
 *
 * Flat means: from the second third of the time to the last, the medians of resident set and heap,
 * each after a garbage collection, grow by at most the bounds below; at the end no block is held and no
 * component holds a request. Exits with 1 otherwise.
 */
'use strict';

const { getEventListeners } = require('node:events');
const { writeFile } = require('node:fs/promises');
const { monitorEventLoopDelay } = require('node:perf_hooks');
const { setTimeout: sleep } = require('node:timers/promises');
const { parseArgs } = require('node:util');
const {
  InvalidRequestError,
  LLM,
  QueueFullError,
  RequestTimeoutError,
  SamplingParams,
} = require('..');
const { randomInteger, seededRandom } = require('../bench/random');

const MAX_RESIDENT_GROWTH_MIB = 8;
const MAX_HEAP_GROWTH_MIB = 1;
/** Milliseconds within which the engine must release ended requests, on a busy machine. */
const QUIET_MS = 60_000;

const ENGINE = {
  maxModelLen: 512,
  maxNumSeqs: 32,
  maxNumBatchedTokens: 256,
  maxQueuedRequests: 100,
  schedulingPolicy: 'priority',
  // 2,048 tokens of the small model, fewer than the requests need.
  kvCacheMemoryBytes: 2048 * 2560,
};
/** One in this many arrivals is a burst larger than the queue. */
const BURST_EVERY = 400;
const BURST_SIZE = 150;
/** Tokens of a common prefix, and the number of prefixes. */
const SHARED_TOKENS = 64;
const NUM_BEGINNINGS = 8;

/** Makes requests and checks how each ends. */
class Traffic {
  /** Counts by kind of request and outcome. */
  outcomes = {};
  /** The first unexpected outcomes. */
  unexpected = [];
  numRequests = 0;
  /** Shutdown signal of the service, passed to every request. */
  service = new AbortController();
  #open = new Set();

  constructor(llm, random) {
    this.llm = llm;
    this.random = random;
    this.vocabSize = llm.engine.config.model.transformer.spec.vocabSize;
  }

  /** Number of running requests. */
  get numOpen() {
    return this.#open.size;
  }

  /** Sends `rate` requests per second for the given milliseconds; resolves when all have ended. */
  async run(rate, milliseconds) {
    const end = performance.now() + milliseconds;
    let due = performance.now();
    while (due < end) {
      await sleep(Math.max(0, due - performance.now()));
      const isBurst = this.random() < 1 / BURST_EVERY;
      for (let i = isBurst ? BURST_SIZE : 1; i > 0; i--) this.arrive();
      due += (-Math.log(1 - this.random()) / rate) * 1000;
    }
    while (this.numOpen > 0) await Promise.all(this.#open);
  }

  arrive() {
    const kinds = Object.keys(KINDS);
    const kind = kinds[randomInteger(this.random, 0, kinds.length - 1)];
    this.numRequests++;
    const ended = KINDS[kind](this).then(
      () => this.#count(kind, 'done'),
      (error) => {
        this.#count(kind, error?.code ?? error?.name ?? String(error));
        if (!(error instanceof QueueFullError)) this.#keep(kind, error);
      },
    );
    this.#open.add(ended);
    void ended.then(() => this.#open.delete(ended));
  }

  #count(kind, outcome) {
    const outcomes = (this.outcomes[kind] ??= {});
    outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  }

  #keep(kind, error) {
    if (this.unexpected.length < 10) this.unexpected.push(`${kind}: ${error?.stack ?? error}`);
  }

  integer(least, most) {
    return randomInteger(this.random, least, most);
  }

  prompt() {
    const beginning = this.integer(0, 2 * NUM_BEGINNINGS - 1);
    const shared = beginning < NUM_BEGINNINGS ? SHARED_TOKENS : 0;
    const own = this.integer(1, this.integer(1, 300));
    return {
      promptTokenIds: [
        ...Array.from({ length: shared }, (_, i) => (beginning * 389 + i * 37 + 6) % 2000),
        ...Array.from({ length: own }, () => this.integer(6, this.vocabSize - 1)),
      ],
    };
  }

  params(options = {}) {
    return new SamplingParams({
      temperature: 0.8,
      maxTokens: this.integer(1, this.integer(1, 100)),
      ...(this.random() < 0.2 && { logprobs: 2 }),
      ...(this.random() < 0.2 && { stop: [' the', '.'] }),
      ...(this.random() < 0.1 && { presencePenalty: 0.5 }),
      ...options,
    });
  }

  options(more = {}) {
    const { signal } = this.service;
    return { signal, priority: this.integer(-1, 1), ...more };
  }
}

/** Expects `work` to reject with such an error or to complete before. */
async function mayFail(work, isExpected) {
  try {
    await work;
  } catch (error) {
    if (!isExpected(error)) throw error;
  }
}

function check(condition, what) {
  if (!condition) throw new Error(what);
}

async function readAll(stream, millisecondsBetween = 0) {
  let last;
  for await (const delta of stream) {
    last = delta;
    if (millisecondsBetween > 0) await sleep(millisecondsBetween);
  }
  check(last?.finishReason !== null, 'a stream ended before its output');
}

const KINDS = {
  async generate(traffic) {
    const params = traffic.params();
    const [{ outputs }] = await traffic.llm.generate(traffic.prompt(), params, traffic.options());
    check(outputs[0].tokenIds.length <= params.maxTokens, 'an output is too long');
  },

  async samples(traffic) {
    const params = traffic.params({ n: traffic.integer(2, 4) });
    const [{ outputs }] = await traffic.llm.generate(traffic.prompt(), params, traffic.options());
    check(outputs.length === params.n, 'not as many samples as were asked for');
  },

  async prompts(traffic) {
    const prompts = Array.from({ length: traffic.integer(2, 5) }, () => traffic.prompt());
    const options = traffic.options({ progress: false });
    const outputs = await traffic.llm.generate(prompts, traffic.params(), options);
    check(outputs.length === prompts.length, 'not as many outputs as prompts');
  },

  async chat(traffic) {
    const messages = [{ role: 'user', content: 'Tell me a story about a dog.' }];
    await readAll(traffic.llm.chatStream(messages, traffic.params(), traffic.options()));
  },

  async stream(traffic) {
    await readAll(traffic.llm.stream(traffic.prompt(), traffic.params(), traffic.options()));
  },

  async 'slow reader'(traffic) {
    const stream = traffic.llm.stream(traffic.prompt(), traffic.params(), traffic.options());
    await readAll(stream, traffic.integer(1, 20));
  },

  async 'leaves early'(traffic) {
    const params = traffic.params({ n: traffic.integer(1, 2) });
    const stream = traffic.llm.stream(traffic.prompt(), params, traffic.options());
    for (let left = traffic.integer(0, 20); left > 0; left--) await stream.next();
    await stream.return();
  },

  async abort(traffic) {
    const controller = new AbortController();
    const reason = new Error('the client went away');
    const options = traffic.options({ signal: controller.signal });
    const params = traffic.params({ n: traffic.integer(1, 2) });
    const work = traffic.llm.generate(traffic.prompt(), params, options);
    const timer = setTimeout(() => controller.abort(reason), traffic.integer(0, 100));
    await mayFail(work, (error) => error.cause === reason).finally(() => clearTimeout(timer));
  },

  async timeout(traffic) {
    const options = traffic.options({ timeoutMs: traffic.integer(1, 60) });
    const work = readAll(traffic.llm.stream(traffic.prompt(), traffic.params(), options));
    await mayFail(work, (error) => error instanceof RequestTimeoutError);
  },

  async invalid(traffic) {
    const prompts = [[], [traffic.vocabSize], new Array(600).fill(7), [-1]];
    const promptTokenIds = prompts[traffic.integer(0, prompts.length - 1)];
    // A call with an invalid prompt is refused as a whole.
    const call = [traffic.prompt(), { promptTokenIds }];
    const options = traffic.options({ progress: false });
    let refused = false;
    await mayFail(
      traffic.llm.generate(call, traffic.params(), options),
      (error) => (refused = error instanceof InvalidRequestError),
    );
    check(refused, 'an invalid prompt was taken');
  },

  async 'reset of the cache'(traffic) {
    if (traffic.random() < 0.1) traffic.llm.resetPrefixCache();
    await readAll(traffic.llm.stream(traffic.prompt(), traffic.params(), traffic.options()));
  },
};

const MIB = 2 ** 20;

/** Samples the process's memory and event loop delay during the run. */
class Observer {
  samples = [];
  #delay = monitorEventLoopDelay({ resolution: 1 });
  #start = performance.now();

  constructor(llm, traffic) {
    this.llm = llm;
    this.traffic = traffic;
    this.#delay.enable();
  }

  sample() {
    const delay = this.#delay;
    // The forced garbage collection is not the engine's delay.
    delay.disable();
    global.gc();
    global.gc();
    const { rss, heapUsed } = process.memoryUsage();
    const { kvCacheUsage, numRunningReqs, numWaitingReqs, numPreemptions } = this.llm.stats();
    // The recorded delays include the monitor's own period.
    const delayMs = (nanoseconds) => Math.max(0, nanoseconds / 1e6 - 1);
    const sample = {
      seconds: (performance.now() - this.#start) / 1000,
      residentMiB: rss / MIB,
      heapMiB: heapUsed / MIB,
      delayP99Ms: delayMs(delay.percentile(99)),
      delayMaxMs: delayMs(delay.max),
      numRequests: this.traffic.numRequests,
      numOpen: this.traffic.numOpen,
      numRunningReqs,
      numWaitingReqs,
      kvCacheUsage,
      numPreemptions,
    };
    this.samples.push(sample);
    console.error(
      `${sample.seconds.toFixed(0).padStart(5)} s  ${sample.numRequests} requests, ` +
        `${numRunningReqs} running, ${numWaitingReqs} waiting, ` +
        `cache ${(100 * kvCacheUsage).toFixed(0)}%, ${numPreemptions} preempted; ` +
        `resident ${sample.residentMiB.toFixed(1)} MiB, heap ${sample.heapMiB.toFixed(1)} MiB, ` +
        `event loop late by ${sample.delayP99Ms.toFixed(1)} ms (99th percentile), ` +
        `${sample.delayMaxMs.toFixed(1)} ms at most`,
    );
    delay.reset();
    delay.enable();
  }

  /** Growth of `property` from the second third of the time to the last. */
  growth(property) {
    const end = this.samples.at(-1).seconds;
    const median = (first, last) => {
      const values = this.samples
        .filter(({ seconds }) => seconds > (first * end) / 3 && seconds <= (last * end) / 3)
        .map((sample) => sample[property])
        .sort((a, b) => a - b);
      return values[values.length >> 1];
    };
    return median(2, 3) - median(1, 2);
  }
}

/** Remaining state after all requests have ended; the engine may need one more step. */
async function leftovers(llm, traffic) {
  const count = () => {
    const { numRunningReqs, numWaitingReqs, kvCacheUsage } = llm.stats();
    return {
      numRunningReqs,
      numWaitingReqs,
      kvCacheUsage,
      numUnfinishedRequests: llm.engine.numUnfinishedRequests,
      numInWorker: llm.engine.executor.driverWorker.worker.modelRunner.inputBatch.size,
      numListeners: getEventListeners(traffic.service.signal, 'abort').length,
    };
  };
  const isClean = () => Object.values(count()).every((value) => value === 0);
  const deadline = performance.now() + QUIET_MS;
  while (!isClean() && performance.now() < deadline) await sleep(10);
  return count();
}

function problemsOf({ unexpected, left, residentGrowthMiB, heapGrowthMiB }) {
  const problems = [...unexpected];
  for (const [what, count] of Object.entries(left)) {
    if (count !== 0) problems.push(`${what} is ${count} at the end`);
  }
  for (const [what, growth, most] of [
    ['resident set', residentGrowthMiB, MAX_RESIDENT_GROWTH_MIB],
    ['heap', heapGrowthMiB, MAX_HEAP_GROWTH_MIB],
  ]) {
    if (!(growth <= most)) {
      problems.push(`the ${what} grew by ${growth.toFixed(2)} MiB; ${most} are allowed`);
    }
  }
  return problems;
}

async function main() {
  const { values } = parseArgs({
    options: {
      seconds: { type: 'string', default: '240' },
      rate: { type: 'string', default: '40' },
      seed: { type: 'string', default: '1' },
      device: { type: 'string', default: 'cpu' },
      model: { type: 'string' },
      json: { type: 'string' },
    },
  });
  if (global.gc === undefined) throw new Error('global.gc is missing; run with node --expose-gc');
  const [seconds, rate, seed] = [values.seconds, values.rate, values.seed].map(Number);

  const llm = await LLM.create({ ...ENGINE, model: values.model, device: values.device });
  try {
    let numFinished = 0;
    let numCachedTokens = 0;
    llm.events.on('finished', (request) => {
      numFinished++;
      numCachedTokens += request.numCachedTokens;
    });
    const traffic = new Traffic(llm, seededRandom(seed));
    const observer = new Observer(llm, traffic);
    const timer = setInterval(() => observer.sample(), 1000 * Math.max(0.5, seconds / 60));
    await traffic.run(rate, 1000 * seconds);
    clearInterval(timer);

    const left = await leftovers(llm, traffic);
    const { unexpected, outcomes, numRequests } = traffic;
    const stats = llm.stats();
    const ends = Object.values(stats.numFinishedReqs).reduce((sum, count) => sum + count, 0);
    if (numFinished !== ends)
      unexpected.push(`${ends} requests ended, but ${numFinished} 'finished' events were emitted`);
    const result = {
      seconds,
      rate,
      seed,
      numRequests,
      outcomes,
      numCachedTokens,
      residentGrowthMiB: observer.growth('residentMiB'),
      heapGrowthMiB: observer.growth('heapMiB'),
      left,
      unexpected,
      stats,
      samples: observer.samples,
    };
    const problems = problemsOf(result);
    console.table(outcomes);
    const { abort, timeout } = stats.numFinishedReqs;
    console.log(
      `${numRequests} calls in ${seconds} s, ${ends} requests, ${abort} aborted, ${timeout} timed out; ` +
        `${stats.numPromptTokens} tokens in, ${numCachedTokens} of them found in the cache, ` +
        `${stats.numOutputTokens} tokens out, ${stats.numPreemptions} preemptions`,
    );
    console.log(
      `resident set ${result.residentGrowthMiB.toFixed(2)} MiB more, heap ` +
        `${result.heapGrowthMiB.toFixed(2)} MiB more in the last third than in the second`,
    );
    for (const problem of problems) console.log(`PROBLEM: ${problem}`);
    if (problems.length > 0) process.exitCode = 1;
    if (values.json) await writeFile(values.json, JSON.stringify({ ...result, problems }, null, 2));
  } finally {
    await llm.shutdown();
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
