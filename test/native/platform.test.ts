/** The addon on platforms that package.json does not list. */
import { execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

const ROOT = path.join(__dirname, '..', '..');
const HOOK = path.join(ROOT, 'test', 'executor', 'requireTypescript.js');
/** A copy of the library without an addon. */
const folder = mkdtempSync(path.join(tmpdir(), 'uniproc-platform-'));

beforeAll(() => {
  for (const name of ['lib', 'package.json', 'tsconfig.json']) {
    cpSync(path.join(ROOT, name), path.join(folder, name), { recursive: true });
  }
  symlinkSync(path.join(ROOT, 'node_modules'), path.join(folder, 'node_modules'));
});

afterAll(() => rmSync(folder, { recursive: true }));

/** What LLM.create rejects with in a process that claims to be on the platform. */
function errorOn(platform: string, arch: string): { code: string; message: string } {
  const script = `
    const { LLM } = require('./lib');
    Object.defineProperty(process, 'platform', { value: '${platform}' });
    Object.defineProperty(process, 'arch', { value: '${arch}' });
    LLM.create({ model: ${JSON.stringify(path.join(ROOT, 'models', 'stories'))} })
      .catch(({ code, message }) => console.log(JSON.stringify({ code, message })));`;
  const args = ['--require', HOOK, '-e', script];
  const printed = execFileSync(process.execPath, args, { cwd: folder, encoding: 'utf8' });
  return JSON.parse(printed) as { code: string; message: string };
}

test.each([
  ['darwin', 'arm64'],
  ['linux', 'riscv64'],
])('%s on %s is refused in one sentence', (platform, arch) => {
  expect(errorOn(platform, arch)).toEqual({
    code: 'ADDON_UNAVAILABLE',
    message: `uniproc runs on linux with a CPU of x64 or arm64, not on ${platform} with ${arch}`,
  });
});

test.each(['x64', 'arm64'])('linux on %s is not', (arch) => {
  expect(errorOn('linux', arch)).toEqual({
    code: 'ADDON_UNAVAILABLE',
    message: expect.stringMatching(/^no addon: .* do not exist .*npm run build/) as string,
  });
});
