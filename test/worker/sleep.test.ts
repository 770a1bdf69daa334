/** Releasing and restoring a worker's memory, with a model that records calls. */
import { OutOfMemoryError } from '../../lib/errors';
import type { NativeModelRunner } from '../../lib/native';
import { ReleasedMemory } from '../../lib/worker/sleep';
import type { SleepTag } from '../../lib/worker/workerBase';

const BOTH: readonly SleepTag[] = ['weights', 'kv_cache'];

/** `refuses`: methods that reject once with OUT_OF_MEMORY. */
function situation(onCuda: boolean, ...refuses: string[]) {
  const calls: string[] = [];
  const call = (name: string) => {
    calls.push(name);
    const refused = refuses.indexOf(name);
    if (refused < 0) return Promise.resolve();
    refuses.splice(refused, 1);
    return Promise.reject(new OutOfMemoryError(name));
  };
  const model = {
    releaseWeights: () => call('releaseWeights'),
    offloadWeights: () => call('offloadWeights'),
    restoreWeights: () => call('restoreWeights'),
    releaseKvCache: () => call('releaseKvCache'),
    allocateKvCache: (numBlocks: number) => call(`allocateKvCache ${numBlocks}`),
  } as Partial<NativeModelRunner> as NativeModelRunner;
  const memory = new ReleasedMemory(onCuda);
  return {
    calls,
    release: (level: 1 | 2) => memory.release(model, level),
    restore: (tags: readonly SleepTag[] = BOTH) =>
      memory.restore(model, tags, { loadWeights: () => call('loadWeights'), numBlocks: 7 }),
  };
}

test.each([
  [true, 1, ['offloadWeights', 'releaseKvCache'], ['restoreWeights', 'allocateKvCache 7']],
  [true, 2, ['releaseWeights', 'releaseKvCache'], ['loadWeights', 'allocateKvCache 7']],
  // On the CPU level 1 leaves the weights where they are.
  [false, 1, ['releaseKvCache'], ['allocateKvCache 7']],
  [false, 2, ['releaseWeights', 'releaseKvCache'], ['loadWeights', 'allocateKvCache 7']],
] as const)('on CUDA (%p) at level %d', async (onCuda, level, released, restored) => {
  const { calls, release, restore } = situation(onCuda);
  await release(level);
  expect(calls).toEqual(released);
  await restore();
  expect(calls.slice(released.length)).toEqual(restored);
});

test('restores each tag once, in any order', async () => {
  const { calls, release, restore } = situation(true);
  await release(1);
  await restore(['kv_cache']);
  await restore(['kv_cache']);
  await restore();
  expect(calls.slice(2)).toEqual(['allocateKvCache 7', 'restoreWeights']);
});

test('resumes after a partial failure', async () => {
  const { calls, release, restore } = situation(true, 'allocateKvCache 7');
  await release(2);
  await expect(restore()).rejects.toBeInstanceOf(OutOfMemoryError);
  await restore();
  expect(calls.slice(2)).toEqual(['loadWeights', 'allocateKvCache 7', 'allocateKvCache 7']);
});

test.each([1, 2] as const)(
  'releases what a partial failure has restored, at level %d',
  async (level) => {
    const { calls, release, restore } = situation(true, 'allocateKvCache 7');
    await release(1);
    await expect(restore()).rejects.toBeInstanceOf(OutOfMemoryError);
    calls.length = 0;
    await release(level);
    await restore();
    expect(calls).toEqual(
      level === 1
        ? ['offloadWeights', 'releaseKvCache', 'restoreWeights', 'allocateKvCache 7']
        : ['releaseWeights', 'releaseKvCache', 'loadWeights', 'allocateKvCache 7'],
    );
  },
);

test('weights in host memory stay there, unless they are released', async () => {
  const { calls, release, restore } = situation(true, 'restoreWeights');
  await release(1);
  await expect(restore()).rejects.toBeInstanceOf(OutOfMemoryError);
  await release(1);
  await release(2);
  await restore();
  expect(calls).toEqual([
    ...['offloadWeights', 'releaseKvCache', 'restoreWeights'],
    ...['releaseKvCache', 'releaseWeights', 'releaseKvCache'],
    ...['loadWeights', 'allocateKvCache 7'],
  ]);
});

test('releases nothing if the host has no memory for the weights', async () => {
  const { calls, release, restore } = situation(true, 'offloadWeights');
  await expect(release(1)).rejects.toBeInstanceOf(OutOfMemoryError);
  await restore();
  expect(calls).toEqual(['offloadWeights']);
});
