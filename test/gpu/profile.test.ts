/** `profile`: the range that an external profiler records. */
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { ShutdownError } from '../../lib';
import { createUniprocConfig } from '../../lib/config/engineArgs';
import { UniProcExecutor } from '../../lib/executor/uniProcExecutor';

const ROOT = path.resolve(__dirname, '..', '..');
const args = {
  model: path.join(ROOT, 'test', 'golden', 'checkpoints', 'llama3'),
  device: 'cuda',
  dtype: 'bfloat16',
  maxModelLen: 64,
  maxNumSeqs: 4,
  maxNumBatchedTokens: 64,
  skipTokenizerInit: true,
} as const;

/** One batch before the range, `numBatches` in it, one after it. */
const program = (numBatches: number) => `
  const { createUniprocConfig } = require('./lib/config/engineArgs');
  const { UniProcExecutor } = require('uniproc');
  async function main() {
    const config = await createUniprocConfig(${JSON.stringify(args)});
    const executor = await UniProcExecutor.create(config);
    await executor.executeDummyBatch();
    await executor.profile(true);
    for (let i = 0; i < ${numBatches}; i++) await executor.executeDummyBatch();
    await executor.profile(false);
    await executor.executeDummyBatch();
    await executor.shutdown();
  }
  main();`;

/** Number of kernels that Nsight Compute records within the range. */
function recordedKernels(numBatches: number): number {
  const ncu = ['--profile-from-start', 'off', '--clock-control', 'none', '--csv'];
  const metrics = ['--metrics', 'gpu__time_duration.sum']; // one line for each kernel
  const node = [process.execPath, '--require', './test/executor/requireTypescript.js', '-e'];
  const { status, stdout, stderr, error } = spawnSync(
    'ncu',
    [...ncu, ...metrics, ...node, program(numBatches)],
    {
      cwd: ROOT,
      encoding: 'utf8',
      timeout: 120_000,
      maxBuffer: 2 ** 26,
      env: { ...process.env, PATH: `${process.env.PATH}:/usr/local/cuda/bin` },
    },
  );
  if (error) throw error;
  if (status !== 0) throw new Error(`ncu ended with ${status}:\n${stdout.slice(-2000)}\n${stderr}`);
  return stdout.split('\n').filter((line) => /^"\d+",/.test(line)).length;
}

test('a profiler records only steps between start and stop', () => {
  const ofOneBatch = recordedKernels(1);
  expect(ofOneBatch).toBeGreaterThan(0);
  expect(recordedKernels(2)).toBe(2 * ofOneBatch);
}, 250_000);

test('without a profiler both calls resolve, and steps continue', async () => {
  const config = await createUniprocConfig(args);
  const executor = await UniProcExecutor.create(config);
  await expect(executor.profile()).resolves.toBeUndefined();
  await expect(executor.executeDummyBatch()).resolves.toBeUndefined();
  await expect(executor.profile(false)).resolves.toBeUndefined();
  await executor.shutdown();
  await expect(executor.profile()).rejects.toThrow(ShutdownError);
});
