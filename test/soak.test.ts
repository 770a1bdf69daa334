/** A short `npm run soak`: traffic of every kind, and killed ranks, leave nothing behind. */
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import type { EngineStats } from '../lib';
import { folderWith } from './support/folder';

const SECONDS = 25;

interface Result {
  numRequests: number;
  /** Counts by kind of request and outcome. */
  outcomes: Record<string, Record<string, number>>;
  numCachedTokens: number;
  residentGrowthMiB: number;
  heapGrowthMiB: number;
  left: Record<string, number>;
  unexpected: string[];
  stats: EngineStats;
  samples: unknown[];
}

let result: Result;

beforeAll(async () => {
  const file = path.join(await folderWith({}), 'soak.json');
  const script = path.join(__dirname, '..', 'scripts', 'soak.js');
  const args = ['--expose-gc', script, '--seconds', String(SECONDS), '--json', file];
  // It exits with 1 on a problem; the file describes it.
  await promisify(execFile)(process.execPath, args).catch(() => undefined);
  result = JSON.parse(await readFile(file, 'utf8')) as Result;
}, 600_000);

it("has traffic of every kind, beyond the engine's capacity", () => {
  const { numRequests, numCachedTokens, outcomes, samples, stats } = result;
  expect(numRequests).toBeGreaterThan(20 * SECONDS);
  expect(samples.length).toBeGreaterThan(SECONDS / 5);
  expect(Object.keys(outcomes)).toHaveLength(11);
  for (const [kind, { done }] of Object.entries(outcomes)) {
    // A slow machine refuses most of the about ninety per kind.
    expect([kind, done > 0]).toEqual([kind, true]);
  }
  const refused = Object.values(outcomes).reduce((sum, { QUEUE_FULL = 0 }) => sum + QUEUE_FULL, 0);
  expect(refused).toBeGreaterThan(50);
  expect(numCachedTokens).toBeGreaterThan(1000);
  expect(stats.numPreemptions).toBeGreaterThan(5);
  expect(stats.numFinishedReqs.abort).toBeGreaterThan(5);
  expect(stats.numFinishedReqs.timeout).toBeGreaterThan(0);
  expect(stats.numFinishedReqs.error).toBe(0);
});

it('ends each request as expected', () => {
  expect(result.unexpected).toEqual([]);
});

it('leaves no block or request behind', () => {
  expect(result.left).toEqual({
    numRunningReqs: 0,
    numWaitingReqs: 0,
    kvCacheUsage: 0,
    numUnfinishedRequests: 0,
    numInWorker: 0,
    numListeners: 0,
  });
});

it('keeps the resident set and the heap flat', () => {
  // Twice the script's bound: beside other work the warm-up reaches into the second third.
  expect(result.residentGrowthMiB).toBeLessThan(16);
  expect(result.heapGrowthMiB).toBeLessThan(1);
});

it('reports a rank killed at any moment to the others, and leaves nothing behind', async () => {
  const NUM_KILLS = 8;
  const file = path.join(await folderWith({}), 'kills.json');
  const script = path.join(__dirname, '..', 'scripts', 'soakRanks.js');
  const args = [script, '--kills', String(NUM_KILLS), '--json', file];
  // It exits with 1 on a problem; the file describes it.
  await promisify(execFile)(process.execPath, args).catch(() => undefined);
  const kills = JSON.parse(await readFile(file, 'utf8')) as { problems: string[] }[];
  expect(kills.flatMap(({ problems }) => problems)).toEqual([]);
  expect(kills).toHaveLength(NUM_KILLS);
}, 600_000);
