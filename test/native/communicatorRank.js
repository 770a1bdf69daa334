// One rank in a separate process: executes communicator calls that its parent sends.
'use strict';

const { spawn } = require('node:child_process');
const path = require('node:path');

const addon = require(path.resolve(__dirname, '../../build/Release/uniproc.node'));
addon.setErrorFactory((code, message, file, rank) =>
  Object.assign(new Error(message), { code, rank: rank ?? null }),
);

const device = new addon.DeviceThread('cpu', 0, 1);
const opened = device.open();
const communicator = opened.then(() => new addon.Communicator(device, JSON.parse(process.argv[2])));

const more = {
  async reduceForever(bytes) {
    for (;;) await (await communicator).allReduce(new Uint8Array(bytes), 'float32', 'sum');
  },
  // A process that outlives this one.
  startChild: () => spawn('sleep', ['60'], { stdio: 'ignore' }).pid,
};

process.on('message', async ({ id, method, args }) => {
  try {
    const value = await (method in more ? more : await communicator)[method](...args);
    process.send({ id, value });
  } catch ({ code, message, rank }) {
    process.send({ id, error: { code, message, rank } });
  }
});
