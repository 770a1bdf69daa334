/** Caller-owned objects may throw when read: only their call rejects, with a typed error. */
import { LLM, SamplingParams, type Prompt, type StreamOptions } from '../lib';
import { DataSnapshot } from '../lib/config/snapshot';
import { abortedBy } from './support/aborted';

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

describe('a signal with properties of its own', () => {
  const names = ['addEventListener', 'removeEventListener', 'throwIfAborted', 'aborted', 'reason'];
  const endless = new SamplingParams({ maxTokens: 120, temperature: 0, ignoreEos: true });
  const controllerWith = (name: string) => {
    const controller = new AbortController();
    Object.defineProperty(controller.signal, name, { get: throwing });
    return controller;
  };

  test.each(names)('is watched without them: %s', async (name) => {
    const { signal } = controllerWith(name);
    const [{ outputs }] = await llm.generate(PROMPT, PARAMS, { signal });
    expect(outputs[0].tokenIds).toHaveLength(4);
    await readAll({ signal });
  });

  test.each(names)('ends its call with its reason: %s', async (name) => {
    const controller = controllerWith(name);
    const { signal } = controller;
    const reason = new Error('enough');
    const calls = [1, 2].map(() => llm.generate(PROMPT, endless, { signal }));
    const stream = llm.stream(PROMPT, endless, { signal });
    await stream.next();
    const reading = (async () => {
      while (!(await stream.next()).done);
    })();
    controller.abort(reason);
    for (const call of [...calls, reading, llm.generate(PROMPT, PARAMS, { signal })]) {
      await expect(call).rejects.toMatchObject(abortedBy(reason));
    }
  });
});

test('what was revoked', async () => {
  const { proxy, revoke } = Proxy.revocable([], {});
  revoke();
  const revoked = proxy as never;
  const message = expect.stringMatching(/threw TypeError: .*revoked/) as string;
  for (const call of [
    () => llm.generate(revoked, PARAMS),
    () => llm.generate([revoked], PARAMS),
    () => llm.generate({ promptTokenIds: revoked }, PARAMS),
    () => llm.generate(PROMPT, revoked),
    () => llm.generate(PROMPT, PARAMS, revoked),
    () => llm.chat(revoked),
    () => llm.chat([revoked]),
  ]) {
    await expect(call()).rejects.toMatchObject({ code: 'REQUEST_INVALID', message });
  }
});

test('a date with a toJSON of its own is its time', () => {
  const date = new Date(0);
  date.toJSON = throwing;
  expect(new DataSnapshot(2, 2).copy({ date })).toEqual({ date: new Date(0).toISOString() });
});

test("an object with AbortSignal's prototype that is no signal", async () => {
  const signal = Object.create(AbortSignal.prototype) as AbortSignal;
  await expect(llm.generate(PROMPT, PARAMS, { signal })).rejects.toMatchObject({
    code: 'REQUEST_INVALID',
    message: expect.stringContaining('it must be an AbortSignal') as string,
  });
});
