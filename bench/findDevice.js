// node bench/findDevice.js [DEVICE]: prints the given or default device and its product name. A
// separate process, because the bench's must not have the GPU open when it measures a process start.
'use strict';

const { defaultDevice, native } = require('../dist/native');

async function main([named]) {
  const device = named || (await defaultDevice());
  const [kind, index = 0] = device.split(':');
  const nativeDevice = new (native().DeviceThread)(kind, Number(index), 0);
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
