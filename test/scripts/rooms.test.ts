/** The dependency rules between folders of lib/ and native/: the code keeps them, violations are found. */
import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Linter } from 'eslint';
import tseslint from 'typescript-eslint';

interface Rooms {
  eslintConfigs: () => Linter.Config[];
  libRoomOf: (file: string) => string | undefined;
  MAX_LINES: number;
}

const ROOT = path.resolve(__dirname, '..', '..');
/* eslint-disable @typescript-eslint/no-require-imports -- scripts are plain CommonJS */
const { eslintConfigs, libRoomOf, MAX_LINES } = require('../../scripts/rooms') as Rooms;
const { faultsIn } = require('../../scripts/check-includes') as {
  faultsIn: (folder: string) => string[];
};
/* eslint-enable @typescript-eslint/no-require-imports */

const linter = new Linter({ cwd: ROOT });
const configs = [
  {
    files: ['**/*.ts'],
    languageOptions: { parser: tseslint.parser },
    plugins: { '@typescript-eslint': tseslint.plugin },
    // Directives of rules that this part of the configuration lacks.
    linterOptions: { reportUnusedDisableDirectives: 'off' },
  },
  ...eslintConfigs(),
] as Linter.Config[];

/** Violations of the dependency rules in a file of lib/, ignoring disable comments of other rules. */
const faultsOf = (file: string, text: string): string[] =>
  linter
    .verify(text, configs, { filename: path.join(ROOT, file) })
    .filter(({ message }) => !/^Definition for rule|^Rule .* not found/.test(message))
    .map(({ ruleId, message }) => `${file}: ${ruleId} ${message}`);

const libFiles = readdirSync(path.join(ROOT, 'lib'), { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.ts'))
  .map((file) => `lib/${file.split(path.sep).join('/')}`);

describe('lib/', () => {
  it('has no file without a room', () => {
    expect(libFiles.filter((file) => libRoomOf(file) === undefined)).toEqual([]);
  });

  it('follows the dependency rules and the file length limit', () => {
    const read = (file: string) => readFileSync(path.join(ROOT, file), 'utf8');
    expect(libFiles.flatMap((file) => faultsOf(file, read(file)))).toEqual([]);
  });

  it.each([
    ['lib/engine/planted.ts', "import { Worker } from '../worker/worker';"],
    ['lib/engine/kvCache/planted.ts', "import { Worker } from '../../worker/worker';"],
    ['lib/engine/planted.ts', "export { Worker } from '../worker/worker';"],
    ['lib/engine/planted.ts', "export * from '../worker/worker.js';"],
    ['lib/engine/planted.ts', "const worker = await import('../worker/worker');"],
    ['lib/engine/planted.ts', "type Worker = import('../worker/worker').Worker;"],
    ['lib/engine/planted.ts', "const worker = require('../worker/worker');"],
    ['lib/engine/planted.ts', "import worker = require('../worker/worker');"],
    ['lib/engine/planted.ts', "import { LLM } from '../llm';"],
    ['lib/engine/planted.ts', "import { LLM } from '..';"],
    ['lib/engine/planted.ts', "import { LLM } from '../index';"],
    ['lib/engine/planted.ts', "import { Worker } from '../executor/../worker/worker';"],
    ['lib/worker/planted.ts', "import { Scheduler } from '../engine/scheduler';"],
    ['lib/worker/planted.ts', "import { Executor } from '../executor/executor';"],
    ['lib/executor/planted.ts', "import { LLMEngine } from '../engine/engine';"],
    ['lib/native/planted.ts', "import { Worker } from '../worker/worker';"],
    ['lib/contract/planted.ts', "import type { NativeEvent } from '../native';"],
    ['lib/contract/planted.ts', "import type { Request } from '../engine/request';"],
    ['lib/config/planted.ts', "import { Worker } from '../worker/worker';"],
    ['lib/config/uniprocConfig.ts', "import type { Worker } from '../worker/worker';"],
    ['lib/config/uniprocConfig.ts', "import { native } from '../native';"],
    ['lib/config/uniprocConfig.ts', "const addon = await import('../native');"],
    ['lib/model/families/planted.ts', "import { native } from '../../native';"],
    ['lib/model/families/planted.ts', "import { Executor } from '../../executor/executor';"],
    ['lib/tokenizer/jinja/planted.ts', "import { LLM } from '../../llm';"],
    [
      'lib/distributed/planted.ts',
      "import { UniProcExecutor } from '../executor/uniProcExecutor';",
    ],
    ['lib/llm.ts', "import { Server } from './server/server';"],
    ['lib/errors.ts', "import { ConfigError } from './config/schema';"],
  ])('%s must not contain: %s', (file, text) => {
    expect(faultsOf(file, text)).toEqual([expect.stringContaining('may import only') as string]);
  });

  it.each([
    ['lib/engine/planted.ts', "import { Executor } from '../executor/executor';"],
    [
      'lib/engine/planted.ts',
      "import type { NativeGrammarThread } from '../native/grammarThread';",
    ],
    ['lib/engine/planted.ts', "import { WorkerSomething } from './worker';"],
    ['lib/engine/kvCache/planted.ts', "import { Request } from '../request';"],
    ['lib/worker/planted.ts', "import { native } from '../native';"],
    ['lib/contract/planted.ts', "import { SamplingParams } from '../config/samplingParams';"],
    ['lib/llm.ts', "import { LLMEngine } from './engine/engine';"],
    ['lib/index.ts', "export { Worker } from './worker/worker';"],
    ['lib/config/planted.ts', "import { z } from 'zod';"],
    ['lib/engine/planted.ts', "import { Worker } from 'node:worker_threads';"],
  ])('%s may contain: %s', (file, text) => {
    expect(faultsOf(file, text)).toEqual([]);
  });

  it('limits the length of files', () => {
    const lines = (count: number) => '//\n'.repeat(count);
    expect(faultsOf('lib/engine/planted.ts', lines(MAX_LINES))).toEqual([]);
    expect(faultsOf('lib/engine/planted.ts', lines(MAX_LINES + 1))).toEqual([
      expect.stringContaining('max-lines') as string,
    ]);
  });

  it('is checked by the eslint command line', async () => {
    const file = 'lib/engine/scheduler.ts';
    const text = `import '../worker/worker';\n${'//\n'.repeat(MAX_LINES)}`;
    const eslint = path.join(ROOT, 'node_modules', 'eslint', 'bin', 'eslint.js');
    const args = [eslint, '--format', 'json', '--stdin', '--stdin-filename', file];
    const { code, stdout } = await new Promise<{ code: unknown; stdout: string }>((resolve) => {
      const child = execFile(process.execPath, args, { cwd: ROOT }, (error, stdout) =>
        resolve({ code: error?.code ?? 0, stdout }),
      );
      child.stdin?.end(text);
    });
    const [{ messages }] = JSON.parse(stdout) as [{ messages: { ruleId: string }[] }];
    expect(code).toBe(1);
    expect(messages.map(({ ruleId }) => ruleId)).toEqual(
      expect.arrayContaining(['@typescript-eslint/no-restricted-imports', 'max-lines']),
    );
  });
});

describe('native/', () => {
  let folder: string;
  beforeEach(() => (folder = mkdtempSync(path.join(tmpdir(), 'uniproc-rooms-'))));
  afterEach(() => rmSync(folder, { recursive: true }));

  function plant(file: string, text: string): void {
    mkdirSync(path.dirname(path.join(folder, file)), { recursive: true });
    writeFileSync(path.join(folder, file), text);
  }

  it('follows the dependency rules', () => {
    expect(faultsIn(path.join(ROOT, 'native'))).toEqual([]);
  });

  it.each([
    ['ops/planted.cpp', 'model/planted.h', 'ops must not include model'],
    ['ops/cuda/planted.cu', 'runtime/event.h', 'ops must not include runtime'],
    ['model/planted.h', 'runner/planted.h', 'model must not include runner'],
    ['runtime/planted.h', 'addon/values.h', 'runtime must not include addon'],
    ['base/planted.h', 'runtime/event.h', 'base must not include runtime'],
    ['comm/planted.h', 'ops/cpu/kernels.h', 'comm must not include ops'],
    ['addon/planted.cpp', 'addon_testing/planted.h', 'addon must not include addon_testing'],
    ['ops/planted.cpp', 'elsewhere/planted.h', 'ops must not include no room'],
  ])('%s must not include %s', (file, included, fault) => {
    plant(file, `// A comment.\n#include <vector>\n  #  include "${included}"\n`);
    expect(faultsIn(folder)).toEqual([`${file}:3 includes "${included}": ${fault}`]);
  });

  it.each([
    ['addon/planted.cpp', 'model/planted.h'],
    ['model/planted.cpp', 'ops/ops.h'],
    ['ops/cpu/planted.cpp', 'ops/cpu/kernels.h'],
    ['ops/planted.h', 'backend/buffer.h'],
    ['comm/planted.h', 'base/error.h'],
    ['runtime/planted.cpp', 'comm/tcp_communicator.h'],
  ])('%s may include %s', (file, included) => {
    plant(file, `#include "${included}"\n`);
    expect(faultsIn(folder)).toEqual([]);
  });

  it('has no file without a room', () => {
    plant('elsewhere/planted.h', '');
    expect(faultsIn(folder)).toEqual(['elsewhere/planted.h is in no room of scripts/rooms.js']);
  });

  it('fails the script that lint runs on a violation', async () => {
    plant('ops/planted.cpp', '#include "model/planted.h"\n');
    const run = (...args: string[]) =>
      new Promise<{ code: unknown; stderr: string }>((resolve) => {
        const script = path.join(ROOT, 'scripts', 'check-includes.js');
        execFile(process.execPath, [script, ...args], (error, _, stderr) =>
          resolve({ code: error?.code ?? 0, stderr }),
        );
      });
    expect(await run(folder)).toEqual({
      code: 1,
      stderr: 'ops/planted.cpp:1 includes "model/planted.h": ops must not include model\n',
    });
    expect(await run()).toEqual({ code: 0, stderr: '' });
  });
});
