/** Memory budgets, with figures computed by hand. */
import type { UniprocConfig } from '../../lib/config/uniprocConfig';
import { InvalidStateError, OutOfMemoryError } from '../../lib/errors';
import type { MemoryInfo, NativeDeviceThread, NativeModelRunner } from '../../lib/native';
import { MemoryBudget } from '../../lib/worker/memory';

const GIB = 2 ** 30;

interface Situation {
  kind?: 'cpu' | 'cuda';
  memoryUtilization?: number | null;
  kvCacheMemoryBytes?: number | null;
  localWorldSize?: number;
  /** In GiB, as below. */
  total?: number;
  freeBefore?: number;
  /** After the model is loaded and its largest step has run. */
  free?: number;
  allocated?: number;
  peakAllocated?: number;
  graphs?: number;
  /** Called when the largest step is profiled. */
  onProfile?: () => void;
}

/** Bytes for the KV cache on a device with the given memory. */
async function bytesIn({
  kind = 'cuda',
  memoryUtilization = null,
  kvCacheMemoryBytes = null,
  localWorldSize = 1,
  total = 100,
  freeBefore = 98,
  free = 60,
  allocated = 30,
  peakAllocated = 35,
  graphs = 1,
  onProfile = () => {},
}: Situation): Promise<number> {
  const says: MemoryInfo[] = [
    { total, free: freeBefore, allocated: 0, peakAllocated: 0 },
    { total, free, allocated, peakAllocated },
  ];
  const device = {
    memory: () => {
      const { total, free, allocated, peakAllocated } = says.shift() as MemoryInfo;
      return Promise.resolve({
        total: total * GIB,
        free: free * GIB,
        allocated: allocated * GIB,
        peakAllocated: peakAllocated * GIB,
      });
    },
    resetPeakMemory: () => Promise.resolve(),
  } as Partial<NativeDeviceThread> as NativeDeviceThread;
  const model = {
    profile: () => {
      onProfile();
      return Promise.resolve(graphs * GIB);
    },
  } as Partial<NativeModelRunner> as NativeModelRunner;
  const config = {
    device: { kind },
    cache: { memoryUtilization, kvCacheMemoryBytes },
  } as UniprocConfig;
  const budget = new MemoryBudget(config, localWorldSize);
  await budget.measureBaseline(device);
  return budget.availableForKvCache(device, model);
}

test('a GPU has its share minus the peak, the graphs and memory used by others', async () => {
  // 0.8 of 100, minus 35, 1, and the 10 neither free nor allocated.
  expect((await bytesIn({ memoryUtilization: 0.8 })) / GIB).toBeCloseTo(80 - 35 - 1 - 10, 6);
});

test('a GPU has 0.9 of its memory by default', async () => {
  expect((await bytesIn({})) / GIB).toBeCloseTo(90 - 35 - 1 - 10, 6);
});

test('a CPU has a quarter of the free memory, divided among its ranks', async () => {
  expect((await bytesIn({ kind: 'cpu', localWorldSize: 3 })) / GIB).toBeCloseTo(60 / 4 / 3, 6);
});

test("a CPU's configured share is divided among its ranks and ignores memory used by others", async () => {
  const situation = { kind: 'cpu', memoryUtilization: 0.8, localWorldSize: 2 } as const;
  expect((await bytesIn(situation)) / GIB).toBeCloseTo(40 - 35 - 1, 6);
});

test('kvCacheMemoryBytes overrides all figures, and the step is profiled all the same', async () => {
  const onProfile = jest.fn();
  expect(await bytesIn({ freeBefore: 1, kvCacheMemoryBytes: 12345, onProfile })).toBe(12345);
  expect(onProfile).toHaveBeenCalledTimes(1);
});

test('less free memory than requested is an error with both figures', async () => {
  const refused = bytesIn({ freeBefore: 89 });
  await expect(refused).rejects.toBeInstanceOf(OutOfMemoryError);
  await expect(refused).rejects.toThrow('asks for 90.00 GiB of 100.00 GiB, but only 89.00 GiB');
});

test('memory that another process frees during the load is an error with the figures', async () => {
  const refused = bytesIn({ freeBefore: 92, free: 93, allocated: 5 });
  await expect(refused).rejects.toBeInstanceOf(InvalidStateError);
  await expect(refused).rejects.toThrow(
    '92.00 GiB were free before the model was loaded and 93.00',
  );
});

test('a model that needs its whole share is an error with the figures', async () => {
  const refused = bytesIn({ peakAllocated: 79 });
  await expect(refused).rejects.toBeInstanceOf(OutOfMemoryError);
  await expect(refused).rejects.toThrow('gives 90.00 GiB of 100.00 GiB, but the model and its');
  await expect(refused).rejects.toThrow('need 90.00 GiB');
});
