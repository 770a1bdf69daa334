/** Calls that end while the tokenizer thread encodes their prompts. */
import { type FinishedRequest, LLM, SamplingParams, type Tokenizer } from '../lib';
import { abortedBy } from './support/aborted';

const params = new SamplingParams({ maxTokens: 4, temperature: 0 });
/** Enough to encode over several turns of the event loop. */
const prompts = Array.from({ length: 2000 }, (_, i) => `Once upon a time there were ${i} dogs`);

let llm: LLM;

beforeEach(async () => {
  llm = await LLM.create({ device: 'cpu', dtype: 'float32', maxModelLen: 128 });
  finished = [];
  llm.events.on('finished', (request) => finished.push(request));
});

afterEach(() => llm.shutdown());

let finished: FinishedRequest[];

/** Records of a call that ended before encoding, in the engine's order. */
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

/** Records of a large call arrive in slices. */
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

test('by its signal: rejects with the reason, others unaffected', async () => {
  const controller = new AbortController();
  const call = llm.generate(prompts, params, { signal: controller.signal });
  const reason = new Error('the client has gone');
  controller.abort(reason);
  await expect(call).rejects.toMatchObject(abortedBy(reason));
  await allFinished(prompts.length);
  expectFinished(prompts.length, 'abort');
  await expectOthersServed();
});

test('by its timeout: rejects with RequestTimeoutError, others unaffected', async () => {
  const call = llm.generate(prompts, params, { timeoutMs: 1 });
  await expect(call).rejects.toMatchObject({ code: 'REQUEST_TIMEOUT' });
  await allFinished(prompts.length);
  expectFinished(prompts.length, 'timeout');
  await expectOthersServed();
});

test('by engine shutdown: rejects with ShutdownError', async () => {
  const call = llm.generate(prompts, params);
  const rejected = expect(call).rejects.toMatchObject({ code: 'SHUT_DOWN' });
  await llm.shutdown();
  await rejected;
  expectFinished(prompts.length, 'abort');
});

test('by an invalid prompt: rejects with the error, others unaffected', async () => {
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

test('each sample of a prompt has a record', async () => {
  const controller = new AbortController();
  const samples = new SamplingParams({ n: 3, maxTokens: 4 });
  const call = llm.generate(['Once', 'Twice'], [samples, params], { signal: controller.signal });
  controller.abort(new Error('gone'));
  await expect(call).rejects.toThrow('gone');
  const ids = finished.map(({ requestId, finishReason }) => `${requestId} ${finishReason}`);
  expect(ids).toEqual(['0-0 abort', '0-1 abort', '0-2 abort', '1 abort']);
});

test('a stream left before its prompt is encoded has a record', async () => {
  const stream = llm.stream('Once upon a time', params);
  const read = stream.next();
  await stream.return();
  await read.catch(() => {});
  expectFinished(1, 'abort');
  await expectOthersServed();
});

test('a call refused at once has no record', async () => {
  await expect(llm.generate('Once', params, { signal: AbortSignal.abort() })).rejects.toThrow();
  await expect(llm.generate({ promptTokenIds: [] }, params)).rejects.toThrow(/empty/);
  expect(finished).toEqual([]);
});

describe('the executor sleeps', () => {
  const asleep = { code: 'INVALID_STATE', message: expect.stringContaining('asleep') as string };

  test('when its prompts are encoded: rejects with InvalidStateError, others unaffected', async () => {
    const call = llm.generate(prompts.slice(0, 50), params);
    const rejected = expect(call).rejects.toMatchObject(asleep);
    await llm.engine.executor.sleep();
    await rejected;
    expect(finished.map(({ finishReason }) => finishReason)).toEqual(Array(50).fill('error'));
    await llm.engine.executor.wakeUp();
    await expectOthersServed();
  });

  test('the same for a conversation', async () => {
    const stream = llm.chatStream([{ role: 'user', content: 'Once upon a time' }], params);
    const rejected = expect(stream.next()).rejects.toMatchObject(asleep);
    await llm.engine.executor.sleep();
    await rejected;
    await llm.engine.executor.wakeUp();
    await expectOthersServed();
  });

  test('and wakes before its prompts are encoded: the call runs', async () => {
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
