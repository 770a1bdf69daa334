import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const root = path.resolve(__dirname, '..');
const readme = readFileSync(path.join(root, 'README.md'), 'utf8');
const scripts = (
  JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as {
    scripts: Record<string, string>;
  }
).scripts;

/** Fenced blocks of a language. */
function blocks(language: string): string[] {
  return [...readme.matchAll(new RegExp('```' + language + '\\n(.*?)```', 'gs'))].map((m) => m[1]);
}

describe('README', () => {
  it('starts with the two commands', () => {
    expect(blocks('sh').map((block) => block.trim())).toEqual([
      'npm install && npm start',
      'npm install && npm test',
    ]);
    expect(scripts).toHaveProperty('start');
    expect(scripts).toHaveProperty('test');
  });

  it('npm start prints a story and its speed', async () => {
    const { stdout } = await run('npm', ['start', '--silent'], { cwd: root });
    expect(stdout).toMatch(/^Once upon a time[^]{40,}\n\n\d+ tokens, \d+ tokens\/s, first after/);
  });

  it('npm start -- "A prompt" continues the prompt', async () => {
    const { stdout } = await run('npm', ['start', '--silent', '--', 'The little robot'], {
      cwd: root,
    });
    expect(stdout).toMatch(/^The little robot\W/);
  });

  it('its API example runs as written', async () => {
    const [example] = blocks('js');
    const code = example
      .replace("require('uniproc')", `require(${JSON.stringify(root)})`)
      .replace('path/to/checkpoint', path.join(root, 'models', 'stories'));
    // Checks the values promised in comments.
    const checks = `
      const assert = require('node:assert');
      assert(Array.isArray(out.promptTokenIds) && Number.isInteger(out.outputs[0].tokenIds[0]));
      assert(typeof out.outputs[0].text === 'string' && out.outputs[0].text.length > 0);
      assert(['length', 'stop'].includes(out.outputs[0].finishReason));
      const entry = out.outputs[0].logprobs[0].get(out.outputs[0].tokenIds[0]);
      assert(entry.logprob <= 0 && entry.rank >= 1 && typeof entry.decodedToken === 'string');
      assert(reply.outputs[0].text.length > 0);`;
    const { stdout } = await run(process.execPath, ['-e', `(async () => {${code}${checks}})()`]);
    expect(stdout.length).toBeGreaterThan(0);
  });

  it('links and folder names exist', () => {
    const links = [...readme.matchAll(/\]\((?!http)([^)]+)\)/g)].map((m) => m[1]);
    const folders = [...readme.matchAll(/^\| `([a-z]+\/)`/gm)].map((m) => m[1]);
    expect(links.length + folders.length).toBeGreaterThan(8);
    for (const name of [...links, ...folders]) {
      expect([name, existsSync(path.join(root, name))]).toEqual([name, true]);
    }
  });
});
