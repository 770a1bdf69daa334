/** The helper that starts ranks as a launcher does, and kills them. */
import { allEnded, processesWith, startRanks } from '../support/ranks';

it("starts ranks with a launcher's variables, and returns their output and exit", async () => {
  const ranks = await startRanks(
    `const { RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, EXTRA } = process.env;
     console.log([RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, EXTRA].join());
     process.exitCode = Number(RANK);`,
    2,
    { env: (rank) => ({ EXTRA: `of ${rank}` }) },
  );
  expect(await allEnded(ranks)).toEqual([
    { code: 0, signal: null },
    { code: 1, signal: null },
  ]);
  expect(ranks.map(({ stdout, stderr }) => stdout + stderr)).toEqual([
    '0,0,2,2,127.0.0.1,of 0\n',
    '1,1,2,2,127.0.0.1,of 1\n',
  ]);
});

describe('a rank that does not exit', () => {
  const TAG = `never ${process.pid}`;

  it('returns its output', async () => {
    const ranks = await startRanks(`console.log('up'); setInterval(() => {}, 1000)`, 2, {
      env: { RANKS_TEST: TAG },
    });
    await Promise.all(ranks.map((rank) => rank.said('up')));
    expect(processesWith('RANKS_TEST', TAG).sort()).toEqual(ranks.map(({ pid }) => pid).sort());
  });

  it('is killed when its test is over', () => {
    expect(processesWith('RANKS_TEST', TAG)).toEqual([]);
  });
});
