// All-reduce over several GPUs as in decode steps: many in a CUDA graph, bfloat16, in place. Compares
// NCCL with the communicator's own choice, which is peer-to-peer for small messages.
'use strict';

const { runRanks, worldSizes } = require('./ranks');

const KIB = 1024;
const MIB = 1024 * KIB;

/** 8 KiB to 64 MiB. */
const SIZES = Array.from({ length: 14 }, (_, i) => (8 * KIB) << i);
const PEER_TO_PEER = 2 * MIB;

/** Sizes on a CPU, where all-reduce uses TCP. */
const CPU_SIZES = SIZES.filter((bytes) => bytes <= MIB);

function nameOf(bytes) {
  return bytes < MIB ? `${bytes / KIB} KiB` : `${bytes / MIB} MiB`;
}

function gpuRows(worldSize, hasPeerMemory, { bytes, own, nccl, fused, separate }) {
  const what = `${worldSize} GPUs, ${nameOf(bytes)}`;
  const isPeerToPeer = hasPeerMemory && bytes <= PEER_TO_PEER;
  return [
    { bench: 'all-reduce', what: `${what}, NCCL`, value: 1e6 * nccl, unit: 'µs' },
    {
      bench: 'all-reduce',
      what: `${what}, ${isPeerToPeer ? 'peer-to-peer' : 'NCCL again'}`,
      value: 1e6 * own,
      unit: 'µs',
      ceiling: 1e6 * nccl,
      ceilingOf: 'NCCL',
      ...(bytes === SIZES[0] && { bound: 0.5e6 * nccl }),
    },
    ...(isPeerToPeer
      ? [
          {
            bench: 'all-reduce',
            what: `${what}, with residual and norm`,
            value: 1e6 * fused,
            unit: 'µs',
            ceiling: 1e6 * separate,
            ceilingOf: 'two kernels',
          },
        ]
      : []),
  ];
}

async function benchAllReduce({ device }) {
  if (device === 'cpu') {
    const { times } = await runRanks('allReduceRank.js', 2, { device, sizes: CPU_SIZES });
    return times.map(({ bytes, own }) => ({
      bench: 'all-reduce',
      what: `2 CPU ranks, ${nameOf(bytes)}, TCP`,
      value: 1e6 * own,
      unit: 'µs',
    }));
  }
  const rows = [];
  for (const worldSize of worldSizes()) {
    const argument = { device, sizes: SIZES };
    const { hasPeerMemory, times } = await runRanks('allReduceRank.js', worldSize, argument);
    if (!hasPeerMemory)
      console.error(`${worldSize} GPUs have no peer memory: only NCCL is measured`);
    rows.push(...times.flatMap((time) => gpuRows(worldSize, hasPeerMemory, time)));
  }
  return rows;
}

module.exports = { benchAllReduce };
