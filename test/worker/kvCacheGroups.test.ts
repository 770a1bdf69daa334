/** The groups of a model's layers in the worker's KV cache. */
import path from 'node:path';
import { createUniprocConfig } from '../../lib/config/engineArgs';
import type { KVCacheGroup } from '../../lib/contract/kvCache';
import { InvalidStateError } from '../../lib/errors';
import { UniProcExecutor } from '../../lib/executor/uniProcExecutor';
import { groupsByLayer } from '../../lib/worker/kvCacheGroups';

const CHECKPOINTS = path.join(__dirname, '..', 'golden', 'checkpoints');
const layer = (i: number) => `model.layers.${i}.self_attn`;

let executor: UniProcExecutor | null = null;
afterEach(() => executor?.shutdown());

async function start(family: string, maxModelLen: number): Promise<UniProcExecutor> {
  executor = await UniProcExecutor.create(
    await createUniprocConfig({
      model: path.join(CHECKPOINTS, family),
      device: 'cpu',
      maxModelLen,
      maxNumSeqs: 2,
      skipTokenizerInit: true,
    }),
  );
  return executor;
}

/** Windows of the layers' specs, and their groups. */
async function layersOf(family: string, maxModelLen: number) {
  const [specs] = await (await start(family, maxModelLen)).getKvCacheSpecs();
  const windows = Array.from(specs.values(), ({ slidingWindow }) => slidingWindow);
  return { windows, groups: groupsByLayer(specs, null) };
}

test('the layers of OLMo 3 have the windows of config.json, and groups by them', async () => {
  expect(await layersOf('olmo3', 128)).toEqual({ windows: [40, 40, null], groups: [0, 1, 2] });
});

/** Of gemma4-e: layers 3 and 4 attend to the keys and values of layers 2 and 1. */
describe("layers that attend to an earlier one's keys and values", () => {
  const KV_LAYERS = [0, 1, 2, 2, 1];

  test('have no spec, and the group of that layer', async () => {
    const gemma = await start('gemma4-e', 128);
    const [specs] = await gemma.getKvCacheSpecs();
    const windows = Array.from(specs, ([name, { slidingWindow }]) => [name, slidingWindow]);
    expect(windows).toEqual([
      [layer(0), 24],
      [layer(1), null],
      [layer(2), 24],
    ]);
    expect(groupsByLayer(specs, KV_LAYERS)).toEqual([0, 2, 1, 1, 2]);
  });

  test('take no memory', async () => {
    const gemma = await start('gemma4-e', 128);
    const { device } = gemma.driverWorker.worker;
    const allocated = async () => (await device?.memory())?.allocated ?? NaN;
    const before = await allocated();
    const [numBlocks, blockSize, bytesPerElement] = [64, 16, 2];
    await gemma.initializeFromConfig([{ numBlocks }]);
    // Keys and values: layers 0 and 2, of one head of 16, share memory; layer 1 has one of 32.
    const expected = numBlocks * blockSize * 2 * (16 + 32) * bytesPerElement;
    expect((await allocated()) - before).toBe(expected);
  });
});

test.each([
  ['olmo3', 40],
  ['mistral', 64],
])('%s has one group where no request is longer than its windows', async (family, window) => {
  const { windows, groups } = await layersOf(family, window);
  expect(new Set(windows)).toEqual(new Set([null]));
  expect(new Set(groups)).toEqual(new Set([0]));
});

test('groups that are not those of the loaded model are refused', async () => {
  const olmo = await start('olmo3', 128);
  const groups = (...layers: [number | null, number[]][]): KVCacheGroup[] =>
    layers.map(([slidingWindow, indices]) => ({ slidingWindow, layerNames: indices.map(layer) }));
  const initialize = (kvCacheGroups?: KVCacheGroup[]) =>
    olmo.initializeFromConfig([{ numBlocks: 64, kvCacheGroups }]);
  const initializing = initialize(groups([40, [0, 1]], [null, [2]]));
  await expect(initializing).rejects.toBeInstanceOf(InvalidStateError);
  await expect(initializing).rejects.toThrow(
    `the KV cache groups ${layer(0)},${layer(1)}; ${layer(2)}; the model was loaded with ` +
      `${layer(0)}; ${layer(1)}; ${layer(2)}`,
  );
  await initialize(groups([40, [0]], [40, [1]], [null, [2]]));
});
