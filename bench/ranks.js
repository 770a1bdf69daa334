// Starts processes on this machine as the ranks of a group.
'use strict';

const { execFileSync, fork } = require('node:child_process');
const path = require('node:path');
const { freePort } = require('../dist/executor/network');

/**
 * Runs a program of this folder in one process per rank, with a launcher's variables and the argument
 * as JSON; resolves to rank 0's message. If a rank fails, stops all and rejects.
 */
async function runRanks(program, worldSize, argument) {
  const port = await freePort();
  let result;
  const ranks = Array.from({ length: worldSize }, (_, rank) =>
    fork(path.join(__dirname, program), [JSON.stringify(argument)], {
      env: {
        ...process.env,
        RANK: String(rank),
        LOCAL_RANK: String(rank),
        WORLD_SIZE: String(worldSize),
        LOCAL_WORLD_SIZE: String(worldSize),
        MASTER_ADDR: '127.0.0.1',
        MASTER_PORT: String(port),
      },
    }),
  );
  ranks[0].on('message', (message) => (result = message));
  const endings = ranks.map(
    (child, rank) =>
      new Promise((resolve, reject) => {
        child.on('error', reject);
        child.on('close', (code, signal) => {
          if (code === 0) resolve();
          else reject(new Error(`rank ${rank} of ${worldSize} exited with ${signal ?? code}`));
        });
      }),
  );
  try {
    await Promise.all(endings);
  } finally {
    for (const child of ranks) child.kill('SIGKILL');
    await Promise.allSettled(endings);
  }
  return result;
}

/** Number of GPUs that can be opened, counted in a separate process. */
function countGpus() {
  const script = path.join(__dirname, '..', 'scripts', 'count-gpus.js');
  return Number(execFileSync(process.execPath, [script], { encoding: 'utf8' }));
}

/** 2, 4 and 8, or those in RANKS, as far as there are GPUs; warns if there are too few. */
function worldSizes() {
  const count = countGpus();
  const wanted = process.env.RANKS ? process.env.RANKS.split(/[ ,]+/).map(Number) : [2, 4, 8];
  const sizes = wanted.filter((size) => size <= count);
  if (sizes.length === 0) {
    const there = count === 1 ? 'is 1' : `are ${count}`;
    console.error(`${Math.min(...wanted)} GPUs are needed; there ${there}`);
  }
  return sizes;
}

module.exports = { runRanks, worldSizes };
