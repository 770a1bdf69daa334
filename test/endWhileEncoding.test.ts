/** Calls that end while their prompts are still being encoded, on the tokenizer's thread. */
import { LLM, SamplingParams } from '../lib';

const params = new SamplingParams({ maxTokens: 4, temperature: 0 });
/** So many that their encoding takes several turns of the event loop. */
const prompts = Array.from({ length: 2000 }, (_, i) => `Once upon a time there were ${i} dogs`);

let llm: LLM;

beforeEach(async () => {
  llm = await LLM.create({ device: 'cpu', dtype: 'float32', maxModelLen: 128 });
});

afterEach(() => llm.shutdown());

async function expectOthersServed(): Promise<void> {
  const [{ outputs }] = await llm.generate('Once upon a time', params);
  expect(outputs[0].tokenIds).toHaveLength(4);
  const { numWaitingReqs, numRunningReqs, kvCacheUsage } = llm.stats();
  expect({ numWaitingReqs, numRunningReqs, kvCacheUsage }).toEqual({
    numWaitingReqs: 0,
    numRunningReqs: 0,
    kvCacheUsage: 0,
  });
  expect(llm.engine.numUnfinishedRequests).toBe(0);
}

test('by its signal: rejects with the reason, and disturbs no other', async () => {
  const controller = new AbortController();
  const call = llm.generate(prompts, params, { signal: controller.signal });
  const reason = new Error('the client has gone');
  controller.abort(reason);
  await expect(call).rejects.toBe(reason);
  await expectOthersServed();
});

test('by its time: rejects with RequestTimeoutError, and disturbs no other', async () => {
  const call = llm.generate(prompts, params, { timeoutMs: 1 });
  await expect(call).rejects.toMatchObject({ code: 'REQUEST_TIMEOUT' });
  await expectOthersServed();
});

test('by the shutdown of the engine: rejects with ShutdownError', async () => {
  const call = llm.generate(prompts, params);
  const rejected = expect(call).rejects.toMatchObject({ code: 'SHUT_DOWN' });
  await llm.shutdown();
  await rejected;
});

test('by a fault of one of its prompts: rejects with what is wrong, and disturbs no other', async () => {
  const long = 'dog '.repeat(100);
  const call = llm.generate([...prompts, long + long], params);
  await expect(call).rejects.toMatchObject({
    code: 'REQUEST_INVALID',
    message: expect.stringContaining('prompt 2000') as string,
  });
  await expectOthersServed();
});
