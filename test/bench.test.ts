import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);

interface Row {
  bench: string;
  what: string;
  value: number;
  unit: string;
  bound?: number;
}

describe('npm run bench', () => {
  let folder: string;
  let stdout: string;
  let rows: Row[];

  beforeAll(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), 'uniproc-bench-'));
    const file = path.join(folder, 'bench.json');
    ({ stdout } = await run('npm', ['run', '--silent', 'bench', '--', '--json', file], {
      cwd: path.resolve(__dirname, '..'),
    }));
    ({ rows } = JSON.parse(await readFile(file, 'utf8')) as { rows: Row[] });
  }, 300_000);

  afterAll(() => rm(folder, { recursive: true }));

  it('prints each row it writes', () => {
    for (const { what } of rows) expect(stdout).toContain(what);
  });

  it.each(['prefill', 'decode'])('measures %s at batch 1, 8 and 32', (bench) => {
    const of = rows.filter((row) => row.bench === bench);
    expect(of.map(({ what }) => Number(what.split(' ')[0]))).toEqual([1, 8, 32]);
    for (const { value } of of) expect(value).toBeGreaterThan(0);
  });

  it('measures the control plane at 1, 64 and 256 rows', () => {
    const of = rows.filter((row) => row.bench === 'control plane');
    expect(of.map(({ what }) => /\d+/.exec(what)?.[0])).toEqual(['1', '64', '256']);
  });

  it('finds every figure that has a bound within it', () => {
    const bounded = rows.filter(({ bound }) => bound !== undefined);
    expect(bounded).toHaveLength(2);
    expect(bounded.filter(({ value, bound }) => value > (bound ?? 0))).toEqual([]);
  });
});
