/** `uniproc launch`, as a process that starts processes. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { parseLaunchArguments } from '../../lib/distributed/launcher';
import { ConfigError } from '../../lib/errors';
import { freePort } from '../support/freePort';
import { processesWith, type Rank, startNode, startProcess } from '../support/ranks';
import { eventually } from './support';

const ROOT = path.resolve(__dirname, '..', '..');
const HOOK = path.join(ROOT, 'test', 'executor', 'requireTypescript.js');
const CLI = path.join(ROOT, 'lib', 'cli.ts');

const folder = mkdtempSync(path.join(tmpdir(), 'uniproc-launcher-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** Set in the environment of every process that a test starts. */
const TAG = 'UNIPROC_LAUNCHER_TEST';
let tag = '';
let numPrograms = 0;
beforeEach(() => (tag = `${process.pid}-${numPrograms++}`));
afterEach(() => {
  const left = processesWith(TAG, tag);
  for (const pid of left) kill(pid);
  expect(left).toEqual([]);
});

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It has exited.
  }
}

/** Writes a program for ranks to a file. */
function programOf(body: string): string {
  const file = path.join(folder, `${numPrograms++}.js`);
  const prelude = `
    const { existsSync, writeFileSync } = require('node:fs');
    const rank = Number(process.env.RANK);
    const stay = () => setInterval(() => {}, 1000);
    const until = async (file) => {
      while (!existsSync(file)) await new Promise((resolve) => setTimeout(resolve, 5));
    };
    /** Resolves when as many ranks have called it. */
    const together = async (numRanks) => {
      writeFileSync(__filename + '.' + rank, '');
      for (let each = 0; each < numRanks; each++) await until(__filename + '.' + each);
    };
  `;
  writeFileSync(file, `${prelude}${body}`);
  return file;
}

/** Loads TypeScript in the launcher and its ranks. */
const environment = () => ({ [TAG]: tag, NODE_OPTIONS: `--require ${HOOK}` });

const uniproc = (args: string[], env: NodeJS.ProcessEnv = {}): Rank =>
  startNode(0, [CLI, ...args], { ...environment(), ...env });

const launch = (body: string, numRanks: number, ...args: string[]): Rank =>
  uniproc(['launch', '--nproc-per-node', String(numRanks), programOf(body), ...args]);

/** The lines that one rank printed, without their prefix. */
function linesOf(output: string, rank: number): string[] {
  const prefix = `[rank ${rank}] `;
  return output
    .split('\n')
    .filter((line) => line.startsWith(prefix))
    .map((line) => line.slice(prefix.length));
}

describe('a rank', () => {
  it("has torchrun's variables, the program's arguments and the launcher's environment", async () => {
    const launcher = uniproc(
      [
        'launch',
        '--nproc-per-node=2',
        programOf(`
          const names = ['LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'GROUP_RANK',
            'GROUP_WORLD_SIZE', 'ROLE_NAME', 'ROLE_RANK', 'ROLE_WORLD_SIZE', 'MASTER_ADDR',
            'TORCHELASTIC_RUN_ID', 'TORCHELASTIC_RESTART_COUNT',
            'TORCHELASTIC_MAX_RESTARTS', 'TORCHELASTIC_USE_AGENT_STORE', 'OF_THE_USER'];
          console.log(JSON.stringify([rank, ...names.map((name) => process.env[name])]));
          console.log(JSON.stringify(process.argv.slice(2)));
          console.log(JSON.stringify(process.env.MASTER_PORT));`),
        '--nproc-per-node',
        '9',
        '-x',
      ],
      { OF_THE_USER: 'kept', RANK: '7', WORLD_SIZE: '8' },
    );
    expect(await launcher.ended).toEqual({ code: 0, signal: null });
    const ports = new Set<unknown>();
    for (const rank of [0, 1]) {
      const [variables, args, port] = linesOf(launcher.stdout, rank).map(
        (line) => JSON.parse(line) as unknown,
      );
      expect(variables).toEqual([
        rank,
        `${rank}`,
        '2',
        '2',
        '0',
        '1',
        'default',
        `${rank}`,
        '2',
        '127.0.0.1',
        'none',
        '0',
        '0',
        'True',
        'kept',
      ]);
      expect(args).toEqual(['--nproc-per-node', '9', '-x']);
      ports.add(port);
    }
    expect(ports.size).toBe(1);
  });

  it("joins its group through the launcher's store", async () => {
    const launcher = launch(
      `
      const { ProcessGroup } = require('${ROOT}/lib/distributed/processGroup');
      (async () => {
        const worldSize = Number(process.env.WORLD_SIZE);
        const options = { initMethod: 'env://', rank, worldSize, timeout: 20_000 };
        const group = await ProcessGroup.join(options);
        console.log(String(await group.gather('x', Buffer.from('of ' + rank))));
        await group.leave();
      })();`,
      3,
    );
    expect(await launcher.ended).toEqual({ code: 0, signal: null });
    for (const rank of [0, 1, 2]) {
      expect(linesOf(launcher.stdout, rank)).toEqual(['of 0,of 1,of 2']);
    }
  });
});

describe('output', () => {
  it('is forwarded in whole lines with a rank prefix, stream by stream', async () => {
    const numLines = 5000;
    const launcher = launch(
      `
      // Chunks that end anywhere, also within a character.
      const line = (i) => i + ' ' + 'äöü€😀'.repeat((i * 7 + rank) % 40) + '.';
      const all = Array.from({ length: ${numLines} }, (_, i) => line(i) + '\\n').join('') + 'the last';
      const bytes = Buffer.from(all);
      for (let at = 0; at < bytes.length; at += 997) process.stdout.write(bytes.subarray(at, at + 997));
      console.error('an error of ' + rank + '\\n\\nand more');`,
      3,
    );
    expect(await launcher.ended).toEqual({ code: 0, signal: null });
    for (const rank of [0, 1, 2]) {
      const expected = Array.from(
        { length: numLines },
        (_, i) => `${i} ${'äöü€😀'.repeat((i * 7 + rank) % 40)}.`,
      );
      expect(linesOf(launcher.stdout, rank)).toEqual([...expected, 'the last']);
      expect(linesOf(launcher.stderr, rank)).toEqual([`an error of ${rank}`, '', 'and more']);
    }
    const all = (launcher.stdout + launcher.stderr).split('\n');
    expect(all).toHaveLength(3 * (numLines + 1 + 3) + 1);
    expect(launcher.stdout.endsWith('\n')).toBe(true);
  });

  it('that is no longer read ends the ranks', async () => {
    const file = programOf(`stay(); setInterval(() => console.log('on and on'), 10);`);
    const command = `${process.execPath} ${CLI} launch --nproc-per-node 2 ${file}`;
    const shell = startProcess(
      0,
      'bash',
      ['-c', `${command} | head -n 1; echo "\${PIPESTATUS[0]}"`],
      environment(),
    );
    await shell.ended;
    expect(shell.stdout).toMatch(/^\[rank \d\] on and on\n141\n$/);
    expect(shell.stderr).toContain("the reader of the launcher's output closed it");
  });

  it('held open by an orphan of a rank does not keep the launcher alive', async () => {
    const launcher = launch(
      `const { spawn } = require('node:child_process');
       spawn('sleep', ['200'], { stdio: 'inherit' }).unref();
       spawn('sleep', ['200'], { detached: true, stdio: 'inherit' }).unref();
       require('node:fs').writeSync(1, 'done');`,
      1,
    );
    expect(await launcher.ended).toEqual({ code: 0, signal: null });
    expect(launcher.stdout).toBe('[rank 0] done\n');
    // One was killed with the rank; the other left the process group and survives.
    const left = processesWith(TAG, tag);
    expect(left).toHaveLength(1);
    process.kill(left[0], 'SIGKILL');
    await eventually(() => expect(processesWith(TAG, tag)).toEqual([]));
  });
});

describe('the first failure', () => {
  it("stops the others, and sets the launcher's exit code", async () => {
    const launcher = launch(
      `stay();
       process.on('SIGTERM', () => { console.log('asked to end'); process.exit(9); });
       console.log('up');
       together(3).then(() => rank === 1 && process.exit(3));`,
      3,
    );
    expect(await launcher.ended).toEqual({ code: 3, signal: null });
    expect(launcher.stderr).toMatch(
      /^uniproc: rank 1 \(pid \d+\) exited with code 3; all ranks were stopped\n$/,
    );
    expect(linesOf(launcher.stdout, 0)).toEqual(['up', 'asked to end']);
    expect(linesOf(launcher.stdout, 1)).toEqual(['up']);
  });

  it("by a signal sets 128 plus the signal's number", async () => {
    const launcher = launch(`stay(); if (rank === 0) process.kill(process.pid, 'SIGKILL');`, 2);
    expect(await launcher.ended).toEqual({ code: 137, signal: null });
    expect(launcher.stderr).toContain('rank 0');
    expect(launcher.stderr).toContain('was killed by SIGKILL');
  });

  it('is reported by the group of the ranks, then by the launcher', async () => {
    const launcher = launch(
      `
      const { ProcessGroup } = require('${ROOT}/lib/distributed/processGroup');
      (async () => {
        stay();
        const options = { initMethod: 'env://', rank, worldSize: 3, timeout: 20_000 };
        const group = await ProcessGroup.join(options);
        process.on('SIGTERM', () => {});
        group.onFailure(({ message }) => { console.log(message); process.exit(); });
        await group.gather('x', Buffer.alloc(0));
        if (rank === 0) process.kill(process.pid, 'SIGKILL');
      })();`,
      3,
    );
    expect(await launcher.ended).toEqual({ code: 137, signal: null });
    expect(linesOf(launcher.stdout, 1)).toEqual([expect.stringContaining('rank 0 is lost')]);
    expect(linesOf(launcher.stdout, 2)).toEqual([expect.stringContaining('rank 0 is lost')]);
  });

  it('is not a rank that exits with code 0 before the others', async () => {
    const launcher = launch(`setTimeout(() => console.log('done'), 500 * rank);`, 2);
    expect(await launcher.ended).toEqual({ code: 0, signal: null });
    expect(launcher.stdout.split('\n').sort()).toEqual(['', '[rank 0] done', '[rank 1] done']);
  });

  it('kills ranks that ignore SIGTERM, and their child processes', async () => {
    const file = programOf(
      `stay();
       process.on('SIGTERM', () => console.log('not yet'));
       require('node:child_process').spawn('sleep', ['200'], { stdio: 'inherit' });
       together(2).then(() => rank === 1 && process.exit(5));`,
    );
    const launcher = startNode(
      0,
      [
        '--eval',
        `const { launch } = require('${ROOT}/lib/distributed/launcher');
         launch({
           nprocPerNode: 2, nnodes: 1, nodeRank: 0, masterAddr: '127.0.0.1', masterPort: 0,
           program: '${file}', args: [], gracePeriodMs: 5000,
         }).catch(({ code, rank, exitCode }) => console.log(code, rank, exitCode));`,
      ],
      environment(),
    );
    const start = Date.now();
    expect(await launcher.ended).toEqual({ code: 0, signal: null });
    expect(launcher.stdout).toBe('[rank 0] not yet\nRANK_FAILED 1 5\n');
    expect(Date.now() - start).toBeLessThan(100_000);
  });
});

describe('signals', () => {
  it.each(['SIGINT', 'SIGTERM', 'SIGHUP'] as const)(
    '%s is forwarded to each rank',
    async (signal) => {
      const launcher = launch(
        `stay();
       process.on('${signal}', () => { console.log('heard'); process.exit(); });
       console.log('up');`,
        2,
      );
      await launcher.said('[rank 0] up');
      await launcher.said('[rank 1] up');
      launcher.kill(signal);
      expect(await launcher.ended).toEqual({ code: 0, signal: null });
      expect(linesOf(launcher.stdout, 0)).toEqual(['up', 'heard']);
      expect(linesOf(launcher.stdout, 1)).toEqual(['up', 'heard']);
    },
  );

  it('sent twice at once, by a terminal and by npx, are forwarded once', async () => {
    const launcher = launch(
      `stay();
       process.on('SIGINT', () => { console.log('heard'); setTimeout(() => process.exit(), 300); });
       console.log('up');`,
      1,
    );
    await launcher.said('up');
    launcher.kill('SIGINT');
    await launcher.said('heard');
    launcher.kill('SIGINT');
    expect(await launcher.ended).toEqual({ code: 0, signal: null });
    expect(linesOf(launcher.stdout, 0)).toEqual(['up', 'heard']);
  });

  it('end ranks without a handler, and the launcher reports it', async () => {
    const launcher = launch(`stay(); console.log('up');`, 2);
    await launcher.said('[rank 0] up');
    await launcher.said('[rank 1] up');
    launcher.kill('SIGTERM');
    expect(await launcher.ended).toEqual({ code: 143, signal: null });
    expect(launcher.stderr).toContain('was killed by SIGTERM');
  });

  it('kill -9 of the launcher ends its ranks', async () => {
    const asked = (rank: number | string) => path.join(folder, `asked ${rank}`);
    const launcher = launch(
      `process.on('SIGTERM', () => {
         writeFileSync(${JSON.stringify(asked(''))} + rank, '');
         process.exit();
       });
       stay();
       console.log('up');`,
      2,
    );
    await launcher.said('[rank 0] up');
    await launcher.said('[rank 1] up');
    expect(processesWith(TAG, tag)).toHaveLength(3);
    launcher.kill('SIGKILL');
    await eventually(() => expect(processesWith(TAG, tag)).toEqual([]));
    // They received SIGTERM before SIGKILL.
    expect([0, 1].map((rank) => existsSync(asked(rank)))).toEqual([true, true]);
  });
});

describe('several nodes', () => {
  let port: string;
  beforeEach(async () => (port = String(await freePort())));

  const node = (nodeRank: number, numRanks: number, file: string) =>
    uniproc([
      'launch',
      '--nnodes=2',
      `--node-rank=${nodeRank}`,
      '--master-addr=127.0.0.1',
      `--master-port=${port}`,
      `--nproc-per-node=${numRanks}`,
      file,
    ]);

  it('form one world with ranks numbered across nodes', async () => {
    const file = programOf(
      `const { ProcessGroup } = require('${ROOT}/lib/distributed/processGroup');
       (async () => {
         const { LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK, WORLD_SIZE } = process.env;
         const worldSize = Number(WORLD_SIZE);
         const options = { initMethod: 'env://', rank, worldSize, timeout: 20_000 };
         const group = await ProcessGroup.join(options);
         const own = [rank, LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK].join('/');
         console.log((await group.gather('x', Buffer.from(own))).map(String).join(' '));
         await group.leave();
       })();`,
    );
    const nodes = [node(1, 1, file), node(0, 2, file)];
    for (const { ended } of nodes) expect(await ended).toEqual({ code: 0, signal: null });
    const world = '0/0/2/0 1/1/2/0 2/0/1/1';
    expect(nodes[0].stdout).toBe(`[rank 2] ${world}\n`);
    expect(nodes[1].stdout.split('\n').sort()).toEqual([
      '',
      `[rank 0] ${world}`,
      `[rank 1] ${world}`,
    ]);
  });

  it.each([0, 1])('stop when a rank of node %i fails', async (failing) => {
    const file = programOf(
      `stay(); if (rank === ${failing}) setTimeout(() => process.exit(4), 500);`,
    );
    const nodes = [node(0, 1, file), node(1, 1, file)];
    expect(await nodes[failing].ended).toEqual({ code: 4, signal: null });
    expect(await nodes[1 - failing].ended).toEqual({ code: 1, signal: null });
    expect(nodes[1 - failing].stderr).toContain('the launcher of another node');
    expect(nodes[1 - failing].stderr).toMatch(
      new RegExp(`rank ${failing} \\(pid \\d+\\) exited with code 4`),
    );
  });

  it('stop when one launcher is killed', async () => {
    const file = programOf(`stay(); console.log('up');`);
    const nodes = [node(0, 1, file), node(1, 1, file)];
    await nodes[0].said('up');
    await nodes[1].said('up');
    nodes[1].kill('SIGKILL');
    expect(await nodes[0].ended).toEqual({ code: 1, signal: null });
    expect(nodes[0].stderr).toContain('rank 1 is lost');
    await eventually(() => expect(processesWith(TAG, tag)).toEqual([]));
  });

  it('wait for each other’s ranks', async () => {
    const file = programOf(
      `console.log('done');
       if (rank === 1) until(__filename + '.go');`,
    );
    const nodes = [node(0, 1, file), node(1, 1, file)];
    for (const each of nodes) await each.said('done');
    await new Promise((resolve) => setTimeout(resolve, 1500));
    expect(nodes[0].child.exitCode).toBeNull();
    writeFileSync(`${file}.go`, '');
    for (const { ended } of nodes) expect(await ended).toEqual({ code: 0, signal: null });
    expect(nodes[0].stdout).toBe('[rank 0] done\n');
    expect(nodes[1].stdout).toBe('[rank 1] done\n');
  });
});

describe('the command line', () => {
  it.each<[string[], string]>([
    [
      ['--nproc-per-node', 'two', 'x.js'],
      '--nproc-per-node is two; it must be an integer from 1 to',
    ],
    [['--nproc-per-node', '0', 'x.js'], '--nproc-per-node is 0'],
    [['--nproc-per-node', '1.5', 'x.js'], '--nproc-per-node is 1.5'],
    [['--nnodes', '2', 'x.js'], '--nnodes is above 1; give --master-addr'],
    [['--nnodes', '2', '--master-addr', 'a', '--node-rank', '2', 'x.js'], '--node-rank is 2'],
    [['--master-port', '0', 'x.js'], '--master-port is 0'],
    [['--master-port', '65536', 'x.js'], '--master-port is 65536'],
    [['--nproc', '2', 'x.js'], "Unknown option '--nproc'"],
    [['--nproc-per-node'], '--nproc-per-node'],
    [['--nproc-per-node', '2'], 'the path of the program is missing'],
    [[], 'the path of the program is missing'],
  ])('refuses %j', (args, message) => {
    const parse = () => parseLaunchArguments(args);
    expect(parse).toThrow(ConfigError);
    expect(parse).toThrow(message);
  });

  it('has the documented defaults', () => {
    expect(parseLaunchArguments(['x.js'])).toEqual({
      nprocPerNode: 1,
      nnodes: 1,
      nodeRank: 0,
      masterAddr: '127.0.0.1',
      masterPort: 0,
      program: 'x.js',
      args: [],
    });
    const several = ['--nnodes=2', '--master-addr=a', '--node-rank=1', 'x.js', '--help', '--', 'y'];
    expect(parseLaunchArguments(several)).toMatchObject({
      nnodes: 2,
      nodeRank: 1,
      masterAddr: 'a',
      masterPort: 29500,
      program: 'x.js',
      args: ['--help', '--', 'y'],
    });
  });

  it('passes arguments after -- to the program', () => {
    expect(parseLaunchArguments(['--nproc-per-node', '2', '--', 'x.js', '-v'])).toMatchObject({
      nprocPerNode: 2,
      program: 'x.js',
      args: ['-v'],
    });
  });

  it.each([
    ['launch --help', ['launch']],
    ['--help', ['serve', 'chat', 'pull', 'inspect', 'launch', 'doctor']],
  ])('%s prints the usage', async (args, commands) => {
    const command = uniproc(args.split(' '));
    expect(await command.ended).toEqual({ code: 0, signal: null });
    const usages = command.stdout.match(/^Usage: uniproc \w+/gm);
    expect(usages).toEqual(commands.map((name) => `Usage: uniproc ${name}`));
  });

  it.each<[string, string[], string]>([
    ['an unknown command', ['lunch'], 'unknown command lunch'],
    ['a missing program', ['launch', '/nowhere.js'], 'the program /nowhere.js does not exist'],
    ['a wrong option', ['launch', '--nproc-per-node=x', 'y'], '--nproc-per-node is x'],
  ])('exits with code 2 for %s', async (_, args, message) => {
    const command = uniproc(args);
    expect(await command.ended).toEqual({ code: 2, signal: null });
    expect(command.stdout).toBe('');
    expect(command.stderr).toContain(`uniproc: ${message}`);
    expect(command.stderr.trim().split('\n')).toHaveLength(1);
  });

  it('reports a port that is in use', async () => {
    const other = createServer();
    const port = await new Promise<number>((resolve) => {
      other.listen(0, '127.0.0.1', () => resolve((other.address() as { port: number }).port));
    });
    const command = uniproc(['launch', '--master-port', String(port), programOf('')]);
    expect(await command.ended).toEqual({ code: 1, signal: null });
    expect(command.stderr).toContain(`cannot listen on 127.0.0.1:${port}: EADDRINUSE`);
    other.close();
  });

  it('does not load the addon', async () => {
    const program = [
      '--eval',
      `process.argv = ['node', 'uniproc', '--help'];
       require('${CLI}');
       const loaded = Object.keys(require.cache).map((file) => file.slice('${ROOT}'.length));
       console.log(loaded.filter((file) => /[/]native[/]|\\.node$|llm/.test(file)));`,
    ];
    const command = startNode(0, program, environment());
    await command.ended;
    expect(command.stdout.trim().split('\n').at(-1)).toBe('[]');
  });
});
