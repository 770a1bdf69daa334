/** The package as installed: packed, unpacked in another folder, with its addon built. */
import { execFileSync } from 'node:child_process';
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { buildTypes } from '../support/builtTypes';

const root = path.join(__dirname, '..', '..');
const app = mkdtempSync(path.join(tmpdir(), 'uniproc-package-'));
const installed = path.join(app, 'node_modules', 'uniproc');
let files: string[];
let tarball: string;

beforeAll(() => {
  buildTypes();
  const pack = ['pack', '--ignore-scripts', '--silent', '--pack-destination', app];
  execFileSync('npm', pack, { cwd: root });
  [tarball] = readdirSync(app).filter((name) => name.endsWith('.tgz'));
  mkdirSync(installed, { recursive: true });
  execFileSync('tar', ['-xzf', path.join(app, tarball), '-C', installed, '--strip-components=1']);
  files = readdirSync(installed, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(installed, path.join(entry.parentPath, entry.name)));
  // Added by `npm install`: the dependencies and the addon built from source.
  symlinkSync(path.join(root, 'node_modules'), path.join(installed, 'node_modules'));
  symlinkSync(path.join(root, 'build'), path.join(installed, 'build'));
  symlinkSync(path.join(root, 'node_modules', '@types'), path.join(app, 'node_modules', '@types'));
});

afterAll(() => {
  rmSync(app, { recursive: true, force: true });
});

function node(...args: string[]): string {
  return execFileSync(process.execPath, args, { cwd: app, encoding: 'utf8' });
}

test('contains the compiled library with its types', () => {
  expect(files).toEqual(expect.arrayContaining(['dist/index.js', 'dist/index.mjs']));
  // Only what index.ts and aiSdk.ts export is declared.
  const declarations = files.filter((file) => /\.d\.[mc]?ts$/.test(file));
  expect(declarations.sort()).toEqual(
    ['aiSdk.d.mts', 'aiSdk.d.ts', 'index.d.mts', 'index.d.ts'].map((name) => `dist/${name}`),
  );
});

test.each([
  ['publint', 'publint/src/cli.js', ['run', '--strict']],
  ['Are The Types Wrong', '@arethetypeswrong/cli/dist/index.js', ['--no-emoji']],
])('has nothing that %s finds wrong', (_, command, args) => {
  // Both exit with 1 and print the problem.
  node(path.join(root, 'node_modules', command), ...args, path.join(app, tarball));
});

test('contains the files that both builds of the addon need', () => {
  const sources = readFileSync(path.join(root, 'native/sources.txt'), 'utf8').trim().split('\n');
  expect(files).toEqual(
    expect.arrayContaining([
      'CMakeLists.txt',
      'binding.gyp',
      'scripts/build-native.js',
      'scripts/find-cublaslt.cmake',
      'native/sources.txt',
      ...sources,
    ]),
  );
});

test('contains the default model', () => {
  expect(files).toEqual(
    expect.arrayContaining([
      'models/stories/config.json',
      'models/stories/model.safetensors',
      'models/stories/tokenizer.json',
    ]),
  );
});

test('contains no addon for tests', () => {
  expect(files.filter((file) => /testing/.test(file))).toEqual([]);
});

test('contains nothing else', () => {
  const rest = files.filter((file) => !/^(dist|native|ui|models\/stories)\//.test(file));
  expect(rest.sort()).toEqual([
    'CHANGELOG.md',
    'CMakeLists.txt',
    'LICENSE',
    'README.md',
    'binding.gyp',
    'package.json',
    'scripts/build-native.js',
    'scripts/find-cublaslt.cmake',
  ]);
});

test('exports its names to require', () => {
  const script =
    "const { LLM, SamplingParams } = require('uniproc'); console.log(LLM.name, SamplingParams.name)";
  expect(node('-e', script)).toBe('LLM SamplingParams\n');
});

test('exports its names to import', () => {
  const script =
    "import { LLM, SamplingParams } from 'uniproc'; console.log(LLM.name, SamplingParams.name)";
  expect(node('--input-type=module', '-e', script)).toBe('LLM SamplingParams\n');
});

test('exports its types to TypeScript, in CommonJS and ES modules', () => {
  const program = `
    import { LLM, SamplingParams } from 'uniproc';
    const params = new SamplingParams({ temperature: 0, maxTokens: 1 });
    export const llm: Promise<LLM> = LLM.create({ device: 'cpu' });
    // @ts-expect-error: without the types, this would be any
    export const wrong: number = params;
  `;
  const programs = ['commonjs.cts', 'module.mts'];
  for (const file of programs) writeFileSync(path.join(app, file), program);
  const options = [
    '--noEmit',
    '--strict',
    '--module',
    'node16',
    '--target',
    'es2022',
    '--types',
    'node',
  ];
  node(path.join(root, 'node_modules/typescript/bin/tsc'), ...options, ...programs);
});

test("has a command that starts a group's ranks", () => {
  const { bin } = JSON.parse(readFileSync(path.join(installed, 'package.json'), 'utf8')) as {
    bin: string;
  };
  const command = path.join(installed, bin);
  expect(readFileSync(command, 'utf8').startsWith('#!/usr/bin/env node\n')).toBe(true);
  writeFileSync(path.join(app, 'rank.js'), 'console.log(process.env.RANK)');
  const lines = node(command, 'launch', '--nproc-per-node', '2', 'rank.js').trim().split('\n');
  expect(lines.sort()).toEqual(['[rank 0] 0', '[rank 1] 1']);
});

test('gives all of its names to both', () => {
  const script = `
    import * as imported from 'uniproc';
    import { createRequire } from 'node:module';
    const required = Object.keys(createRequire(import.meta.url)('uniproc'));
    console.log(JSON.stringify([required, Object.keys(imported)]));`;
  const [required, imported] = JSON.parse(node('--input-type=module', '-e', script)) as string[][];
  expect(required.length).toBeGreaterThan(30);
  // An import of CommonJS has the whole as `default`, too, and since Node.js 23 as 'module.exports'.
  expect(imported).toEqual(expect.arrayContaining([...required, 'default']));
});

test('gives its package.json, and no file that may move', () => {
  expect(node('-p', "require('uniproc/package.json').name")).toBe('uniproc\n');
  for (const file of ['uniproc/dist/llm', 'uniproc/dist/index.js', 'uniproc/lib']) {
    const script = `try { require('${file}') } catch (error) { console.log(error.code) }`;
    expect(node('-e', script)).toBe('ERR_PACKAGE_PATH_NOT_EXPORTED\n');
  }
});

test('names files that it has, for every way to ask for it', () => {
  const manifest = JSON.parse(readFileSync(path.join(installed, 'package.json'), 'utf8')) as {
    main: string;
    types: string;
    bin: string;
    exports: Record<string, string | Record<string, Record<string, string>>>;
    keywords: string[];
  };
  const exported = Object.values(manifest.exports).flatMap((target) =>
    typeof target === 'string'
      ? [target]
      : Object.values(target).flatMap((by) => Object.values(by)),
  );
  const named = [manifest.main, manifest.types, manifest.bin, ...exported];
  expect(files).toEqual(expect.arrayContaining(named.map((file) => path.normalize(file))));
  expect(Object.keys(manifest.exports['.'])).toEqual(['import', 'require']);
  // Not a pattern of `files` among them.
  for (const keyword of manifest.keywords) expect(keyword).toMatch(/^[a-z]+$/);
});

test('loads the addon that was built from it', () => {
  const script = "console.log(typeof require('./node_modules/uniproc/dist/native').native())";
  expect(node('-e', script)).toBe('object\n');
});
