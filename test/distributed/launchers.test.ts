/**
 * Runs the commands of docs/distributed.md that start ranks. torchrun is real, and skipped without
 * PyTorch (UNIPROC_REFERENCE_PYTHON names a Python that has it); scripts that set the same variables
 * replace srun and mpirun.
 */
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { freePort } from '../support/freePort';
import { processesWith, startProcess } from '../support/ranks';

const ROOT = path.resolve(__dirname, '..', '..');
const HOOK = path.join(ROOT, 'test', 'executor', 'requireTypescript.js');
const NUM_RANKS = 3;

const page = readFileSync(path.join(ROOT, 'docs', 'distributed.md'), 'utf8');

/** The commands of a section. */
function linesOf(section: string): string {
  const [, rest] = page.split(`### ${section}\n`);
  const [, block] = /^```sh\n(.*?)^```/ms.exec(rest) ?? [];
  return block;
}

const folder = mkdtempSync(path.join(tmpdir(), 'uniproc-launchers-'));
afterAll(() => rmSync(folder, { recursive: true }));

function script(name: string, content: string): void {
  writeFileSync(path.join(folder, name), content);
  chmodSync(path.join(folder, name), 0o755);
}

/** A script that starts a launcher's tasks on this machine with `variables`; $i is the task's index. */
const starting = (variables: string, command: string) => `#!/usr/bin/env bash
tasks=()
for i in $(seq 0 ${NUM_RANKS - 1}); do
  env ${variables} ${command} &
  tasks+=($!)
done
for task in "\${tasks[@]}"; do wait "$task" || exit 1; done
`;

script(
  'srun',
  starting(
    `SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NODEID=0 SLURM_NTASKS=${NUM_RANKS} ` +
      `SLURM_STEP_TASKS_PER_NODE='${NUM_RANKS}(x1)'`,
    '"$@"',
  ),
);
script(
  'mpirun',
  starting(
    `OMPI_COMM_WORLD_RANK=$i OMPI_COMM_WORLD_LOCAL_RANK=$i OMPI_COMM_WORLD_SIZE=${NUM_RANKS} ` +
      `OMPI_COMM_WORLD_LOCAL_SIZE=${NUM_RANKS}`,
    '"${@:5}"', // After the two -x.
  ),
);
script('kubelet', starting(`JOB_COMPLETION_INDEX=$i WORLD_SIZE=${NUM_RANKS}`, '"$@"'));
// A host name that resolves to this machine.
script('hostname', '#!/bin/sh\necho 127.0.0.1\n');
script(
  'scontrol',
  '#!/bin/sh\n[ "$*" = "show hostnames 127.0.0.[1-2]" ] && printf "127.0.0.1\\n127.0.0.2\\n"',
);

script(
  'app.js',
  `
  const { ProcessGroup } = require('${ROOT}/lib/distributed/processGroup');
  const { rankFromEnvironment } = require('${ROOT}/lib/distributed/rendezvous');
  (async () => {
    const { rank, worldSize, localRank, localWorldSize } = rankFromEnvironment();
    const options = { initMethod: 'env://', rank, worldSize, timeout: 200_000 };
    const group = await ProcessGroup.join(options);
    const { DIE_AT, TORCHELASTIC_RESTART_COUNT } = process.env;
    if (DIE_AT !== undefined && DIE_AT === TORCHELASTIC_RESTART_COUNT) {
      if (rank === 1) process.kill(process.pid, 'SIGKILL');
      await new Promise((resolve, reject) => group.onFailure(reject));
    }
    const place = [rank, localRank, localWorldSize].join('/');
    const all = (await group.gather('places', Buffer.from(place))).map(String);
    process.stdout.write('[' + rank + '] ' + all.join(' ') + '\\n');
    await group.leave();
  })();`,
);

const TAG = 'UNIPROC_LAUNCHERS_TEST';

/** Runs commands in the folder with app.js and the scripts; returns their stdout. */
async function run(commands: string, env: NodeJS.ProcessEnv = {}): Promise<string> {
  const tag = `${process.pid} ${Math.random()}`;
  const shell = startProcess(0, 'bash', ['-ec', `cd '${folder}'\n${commands}`], {
    PATH: `${folder}:${process.env.PATH ?? ''}`,
    NODE_OPTIONS: `--require ${HOOK}`,
    [TAG]: tag,
    ...env,
  });
  const { code } = await shell.ended;
  if (code !== 0) throw new Error(`exit code ${code}:\n${shell.stdout}${shell.stderr}`);
  expect(processesWith(TAG, tag)).toEqual([]);
  return shell.stdout;
}

/** Expects every rank to have printed the gathered ranks of all. */
function expectWorld(stdout: string, numRanks: number, localWorldSize = numRanks): void {
  const ranks = [...Array(numRanks).keys()];
  const localRank = (rank: number) => (localWorldSize === 1 ? 0 : rank);
  const world = ranks.map((rank) => `${rank}/${localRank(rank)}/${localWorldSize}`).join(' ');
  const lines = stdout.split('\n').filter((line) => /^\[\d\]/.test(line));
  expect(lines.sort()).toEqual(ranks.map((rank) => `[${rank}] ${world}`));
}

it.each<[string, NodeJS.ProcessEnv]>([
  ['srun', { SLURM_JOB_NODELIST: '127.0.0.[1-2]' }],
  ['mpirun', {}],
])("%s's line starts a group", async (name, env) => {
  const commands = linesOf(name).replace('29500', String(await freePort()));
  expect(commands).toContain(`\n${name} `);
  expectWorld(await run(commands, env), NUM_RANKS);
});

it("a Kubernetes job's command starts a group", async () => {
  const command = linesOf('A Kubernetes indexed job');
  expect(command).toMatch(/^sh -c /);
  const env = { MASTER_ADDR: '127.0.0.1', MASTER_PORT: String(await freePort()) };
  expectWorld(await run(`kubelet ${command}`, env), NUM_RANKS, 1);
});

it("the launcher's own line starts a group", async () => {
  const command = linesOf('uniproc launch');
  expect(command).toMatch(/^npx uniproc launch --nproc-per-node 2 /);
  const cli = path.join(ROOT, 'lib', 'cli.ts');
  const stdout = await run(command.replace('npx uniproc', `'${process.execPath}' '${cli}'`));
  expectWorld(stdout.replace(/^\[rank \d\] /gm, ''), 2);
});

const PYTHON = process.env.UNIPROC_REFERENCE_PYTHON ?? 'python3';
const { stdout: found } = spawnSync(
  PYTHON,
  ['-c', 'import sys, torch, os; print(os.path.join(os.path.dirname(sys.executable), "torchrun"))'],
  { encoding: 'utf8' },
);
const torchrun = found.trim();

(existsSync(torchrun) ? describe : describe.skip)('torchrun', () => {
  const command = linesOf('torchrun').replace('torchrun', torchrun);

  it("'s line starts a group", async () => {
    expectWorld(await run(command), 2);
  });

  it('restarts the group when a rank dies, without joining ranks of the previous run', async () => {
    const again = command.replace('--standalone', '--standalone --max-restarts 1');
    expectWorld(await run(again, { DIE_AT: '0' }), 2);
  });
});
