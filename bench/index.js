// npm run bench -- [generation] [control-plane] [--model DIR] [--dtype TYPE] [--json FILE]
//
// Measures what uniproc does on this machine and prints a table; with --json also writes the rows.
'use strict';

const { writeFile } = require('node:fs/promises');
const os = require('node:os');
const { parseArgs } = require('node:util');
const { benchControlPlane } = require('./controlPlane');
const { benchGeneration } = require('./generation');
const { printTable } = require('./table');

const BENCHES = { generation: benchGeneration, 'control-plane': benchControlPlane };

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      model: { type: 'string' },
      dtype: { type: 'string', default: 'auto' },
      json: { type: 'string' },
    },
  });
  const names = positionals.length > 0 ? positionals : Object.keys(BENCHES);
  const unknown = names.find((name) => !(name in BENCHES));
  if (unknown) {
    throw new Error(`no bench is called ${unknown}; there are ${Object.keys(BENCHES).join(', ')}`);
  }

  const rows = [];
  for (const name of names) rows.push(...(await BENCHES[name](values)));
  printTable(rows);
  if (values.json) {
    const machine = {
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
