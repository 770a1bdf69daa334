/** How many GPUs the tests of several have. */
import { execFileSync } from 'node:child_process';
import path from 'node:path';

const script = path.join(__dirname, '..', '..', 'scripts', 'count-gpus.js');
const count = Number(execFileSync(process.execPath, [script], { encoding: 'utf8' }));

/** 2, 4 and 8, as far as there are GPUs. */
export const WORLD_SIZES = [2, 4, 8].filter((size) => size <= count);

/**
 * Describes what needs several GPUs, for each world size. With fewer than two that is a failure,
 * unless UNIPROC_SKIP_GPU_TESTS is 1; it says which sizes are not tested.
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

/** Of a process: its GPU's free memory, then how many it has of threads and files. */
export function expectNoMoreHeld(
  [freeBefore, ...countsBefore]: readonly number[],
  [freeAfter, ...countsAfter]: readonly number[],
): void {
  expect(freeAfter).toBeGreaterThanOrEqual(freeBefore);
  // A file that was closing when it was first counted is gone later.
  countsAfter.forEach((count, i) => expect(count).toBeLessThanOrEqual(countsBefore[i]));
}
