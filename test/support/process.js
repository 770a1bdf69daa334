// The resources of a process, as the kernel counts them.
'use strict';

const { readdirSync } = require('node:fs');
const { setTimeout: sleep } = require('node:timers/promises');

/** Ended threads stay listed briefly: returns the minimum once it has not changed for four seconds. */
async function numThreads() {
  let least = Infinity;
  for (let since = performance.now(); performance.now() - since < 4000; await sleep(20)) {
    const count = readdirSync('/proc/self/task').length;
    if (count < least) [least, since] = [count, performance.now()];
  }
  return least;
}

/** Resident MiB after collecting garbage (needs --expose-gc), threads and open files. */
async function footprint() {
  const threads = await numThreads();
  global.gc();
  global.gc();
  return {
    residentMiB: process.memoryUsage.rss() / 2 ** 20,
    threads,
    files: readdirSync('/proc/self/fd').length,
  };
}

module.exports = { footprint };
