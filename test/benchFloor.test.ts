import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const cwd = path.resolve(__dirname, '..');

const spec = {
  hiddenSize: 4096,
  intermediateSize: 14336,
  numHeads: 32,
  numKvHeads: 8,
  headDim: 128,
  vocabSize: 128256,
  numLayers: 2,
  slidingWindows: [0, 3],
};
/** Elements of a layer's weights: q, k, v; o; gate and up; down. */
const layer = 6144 * 4096 + 4096 * 4096 + 28672 * 4096 + 4096 * 14336;
const head = 128256 * 4096;

async function floorSeconds(
  dtype: string,
  card: object,
  step: object,
  ofSpec: object = spec,
): Promise<number> {
  const args = JSON.stringify([{ transformer: { spec: ofSpec }, dtype }, card, step]);
  const script = `console.log(require('./bench/floor').floorSeconds(...${args}))`;
  const { stdout } = await run(process.execPath, ['-e', script], { cwd });
  return Number(stdout);
}

describe('the floor of a step', () => {
  it('reads each weight and the cache once where reading takes longer', async () => {
    const card = { readBandwidth: 1e9, productRate: 1e18 };
    const step = { numTokens: 64, numSampled: 64, cacheBytes: 5e8 };
    const bytes = 2 * (2 * layer + head) + 5e8;
    expect(await floorSeconds('bfloat16', card, step)).toBeCloseTo(bytes / 1e9, 9);
    expect(await floorSeconds('float32', card, step)).toBeCloseTo((2 * bytes - 5e8) / 1e9, 9);
  });

  it('computes the products and the pairs of attention where computing takes longer', async () => {
    const card = { readBandwidth: 1e18, productRate: 1e12 };
    const prompts = { count: 2, length: 5 };
    const step = { numTokens: 10, numSampled: 2, prompts };
    // 5 queries see 1 to 5 keys, or with a window of 3 keys 1, 2, 3, 3, 3.
    const pairs = 2 * (15 + 12);
    const operations = 2 * 10 * 2 * layer + 2 * 2 * head + 4 * pairs * 32 * 128;
    expect(await floorSeconds('bfloat16', card, step)).toBeCloseTo(operations / 1e12, 9);
  });

  it('reads the experts that random routing selects once, or computes each token with its own', async () => {
    const experts = {
      numExperts: 128,
      numExpertsPerToken: 8,
      intermediateSize: 768,
      sharedIntermediateSize: 0,
    };
    const withExperts = { ...spec, experts };
    const attention = 6144 * 4096 + 4096 * 4096;
    const rest = 2 * (attention + 128 * 4096) + head;
    const expert = 3 * 768 * 4096;
    // A token misses an expert with 15/16: two tokens read 8 and half a one less of 16 experts.
    for (const [numTokens, selected] of [
      [1, 8],
      [2, 15.5],
    ]) {
      const step = { numTokens, numSampled: numTokens };
      const bytes = 2 * (rest + 2 * selected * expert);
      const card = { readBandwidth: 1e9, productRate: 1e18 };
      expect(await floorSeconds('bfloat16', card, step, withExperts)).toBeCloseTo(bytes / 1e9, 9);
    }
    const step = { numTokens: 100, numSampled: 100 };
    const operations = 2 * 100 * (rest + 2 * 8 * expert);
    const card = { readBandwidth: 1e18, productRate: 1e12 };
    const seconds = await floorSeconds('bfloat16', card, step, withExperts);
    expect(seconds).toBeCloseTo(operations / 1e12, 9);
  });

  it('decides for each product by itself', async () => {
    // 100 tokens compute longer than a layer's weights take to read, one sampled row does not.
    const card = { readBandwidth: 1e12, productRate: 50e12 };
    const step = { numTokens: 100, numSampled: 1 };
    const expected = (2 * 100 * 2 * layer) / 50e12 + (2 * head) / 1e12;
    expect(await floorSeconds('bfloat16', card, step)).toBeCloseTo(expected, 9);
  });
});
