/** Requests wait for list memory; one that never fits fails alone. */
import { LLM, SamplingParams } from '../lib';

const CONFIG = { device: 'cpu', dtype: 'float32', maxModelLen: 128 } as const;
/** Two of the lists below, or one of the longest. */
const maxListMemoryBytes = 12 * 1024;

let small: LLM;
let large: LLM;

beforeAll(async () => {
  small = await LLM.create({ ...CONFIG, limits: { maxListMemoryBytes } });
  large = await LLM.create(CONFIG);
});
afterAll(() => Promise.all([small.shutdown(), large.shutdown()]));

/** At least every other token, from a start token on. */
const allowedBy = (i: number) =>
  Array.from({ length: 1100 + 80 * i }, (_, k) => (k + 100 * i) % 2048);

test('more long lists than fit give the same outputs as with memory for all', async () => {
  const params = Array.from(
    { length: 10 },
    (_, i) =>
      new SamplingParams({
        maxTokens: 12,
        temperature: 1,
        seed: i,
        ignoreEos: true,
        allowedTokenIds: allowedBy(i),
        logitBias: { [100 * i]: 2 },
      }),
  );
  const prompts = params.map((_, i) => ({ promptTokenIds: [70, 71, 72 + i] }));
  const generate = (llm: LLM) => llm.generate(prompts, params, { progress: false });
  let mostRunning = 0;
  const watch = setInterval(() => {
    mostRunning = Math.max(mostRunning, small.stats().numRunningReqs);
  }, 1);
  const [few, all] = await Promise.all([generate(small), generate(large)]);
  clearInterval(watch);
  const tokensOf = (outputs: typeof few) => outputs.map(({ outputs: [{ tokenIds }] }) => tokenIds);
  expect(tokensOf(few)).toEqual(tokensOf(all));
  tokensOf(few).forEach((tokenIds, i) => {
    expect(tokenIds).toHaveLength(12);
    expect(tokenIds.filter((tokenId) => !allowedBy(i).includes(tokenId))).toEqual([]);
  });
  expect(mostRunning).toBeLessThanOrEqual(2);
});

test.each([
  ['allowed tokens', { allowedTokenIds: Array.from({ length: 3100 }, (_, i) => i % 2048) }],
  ['biases', { logitBias: Object.fromEntries(Array.from({ length: 1600 }, (_, i) => [i, 1])) }],
  ['bad words', { badWords: Array.from({ length: 1600 }, (_, i) => [i]) }],
  ['bad words as text', { badWords: Array.from({ length: 800 }, (_, i) => `word${i}`) }],
  [
    'stop tokens',
    { stopTokenIds: allowedBy(0).concat(allowedBy(9)), allowedTokenIds: allowedBy(9) },
  ],
])('lists that never fit fail their call with the bound: %s', async (_, options) => {
  const prompt = { promptTokenIds: [70, 71, 72] };
  const beside = small.generate(prompt, new SamplingParams({ maxTokens: 8, ignoreEos: true }));
  await expect(
    small.generate(prompt, new SamplingParams({ maxTokens: 8, ...options })),
  ).rejects.toMatchObject({
    code: 'REQUEST_INVALID',
    message: expect.stringMatching(/take \d+ bytes.*maxListMemoryBytes is 12288/) as string,
  });
  expect((await beside)[0].outputs[0].tokenIds).toHaveLength(8);
  expect(small.stats().kvCacheUsage).toBe(0);
});
