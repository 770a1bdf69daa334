/** A request with no allowed token left fails alone. */
import { LLM, SamplingParams, type SamplingParamsOptions } from '../lib';

const PROMPT = { promptTokenIds: [70, 71, 72] };
let llm: LLM;

beforeAll(async () => {
  llm = await LLM.create({ device: 'cpu', dtype: 'float32', maxModelLen: 128 });
});
afterAll(() => llm.shutdown());

const ALL = Array.from({ length: 2048 }, (_, id) => [id]);

test.each<[string, number, SamplingParamsOptions]>([
  ['a bad word is the one allowed token', 0, { allowedTokenIds: [9], badWords: [[9]] }],
  [
    'bad words end in each allowed token',
    1,
    { allowedTokenIds: [8, 9], badWords: [8, 9].flatMap((a) => [8, 9].map((b) => [a, b])) },
  ],
  [
    'the one allowed token is a stop token before minTokens',
    0,
    { allowedTokenIds: [9], stopTokenIds: [9], minTokens: 2 },
  ],
  ['all tokens are bad words', 0, { badWords: ALL }],
  [
    'all tokens are bad words or early stop tokens',
    0,
    { badWords: ALL.slice(1), stopTokenIds: [0], minTokens: 1 },
  ],
])('%s', async (_, numTokens, options) => {
  const params = new SamplingParams({ maxTokens: 8, seed: 3, ...options });
  const beside = llm.generate(PROMPT, new SamplingParams({ maxTokens: 8, temperature: 0 }));
  const failed = llm.generate(PROMPT, params);
  await expect(failed).rejects.toMatchObject({
    code: 'REQUEST_INVALID',
    message: expect.stringContaining(
      `after ${numTokens} tokens its parameters allow no next token`,
    ) as string,
  });
  expect((await beside)[0].outputs[0].tokenIds).toHaveLength(8);
});

test('a bad word that only some allowed tokens complete is avoided', async () => {
  const params = new SamplingParams({
    maxTokens: 40,
    minTokens: 40,
    allowedTokenIds: [8, 9],
    badWords: [[9, 9]],
  });
  const [{ outputs }] = await llm.generate(PROMPT, params);
  expect(outputs[0].tokenIds).toHaveLength(40);
  expect(outputs[0].tokenIds.join()).not.toMatch(/\b9,9\b/);
});
