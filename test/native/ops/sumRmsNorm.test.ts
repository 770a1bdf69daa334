/** Ops.sumRmsNorm of CPU ranks, one process each; test/gpu/distributedCollectives.test.ts has GPUs. */
import { allEnded, startRanks } from '../../support/ranks';
import type { Result } from '../../support/sumRmsNorm';
import { expectGoodEnds } from '../../support/tensorParallel';

const CASES = [
  { numTokens: 1, size: 256 },
  { numTokens: 5, size: 77 },
  { numTokens: 17, size: 1000 },
];

const PROGRAM = `
const { ProcessGroup } = require('./lib/distributed/processGroup');
const { cpuOps } = require('./test/native/ops/binding');
const { checkSumRmsNorm } = require('./test/support/sumRmsNorm');

const [rank, worldSize] = [Number(process.env.RANK), Number(process.env.WORLD_SIZE)];
(async () => {
  const group = await ProcessGroup.join({ initMethod: 'env://', rank, worldSize, timeout: 60_000 });
  const ops = cpuOps(undefined, 1);
  const options = { rank, worldSize, timeout: 60_000, customAllReduce: true };
  const communicator = ops.makeCommunicator(options);
  ops.connect(communicator, await group.gather('addresses', ops.address(communicator)));
  for (const weights of ['float32', 'float16', 'bfloat16']) {
    const results = await checkSumRmsNorm(ops, communicator, {
      rank, worldSize, activations: 'float32', weights, cases: ${JSON.stringify(CASES)}, numLaunches: 6,
    });
    console.log(JSON.stringify(results));
  }
  ops.dropCommunicator(communicator);
  await group.leave();
})();`;

test.each([2, 3])(
  'sumRmsNorm on %i ranks gives the bits of allReduce, then rmsNorm',
  async (worldSize) => {
    const ranks = await startRanks(PROGRAM, worldSize);
    await allEnded(ranks);
    await expectGoodEnds(ranks);
    const said = ranks.map((rank) => rank.lines<Result[]>());
    for (const ofRank of said) expect(ofRank).toEqual(said[0]);
    expect(said[0]).toHaveLength(3);
    for (const results of said[0]) {
      expect(results.map(({ numTokens, size }) => ({ numTokens, size }))).toEqual(CASES);
      for (const { numDifferent, error } of results) {
        expect(numDifferent).toBe(0);
        expect(error).toBeLessThan(1e-6);
      }
    }
  },
  60_000,
);
