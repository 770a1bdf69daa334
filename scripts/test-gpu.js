/**
 * `npm run test:gpu`: the tests that need a GPU, on the first one. Where there is none it says so and
 * fails; with UNIPROC_SKIP_GPU_TESTS=1 it says so and passes. Arguments are jest's.
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
      env: { ...process.env, UNIPROC_TEST_DEVICE: 'cuda' },
    },
  );
  if (error) throw error;
  process.exitCode = status ?? 1;
} else if (process.env.UNIPROC_SKIP_GPU_TESTS === '1') {
  console.log(`GPU tests skipped, as UNIPROC_SKIP_GPU_TESTS says: ${reason}`);
} else {
  console.error(`GPU tests cannot run: ${reason}\nUNIPROC_SKIP_GPU_TESTS=1 skips them.`);
  process.exitCode = 1;
}
