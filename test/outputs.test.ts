/** What outputs and streams tell beside tokens and text: why they ended, how much, how long. */
import {
  LLM,
  type OutputDelta,
  type OutputStream,
  type Params,
  PositionLogprobs,
  type RequestAbortedError,
} from '../lib';
import { stories } from './support/stories';

const [{ prompt, promptTokenIds, tokenIds }] = stories.prompts;
const GREEDY = { temperature: 0, maxTokens: 8 };
let llm: LLM;

beforeAll(async () => {
  llm = await LLM.create({ device: 'cpu', dtype: 'float32', maxModelLen: 256 });
});
afterAll(() => llm.shutdown());

const firstOf = async (params: Params, input: Parameters<LLM['generate']>[0] = prompt) =>
  (await llm.generate(input, params))[0].outputs[0];

async function deltasOf(stream: OutputStream): Promise<OutputDelta[]> {
  const deltas: OutputDelta[] = [];
  for await (const delta of stream) deltas.push(delta);
  return deltas;
}

describe('stopReason', () => {
  test('is the stop string, the longest of several', async () => {
    const { text } = await firstOf(GREEDY);
    const short = text.slice(5, 8);
    const long = text.slice(3, 8);
    expect(await firstOf({ ...GREEDY, stop: ['zzz', short, long] })).toMatchObject({
      finishReason: 'stop',
      stopReason: long,
      text: text.slice(0, 3),
    });
    expect((await firstOf({ ...GREEDY, stop: short })).stopReason).toBe(short);
  });

  test("is the token of the caller's stopTokenIds", async () => {
    expect(await firstOf({ ...GREEDY, stopTokenIds: [tokenIds[3]] })).toMatchObject({
      finishReason: 'stop',
      stopReason: tokenIds[3],
      tokenIds: tokenIds.slice(0, 4),
    });
  });

  test("is null for the model's end of sequence and for the length", async () => {
    const [{ outputs }] = await llm.chat(stories.chat.messages, { temperature: 0 });
    expect(outputs[0]).toMatchObject({ finishReason: 'stop', stopReason: null });
    expect(await firstOf(GREEDY)).toMatchObject({ finishReason: 'length', stopReason: null });
  });

  test('is on the last delta of a stream', async () => {
    const params = { ...GREEDY, stopTokenIds: [tokenIds[3]] };
    const reasons = (await deltasOf(llm.stream(prompt, params))).map((delta) => delta.stopReason);
    expect(reasons.at(-1)).toBe(tokenIds[3]);
    expect(reasons.slice(0, -1).every((reason) => reason === null)).toBe(true);
  });
});

describe('cumulativeLogprob', () => {
  const sum = (positions: readonly PositionLogprobs[], ids: readonly number[]) =>
    positions.reduce((total, position, i) => total + (position.get(ids[i])?.logprob ?? NaN), 0);

  test("is the sum of the tokens' logprobs", async () => {
    const output = await firstOf({ temperature: 0.8, seed: 3, maxTokens: 8, logprobs: 2 });
    const expected = sum(output.logprobs ?? [], output.tokenIds);
    expect(expected).toBeLessThan(0);
    expect(output.cumulativeLogprob).toBeCloseTo(expected, 5);
  });

  test('is null, or absent in a stream, unless logprobs are requested', async () => {
    expect((await firstOf(GREEDY)).cumulativeLogprob).toBeNull();
    const deltas = await deltasOf(llm.stream(prompt, GREEDY));
    expect(deltas.some((delta) => 'cumulativeLogprob' in delta)).toBe(false);
  });

  test('is the sum so far in a stream', async () => {
    const positions: PositionLogprobs[] = [];
    const ids: number[] = [];
    for await (const delta of llm.stream(prompt, { ...GREEDY, logprobs: 0 })) {
      positions.push(...(delta.logprobs ?? []));
      ids.push(...delta.tokenIds);
      expect(delta.cumulativeLogprob).toBeCloseTo(sum(positions, ids), 5);
    }
    expect(ids).toHaveLength(8);
  });
});

test('numCachedTokens are the full blocks that an earlier request left, of the first of n samples', async () => {
  llm.resetPrefixCache();
  const long = Array.from({ length: 40 }, (_, i) => 6 + i);
  const [first] = await llm.generate(long, GREEDY);
  expect(first.numCachedTokens).toBe(0);
  // Two full blocks of 16.
  const [second] = await llm.generate(long, { n: 3, maxTokens: 2 });
  expect(second.numCachedTokens).toBe(32);
});

describe('metrics', () => {
  test('are in order, and begin at the call', async () => {
    const now = () => performance.timeOrigin + performance.now();
    const before = now();
    const [{ metrics }] = await llm.generate(prompt, { ...GREEDY, ignoreEos: true });
    const after = now();
    expect(metrics.arrivalTimeMs).toBeGreaterThanOrEqual(before);
    expect(metrics.arrivalTimeMs).toBeLessThanOrEqual(after);
    const { queueTimeMs, timeToFirstTokenMs, timeToLastTokenMs } = metrics;
    expect(queueTimeMs).toBeGreaterThanOrEqual(0);
    expect(timeToFirstTokenMs).toBeGreaterThanOrEqual(queueTimeMs as number);
    expect(timeToLastTokenMs).toBeGreaterThan(timeToFirstTokenMs as number);
    expect(timeToLastTokenMs).toBeLessThanOrEqual(after - before);
  });

  test('agree with the event finished', async () => {
    const finished = new Promise<{ timeToFirstTokenMs: number | null }>((resolve) =>
      llm.events.once('finished', resolve),
    );
    const [{ metrics }] = await llm.generate(prompt, GREEDY);
    expect(await finished).toMatchObject({
      queueTimeMs: metrics.queueTimeMs,
      timeToFirstTokenMs: metrics.timeToFirstTokenMs,
    });
  });
});

describe('a stream', () => {
  test('knows its request, its prompt and, at the end, its usage', async () => {
    const stream = llm.stream({ promptTokenIds }, GREEDY);
    expect([stream.requestId, stream.numPromptTokens, stream.usage]).toEqual([null, null, null]);
    const { value } = await stream.next();
    expect(stream.requestId).toMatch(/^\d+$/);
    expect(value).toMatchObject({
      requestId: stream.requestId,
      numPromptTokens: promptTokenIds.length,
    });
    expect(stream.numPromptTokens).toBe(promptTokenIds.length);
    const last = (await deltasOf(stream)).at(-1) ?? value;
    const usage = {
      numPromptTokens: promptTokenIds.length,
      numCachedTokens: 0,
      numOutputTokens: 8,
    };
    expect(last).toMatchObject({
      usage,
      metrics: { timeToLastTokenMs: expect.any(Number) as number },
    });
    expect(stream.usage).toEqual(usage);
  });

  test.each([true, false])(
    'of several samples has its usage once, at its end; slow: %p',
    async (slow) => {
      const stream = llm.stream({ promptTokenIds }, { n: 3, maxTokens: 5, ignoreEos: true });
      const deltas: OutputDelta[] = [];
      for await (const delta of stream) {
        deltas.push(delta);
        // All of it is generated before the next read: a delta for each output is left.
        while (slow && llm.stats().numRunningReqs > 0) {
          await new Promise((resolve) => setImmediate(resolve));
        }
      }
      const withUsage = deltas.filter(({ usage }) => usage !== undefined);
      expect(withUsage).toEqual([deltas.at(-1)]);
      expect(withUsage[0].usage).toMatchObject({ numOutputTokens: 15 });
      expect(new Set(deltas.map(({ requestId }) => requestId)).size).toBe(1);
    },
  );

  test('has the id of the event finished', async () => {
    const finished = new Promise<{ requestId: string }>((resolve) =>
      llm.events.once('finished', resolve),
    );
    const stream = llm.stream(prompt, GREEDY);
    await deltasOf(stream);
    expect((await finished).requestId).toBe(stream.requestId);
  });
});

describe('the outputs of a call that ended early', () => {
  test('have the text that was held back for a stop string', async () => {
    const length = { temperature: 0, maxTokens: 200, ignoreEos: true };
    const { text } = await firstOf(length);
    const controller = new AbortController();
    // Held back from its first character until the whole string is there.
    const params = { ...length, stop: [`${text}.`] };
    const call = llm.generate(prompt, params, { signal: controller.signal });
    const ended = call.then(
      () => null,
      (error: unknown) => error as RequestAbortedError,
    );
    while (llm.stats().numRunningReqs === 0) await new Promise((done) => setImmediate(done));
    const before = llm.stats().numOutputTokens;
    while (llm.stats().numOutputTokens < before + 3)
      await new Promise((done) => setImmediate(done));
    controller.abort();
    const [{ outputs }] = (await ended)?.outputs ?? [];
    expect(outputs[0].text).toBe(await llm.tokenizer?.decode(outputs[0].tokenIds));
    expect(outputs[0].text).not.toBe('');
  });

  test('have the prompts, also those that were not encoded', async () => {
    const controller = new AbortController();
    const call = llm.generate([prompt, { promptTokenIds }], GREEDY, { signal: controller.signal });
    controller.abort();
    await expect(call).rejects.toMatchObject({
      outputs: [
        { prompt, promptTokenIds: [], outputs: [] },
        { prompt: null, outputs: [] },
      ],
    });
  });
});

describe('toReadableStream', () => {
  const idsOf = (deltas: readonly OutputDelta[]) => deltas.flatMap((delta) => delta.tokenIds);

  test('gives the same deltas', async () => {
    const readable = llm.stream({ promptTokenIds }, GREEDY).toReadableStream();
    const deltas: OutputDelta[] = [];
    for await (const delta of readable) deltas.push(delta);
    expect(idsOf(deltas)).toEqual(tokenIds.slice(0, 8));
    expect(deltas.at(-1)).toMatchObject({ finishReason: 'length', usage: { numOutputTokens: 8 } });
  });

  test('is a web ReadableStream that can be piped', async () => {
    const text = new TransformStream<OutputDelta, Uint8Array>({
      transform: (delta, controller) => controller.enqueue(Buffer.from(delta.text)),
    });
    const readable = llm.stream({ promptTokenIds }, GREEDY).toReadableStream();
    expect(readable).toBeInstanceOf(ReadableStream);
    const response = new Response(readable.pipeThrough(text) as never);
    expect(await response.text()).toBe((await firstOf(GREEDY, { promptTokenIds })).text);
  });

  test('makes no call before a reader reads, and reads nothing ahead', async () => {
    const stream = llm.stream({ promptTokenIds }, { ...GREEDY, ignoreEos: true });
    const next = jest.spyOn(stream, 'next');
    const reader = stream.toReadableStream().getReader();
    await new Promise((resolve) => setImmediate(resolve));
    expect(next).not.toHaveBeenCalled();
    expect(llm.stats().numRunningReqs + llm.stats().numWaitingReqs).toBe(0);
    await reader.read();
    await new Promise((resolve) => setImmediate(resolve));
    expect(next).toHaveBeenCalledTimes(1);
    // What was generated meanwhile is one delta.
    while (llm.stats().numRunningReqs > 0) await new Promise((resolve) => setImmediate(resolve));
    const { value } = await reader.read();
    expect(value?.finishReason).toBe('length');
    expect(await reader.read()).toEqual({ done: true, value: undefined });
  });

  test('cancelling it aborts the request', async () => {
    const reader = llm
      .stream(prompt, { maxTokens: 200, ignoreEos: true })
      .toReadableStream()
      .getReader();
    await reader.read();
    const aborted = new Promise<{ finishReason: string }>((resolve) =>
      llm.events.once('finished', resolve),
    );
    await reader.cancel('the client left');
    expect((await aborted).finishReason).toBe('abort');
    while (llm.stats().numRunningReqs > 0) await new Promise((resolve) => setImmediate(resolve));
    expect(llm.stats().kvCacheUsage).toBe(0);
  });

  test('an error of the call errors it', async () => {
    const refused = llm.stream(prompt, { temperature: -1 }).toReadableStream().getReader();
    await expect(refused.read()).rejects.toMatchObject({ code: 'REQUEST_INVALID' });
    const controller = new AbortController();
    const { signal } = controller;
    const endless = { maxTokens: 200, ignoreEos: true };
    const reader = llm.stream(prompt, endless, { signal }).toReadableStream().getReader();
    await reader.read();
    controller.abort();
    await expect(
      (async () => {
        while (!(await reader.read()).done);
      })(),
    ).rejects.toMatchObject({ code: 'ABORT_ERR' });
  });
});
