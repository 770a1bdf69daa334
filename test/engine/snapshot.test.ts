/** Caller-owned data is read once, at the call. */
import { LLM, type Prompt, SamplingParams } from '../../lib';

let llm: LLM;
const params = new SamplingParams({ temperature: 0, maxTokens: 4 });

beforeAll(async () => {
  llm = await LLM.create({ device: 'cpu', dtype: 'float32', maxModelLen: 128 });
});
afterAll(() => llm.shutdown());

const tokensOf = async (prompt: Prompt) =>
  (await llm.generate(prompt, params))[0].outputs[0].tokenIds;

test.each([
  [Uint8Array, [5, 6, 7]],
  [Uint16Array, [5, 600, 7]],
  [Int16Array, [5, 600, 7]],
  [Uint32Array, [5, 600, 7]],
  [Int32Array, [5, 600, 7]],
])('token ids in a %p are those of a list', async (type, ids) => {
  expect(await tokensOf({ promptTokenIds: type.from(ids) })).toEqual(
    await tokensOf({ promptTokenIds: ids }),
  );
});

test.each([[BigInt64Array], [BigUint64Array]])('token ids in a %p are copied too', async (type) => {
  expect(await tokensOf({ promptTokenIds: type.from([5n, 600n, 7n]) })).toEqual(
    await tokensOf({ promptTokenIds: [5, 600, 7] }),
  );
});

test.each<[unknown, RegExp]>([
  [Float32Array.of(5), /Float32Array.*integers/],
  [Float64Array.of(5), /Float64Array.*integers/],
  [[5n], /token 0 is 5n.*BigInt64Array/],
  [BigInt64Array.of(2n ** 40n), /token 0 is 1099511627776n/],
  [BigInt64Array.of(-1n), /token 0 is -1n/],
  [Uint32Array.of(2 ** 32 - 1), /token 0 is 4294967295/],
])('%p is refused with its reason', async (promptTokenIds, message) => {
  const call = llm.generate({ promptTokenIds: promptTokenIds as number[] }, params);
  await expect(call).rejects.toMatchObject({ code: 'REQUEST_INVALID' });
  await expect(call).rejects.toThrow(message);
});

test('prompts and options changed after the call', async () => {
  const promptTokenIds = [5, 600, 7];
  const prompts: Prompt[] = [{ promptTokenIds }, 'Once upon a time'];
  const expected = [await tokensOf(prompts[0]), await tokensOf(prompts[1])];
  const list = [params, params];
  const call = llm.generate(prompts, list);
  promptTokenIds.fill(9);
  prompts.length = 0;
  list.length = 0;
  expect((await call).map(({ outputs }) => outputs[0].tokenIds)).toEqual(expected);
});

test('a stream uses the prompt and options of the call, not of the first read', async () => {
  const promptTokenIds = Int32Array.of(5, 600, 7);
  const expected = await tokensOf({ promptTokenIds: [...promptTokenIds] });
  const options: { cacheSalt?: unknown } = { cacheSalt: 'tenant' };
  const stream = llm.stream({ promptTokenIds }, params, options as never);
  promptTokenIds.fill(2 ** 30);
  options.cacheSalt = 7;
  const tokenIds: number[] = [];
  for await (const delta of stream) tokenIds.push(...delta.tokenIds);
  expect(tokenIds).toEqual(expected);
});

test('a conversation changed after the call', async () => {
  const messages = [{ role: 'user', content: 'Hello' }];
  const expected = (await llm.chat(messages, params))[0].outputs[0].tokenIds;
  const call = llm.chat(messages, params);
  messages[0].content = 'x'.repeat(10_000);
  messages.push({ role: 'user', content: 'again' });
  expect((await call)[0].outputs[0].tokenIds).toEqual(expected);
});

test('a getter is read once, and its error refuses only that call', async () => {
  let reads = 0;
  const prompt = {
    get promptTokenIds() {
      reads++;
      return reads === 1 ? [5, 600, 7] : [2 ** 30];
    },
  };
  expect(await tokensOf(prompt)).toEqual(await tokensOf({ promptTokenIds: [5, 600, 7] }));
  expect(reads).toBe(1);
  const throwing = {
    get promptTokenIds(): number[] {
      throw new Error('not now');
    },
  };
  await expect(llm.generate(throwing, params)).rejects.toMatchObject({
    code: 'REQUEST_INVALID',
    message: expect.stringMatching(/^prompt 0: reading it threw.*not now/) as string,
  });
});

test.each<[string, () => unknown]>([
  ['a proxy of parameters', () => new Proxy(params, {})],
  ['an object with their prototype', () => Object.create(SamplingParams.prototype) as unknown],
])('%s is refused', async (_, make) => {
  const call = llm.generate('Once', make() as SamplingParams);
  await expect(call).rejects.toMatchObject({ code: 'REQUEST_INVALID' });
});

test.each<[string, () => SamplingParams, RegExp]>([
  [
    'minTokens of 2 ** 31',
    () => new SamplingParams({ minTokens: 2 ** 31, maxTokens: null }),
    /minTokens is 2147483648/,
  ],
  [
    '65 stop strings',
    () => new SamplingParams({ stop: Array<string>(65).fill('x') }),
    /maxStopStrings is 64/,
  ],
  [
    'a long stop string',
    () => new SamplingParams({ stop: 'x'.repeat(1025) }),
    /maxStopStringLength is 1024/,
  ],
  [
    'many stop tokens',
    () => new SamplingParams({ stopTokenIds: Array<number>(4097).fill(1) }),
    /maxStopTokenIds/,
  ],
  [
    'many bad words',
    () => new SamplingParams({ badWords: Array<string>(65_537).fill('x') }),
    /maxBadWords is/,
  ],
  [
    'a long bad word',
    () => new SamplingParams({ badWords: ['x'.repeat(1025)] }),
    /maxBadWordLength/,
  ],
])('%s refuse their call alone, naming the bound', async (_, make, message) => {
  const beside = tokensOf('Once upon a time');
  const call = (async () => llm.generate('Once', make()))();
  await expect(call).rejects.toMatchObject({ code: 'REQUEST_INVALID' });
  await expect(call).rejects.toThrow(message);
  expect(await beside).toHaveLength(4);
});

test('too many prompts or outputs, or too long a salt, are refused by the bound', async () => {
  const many = Array<Prompt>(65_537).fill('x');
  await expect(llm.generate(many, params)).rejects.toThrow(/maxPromptsPerCall is 65536/);
  const sampled = new SamplingParams({ n: 16_384, maxTokens: 1 });
  await expect(llm.generate(many.slice(0, 5), sampled)).rejects.toThrow(/maxRequestsPerCall/);
  const logprobs = new SamplingParams({ n: 16_384, logprobs: 20, maxTokens: null });
  await expect(llm.generate(['a', 'b'], logprobs)).rejects.toThrow(/maxLogprobsPerCall/);
  const cacheSalt = 'x'.repeat(1025);
  await expect(llm.generate('x', params, { cacheSalt })).rejects.toThrow(/maxCacheSaltLength/);
});
