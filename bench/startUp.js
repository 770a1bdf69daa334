// Time from a process start to its first token, with the checkpoint in the page cache.
'use strict';

const { execFile } = require('node:child_process');
const path = require('node:path');
const { promisify } = require('node:util');

const run = promisify(execFile);

/** Seconds of each stage since the process start, and of the load; `bytes` of the weights. */
async function measureStartUp(engineArgs) {
  const started = performance.timeOrigin + performance.now();
  const { stdout } = await run(process.execPath, [
    path.join(__dirname, 'firstToken.js'),
    JSON.stringify(engineArgs),
  ]);
  const { bytes, ...times } = JSON.parse(stdout);
  const since = (time) => (time - started) / 1000;
  return {
    bytes,
    required: since(times.required),
    deviceOpen: since(times.deviceOpen),
    weightsIn: since(times.weightsIn),
    created: since(times.created),
    firstToken: since(times.firstToken),
    loadSeconds: (times.weightsIn - times.loadBegins) / 1000,
  };
}

module.exports = { measureStartUp };
