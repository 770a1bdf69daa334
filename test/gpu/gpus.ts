/** Number of GPUs for multi-GPU tests. */
import { execFileSync } from 'node:child_process';
import path from 'node:path';

const script = path.join(__dirname, '..', '..', 'scripts', 'count-gpus.js');
const count = Number(execFileSync(process.execPath, [script], { encoding: 'utf8' }));

/** 2, 4 and 8, up to the number of GPUs. */
export const WORLD_SIZES = [2, 4, 8].filter((size) => size <= count);

/**
 * `describe` for multi-GPU tests, per world size. Fewer than two GPUs are a failure, unless
 * UNIPROC_SKIP_GPU_TESTS is 1; untested sizes are reported.
 */
export function describeOnGpus(name: string, specify: (worldSize: number) => void): void {
  const missing = `${name}: there ${count === 1 ? 'is 1 GPU' : `are ${count} GPUs`}`;
  if (WORLD_SIZES.length === 0) {
    if (process.env.UNIPROC_SKIP_GPU_TESTS === '1') {
      test.skip(`${missing}; skipped, as UNIPROC_SKIP_GPU_TESTS says`, () => {});
    } else {
      test(`${name} needs two GPUs`, () => {
        throw new Error(`${missing}; UNIPROC_SKIP_GPU_TESTS=1 skips what needs two`);
      });
    }
    return;
  }
  for (const size of [4, 8]) {
    if (size > count) test.skip(`${missing}: ${size} ranks are not tested`, () => {});
  }
  describe.each(WORLD_SIZES)(`${name}, %i ranks`, specify);
}

/** Free memory of the process's GPU, and its numbers of threads and open files. */
export function expectNoMoreHeld(
  [freeBefore, ...countsBefore]: readonly number[],
  [freeAfter, ...countsAfter]: readonly number[],
): void {
  expect(freeAfter).toBeGreaterThanOrEqual(freeBefore);
  // A file that was closing at the first count is gone later.
  countsAfter.forEach((count, i) => expect(count).toBeLessThanOrEqual(countsBefore[i]));
}
