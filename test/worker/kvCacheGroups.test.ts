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
