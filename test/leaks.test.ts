import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);

interface Footprint {
  residentMiB: number;
  threads: number;
  files: number;
}

async function measure(script: string): Promise<{ before: Footprint; after: Footprint }> {
  const file = path.join(__dirname, 'support', script);
  const { stdout } = await run(process.execPath, ['--expose-gc', file]);
  return JSON.parse(stdout) as { before: Footprint; after: Footprint };
}

/** Allocator tolerance; the weights of one cycle are 7 MiB. */
const NOISE_MIB = 8;

describe.each([
  ['200 cycles of create and shutdown', 'createShutdown.js'],
  ['40 worker_threads terminated in mid-generation', 'terminateWorkers.js'],
])('%s', (_, script) => {
  let before: Footprint;
  let after: Footprint;

  beforeAll(async () => {
    ({ before, after } = await measure(script));
  }, 900_000);

  it('keep the resident set flat', () => {
    expect(after.residentMiB - before.residentMiB).toBeLessThan(NOISE_MIB);
  });

  it('leave no thread behind', () => {
    expect(after.threads).toBe(before.threads);
  });

  it('leave no file open', () => {
    expect(after.files).toBe(before.files);
  });
});
