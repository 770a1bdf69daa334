/**
 * Holds the includes of native/ to the arrows between its rooms (scripts/rooms.js): prints those that
 * break one and exits with 1. `node scripts/check-includes.js [folder]`, native/ by default.
 */
'use strict';

const { readdirSync, readFileSync } = require('node:fs');
const path = require('node:path');
const { mayInclude, nativeRoomOf } = require('./rooms');

const SOURCE = /\.(h|cpp|cu|cuh)$/;
const INCLUDE = /^\s*#\s*include\s*"([^"]+)"/;

/** What is wrong, a line for each; `folder` is native/ or laid out like it. */
function faultsIn(folder) {
  const faults = [];
  for (const entry of readdirSync(folder, { recursive: true }).sort()) {
    if (!SOURCE.test(entry)) continue;
    const file = entry.split(path.sep).join('/');
    const from = nativeRoomOf(file);
    if (from === undefined) {
      faults.push(`${file} is in no room of scripts/rooms.js`);
      continue;
    }
    const lines = readFileSync(path.join(folder, entry), 'utf8').split('\n');
    lines.forEach((line, i) => {
      const included = INCLUDE.exec(line)?.[1];
      if (included === undefined || mayInclude(file, included)) return;
      const to = nativeRoomOf(included) ?? 'no room';
      faults.push(`${file}:${i + 1} includes "${included}": ${from} must not include ${to}`);
    });
  }
  return faults;
}

if (require.main === module) {
  const faults = faultsIn(process.argv[2] ?? path.join(__dirname, '..', 'native'));
  for (const fault of faults) console.error(fault);
  if (faults.length > 0) process.exitCode = 1;
}

module.exports = { faultsIn };
