import { groupLayers, KVCacheSpec, maxBlocksHeld } from '../../lib/contract/kvCache';

const [FULL, WINDOW] = [null, 1024];

/** Layers 'l0', 'l1', ... with these windows; returns [window, number of layers] of each group. */
function groupsOf(...windows: (number | null)[]): [number | null, number][] {
  const specs = windows.map((slidingWindow, i) => [`l${i}`, { slidingWindow }] as const);
  const groups = groupLayers(new Map(specs));
  const names = groups.flatMap(({ layerNames }) => layerNames);
  expect([...names].sort()).toEqual(specs.map(([name]) => name).sort());
  return groups.map(({ slidingWindow, layerNames }) => [slidingWindow, layerNames.length]);
}

/** `count` layers of which the last of every `period` has full attention. */
const alternating = (count: number, period: number) =>
  Array.from({ length: count }, (_, i) => (i % period === period - 1 ? FULL : WINDOW));

test('layers of one kind are one group', () => {
  expect(groupsOf(FULL, FULL, FULL)).toEqual([[FULL, 3]]);
  expect(groupsOf(WINDOW, WINDOW)).toEqual([[WINDOW, 2]]);
});

test.each([
  [
    'gpt-oss-20b',
    alternating(24, 2),
    [
      [WINDOW, 12],
      [FULL, 12],
    ],
  ],
  [
    'Olmo 3 7B',
    alternating(32, 4),
    [
      [WINDOW, 8],
      [WINDOW, 8],
      [WINDOW, 8],
      [FULL, 8],
    ],
  ],
  ['Gemma 3 12B', alternating(48, 6), [...Array.from({ length: 5 }, () => [WINDOW, 8]), [FULL, 8]]],
  [
    'Gemma 3 27B',
    alternating(62, 6),
    [...Array.from({ length: 5 }, () => [WINDOW, 10]), [WINDOW, 2], [FULL, 10]],
  ],
  [
    'similar numbers of layers',
    [FULL, FULL, WINDOW, WINDOW, WINDOW, FULL, WINDOW],
    [
      [FULL, 3],
      [WINDOW, 4],
    ],
  ],
])(
  '%s: groups have equal numbers of layers, but for the last of a window',
  (_, windows, groups) => {
    expect(groupsOf(...windows)).toEqual(groups);
  },
);

test('there are at most 16 groups', () => {
  const groups = groupsOf(FULL, ...Array.from({ length: 60 }, () => WINDOW));
  expect(groups).toHaveLength(16);
  expect(groups[0]).toEqual([FULL, 1]);
});

test('a request holds of a window what a step reads and writes, whole blocks at both ends', () => {
  // Keys 1 to 8 of a step's first token at position 8, and tokens 8 to 15: blocks 0 to 3.
  expect(maxBlocksHeld(8, 4, 8)).toBe(5);
  expect(maxBlocksHeld(1, 16, 1)).toBe(2);
  expect(maxBlocksHeld(null, 16, 1)).toBe(Infinity);
});

test('a spec tells the memory of a request', () => {
  const full = new KVCacheSpec(16, 8, 64, 'bfloat16', null);
  const window = new KVCacheSpec(16, 8, 64, 'bfloat16', 128);
  expect(full.pageSizeBytes).toBe(2 * 16 * 8 * 64 * 2);
  expect(full.maxMemoryUsageBytes(4096, 512)).toBe(256 * full.pageSizeBytes);
  expect(window.maxMemoryUsageBytes(4096, 512)).toBe(41 * window.pageSizeBytes);
  expect(window.maxMemoryUsageBytes(100, 512)).toBe(7 * window.pageSizeBytes);
});
