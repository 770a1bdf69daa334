/**
 * examples/torchrun.js, started as by vLLM's users. Uses the real torchrun; skipped without PyTorch
 * (UNIPROC_REFERENCE_PYTHON names a Python that has it).
 */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { folderWith } from './support/folder';
import { startProcess } from './support/ranks';

const ROOT = path.resolve(__dirname, '..');
const HOOK = path.join(ROOT, 'test', 'executor', 'requireTypescript.js');
const EXAMPLE = path.join('examples', 'torchrun.js');

const python = process.env.UNIPROC_REFERENCE_PYTHON ?? 'python3';
const hasTorch = spawnSync(python, ['-c', 'import torch']).status === 0;

/** Each rank's output, by rank; the launcher must exit with 0. */
async function launch(program: string, args: string[]): Promise<string[]> {
  const launcher = startProcess(0, program, args, {
    NODE_OPTIONS: `--require ${HOOK}`,
    UNIPROC_CPU_THREADS: '1',
    UNIPROC_CHECK_SCHEDULE: '1',
    CUDA_VISIBLE_DEVICES: '',
  });
  const end = await launcher.ended;
  expect({ ...end, stderr: launcher.stderr }).toMatchObject({ code: 0, signal: null });
  return launcher.stdout.split('\n').filter((line) => line.includes(']'));
}

function expectSameOnBoth(lines: string[]): void {
  const said = (rank: number) =>
    lines
      .filter((line) => line.includes(`${rank}]`))
      .map((line) => JSON.parse(line.slice(line.indexOf('"'))) as string);
  expect(said(0)).toHaveLength(4);
  expect(said(1)).toEqual(said(0));
  expect(said(0)[0]).toMatch(/^Once upon a time.* \w+/);
}

const uniprocLaunch = (program: string) =>
  launch(process.execPath, [
    ...['--require', HOOK, path.join(ROOT, 'lib', 'cli.ts')],
    ...['launch', '--nproc-per-node', '2', program],
  ]);

test('under uniproc launch every rank prints the same text', async () => {
  expectSameOnBoth(await uniprocLaunch(EXAMPLE));
});

(hasTorch ? test : test.skip)('under torchrun too', async () => {
  const args = ['-m', 'torch.distributed.run', '--standalone', '--local-addr', '127.0.0.1'];
  args.push('--no-python', '--nproc-per-node', '2', '--tee', '3', 'node', EXAMPLE);
  expectSameOnBoth(await launch(python, args));
});

test('the example of docs/tensor-parallel.md runs as written', async () => {
  const page = readFileSync(path.join(ROOT, 'docs', 'tensor-parallel.md'), 'utf8');
  const [example, ...others] = [...page.matchAll(/^```js\n(.*?)^```/gms)].map(([, code]) => code);
  expect(others).toEqual([]);
  const folder = await folderWith({ 'app.js': example });
  const lines = await uniprocLaunch(path.join(folder, 'app.js'));
  expect(lines).toHaveLength(2);
  expect(lines[0]).toMatch(/^\[rank 0\] Once upon a time.* \w+/);
});
