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

beforeAll(() => {
  mkdirSync(path.join(app, 'node_modules'));
  symlinkSync(ROOT, path.join(app, 'node_modules', 'uniproc'));
  buildTypes();
  compile(app, Object.fromEntries(examples.map(([, , code], i) => [`example${i}.ts`, code])));
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
])('%s prints what the page says', (_, index, printed) => {
  const args = [path.join(app, `example${index}.js`)];
  expect(execFileSync(process.execPath, args, { cwd: app, encoding: 'utf8' })).toMatch(printed);
});
