/**
 * Repeatedly starts two CPU ranks and kills one at a random moment:
 *
 *     node scripts/soakRanks.js [--kills 100] [--seed 1] [--most-ms 3000] [--timeout 8000]
 *                               [--model DIR] [--json FILE]
 *
 * The kill comes up to `--most-ms` after the start: during start, rendezvous, load or generation. The
 * other rank must report one typed error within `--timeout` (the ranks' distributedTimeoutMs) and exit by
 * itself; no process, listening socket or shared memory may remain. Exits with 1 otherwise.
 */
'use strict';

const { spawn } = require('node:child_process');
const { randomUUID } = require('node:crypto');
const { existsSync, readdirSync, readFileSync } = require('node:fs');
const { writeFile } = require('node:fs/promises');
const path = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');
const { parseArgs } = require('node:util');
const { randomInteger, seededRandom } = require('../bench/random');
const { freePort } = require('../dist/executor/network');

/** Additional milliseconds allowed on a busy machine. */
const SLACK = 120_000;
/** Milliseconds for the system to clean up after exited processes. */
const CLEAR_MS = 30_000;
const GROUP = 'UNIPROC_SOAK_GROUP';

/** The ranks' program: prints its progress, then the errors of its calls. */
const PROGRAM = `
const { LLM, SamplingParams, UniprocError } = require(${JSON.stringify(path.join(__dirname, '..'))});
const say = (line) => console.log(JSON.stringify(line));
async function main() {
  say({ phase: 'started' });
  let llm = null;
  try {
    llm = await LLM.create({
      ...JSON.parse(process.env.UNIPROC_SOAK_ARGS),
      device: 'cpu', maxModelLen: 256, kvCacheMemoryBytes: 2 ** 23, seed: 7,
      tensorParallelSize: 2, distributedExecutorBackend: 'external_launcher',
    });
    say({ phase: 'generating' });
    for (;;) await llm.generate('Once', new SamplingParams({ maxTokens: 100, ignoreEos: true }));
  } catch (error) {
    const isTyped = error instanceof UniprocError;
    say({ isTyped, code: error.code, cause: error.cause?.code ?? null, message: error.message });
  }
  await llm?.shutdown();
}
main();`;

function startRank(rank, port, group, args) {
  const child = spawn(process.execPath, ['--eval', PROGRAM], {
    env: {
      ...process.env,
      [GROUP]: group,
      UNIPROC_CPU_THREADS: '1',
      UNIPROC_SOAK_ARGS: JSON.stringify(args),
      RANK: String(rank),
      LOCAL_RANK: String(rank),
      WORLD_SIZE: '2',
      LOCAL_WORLD_SIZE: '2',
      MASTER_ADDR: '127.0.0.1',
      MASTER_PORT: String(port),
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const started = { rank, child, stdout: '', stderr: '' };
  child.stdout.setEncoding('utf8').on('data', (text) => (started.stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text) => (started.stderr += text));
  started.ended = new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ code, signal, at: performance.now() }));
  });
  return started;
}

function processesOf(group) {
  return readdirSync('/proc').filter((pid) => {
    if (!/^\d+$/.test(pid)) return false;
    try {
      return readFileSync(`/proc/${pid}/environ`, 'latin1')
        .split('\0')
        .includes(`${GROUP}=${group}`);
    } catch {
      return false; // It ended meanwhile, or is another user's.
    }
  });
}

/** Whether a socket of this machine listens on the port. */
function isListenedOn(port) {
  const LISTEN = '0A';
  const local = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  return ['/proc/net/tcp', '/proc/net/tcp6'].filter(existsSync).some((file) =>
    readFileSync(file, 'utf8')
      .split('\n')
      .slice(1)
      .map((line) => line.trim().split(/\s+/))
      .some(([, address, , state]) => address?.endsWith(local) && state === LISTEN),
  );
}

/** Shared memory of this library and its dependencies. */
function sharedMemory() {
  if (!existsSync('/dev/shm')) return [];
  return readdirSync('/dev/shm').filter((name) => /uniproc|nccl/i.test(name));
}

/** Performs one kill; returns the other rank's outcome and any problems. */
async function killOnce({ victim, moment, args, timeout }) {
  const group = randomUUID();
  const port = await freePort();
  const before = sharedMemory();
  const ranks = [0, 1].map((rank) => startRank(rank, port, group, args));
  const other = ranks[1 - victim];
  await sleep(moment);
  const killed = performance.now();
  ranks[victim].child.kill('SIGKILL');
  const late = new AbortController();
  const end = await Promise.race([
    other.ended,
    sleep(timeout + SLACK, null, { signal: late.signal }).catch(() => null),
  ]);
  late.abort();
  if (end === null) other.child.kill('SIGKILL');
  await Promise.all(ranks.map(({ ended }) => ended));

  const lines = other.stdout
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line));
  const phase = lines.findLast((line) => line.phase)?.phase ?? 'starting';
  const errors = lines.filter((line) => !line.phase);
  const problems = [];
  const expect = (isSo, what) => isSo || problems.push(what);
  expect(end !== null, `it did not end within ${timeout + SLACK} ms`);
  expect(errors.length === 1 && errors[0].isTyped, `its errors: ${JSON.stringify(errors)}`);
  expect(end === null || end.code === 0, `it ended with ${JSON.stringify(end)}`);
  expect(other.stderr === '', `it said: ${other.stderr}`);
  const leftovers = () => [
    ...processesOf(group).map((pid) => `process ${pid}`),
    ...(isListenedOn(port) ? [`a socket that listens on port ${port}`] : []),
    ...sharedMemory()
      .filter((name) => !before.includes(name))
      .map((name) => `shared memory ${name}`),
  ];
  const deadline = performance.now() + CLEAR_MS;
  while (leftovers().length > 0 && performance.now() < deadline) await sleep(100);
  expect(leftovers().length === 0, `left: ${leftovers().join(', ')}`);
  const [{ code = 'none', cause = null } = {}] = errors;
  const milliseconds = Math.round((end?.at ?? performance.now()) - killed);
  return { victim, moment, phase, code, cause, milliseconds, problems };
}

async function main() {
  const { values } = parseArgs({
    options: {
      kills: { type: 'string', default: '100' },
      seed: { type: 'string', default: '1' },
      'most-ms': { type: 'string', default: '3000' },
      timeout: { type: 'string', default: '8000' },
      model: { type: 'string' },
      json: { type: 'string' },
    },
  });
  const [numKills, seed, most, timeout] = ['kills', 'seed', 'most-ms', 'timeout'].map((name) =>
    Number(values[name]),
  );
  const random = seededRandom(seed);
  const args = { model: values.model, distributedTimeoutMs: timeout };
  const results = [];
  for (let i = 0; i < numKills; i++) {
    const [victim, moment] = [i % 2, randomInteger(random, 0, most)];
    const result = await killOnce({ victim, moment, args, timeout });
    results.push(result);
    const { phase, code, cause, milliseconds, problems } = result;
    const what = `kill ${i + 1}: rank ${victim} after ${moment} ms`;
    console.error(
      `${what}; the other was ${phase}, had ${code}${cause ? ` (${cause})` : ''} and ended ` +
        `${milliseconds} ms later`,
    );
    for (const problem of problems) console.log(`PROBLEM: ${what}: ${problem}`);
  }
  const table = {};
  for (const { phase, code, cause, milliseconds } of results) {
    const row = (table[`${phase}: ${code}${cause ? ` (${cause})` : ''}`] ??= {
      kills: 0,
      mostMs: 0,
    });
    row.kills++;
    row.mostMs = Math.max(row.mostMs, milliseconds);
  }
  console.table(table);
  const numProblems = results.reduce((sum, { problems }) => sum + problems.length, 0);
  console.log(`${numKills} kills, ${numProblems} problems`);
  if (numProblems > 0) process.exitCode = 1;
  if (values.json) await writeFile(values.json, JSON.stringify(results, null, 2));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
