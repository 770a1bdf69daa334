/**
 * `npm run test:sanitizers`: builds the CPU addon with sanitizers, in separate folders, and runs native
 * tests on it. `-- address` or `-- thread` runs one of the two; further arguments go to jest in place
 * of the tests below. Fails when a test fails or a sanitizer reports, also in a child process.
 *
 * The compiler is CMake's choice or CXX: GCC, or Clang 16 or later.
 */
'use strict';

const { execFileSync, spawnSync } = require('node:child_process');
const { mkdtempSync, readdirSync, readFileSync, rmSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');
const jobs = String(os.availableParallelism());

const RUNS = {
  // Memory and arithmetic: all native CPU tests.
  address: {
    sanitizers: 'address,undefined',
    runtime: 'asan',
    tests: ['test/native', '--testPathIgnorePatterns', 'cudaBackend'],
    // No leak detection: Node does not free its own memory on process.exit, which ends jest's workers.
    // test/native/leaks.ts detects leaks.
    options: { ASAN_OPTIONS: 'detect_leaks=0:detect_stack_use_after_return=1' },
    leakOptions: { ASAN_OPTIONS: 'detect_leaks=1' },
  },
  // The device's thread and its pool, the output thread, the mailbox and the TCP communicator.
  thread: {
    sanitizers: 'thread',
    runtime: 'tsan',
    tests: ['test/native/(runtime|communicator|tensorParallel|model)'],
    // Node is not instrumented, so its memory accesses look unsynchronized.
    options: { TSAN_OPTIONS: 'halt_on_error=1:ignore_noninstrumented_modules=1' },
  },
};

function start(args, env) {
  const { status, error } = spawnSync(process.execPath, args, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...env },
  });
  if (error) throw error;
  return status === 0;
}

/** The sanitizer's runtime library of CMake's compiler. */
function runtimeLibrary(buildFolder, runtime) {
  const cache = readFileSync(path.join(buildFolder, 'CMakeCache.txt'), 'utf8');
  const compiler = /^CMAKE_CXX_COMPILER:\w+=(.*)$/m.exec(cache)[1];
  const ask = (argument) => execFileSync(compiler, [argument], { encoding: 'utf8' }).trim();
  const name = ask('--version').includes('clang')
    ? `libclang_rt.${runtime}-${os.machine()}.so`
    : `lib${runtime}.so`;
  const file = ask(`-print-file-name=${name}`);
  if (!path.isAbsolute(file)) throw new Error(`${compiler} has no ${name}`);
  return file;
}

/** Runs Node with the sanitized addons; prints the sanitizers' reports and fails on any. */
function runSanitized(args, { runtime, options }, buildFolder) {
  const reports = mkdtempSync(path.join(os.tmpdir(), 'uniproc-sanitizers-'));
  const common = `log_path=${path.join(reports, 'report')}`;
  const env = { UBSAN_OPTIONS: `print_stacktrace=1:${common}` };
  for (const [name, value] of Object.entries(options)) env[name] = `${value}:${common}`;
  try {
    const passed = start(args, {
      ...env,
      LD_PRELOAD: runtimeLibrary(buildFolder, runtime),
      NODE_OPTIONS: `--require ${JSON.stringify(path.join(__dirname, 'redirect.js'))}`,
      UNIPROC_TESTED_BUILD: path.join(buildFolder, 'Release'),
      UNIPROC_SANITIZERS: runtime,
    });
    // One report file per process, because tests may ignore a child's exit and jest restarts workers.
    const files = readdirSync(reports);
    for (const file of files) console.error(readFileSync(path.join(reports, file), 'utf8'));
    return passed && files.length === 0;
  } finally {
    rmSync(reports, { recursive: true, force: true });
  }
}

/** Whether the run of RUNS[name] passed. */
function test(name, jestArguments) {
  const { sanitizers, tests, leakOptions, ...run } = RUNS[name];
  const buildFolder = path.join(root, 'build', run.runtime);
  const build = ['--out', buildFolder, `--CDUNIPROC_SANITIZE=${sanitizers}`];
  console.log(`uniproc: tests under -fsanitize=${sanitizers}`);
  if (!start([path.join(__dirname, 'build-native.js'), ...build])) return false;
  const jest = [require.resolve('jest/bin/jest'), '--maxWorkers', jobs];
  const passed = runSanitized(
    [...jest, ...(jestArguments.length > 0 ? jestArguments : tests)],
    run,
    buildFolder,
  );
  if (!leakOptions) return passed;
  const typescript = path.join(root, 'test', 'executor', 'requireTypescript.js');
  const leaks = ['--require', typescript, path.join(root, 'test', 'native', 'leaks.ts')];
  return runSanitized(leaks, { ...run, options: leakOptions }, buildFolder) && passed;
}

const [first, ...rest] = process.argv.slice(2);
const names = first in RUNS ? [first] : Object.keys(RUNS);
const jestArguments = first in RUNS ? rest : process.argv.slice(2);
const failed = names.filter((name) => !test(name, jestArguments));
for (const name of failed)
  console.error(`uniproc: the tests under ${RUNS[name].sanitizers} failed`);
process.exitCode = failed.length > 0 ? 1 : 0;
