/** Calls that end while their prompts are still being encoded, on the tokenizer's thread. */
import { type FinishedRequest, LLM, SamplingParams, type Tokenizer } from '../lib';

const params = new SamplingParams({ maxTokens: 4, temperature: 0 });
/** So many that their encoding takes several turns of the event loop. */
const prompts = Array.from({ length: 2000 }, (_, i) => `Once upon a time there were ${i} dogs`);

let llm: LLM;

beforeEach(async () => {
  llm = await LLM.create({ device: 'cpu', dtype: 'float32', maxModelLen: 128 });
  finished = [];
  llm.events.on('finished', (request) => finished.push(request));
});

afterEach(() => llm.shutdown());

let finished: FinishedRequest[];

/** The records of a call that ended before its prompts were encoded, the engine's first. */
function expectFinished(numRequests: number, finishReason: FinishedRequest['finishReason']): void {
  expect(finished.map(({ requestId }) => requestId)).toEqual(
    Array.from({ length: numRequests }, (_, i) => String(i)),
  );
  for (const record of finished) {
    expect(record).toMatchObject({
      finishReason,
      numPromptTokens: 0,
      numCachedTokens: 0,
      numOutputTokens: 0,
      queueTimeMs: null,
      timeToFirstTokenMs: null,
      totalTimeMs: expect.any(Number) as number,
    });
  }
  const none = { stop: 0, length: 0, abort: 0, timeout: 0, error: 0 };
  expect(llm.stats().numFinishedReqs).toEqual({ ...none, [finishReason]: numRequests });
  finished = [];
}

/** Of a call of thousands the records come in slices. */
async function allFinished(numRequests: number): Promise<void> {
  while (finished.length < numRequests) await new Promise((resolve) => setImmediate(resolve));
}

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
  await allFinished(prompts.length);
  expectFinished(prompts.length, 'abort');
  await expectOthersServed();
});

test('by its time: rejects with RequestTimeoutError, and disturbs no other', async () => {
  const call = llm.generate(prompts, params, { timeoutMs: 1 });
  await expect(call).rejects.toMatchObject({ code: 'REQUEST_TIMEOUT' });
  await allFinished(prompts.length);
  expectFinished(prompts.length, 'timeout');
  await expectOthersServed();
});

test('by the shutdown of the engine: rejects with ShutdownError', async () => {
  const call = llm.generate(prompts, params);
  const rejected = expect(call).rejects.toMatchObject({ code: 'SHUT_DOWN' });
  await llm.shutdown();
  await rejected;
  expectFinished(prompts.length, 'abort');
});

test('by a fault of one of its prompts: rejects with what is wrong, and disturbs no other', async () => {
  const long = 'dog '.repeat(100);
  const call = llm.generate([...prompts, long + long], params);
  await expect(call).rejects.toMatchObject({
    code: 'REQUEST_INVALID',
    message: expect.stringContaining('prompt 2000') as string,
  });
  await allFinished(2001);
  expectFinished(2001, 'error');
  await expectOthersServed();
});

test('each of the samples of a prompt has its record', async () => {
  const controller = new AbortController();
  const samples = new SamplingParams({ n: 3, maxTokens: 4 });
  const call = llm.generate(['Once', 'Twice'], [samples, params], { signal: controller.signal });
  controller.abort(new Error('gone'));
  await expect(call).rejects.toThrow('gone');
  const ids = finished.map(({ requestId, finishReason }) => `${requestId} ${finishReason}`);
  expect(ids).toEqual(['0-0 abort', '0-1 abort', '0-2 abort', '1 abort']);
});

test('a stream that is left before its prompt is encoded has a record', async () => {
  const stream = llm.stream('Once upon a time', params);
  const read = stream.next();
  await stream.return();
  await read.catch(() => {});
  expectFinished(1, 'abort');
  await expectOthersServed();
});

test('a call that is refused when it is made has none', async () => {
  await expect(llm.generate('Once', params, { signal: AbortSignal.abort() })).rejects.toThrow();
  await expect(llm.generate({ promptTokenIds: [] }, params)).rejects.toThrow(/empty/);
  expect(finished).toEqual([]);
});

describe('the executor sleeps', () => {
  const asleep = { code: 'INVALID_STATE', message: expect.stringContaining('asleep') as string };

  test('when its prompts are encoded: rejects with InvalidStateError, and disturbs no other', async () => {
    const call = llm.generate(prompts.slice(0, 50), params);
    const rejected = expect(call).rejects.toMatchObject(asleep);
    await llm.engine.executor.sleep();
    await rejected;
    expect(finished.map(({ finishReason }) => finishReason)).toEqual(Array(50).fill('error'));
    await llm.engine.executor.wakeUp();
    await expectOthersServed();
  });

  test('a conversation is as other prompts', async () => {
    const stream = llm.chatStream([{ role: 'user', content: 'Once upon a time' }], params);
    const rejected = expect(stream.next()).rejects.toMatchObject(asleep);
    await llm.engine.executor.sleep();
    await rejected;
    await llm.engine.executor.wakeUp();
    await expectOthersServed();
  });

  test('and wakes before its prompts are encoded: it is carried out', async () => {
    const tokenizer = llm.tokenizer as Tokenizer;
    const encodeArrays = tokenizer.encodeArrays.bind(tokenizer);
    let encode!: () => void;
    const mayEncode = new Promise<void>((resolve) => (encode = resolve));
    jest.spyOn(tokenizer, 'encodeArrays').mockImplementation(async (...args) => {
      await mayEncode;
      return encodeArrays(...args);
    });
    const call = llm.generate(prompts.slice(0, 50), params);
    await llm.engine.executor.sleep();
    await llm.engine.executor.wakeUp();
    expect(llm.stats().numWaitingReqs).toBe(50);
    encode();
    expect(await call).toHaveLength(50);
    await expectOthersServed();
  });
});
