import { SamplingParams } from '../../lib/config/samplingParams';
import { Request } from '../../lib/engine/request';

function request(promptTokenIds: number[], maxTokens: number | null): Request {
  return new Request({
    requestId: 'a',
    promptTokenIds: Int32Array.from(promptTokenIds),
    samplingParams: new SamplingParams({ maxTokens }),
    stopTokenIds: [],
    badWordsTokenIds: [],
    seed: 0n,
    maxModelLen: 1000,
  });
}

test('keeps all its tokens as it grows', () => {
  const long = request([7, 8, 9], null);
  const output = Array.from({ length: 997 }, (_, i) => (31 * i) % 101);
  for (const tokenId of output) long.appendOutputToken(tokenId);
  expect(Array.from(long.allTokenIds())).toEqual([7, 8, 9, ...output]);
  expect(Array.from(long.promptTokenIds)).toEqual([7, 8, 9]);
  expect([long.numTokens, long.numPromptTokens, long.numOutputTokens]).toEqual([1000, 3, 997]);
});

test("may generate maxTokens, up to the model's length", () => {
  expect(request([7, 8, 9], 5).maxTokens).toBe(5);
  expect(request([7, 8, 9], 5000).maxTokens).toBe(997);
  expect(request([7, 8, 9], null).maxTokens).toBe(997);
});

test('reaches its limit with its tokens in flight', () => {
  const short = request([7], 3);
  short.appendOutputToken(1);
  short.numOutputPlaceholders = 1;
  expect(short.reachesLimitInFlight).toBe(false);
  short.numOutputPlaceholders = 2;
  expect(short.reachesLimitInFlight).toBe(true);
});

test('costs its tokens and list entries', () => {
  const samplingParams = new SamplingParams({
    maxTokens: 1,
    allowedTokenIds: [1, 2, 3],
    logitBias: new Map([[5, 1]]),
  });
  const listed = new Request({
    requestId: 'a',
    promptTokenIds: Int32Array.of(7, 8, 9),
    samplingParams,
    stopTokenIds: [1, 2],
    badWordsTokenIds: [[1], [2, 3, 4]],
    seed: 0n,
    maxModelLen: 1000,
  });
  // 3 tokens of 4 entries each; 3 allowed tokens, 1 bias, 2 stop tokens, 4 tokens of 2 words.
  expect(listed.admissionCost).toBe(4 * 3 + 3 + 1 + 2 + (4 + 2));
  expect(request([7, 8], 5).admissionCost).toBe(8);
});
