// One rank of bench/allReduce.js: node bench/allReduceRank.js { device, sizes } as JSON, with a
// launcher's variables. Sends { hasPeerMemory, times: [{ bytes, own, nccl, fused, separate }] }, in
// seconds per all-reduce; the last two with the residual and the norm that follow it in a layer, on
// GPUs and for sizes in peer memory.
'use strict';

const { Ops } = require('../build/Release/uniproc_testing.node');
const { ProcessGroup } = require('../dist/distributed/processGroup');
const { rankFromEnvironment } = require('../dist/distributed/rendezvous');

const TIMEOUT = 120_000;
const BYTES_PER_ELEMENT = 2;
/** A row of the norms. */
const HIDDEN_SIZE = 4096;
const MOST_NORMED = 2 << 20;
/** Measurements per path and size, alternating; the result is the median. */
const SAMPLES = 7;

/** All-reduces per graph, and launches per measurement: at least ten milliseconds. */
function amounts(bytes, onGpu) {
  if (!onGpu) return { perGraph: 10, launches: 5 };
  return bytes <= 1 << 20 ? { perGraph: 100, launches: 40 } : { perGraph: 20, launches: 10 };
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

async function main({ device: kind, sizes }) {
  const { rank, localRank, worldSize } = rankFromEnvironment();
  const group = await ProcessGroup.join({
    initMethod: 'env://',
    rank,
    worldSize,
    timeout: TIMEOUT,
  });
  const onGpu = kind !== 'cpu';
  const device = new Ops(
    onGpu ? { kind: 'cuda', index: localRank } : { kind: 'cpu', numThreads: 1 },
  );
  const communicators = {};
  for (const way of onGpu ? ['own', 'nccl'] : ['own']) {
    const communicator = device.makeCommunicator({
      rank,
      worldSize,
      timeout: TIMEOUT,
      customAllReduce: way === 'own',
    });
    device.connect(communicator, await group.gather(way, device.address(communicator)));
    communicators[way] = communicator;
  }

  const graphs = device.makeGraphs();
  let numGraphs = 0;

  /** Measures seconds per call of `reduce`. */
  function prepare(communicator, reduce, { perGraph, launches }) {
    const key = numGraphs++;
    const launch = () =>
      device.launchGraph(graphs, key, () => {
        for (let i = 0; i < perGraph; i++) reduce();
      });
    for (let i = 0; i < 3; i++) launch(); // as it is, recorded, and once again
    return () => {
      device.barrier(communicator);
      const start = performance.now();
      for (let i = 0; i < launches; i++) launch();
      device.synchronize();
      return (performance.now() - start) / 1000 / launches / perGraph;
    };
  }

  const times = [];
  for (const bytes of sizes) {
    // Zeros stay zero under repeated sums.
    const data = device.allocate(bytes / BYTES_PER_ELEMENT, 'bfloat16', 'a measurement');
    const ways = [];
    const add = (way, communicator, reduce) => {
      const measure = prepare(communicator, reduce, amounts(bytes, onGpu));
      ways.push({ way, measure, samples: [] });
    };
    for (const [way, communicator] of Object.entries(communicators)) {
      add(way, communicator, () => device.allReduce(communicator, data));
    }
    if (onGpu && bytes <= MOST_NORMED) {
      const { own } = communicators;
      const rows = bytes / BYTES_PER_ELEMENT / HIDDEN_SIZE;
      const residual = device.allocate(rows * HIDDEN_SIZE, 'bfloat16', 'a measurement');
      const weight = {
        data: device.allocate(HIDDEN_SIZE, 'bfloat16', 'a measurement'),
        rows: HIDDEN_SIZE,
        cols: 1,
      };
      add('fused', own, () => device.sumRmsNorm(own, data, residual, rows, weight, 1e-5, data));
      add('separate', own, () => {
        device.allReduce(own, data);
        device.rmsNorm(data, residual, rows, weight, 1e-5, data);
      });
    }
    for (let i = 0; i < SAMPLES; i++) {
      for (const { measure, samples } of ways) samples.push(measure());
    }
    device.synchronize();
    times.push({ bytes, ...Object.fromEntries(ways.map((w) => [w.way, median(w.samples)])) });
    if (rank === 0) console.error(`${worldSize} ranks, ${JSON.stringify(times.at(-1))}`);
  }

  const hasPeerMemory = device.hasPeerMemory(communicators.own);
  device.dropGraphs(graphs);
  for (const communicator of Object.values(communicators)) device.dropCommunicator(communicator);
  if (rank === 0) process.send({ hasPeerMemory, times });
  await group.leave();
  process.disconnect();
}

main(JSON.parse(process.argv[2])).catch((error) => {
  console.error(error);
  process.exit(1);
});
