// node bench/findDevice.js [DEVICE]: prints the device named, or else the default one, and what it is
// called. A process of its own: the bench's must not be one that has a GPU open already, when the
// start of another is measured.
'use strict';

const { defaultDevice, native } = require('../dist/native');

async function main([named]) {
  const device = named || (await defaultDevice());
  const [kind, index = 0] = device.split(':');
  const nativeDevice = new (native().Device)(kind, Number(index), 0);
  try {
    const { name } = await nativeDevice.open();
    console.log(JSON.stringify({ device, name }));
  } finally {
    await nativeDevice.shutdown();
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
