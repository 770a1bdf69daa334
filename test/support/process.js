// What a process holds, as the kernel counts it.
'use strict';

const { readdirSync } = require('node:fs');

/** Resident MiB after collecting garbage (needs --expose-gc), threads and open files. */
function footprint() {
  global.gc();
  global.gc();
  return {
    residentMiB: process.memoryUsage.rss() / 2 ** 20,
    threads: readdirSync('/proc/self/task').length,
    files: readdirSync('/proc/self/fd').length,
  };
}

module.exports = { footprint };
