/** Two copies of the package in one process, which share a platform package: the addon's file. */
import { execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

const root = path.join(__dirname, '..', '..');
const app = mkdtempSync(path.join(tmpdir(), 'uniproc-copies-'));

beforeAll(() => {
  for (const copy of ['one', 'two']) {
    const folder = path.join(app, 'node_modules', copy);
    for (const name of ['dist', 'package.json']) {
      cpSync(path.join(root, name), path.join(folder, name), { recursive: true });
    }
    for (const name of ['models', 'node_modules']) {
      symlinkSync(path.join(root, name), path.join(folder, name));
    }
  }
  const platform = `@uniproc/${process.platform}-${process.arch}`;
  cpSync(
    path.join(root, 'build', 'Release', 'uniproc.node'),
    path.join(app, 'node_modules', platform, 'uniproc.node'),
  );
});

afterAll(() => rmSync(app, { recursive: true }));

test('each runs, and makes the errors of its own classes', () => {
  const script = `
    const copies = [require('one'), require('two')];
    const limits = { device: 'cpu', maxNumSeqs: 1, maxModelLen: 64 };
    (async () => {
      const engines = await Promise.all(copies.map(({ LLM }) => LLM.create(limits)));
      for (const [i, { LLM, CudaUnavailableError }] of copies.entries()) {
        const [{ outputs }] = await engines[i].generate(['Hi'], { maxTokens: 2, temperature: 0 });
        const error = await LLM.create({ ...limits, device: 'cuda:99' }).catch((reason) => reason);
        console.log(outputs[0].tokenIds.length, error instanceof CudaUnavailableError);
      }
      await Promise.all(engines.map((engine) => engine.shutdown()));
    })();`;
  const printed = execFileSync(process.execPath, ['-e', script], { cwd: app, encoding: 'utf8' });
  expect(printed).toBe('2 true\n2 true\n');
});
