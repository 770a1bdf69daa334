/** Caller-owned objects may throw when read: only their call rejects, with a typed error. */
import { LLM, SamplingParams, type Prompt, type StreamOptions } from '../lib';

const PROMPT = { promptTokenIds: [70, 71, 72] };
const PARAMS = new SamplingParams({ maxTokens: 4, temperature: 0 });
let llm: LLM;

beforeAll(async () => {
  llm = await LLM.create({ device: 'cpu', dtype: 'float32', maxModelLen: 128 });
});
afterAll(() => llm.shutdown());

const refusal: object = {
  code: 'REQUEST_INVALID',
  message: expect.stringMatching(/^[^\n]+threw Error: hostile$/) as string,
};
const throwing = () => {
  throw new Error('hostile');
};
const hostile = <T extends object>(target: T): T =>
  new Proxy(target, { get: throwing, ownKeys: throwing });

afterEach(async () => {
  const [{ outputs }] = await llm.generate(PROMPT, PARAMS);
  expect(outputs[0].tokenIds).toHaveLength(4);
  expect(llm.stats()).toMatchObject({ numWaitingReqs: 0, numRunningReqs: 0, kvCacheUsage: 0 });
});

async function readAll(options: StreamOptions): Promise<void> {
  const stream = llm.stream(PROMPT, PARAMS, options);
  while (!(await stream.next()).done);
}

test('a list of prompts', async () => {
  await expect(llm.generate(hostile<Prompt[]>([PROMPT]), PARAMS)).rejects.toMatchObject(refusal);
});

test('a prompt', async () => {
  await expect(llm.generate(hostile(PROMPT), PARAMS)).rejects.toMatchObject(refusal);
});

test('options', async () => {
  await expect(llm.generate(PROMPT, PARAMS, hostile({}))).rejects.toMatchObject(refusal);
  await expect(readAll(hostile({}))).rejects.toMatchObject(refusal);
});

test('messages', async () => {
  const messages = [{ role: 'user', content: 'x' }];
  await expect(llm.chat(hostile(messages), PARAMS)).rejects.toMatchObject(refusal);
  await expect(llm.chat(messages.map(hostile), PARAMS)).rejects.toMatchObject(refusal);
});

test('sampling parameters', async () => {
  const make = (options: object) => async () => Promise.resolve(new SamplingParams(options));
  const logitBias = new Map([[1, 1]]);
  Object.defineProperty(logitBias, Symbol.iterator, { value: throwing });
  for (const options of [hostile({}), { logitBias }, { stop: hostile(['x']) }]) {
    await expect(make(options)()).rejects.toMatchObject(refusal);
  }
});

test('a signal with overridden methods', async () => {
  const { signal } = new AbortController();
  Object.defineProperty(signal, 'addEventListener', { value: throwing });
  await expect(llm.generate(PROMPT, PARAMS, { signal })).rejects.toMatchObject(refusal);
  await expect(readAll({ signal })).rejects.toMatchObject(refusal);
});

test("an object with AbortSignal's prototype that is no signal", async () => {
  const signal = Object.create(AbortSignal.prototype) as AbortSignal;
  await expect(llm.generate(PROMPT, PARAMS, { signal })).rejects.toMatchObject({
    code: 'REQUEST_INVALID',
    message: expect.stringContaining('it must be an AbortSignal') as string,
  });
});
