// Random arrivals of independent users (a Poisson process), each read by a stream: time to first
// token and inter-token latency.
'use strict';

const { performance } = require('node:perf_hooks');
const { setTimeout: sleep } = require('node:timers/promises');
const { checkLength } = require('./engineWorkload');

const PERCENTILES = [50, 95, 99];

/** The percentile of a list of values. */
function percentile(sorted, percent) {
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)];
}

function percentiles(values) {
  const sorted = Float64Array.from(values).sort();
  return Object.fromEntries(PERCENTILES.map((percent) => [percent, percentile(sorted, percent)]));
}

/** Reads a request's stream. The clock starts at its due time, to include delays by a busy thread. */
async function serve(llm, request, due) {
  // A timer may fire up to a millisecond early.
  for (let left; (left = due - performance.now()) > 0;) await sleep(left);
  const gaps = [];
  let numTokens = 0;
  let firstToken;
  let last = due;
  for await (const { tokenIds } of llm.stream(request.prompt, request.params)) {
    const now = performance.now();
    if (firstToken === undefined) firstToken = now - due;
    else gaps.push(now - last);
    last = now;
    numTokens += tokenIds.length;
  }
  checkLength(request, numTokens);
  return { firstToken, gaps, numTokens, end: last };
}

/**
 * Sends the requests at a mean of `rate` per second. Resolves to `numTokens`, `seconds` from the first
 * due time to the last token, and percentiles in ms of `timeToFirstToken` and `interTokenLatency`
 * (between a reader's consecutive deltas).
 */
async function measureArrivals(llm, requests, rate, random) {
  let due = performance.now();
  const arrivals = requests.map((request) => {
    due += (-Math.log(1 - random()) / rate) * 1000;
    return { request, due };
  });
  const served = await Promise.all(arrivals.map(({ request, due }) => serve(llm, request, due)));
  return {
    numTokens: served.reduce((sum, { numTokens }) => sum + numTokens, 0),
    seconds: (Math.max(...served.map(({ end }) => end)) - arrivals[0].due) / 1000,
    timeToFirstToken: percentiles(served.map(({ firstToken }) => firstToken)),
    interTokenLatency: percentiles(served.flatMap(({ gaps }) => gaps)),
  };
}

module.exports = { PERCENTILES, measureArrivals };
