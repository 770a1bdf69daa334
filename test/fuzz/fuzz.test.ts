/** The runner of `npm run fuzz` finds planted faults and prints how to reproduce them. */
import { execFile } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { campaigns } from '../../fuzz/campaigns';
import { decodeCase, encodeCase, readSeeds, ROOT, SEEDS } from '../../fuzz/cases';
import { mutateJson } from '../../fuzz/mutate';
import { Random } from '../../fuzz/random';
import { folderWith } from '../support/folder';

const PLANTED = path.join(__dirname, 'planted.ts');

interface Run {
  code: number;
  stdout: string;
}

function fuzz(...args: string[]): Promise<Run> {
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      [path.join(ROOT, 'fuzz', 'index.js'), ...args],
      { cwd: ROOT },
      (error, stdout) => resolve({ code: error === null ? 0 : Number(error.code), stdout }),
    );
  });
}

/** Runs a campaign of planted.ts, with its seeds in a new folder. */
async function planted(name: string, ...args: string[]) {
  const folder = await folderWith({});
  const { code, stdout } = await fuzz(
    ...[name, '--module', PLANTED, '--seeds', folder, '--seed', '1', '--seconds', '600', ...args],
  );
  const seeds = readSeeds(path.join(folder, name)).map(({ file }) => file);
  return { code, stdout, seeds };
}

describe('npm run fuzz', () => {
  it('runs a campaign for the given time, and counts its cases', async () => {
    const { code, stdout } = await fuzz('safetensors-index', '--seconds', '5');
    expect(stdout).toMatch(
      /^safetensors-index +[1-9]\d* cases, [1-9]\d* accepted in \d+\.\d s \(\d+ a second\), 0 failures$/m,
    );
    expect(code).toBe(0);
  });

  it('reports no failure for a campaign without a fault', async () => {
    const { code, stdout, seeds } = await planted('right', '--seconds', '1');
    expect(stdout).toMatch(/^right +\d+ cases in .* 0 failures$/m);
    expect({ code, seeds }).toEqual({ code: 0, seeds: [] });
  });

  it('rejects an unknown campaign', async () => {
    expect((await fuzz('nothing')).code).toBe(2);
  });

  it('finds a fault in bytes, and minimizes the input', async () => {
    // Many inputs trigger the fault; one failure is kept per throwing location.
    const { code, stdout, seeds } = await planted('bytes');
    expect(code).toBe(1);
    expect(stdout).toContain('two needles');
    expect(seeds.map((file) => readFileSync(file, 'latin1'))).toEqual(['needleneedle']);
  });

  it('finds a fault in values, and minimizes the input', async () => {
    const { code, stdout, seeds } = await planted('structured');
    expect(code).toBe(1);
    expect(stdout).toContain('more than a thousand');
    expect(seeds.map((file) => decodeCase(readFileSync(file)))).toEqual([{ n: 1001 }]);
  });

  it('finds an unhandled rejection', async () => {
    const { code, stdout } = await planted('unhandled');
    expect(stdout).toContain('Error: unhandled');
    expect(code).toBe(1);
  });

  it('finds the case that crashes the process', async () => {
    const { code, stdout, seeds } = await planted('crash');
    expect(stdout).toContain('it ended: SIGKILL');
    expect(seeds).toHaveLength(1);
    expect(readFileSync(seeds[0]).length).toBeLessThan(50);
    expect(code).toBe(1);
  });

  it('finds a case that hangs', async () => {
    const { code, stdout, seeds } = await planted('hang', '--silence', '30');
    expect(stdout).toContain('it hangs: it has not reported for 30 s');
    expect(readFileSync(seeds[0]).length).toBeLessThan(50);
    expect(code).toBe(1);
  });

  it('repeats one case by the printed command', async () => {
    const { stdout, seeds } = await planted('structured');
    const told = /--replay (\S+)$/m.exec(stdout)?.[1] ?? '';
    expect(path.resolve(ROOT, told)).toBe(seeds[0]);
    const again = await fuzz('structured', '--module', PLANTED, '--replay', told);
    expect(again.stdout).toMatch(/^structured +1 cases in .* 1 failures$/m);
    expect(again.code).toBe(1);
    const other = path.join(await folderWith({ 'less.json': { n: 1000 } }), 'less.json');
    expect((await fuzz('structured', '--module', PLANTED, '--replay', other)).code).toBe(0);
  });

  it('runs the seeds of a campaign first', async () => {
    const folder = await folderWith({});
    const { seeds } = await planted('structured');
    const args = ['structured', '--module', PLANTED, '--seconds', '0', '--seeds'];
    expect((await fuzz(...args, folder)).code).toBe(0);
    const { code, stdout } = await fuzz(...args, path.dirname(path.dirname(seeds[0])));
    expect(stdout).toContain('more than a thousand');
    expect(code).toBe(1);
  });
});

it('a case survives a round trip through a file', () => {
  const value = [
    NaN,
    Infinity,
    -Infinity,
    -0,
    0,
    1e-45,
    2n ** 63n,
    undefined,
    null,
    'a',
    { b: [-0] },
  ];
  expect(decodeCase(encodeCase(value))).toEqual(value);
  expect(Object.is(decodeCase(encodeCase(-0)), -0)).toBe(true);
});

it('a mutation does not change its input value', () => {
  const value = { a: [1, { b: 'c' }], d: null };
  const before = JSON.stringify(value);
  const random = new Random(1);
  const mutated = Array.from({ length: 1000 }, () =>
    JSON.stringify(mutateJson(value, ['w'], random)),
  );
  expect(JSON.stringify(value)).toBe(before);
  expect(new Set(mutated).size).toBeGreaterThan(200);
});

it('docs/fuzzing.md has a row for each campaign, and each seeds folder belongs to a campaign', () => {
  const page = readFileSync(path.join(ROOT, 'docs', 'fuzzing.md'), 'utf8');
  const rows = [...page.matchAll(/^\| `([a-z-]+)` \|/gm)].map(([, name]) => name);
  expect(rows).toEqual(campaigns.map(({ name }) => name));
  for (const folder of readdirSync(SEEDS)) expect(rows).toContain(folder);
});
