import { execFile } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const root = path.resolve(__dirname, '..');
const readme = readFileSync(path.join(root, 'README.md'), 'utf8');
const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as {
  scripts: Record<string, string>;
  repository: { url: string };
};
const { scripts } = manifest;

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

  it('npm start -- "A prompt" continues that prompt', async () => {
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
    // Check the types that the example's comments state.
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

  it('links by absolute addresses in the repository, for those who read it on npm', () => {
    const [, address] = /^git\+(https:.+)\.git$/.exec(manifest.repository.url) ?? [];
    const defined = new Map(
      [...readme.matchAll(/^\[([^\]]+)\]: (\S+)$/gm)].map(([, name, url]) => [name, url]),
    );
    expect(defined.size).toBeGreaterThan(15);
    for (const [name, url] of defined) {
      const [start, file] = url.split('/blob/main/');
      expect([name, start]).toEqual([name, address]);
      expect([name, existsSync(path.join(root, file))]).toEqual([name, true]);
    }
    // No other form of link, and none without an address.
    const text = readme.replace(/```.*?```/gs, '').replace(/`[^`]*`/g, '');
    expect(text.match(/\]\([^)]*\)/g)).toBeNull();
    const used = [...text.matchAll(/\[([^\]]+)\](?!:)(?:\[([^\]]+)\])?/g)].map(
      (m) => (m[2] as string | undefined) ?? m[1],
    );
    expect([...new Set(used)].sort()).toEqual([...defined.keys()].sort());
  });

  it('links to every page of docs/', () => {
    for (const page of readdirSync(path.join(root, 'docs'))) {
      expect(readme).toContain(`/blob/main/docs/${page}\n`);
    }
  });

  it('names folders that are there, and all of lib/ and native/', () => {
    const folders = [...readme.matchAll(/^\| `([a-z]+\/)` \| (.*) \|$/gm)];
    expect(folders.length).toBeGreaterThan(6);
    for (const [, name] of folders) {
      expect([name, existsSync(path.join(root, name))]).toEqual([name, true]);
    }
    for (const folder of ['lib/', 'native/']) {
      const cell = folders.find(([, name]) => name === folder)?.[2] ?? '';
      const named = [...cell.matchAll(/`(\w+)\/`/g)].map(([, name]) => name);
      const there = readdirSync(path.join(root, folder), { withFileTypes: true })
        .filter((entry) => entry.isDirectory())
        .map((entry) => entry.name);
      expect(named.sort()).toEqual(there.sort());
    }
  });

  it('has a figure of docs/bench.md, with the command that measures it', () => {
    const [, rows, ms, rate, other, command] =
      /A decode step of (\d+) requests takes ([\d.]+) ms .*?, ([\d,]+) tokens\/s; llama\.cpp takes ([\d.]+) ms .*?`(npm run bench[^`]+)`/.exec(
        readme,
      ) ?? [];
    const bench = readFileSync(path.join(root, 'docs', 'bench.md'), 'utf8');
    const printed = bench.slice(bench.indexOf(`$ ${command}\n`)).split('```')[0];
    const row = new RegExp(
      `decode ${rows} rows after 128 +${ms} ms/step .*llama\\.cpp ${other}[;\n]`,
    );
    expect(printed).toMatch(row);
    const exact = Number(rows) / (Number(ms) / 1000);
    expect(Math.abs(Number(rate.replaceAll(',', '')) / exact - 1)).toBeLessThan(0.01);
  });
});
