/** The programs of docs/executor.md, compiled against the package's declarations and run. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { buildTypes, compile } from '../support/builtTypes';
import { ROOT } from './support';

const page = readFileSync(path.join(ROOT, 'docs', 'executor.md'), 'utf8');
const examples = [...page.matchAll(/^```(\w+)\n(.*?)^```/gms)].filter(([, kind]) => kind !== '');
const app = mkdtempSync(path.join(tmpdir(), 'uniproc-examples-'));

/** The second, with prompts that take several steps. */
const manySteps = examples[1][2]
  .replace("device: 'cpu'", "device: 'cpu', maxNumSeqs: 2, maxNumBatchedTokens: 4")
  .replace('{ promptTokenIds: [3, 4] }', '[8, 9, 10].map((n) => [...Array(n).keys()])')
  .replace('[out] =', 'outs =')
  .replace('out.outputs[0].tokenIds', 'outs.map((out) => String(out.outputs[0].tokenIds))');

beforeAll(() => {
  mkdirSync(path.join(app, 'node_modules'));
  symlinkSync(ROOT, path.join(app, 'node_modules', 'uniproc'));
  buildTypes();
  const programs = [...examples.map(([, , code]) => code), manySteps];
  compile(app, Object.fromEntries(programs.map((code, i) => [`example${i}.ts`, code])));
});

afterAll(() => {
  rmSync(app, { recursive: true, force: true });
});

it('has three programs, all in TypeScript', () => {
  expect(examples.map(([, kind]) => kind)).toEqual(['ts', 'ts', 'ts']);
});

it.each([
  // Eight tokens take eight steps; one more may follow to free the finished request.
  ['a worker that counts its steps', 0, /^(8|9|10) steps\ntrue\n$/],
  ['a worker in JavaScript', 1, /^\[ 5, 6, 7 \]\n$/],
  ['an executor without an engine', 2, /^5 layers\n2 blocks\n$/],
  ['the worker in JavaScript, for long prompts,', 3, /^\[ '8,9,10', '9,10,11', '10,11,12' \]\n$/],
])('%s prints what the page says', (_, index, printed) => {
  const args = [path.join(app, `example${index}.js`)];
  expect(execFileSync(process.execPath, args, { cwd: app, encoding: 'utf8' })).toMatch(printed);
});
