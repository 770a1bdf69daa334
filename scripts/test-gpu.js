/**
 * `npm run test:gpu`: runs the tests that need a GPU, on the first one. Fails without a GPU unless
 * UNIPROC_SKIP_GPU_TESTS=1. Arguments are passed to jest.
 */
'use strict';

const { spawnSync } = require('node:child_process');
const path = require('node:path');

const root = path.join(__dirname, '..');

/** Why there is no GPU, or null. */
function whyNoGpu() {
  try {
    const { Ops } = require(path.join(root, 'build', 'Release', 'uniproc_testing.node'));
    const { name, capability } = new Ops({ kind: 'cuda', index: 0 }).properties();
    console.log(`GPU tests on ${name}, ${capability}`);
    return null;
  } catch (error) {
    return error.message;
  }
}

const reason = whyNoGpu();
if (reason === null) {
  const args = ['--config', 'jest.gpu.config.js', '--runInBand', ...process.argv.slice(2)];
  const { status, error } = spawnSync(
    process.execPath,
    [require.resolve('jest/bin/jest'), ...args],
    {
      cwd: root,
      stdio: 'inherit',
      env: {
        UNIPROC_CACHE_ROOT: path.join(root, 'build', 'cache'), // not the user's
        ...process.env,
        UNIPROC_TEST_DEVICE: 'cuda',
      },
    },
  );
  if (error) throw error;
  process.exitCode = status ?? 1;
} else if (process.env.UNIPROC_SKIP_GPU_TESTS === '1') {
  console.log(`GPU tests skipped (UNIPROC_SKIP_GPU_TESTS): ${reason}`);
} else {
  console.error(`GPU tests cannot run: ${reason}\nSet UNIPROC_SKIP_GPU_TESTS=1 to skip them.`);
  process.exitCode = 1;
}
