/** Groups of real processes: detecting a rank's death, and freeing resources. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { allEnded, processesWith, type Rank, type RankOptions, startRanks } from '../support/ranks';
import { freePort } from '../support/freePort';
import { eventually } from './support';

/** Milliseconds within which a death must be detected; the group's timeout is much longer. */
const AT_ONCE = 100_000;

/** Prelude of the programs; each prints lines of JSON. */
const PRELUDE = `
  const { readdirSync } = require('node:fs');
  const { ProcessGroup } = require('./lib/distributed/processGroup');
  const rank = Number(process.env.RANK);
  const worldSize = Number(process.env.WORLD_SIZE);
  const say = (value) => console.log(JSON.stringify(value));
  const join = (options) =>
    ProcessGroup.join({ initMethod: 'env://', rank, worldSize, timeout: 250_000, ...options });
  const sayFailure = (group) =>
    group.onFailure(({ code, rank, reason }) => say({ code, rank, reason, at: Date.now() }));
  const gather = async (group, name) =>
    (await group.gather(name, Buffer.from(String(rank)))).map(String);
`;

const start = (body: string, numRanks: number, options: RankOptions = {}) =>
  startRanks(`${PRELUDE} (async () => { ${body} })();`, numRanks, options);

interface Failure {
  code: string;
  rank: number | null;
  reason: string;
  /** Date.now(). */
  at: number;
}

const failuresOf = (ranks: readonly Rank[]) =>
  ranks.map((rank) => rank.lines<Failure>().find((line) => line.code) as Failure);

/** A process's open sockets, without stdio. */
function socketsOf({ pid }: Rank): string[] {
  return readdirSync(`/proc/${pid}/fd`)
    .filter((fd) => Number(fd) > 2)
    .map((fd) => {
      try {
        return readlinkSync(`/proc/${pid}/fd/${fd}`);
      } catch {
        return '';
      }
    })
    .filter((target) => target.startsWith('socket:'));
}

/** Whether a rank is connected to rank 0's listener, on another port than the store. */
function isConnectedToRankZero(rank: Rank, masterPort: number): boolean {
  const ESTABLISHED = '01';
  const own = new Set(socketsOf(rank));
  return ['tcp', 'tcp6']
    .flatMap((table) => readFileSync(`/proc/${rank.pid}/net/${table}`, 'utf8').split('\n').slice(1))
    .map((line) => line.trim().split(/\s+/))
    .some(
      ([, , remote, state, , , , , , inode]) =>
        state === ESTABLISHED &&
        own.has(`socket:[${inode}]`) &&
        parseInt(remote.split(':')[1], 16) !== masterPort,
    );
}

interface SaidError {
  code: string;
  message: string;
  /** Date.now(). */
  at: number;
}

it.each([1, 2, 4])('%i processes join, gather, leave and exit by themselves', async (numRanks) => {
  const ranks = await start(
    `const group = await join();
     say(await gather(group, 'ranks'));
     await group.leave();`,
    numRanks,
  );
  const all = Array.from({ length: numRanks }, (_, rank) => `${rank}`);
  for (const { code } of await allEnded(ranks)) expect(code).toBe(0);
  expect(ranks.map((rank) => rank.lines())).toEqual(ranks.map(() => [all]));
  expect(ranks.map(({ stderr }) => stderr)).toEqual(ranks.map(() => ''));
});

it('join waits for a late rank', async () => {
  const masterPort = await freePort();
  const body = `const group = await join(); say(await gather(group, 'ranks')); await group.leave();`;
  const early = await start(body, 3, { ranks: [2, 1], masterPort });
  await new Promise((resolve) => setTimeout(resolve, 1500));
  expect(early.map(({ stdout }) => stdout)).toEqual(['', '']);
  const late = await start(body, 3, { ranks: [0], masterPort });
  expect(await allEnded([...early, ...late])).toEqual(Array(3).fill({ code: 0, signal: null }));
  expect(late[0].lines()).toEqual([['0', '1', '2']]);
});

it('a group does not keep a process alive, and an exit without leave is a failure', async () => {
  const ranks = await start(
    `const group = await join();
     sayFailure(group);
     say('up');
     if (rank === 0) setTimeout(() => {}, 250_000);
     group.onFailure(() => process.exit());`,
    2,
  );
  await allEnded(ranks);
  expect(failuresOf(ranks.slice(0, 1))).toMatchObject([{ code: 'PEER_LOST', rank: 1 }]);
  expect(ranks[1].lines()).toEqual(['up']);
});

describe('kill -9', () => {
  it.each([0, 1, 3])('of rank %i is detected by all others at once', async (victim) => {
    const ranks = await start(
      `const group = await join();
       await gather(group, 'ranks');
       sayFailure(group);
       const isVictim = rank === ${victim};
       const waiting = isVictim ? new Promise(() => setInterval(() => {}, 1000)) : gather(group, 'never');
       say('up');
       await waiting.catch(({ code }) => say({ waiting: code }));
       await group.leave();`,
      4,
    );
    await Promise.all(ranks.map((rank) => rank.said('up')));
    // Rank 0 must have received every gather.
    await new Promise((resolve) => setTimeout(resolve, 200));
    const killed = Date.now();
    ranks[victim].kill('SIGKILL');
    const rest = ranks.filter(({ rank }) => rank !== victim);
    expect(await allEnded(rest)).toEqual(Array(3).fill({ code: 0, signal: null }));
    for (const [i, { at, ...failure }] of failuresOf(rest).entries()) {
      expect(failure).toMatchObject({ code: 'PEER_LOST', rank: victim });
      expect(at - killed).toBeLessThan(AT_ONCE);
      expect(rest[i].lines()).toContainEqual({ waiting: 'PEER_LOST' });
    }
  });

  it.each([1, 0])('of rank %i during rendezvous rejects on the others', async (victim) => {
    const masterPort = await freePort();
    const body = `await join().catch(({ code, message }) => say({ code, message, at: Date.now() }));`;
    const ranks = await start(body, 4, { ranks: [0, 1, 2], masterPort });
    await eventually(() => {
      expect(ranks.slice(1).map((rank) => isConnectedToRankZero(rank, masterPort))).toEqual([
        true,
        true,
      ]);
    });
    const killed = Date.now();
    ranks[victim].kill('SIGKILL');
    const rest = ranks.filter(({ rank }) => rank !== victim);
    await allEnded(rest);
    for (const { code, message, at } of rest.map((rank) => rank.lines<SaidError>()[0])) {
      // Rank 0 may die before it has sent a frame.
      expect(victim === 0 ? ['PEER_LOST', 'RENDEZVOUS'] : ['PEER_LOST']).toContain(code);
      expect(message).toMatch(
        victim === 0 ? /rank 0 (is lost|cannot be reached)/ : /rank 1 is lost/,
      );
      expect(at - killed).toBeLessThan(AT_ONCE);
    }
  });
});

describe('silence', () => {
  const TIMEOUT = 12_000;

  it.each([0, 2])('of rank %i is detected by all others within the timeout', async (victim) => {
    const ranks = await start(
      `const group = await join({ timeout: ${TIMEOUT} });
       await gather(group, 'ranks');
       sayFailure(group);
       say('up');
       const kept = setInterval(() => {}, 1000);
       group.onFailure(async () => { await group.leave(); clearInterval(kept); });`,
      3,
    );
    await Promise.all(ranks.map((rank) => rank.said('up')));
    const stopped = Date.now();
    ranks[victim].kill('SIGSTOP');
    const rest = ranks.filter(({ rank }) => rank !== victim);
    expect(await allEnded(rest)).toEqual(Array(2).fill({ code: 0, signal: null }));
    for (const { at, ...failure } of failuresOf(rest)) {
      expect(failure).toMatchObject({ code: 'PEER_LOST', rank: victim });
      expect(failure.reason).toMatch(/^it sent no heartbeat for \d+ ms$/);
      expect(at - stopped).toBeGreaterThan(TIMEOUT / 2);
      expect(at - stopped).toBeLessThan(TIMEOUT + AT_ONCE);
    }
    // When it resumes, it finds that the group has failed.
    ranks[victim].kill('SIGCONT');
    expect(await ranks[victim].ended).toEqual({ code: 0, signal: null });
    expect(failuresOf([ranks[victim]])).toMatchObject([{ code: 'PEER_LOST', rank: victim }]);
  });

  it('is not reported for an idle group', async () => {
    const ranks = await start(
      `const group = await join({ timeout: 8000 });
       sayFailure(group);
       await new Promise((resolve) => setTimeout(resolve, 17_000));
       say(await gather(group, 'ranks'));
       await group.leave();`,
      2,
    );
    await allEnded(ranks);
    expect(ranks.map((rank) => rank.lines())).toEqual([[['0', '1']], [['0', '1']]]);
  });
});

it('50 groups one after another leave no socket, no timer and no process', async () => {
  const ranks = await start(
    `const cycle = async (round) => {
       const group = await join();
       await gather(group, 'ranks');
       group.verify(round, Buffer.of(1));
       await group.leave();
     };
     const footprint = () => ({
       files: readdirSync('/proc/self/fd').length,
       resources: process.getActiveResourcesInfo().sort(),
     });
     say('up');
     await cycle(0);
     const before = footprint();
     for (let round = 1; round <= 50; round++) await cycle(round);
     say(before);
     say(footprint());
     say('done');
     await new Promise((resolve) => process.once('SIGTERM', resolve) && setTimeout(resolve, 250_000));
     process.exit();`,
    2,
    { env: { GROUP_TEST: String(process.pid) } },
  );
  await Promise.all(ranks.map((rank) => rank.said('done')));
  for (const rank of ranks) {
    const [, before, after] = rank.lines();
    expect(after).toEqual(before);
    expect(socketsOf(rank)).toEqual([]);
    rank.kill('SIGTERM');
  }
  await allEnded(ranks);
  expect(processesWith('GROUP_TEST', String(process.pid))).toEqual([]);
});
