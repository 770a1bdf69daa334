/**
 * `npm run test:libcxx`: builds the CPU addon with Clang and libc++ into build/libcxx, as macOS does, and
 * runs the native tests on it. Arguments are passed to jest.
 *
 * It needs clang++ and libc++ (Debian: clang, libc++-dev and libc++abi-dev).
 */
'use strict';

const { spawnSync } = require('node:child_process');
const { readFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');
const buildFolder = path.join(root, 'build', 'libcxx');
const redirect = path.join(__dirname, 'redirect.js');

/** Ends this process if the script fails. */
function run(script, args, env) {
  const { status, error } = spawnSync(process.execPath, [script, ...args], {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...env },
  });
  if (error) throw error;
  if (status !== 0) process.exit(status ?? 1);
}

// libc++ and its runtime are linked into the addon, with hidden symbols. On Linux the loader takes a
// name from the first library that has it. Node brings libstdc++, which has classes of the same names:
// it would destroy a std::runtime_error that libc++ has made, and corrupt the heap. libc++ runs a
// destructor when a thread ends, possibly after Node has unloaded the addon: hence nodelete.
const libraries = '-Wl,-Bstatic -lc++ -lc++abi -Wl,-Bdynamic';
run(
  path.join(__dirname, 'build-native.js'),
  ['--out', buildFolder, `--CDCMAKE_CXX_STANDARD_LIBRARIES=${libraries}`],
  {
    // cmake-js sets CMAKE_CXX_FLAGS, so the option is part of the compiler.
    CXX: 'clang++ -stdlib=libc++',
    LDFLAGS: '-nostdlib++ -Wl,--exclude-libs,ALL,-z,nodelete',
    UNIPROC_CUDA: '0',
  },
);
// An addon with libstdc++ would load, too. libc++'s names are in std::__1.
for (const addon of ['uniproc.node', 'uniproc_testing.node']) {
  const content = readFileSync(path.join(buildFolder, 'Release', addon));
  if (!content.includes('NSt3__1') || content.includes('GLIBCXX_')) {
    throw new Error(`${addon} was not built with libc++; delete ${buildFolder}`);
  }
}
const tests = ['test/native', '--testPathIgnorePatterns=cudaBackend'];
const workers = `--maxWorkers=${os.availableParallelism()}`;
run(require.resolve('jest/bin/jest'), [...tests, workers, ...process.argv.slice(2)], {
  NODE_OPTIONS: `--require ${JSON.stringify(redirect)}`,
  UNIPROC_TESTED_BUILD: path.join(buildFolder, 'Release'),
  UNIPROC_SEPARATE_RUNTIMES: '1',
});
