// npm run bench -- [generation] [control-plane] [start] [shapes] [formats] [engine] [event-loop]
//                  [server] [allreduce] [tensor-parallel] [cpu-peers]
//                  [--device cpu|cuda|cuda:N] [--model DIR] [--shape NAME|CONFIG.json]...
//                  [--dtype TYPE] [--json FILE] [--peer DIR] [--gguf FILE]
//                  [--format int8|int4|q8_0|q4_0|q4_1|q4_k_m]
//
// Measures uniproc on this machine and prints a table; --json also writes the rows. By default it
// measures a CUDA device, if there is one, with models of known shapes, else the CPU.
'use strict';

const { execFileSync } = require('node:child_process');
const { writeFile } = require('node:fs/promises');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { benchAllReduce } = require('./allReduce');
const { benchControlPlane } = require('./controlPlane');
const { benchCpuPeers } = require('./cpuPeers');
const { benchEngine } = require('./engine');
const { benchEventLoop } = require('./eventLoop');
const { benchFormats } = require('./formats');
const { benchGeneration } = require('./generation');
const { benchServer } = require('./server');
const { benchShapes } = require('./shapes');
const { benchStart } = require('./startUp');
const { benchTensorParallel } = require('./tensorParallel');
const { printTable } = require('./table');

const BENCHES = {
  generation: benchGeneration,
  'control-plane': benchControlPlane,
  start: benchStart,
  shapes: benchShapes,
  formats: benchFormats,
  engine: benchEngine,
  'event-loop': benchEventLoop,
  server: benchServer,
  allreduce: benchAllReduce,
  'tensor-parallel': benchTensorParallel,
  'cpu-peers': benchCpuPeers,
};

/** { device, name } of the given or default device. */
function findDevice(device = '') {
  const script = path.join(__dirname, 'findDevice.js');
  return JSON.parse(execFileSync(process.execPath, [script, device], { encoding: 'utf8' }));
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      device: { type: 'string' },
      model: { type: 'string' },
      shape: { type: 'string', multiple: true },
      dtype: { type: 'string', default: 'auto' },
      json: { type: 'string' },
      peer: { type: 'string' },
      gguf: { type: 'string' },
      format: { type: 'string' },
    },
  });
  const unknown = positionals.find((name) => !(name in BENCHES));
  if (unknown) {
    throw new Error(`unknown bench ${unknown}; the benches are ${Object.keys(BENCHES).join(', ')}`);
  }
  const { device, name } = findDevice(values.device);
  const defaults = device === 'cpu' ? ['generation', 'control-plane'] : ['shapes', 'control-plane'];

  const rows = [];
  for (const bench of positionals.length > 0 ? positionals : defaults) {
    rows.push(...(await BENCHES[bench]({ ...values, device })));
  }
  printTable(rows);
  if (values.json) {
    const machine = {
      device: name,
      cpu: os.cpus()[0].model,
      cores: os.availableParallelism(),
      node: process.version,
    };
    await writeFile(values.json, `${JSON.stringify({ machine, rows }, null, 2)}\n`);
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
