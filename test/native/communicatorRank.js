// One rank in a process of its own: makes the calls of a communicator that its parent sends.
'use strict';

const path = require('node:path');

const addon = require(path.resolve(__dirname, '../../build/Release/uniproc.node'));
addon.setErrorFactory((code, message, file, rank) =>
  Object.assign(new Error(message), { code, rank: rank ?? null }),
);

const device = new addon.Device('cpu', 0, 1);
const opened = device.open();
const communicator = opened.then(() => new addon.Communicator(device, JSON.parse(process.argv[2])));

async function reduceForEver(bytes) {
  for (;;) await (await communicator).allReduce(new Uint8Array(bytes), 'float32', 'sum');
}

process.on('message', async ({ id, method, args }) => {
  try {
    const call = method === 'reduceForEver' ? reduceForEver : null;
    const value = await (call ? call(...args) : (await communicator)[method](...args));
    process.send({ id, value });
  } catch ({ code, message, rank }) {
    process.send({ id, error: { code, message, rank } });
  }
});
