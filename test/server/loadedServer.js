// The server of test/server/load.test.ts in a process of its own, whose memory and event loop are the
// server's alone. Run with --expose-gc. Sends its URL; answers 'start', which begins to measure the
// event loop's delay, and 'stop' with a measurement once no request is left.
'use strict';

const { monitorEventLoopDelay } = require('node:perf_hooks');
const { setTimeout: pause } = require('node:timers/promises');
const { createHandler, LLM } = require('../..');
const { NodeServer } = require('../../dist/server/nodeServer');

/** Bytes that the process holds, without the free part of the JavaScript heap. */
function heldBytes() {
  global.gc();
  const { rss, heapTotal, heapUsed } = process.memoryUsage();
  return rss - heapTotal + heapUsed;
}

async function main() {
  const llm = await LLM.create({ device: 'cpu', dtype: 'float32', maxModelLen: 256 });
  const server = await NodeServer.listen(createHandler(llm, { maxBodyBytes: 2 ** 20 }), {
    host: '127.0.0.1',
    port: 0,
    maxConnections: 1024,
    headerTimeoutMs: 200_000,
    idleTimeoutMs: 200_000,
    writeTimeoutMs: 200_000,
  });
  const delay = monitorEventLoopDelay({ resolution: 1 });
  process.on('message', async (message) => {
    if (message === 'start') {
      delay.reset();
      delay.enable();
      return process.send('started');
    }
    delay.disable();
    while (llm.engine.numUnfinishedRequests > 0) await pause(2);
    process.send({ delayMs: delay.max / 1e6, heldBytes: heldBytes() });
  });
  process.send(server.url);
}

void main();
