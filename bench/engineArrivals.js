// Requests that arrive at random, as those of independent users do (a Poisson process), each read by
// a stream of its own: how long a user waits for the first token, and from one to the next.
'use strict';

const { performance } = require('node:perf_hooks');
const { setTimeout: sleep } = require('node:timers/promises');
const { checkLength } = require('./engineWorkload');

const PERCENTILES = [50, 95, 99];

/** The least value that so many percent of all do not exceed. */
function percentile(sorted, percent) {
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)];
}

function percentiles(values) {
  const sorted = Float64Array.from(values).sort();
  return Object.fromEntries(PERCENTILES.map((percent) => [percent, percentile(sorted, percent)]));
}

/** Reads a request's stream. The clock starts when it was due: a busy thread makes users wait too. */
async function serve(llm, request, due) {
  // A timer may fire before its time, by less than a millisecond.
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
 * Sends the requests at `rate` a second on average. Resolves to what became of them: `numTokens`,
 * `seconds` from the first arrival's due time to the last token, and in ms by percentile
 * `timeToFirstToken` and `interTokenLatency`, between what a reader gets and what it gets next.
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
