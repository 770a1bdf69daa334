/** The public API with the model in models/, compared with transformers. */
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import {
  type CreateArgs,
  InvalidRequestError,
  LLM,
  type LoadProgress,
  type FinishedRequest,
  type OutputDelta,
  QueueFullError,
  type RequestOutput,
  RequestTimeoutError,
  SamplingParams,
  ShutdownError,
} from '../lib';
import { loadProgressBar } from '../lib/progressBar';
import { until } from './executor/support';
import { stories as reference } from './support/stories';
import { abortedBy } from './support/aborted';

const prompts = reference.prompts.map(({ prompt }) => prompt);
const greedy = new SamplingParams({ temperature: 0, maxTokens: 64 });
const sampled = new SamplingParams({ temperature: 0.9, topP: 0.95, seed: 11, maxTokens: 40 });

const SMALL: CreateArgs = {
  dtype: 'float32',
  maxModelLen: 512,
  maxNumSeqs: 8,
  kvCacheMemoryBytes: 64 * 2 ** 20,
};

const made: LLM[] = [];

async function create(args: CreateArgs = {}): Promise<LLM> {
  const llm = await LLM.create({ ...SMALL, ...args });
  made.push(llm);
  return llm;
}

afterAll(async () => {
  await Promise.all(made.map((llm) => llm.shutdown()));
});

const tokensOf = (outputs: RequestOutput[]) =>
  outputs.map(({ outputs: [{ tokenIds }] }) => tokenIds);

async function readAll(stream: AsyncIterable<OutputDelta>): Promise<OutputDelta[]> {
  const deltas: OutputDelta[] = [];
  for await (const delta of stream) deltas.push(delta);
  return deltas;
}

let llm: LLM;

beforeAll(async () => {
  llm = await create();
});

describe('generate', () => {
  test("returns transformers' outputs for several prompts in one call", async () => {
    const outputs = await llm.generate(prompts, greedy);
    expect(outputs).toMatchObject(
      reference.prompts.map(({ prompt, promptTokenIds, tokenIds, text }) => ({
        prompt,
        promptTokenIds,
        promptLogprobs: null,
        outputs: [{ index: 0, tokenIds, text, logprobs: null }],
      })),
    );
  });

  test('reports the finish reason', async () => {
    const outputs = await llm.generate(prompts, greedy);
    // Outputs that reached the limit have all 64 tokens.
    expect(outputs.map(({ outputs: [{ finishReason }] }) => finishReason)).toEqual(
      reference.prompts.map(({ tokenIds }) => (tokenIds.length === 64 ? 'length' : 'stop')),
    );
    expect(outputs.some(({ outputs: [{ finishReason }] }) => finishReason === 'stop')).toBe(true);
  });

  test('accepts one prompt, as text or token ids', async () => {
    const [{ prompt, promptTokenIds, tokenIds }] = reference.prompts;
    expect(tokensOf(await llm.generate(prompt, greedy))).toEqual([tokenIds]);
    expect(tokensOf(await llm.generate({ prompt }, greedy))).toEqual([tokenIds]);
    expect(tokensOf(await llm.generate({ promptTokenIds }, greedy))).toEqual([tokenIds]);
  });

  test('accepts parameters for each prompt', async () => {
    const params = [3, 5].map((maxTokens) => new SamplingParams({ temperature: 0, maxTokens }));
    const outputs = await llm.generate(prompts.slice(0, 2), params);
    expect(tokensOf(outputs)).toEqual(
      [3, 5].map((maxTokens, i) => reference.prompts[i].tokenIds.slice(0, maxTokens)),
    );
  });

  test('an empty list is no prompts; an empty list in it is an empty prompt', async () => {
    expect(await llm.generate([])).toEqual([]);
    await expect(llm.generate([[]])).rejects.toMatchObject({
      code: 'REQUEST_INVALID',
      message: 'prompt 0: it is empty',
    });
  });

  test('reports logprobs: the sampled token and the likeliest', async () => {
    const params = new SamplingParams({ temperature: 0, maxTokens: 4, logprobs: 3 });
    const [{ outputs }] = await llm.generate(prompts[0], params);
    const { tokenIds, logprobs } = outputs[0];
    expect(logprobs).toHaveLength(4);
    logprobs?.forEach((position, i) => {
      // Greedy: the sampled token is the likeliest, so there are three and not four.
      expect([...position.values()].map(({ rank }) => rank)).toEqual([1, 2, 3]);
      const [first, second, third] = [...position.values()].map(({ logprob }) => logprob);
      expect(first).toBeGreaterThanOrEqual(second);
      expect(second).toBeGreaterThanOrEqual(third);
      expect(first).toBeLessThanOrEqual(0);
      expect([...position.keys()][0]).toBe(tokenIds[i]);
    });
    const text = logprobs?.map((position, i) => position.get(tokenIds[i])?.decodedToken).join('');
    expect(text).toBe(outputs[0].text);
  });

  test('reports prompt logprobs equal to those of generating it', async () => {
    const [{ promptTokenIds, tokenIds }] = reference.prompts;
    const generating = new SamplingParams({ temperature: 0, maxTokens: 20, logprobs: 0 });
    const [generated] = await llm.generate({ promptTokenIds }, generating);
    const whole = [...promptTokenIds, ...tokenIds.slice(0, 20)];
    const reading = new SamplingParams({ temperature: 0, maxTokens: 1, promptLogprobs: 0 });
    const [read] = await llm.generate({ promptTokenIds: whole }, reading);
    expect(read.promptLogprobs).toHaveLength(whole.length);
    expect(read.promptLogprobs?.[0]).toBeNull();
    const tail = read.promptLogprobs?.slice(promptTokenIds.length) ?? [];
    tail.forEach((position, i) => {
      const inPrompt = position?.get(whole[promptTokenIds.length + i]);
      const inOutput = generated.outputs[0].logprobs?.[i].get(tokenIds[i]);
      expect(inPrompt?.rank).toBe(inOutput?.rank);
      expect(inPrompt?.logprob).toBeCloseTo(inOutput?.logprob ?? NaN, 4);
    });
  });

  test('returns several different samples of a prompt', async () => {
    const params = new SamplingParams({ n: 4, seed: 3, maxTokens: 24 });
    const [{ outputs }] = await llm.generate(prompts[0], params);
    expect(outputs.map(({ index }) => index)).toEqual([0, 1, 2, 3]);
    expect(new Set(outputs.map(({ text }) => text)).size).toBe(4);
    const [alone] = await llm.generate(prompts[0], new SamplingParams({ seed: 3, maxTokens: 24 }));
    expect(alone.outputs[0].text).toBe(outputs[0].text);
  });
});

describe('the tokens are the same', () => {
  let expected: number[][];
  const params = [greedy, sampled, greedy, sampled];

  beforeAll(async () => {
    expected = [];
    for (const [i, prompt] of prompts.entries()) {
      expected.push(...tokensOf(await llm.generate(prompt, params[i])));
    }
  });

  test.each<[string, CreateArgs]>([
    ['alone and in company', {}],
    ['with and without async scheduling', { asyncScheduling: false }],
    ['with prompts in chunks of 7', { maxNumBatchedTokens: 7, maxNumSeqs: 4 }],
    ['one request after the other', { maxNumSeqs: 1 }],
    ['with blocks of 3 tokens', { blockSize: 3 }],
  ])('%s', async (_, args) => {
    const other = await create(args);
    expect(tokensOf(await other.generate(prompts, params))).toEqual(expected);
  });

  test('with too few blocks for all at once', async () => {
    // 5 layers of keys and values, 4 heads of 32, 4 bytes: 5 KiB a token; three requests share 112
    // tokens of cache and need 180.
    const other = await create({ maxModelLen: 96, kvCacheMemoryBytes: 112 * 5 * 1024 });
    let numPreempted = 0;
    const { executor } = other.engine;
    const executeModel = executor.executeModel.bind(executor);
    executor.executeModel = ((step, options) => {
      numPreempted += step.preemptedReqIds.length;
      return executeModel(step, options as never);
    }) as typeof executor.executeModel;
    const outputs = await other.generate(prompts.slice(0, 3), params.slice(0, 3));
    expect(tokensOf(outputs)).toEqual(expected.slice(0, 3));
    expect(numPreempted).toBeGreaterThan(0);
  });
});

describe('stop', () => {
  const [{ prompt, text, tokenIds }] = reference.prompts;

  test('strings end the text before them', async () => {
    const stop = text.slice(60, 67);
    const params = new SamplingParams({ temperature: 0, maxTokens: 64, stop });
    const [{ outputs }] = await llm.generate(prompt, params);
    expect(outputs[0]).toMatchObject({
      text: text.slice(0, text.indexOf(stop)),
      finishReason: 'stop',
    });
    const deltas = await readAll(llm.stream(prompt, params));
    expect(deltas.map((delta) => delta.text).join('')).toBe(outputs[0].text);
  });

  test('token ids end the output with them', async () => {
    const params = new SamplingParams({
      temperature: 0,
      maxTokens: 64,
      stopTokenIds: [tokenIds[9]],
    });
    const [{ outputs }] = await llm.generate(prompt, params);
    expect(outputs[0]).toMatchObject({
      tokenIds: tokenIds.slice(0, 1 + tokenIds.indexOf(tokenIds[9])),
      finishReason: 'stop',
    });
  });

  test('tokens of the model are ignored with ignoreEos', async () => {
    const { prompt: ending, tokenIds: ended } = reference.prompts[3];
    const params = new SamplingParams({ temperature: 0, maxTokens: 64, ignoreEos: true });
    const [{ outputs }] = await llm.generate(ending, params);
    expect(outputs[0].tokenIds).toHaveLength(64);
    expect(outputs[0].tokenIds.slice(0, ended.length)).toEqual(ended);
  });
});

test('bad words are not generated, at the start of a word or after a space', async () => {
  const params = new SamplingParams({ temperature: 0, maxTokens: 64, badWords: ['little'] });
  const [{ outputs }] = await llm.generate(prompts[0], params);
  expect(reference.prompts[0].text).toContain('little');
  expect(outputs[0].text).not.toContain('little');
});

describe('stream', () => {
  test('streams text that adds up to the whole', async () => {
    const [{ prompt, text, tokenIds }] = reference.prompts;
    const deltas = await readAll(llm.stream(prompt, greedy));
    expect(deltas.length).toBeGreaterThan(1);
    expect(deltas.map((delta) => delta.text).join('')).toBe(text);
    expect(deltas.flatMap((delta) => delta.tokenIds)).toEqual(tokenIds);
    expect(deltas.at(-1)?.finishReason).toBe('length');
  });

  test('may be left early, and the engine continues', async () => {
    for await (const delta of llm.stream(prompts[0], greedy)) {
      expect(delta.index).toBe(0);
      break;
    }
    const [{ prompt, tokenIds }] = reference.prompts;
    expect(tokensOf(await llm.generate(prompt, greedy))).toEqual([tokenIds]);
  });
});

describe('chat', () => {
  const { messages, promptTokenIds, tokenIds, text } = reference.chat;

  test("renders a conversation with the model's template", async () => {
    expect(await llm.chat(messages, greedy)).toMatchObject([
      { promptTokenIds, outputs: [{ tokenIds, text, finishReason: 'stop' }] },
    ]);
  });

  test('accepts several conversations', async () => {
    const outputs = await llm.chat([messages, messages], greedy);
    expect(tokensOf(outputs)).toEqual([tokenIds, tokenIds]);
  });
});

describe('chatStream', () => {
  const { messages, tokenIds, text } = reference.chat;

  test("streams chat's output", async () => {
    const deltas = await readAll(llm.chatStream(messages, greedy));
    expect(deltas.length).toBeGreaterThan(1);
    expect(deltas.map((delta) => delta.text).join('')).toBe(text);
    expect(deltas.flatMap((delta) => delta.tokenIds)).toEqual(tokenIds);
    expect(deltas.at(-1)?.finishReason).toBe('stop');
  });

  test.each([[undefined], [[]], ['Hello'], [[7]]])('refuses %j at the first read', async (bad) => {
    const stream = llm.chatStream(bad as never);
    await expect(stream.next()).rejects.toMatchObject({ code: 'REQUEST_INVALID' });
  });
});

describe('an aborted call', () => {
  const endless = new SamplingParams({ temperature: 0, maxTokens: 400, ignoreEos: true });
  const reason = new Error('the client went away');
  const { messages } = reference.chat;

  /** Each kind of call, with a signal. */
  const calls: [string, (signal: AbortSignal) => Promise<unknown>][] = [
    ['generate', (signal) => llm.generate(prompts, endless, { signal })],
    ['chat', (signal) => llm.chat(messages, endless, { signal })],
    ['stream', (signal) => readAll(llm.stream(prompts[0], endless, { signal }))],
    ['chatStream', (signal) => readAll(llm.chatStream(messages, endless, { signal }))],
  ];

  /**
   * Resolves once the aborted requests have left the batch: a step with another request is done.
   */
  async function expectNothingHeld(): Promise<void> {
    const [{ prompt, tokenIds }] = reference.prompts;
    const params = new SamplingParams({ temperature: 0, maxTokens: 2 });
    expect(tokensOf(await llm.generate(prompt, params))).toEqual([tokenIds.slice(0, 2)]);
    expect(llm.stats()).toMatchObject({ numRunningReqs: 0, numWaitingReqs: 0, kvCacheUsage: 0 });
  }

  test.each(calls)(
    "%s rejects with an AbortError caused by the signal's reason",
    async (_, start) => {
      const controller = new AbortController();
      const call = start(controller.signal);
      const rejected = expect(call).rejects.toMatchObject(abortedBy(reason));
      await until(() => llm.stats().numRunningReqs > 0);
      controller.abort(reason);
      await rejected;
      await expectNothingHeld();
    },
  );

  test.each(calls)('%s rejects before anything runs if already aborted', async (_, start) => {
    const { numFinishedReqs, numPromptTokens } = llm.stats();
    await expect(start(AbortSignal.abort(reason))).rejects.toMatchObject(abortedBy(reason));
    expect(llm.stats()).toMatchObject({ numFinishedReqs, numPromptTokens, numWaitingReqs: 0 });
  });

  test.each([
    ['generate', () => llm.generate(prompts, endless, { timeoutMs: 5 })],
    ['chat', () => llm.chat(messages, endless, { timeoutMs: 5 })],
    ['stream', () => readAll(llm.stream(prompts[0], endless, { timeoutMs: 5 }))],
    ['chatStream', () => readAll(llm.chatStream(messages, endless, { timeoutMs: 5 }))],
  ])('%s rejects when its timeout expires', async (_, start) => {
    const call = start();
    await expect(call).rejects.toBeInstanceOf(RequestTimeoutError);
    await expect(call).rejects.toMatchObject({ timeoutMs: 5 });
    await expectNothingHeld();
  });

  test('after any number of tokens leaves nothing behind', async () => {
    for (let count = 0; count < 20; count++) {
      const controller = new AbortController();
      const { signal } = controller;
      const other = llm.generate(prompts[1], new SamplingParams({ maxTokens: 30 }), { signal });
      const aborted = expect(other).rejects.toMatchObject(abortedBy(reason));
      let left = count;
      for await (const { tokenIds } of llm.stream(prompts[0], endless)) {
        if ((left -= tokenIds.length) <= 0) break;
      }
      controller.abort(reason);
      await aborted;
      await expectNothingHeld();
    }
  });

  test('by leaving its stream frees its blocks before the next step', async () => {
    for await (const delta of llm.stream(prompts[0], endless)) {
      expect(delta.index).toBe(0);
      break;
    }
    await expectNothingHeld();
  });
});

test('a full queue refuses a call and serves waiting ones', async () => {
  // One runs, one waits.
  const busy = await create({ maxNumSeqs: 1, maxQueuedRequests: 1 });
  const queued = busy.generate(prompts.slice(0, 2), greedy);
  const refused = [
    busy.generate(prompts[2], greedy),
    busy.chat(reference.chat.messages, greedy),
    busy.stream(prompts[2], greedy).next(),
  ];
  for (const result of await Promise.allSettled(refused)) {
    expect((result as PromiseRejectedResult).reason).toBeInstanceOf(QueueFullError);
  }
  expect(tokensOf(await queued)).toEqual(
    reference.prompts.slice(0, 2).map(({ tokenIds }) => tokenIds),
  );
  await busy.generate(prompts[2], greedy);
});

test("stats and events report an engine's work", async () => {
  const watched = await create();
  const finished: FinishedRequest[] = [];
  watched.events.on('finished', (request) => finished.push(request));
  await watched.generate(prompts, greedy);
  const stats = watched.stats();
  const sum = (numbers: number[]) => numbers.reduce((a, b) => a + b);
  const numPromptTokens = sum(reference.prompts.map((one) => one.promptTokenIds.length));
  const numOutputTokens = sum(reference.prompts.map((one) => one.tokenIds.length));
  expect(stats).toMatchObject({ numPromptTokens, numOutputTokens });
  expect(stats.numFinishedReqs.length + stats.numFinishedReqs.stop).toBe(prompts.length);
  expect(stats.timeToFirstTokenMs.count).toBe(prompts.length);
  expect(stats.interTokenLatencyMs.count).toBe(numOutputTokens - prompts.length);
  expect(finished.map(({ requestId }) => Number(requestId)).sort()).toEqual(
    prompts.map((_, i) => i),
  );
  for (const { requestId, ...request } of finished) {
    const { promptTokenIds, tokenIds } = reference.prompts[Number(requestId)];
    expect(request).toMatchObject({
      numPromptTokens: promptTokenIds.length,
      numOutputTokens: tokenIds.length,
      finishReason: tokenIds.length === 64 ? 'length' : 'stop',
    });
  }
});

describe('an invalid prompt', () => {
  test('rejects its whole call and no other', async () => {
    const other = llm.generate(prompts[0], greedy);
    const call = llm.generate([prompts[1], { promptTokenIds: [1, 99999] }], greedy);
    await expect(call).rejects.toThrow(InvalidRequestError);
    await expect(call).rejects.toMatchObject({
      code: 'REQUEST_INVALID',
      message: expect.stringMatching(/^prompt 1: .*99999/) as string,
    });
    expect(tokensOf(await other)).toEqual([reference.prompts[0].tokenIds]);
  });

  test('rejects a stream at the first read', async () => {
    await expect(llm.stream({ promptTokenIds: [] }).next()).rejects.toThrow(InvalidRequestError);
  });

  test('rejects a chat, naming the conversation', async () => {
    const bad = [{ role: 'parrot', content: 'Hello' }];
    await expect(llm.chat([reference.chat.messages, bad])).rejects.toThrow(/^conversation 1: /);
    await expect(llm.chat([])).rejects.toThrow(InvalidRequestError);
  });
});

test('without a tokenizer only token ids are supported', async () => {
  const plain = await create({ skipTokenizerInit: true });
  const [{ promptTokenIds, tokenIds }] = reference.prompts;
  const params = new SamplingParams({ temperature: 0, maxTokens: 64, logprobs: 0 });
  const [output] = await plain.generate({ promptTokenIds }, params);
  expect(output.outputs[0]).toMatchObject({ text: '', tokenIds });
  expect(output.outputs[0].logprobs?.[0].get(tokenIds[0])).toMatchObject({ decodedToken: null });
  await expect(plain.generate('Once')).rejects.toThrow(/skipTokenizerInit/);
});

test('the load reports its progress', async () => {
  const reports: LoadProgress[] = [];
  const start = performance.now();
  await create({ onProgress: (progress) => reports.push(progress) });
  expect(reports.length).toBeGreaterThan(0);
  const passed = performance.now() - start;
  const { bytes, totalBytes, tensors, totalTensors, bytesPerSecond } = reports.at(
    -1,
  ) as LoadProgress;
  expect([bytes, tensors]).toEqual([totalBytes, totalTensors]);
  expect(totalBytes).toBeGreaterThan(1e6);
  expect(bytesPerSecond).toBeGreaterThan((1000 * totalBytes) / passed);
  expect(bytesPerSecond).toBeLessThan(1e12);
});

test('the start can be aborted', async () => {
  const signal = AbortSignal.abort(new Error('no longer wanted'));
  await expect(LLM.create({ ...SMALL, signal })).rejects.toThrow('no longer wanted');
});

test('after shutdown, pending and later calls reject', async () => {
  const short = await create();
  const pending = short.generate(prompts, greedy);
  const streaming = readAll(short.stream(prompts[0], greedy));
  const rejected = Promise.all([
    expect(pending).rejects.toThrow(ShutdownError),
    expect(streaming).rejects.toThrow(ShutdownError),
  ]);
  await until(() => short.stats().numRunningReqs > 0);
  await short.shutdown();
  await rejected;
  await expect(short.generate(prompts[0])).rejects.toThrow(ShutdownError);
  await short.shutdown();
});

describe('an executor that sleeps under a running engine', () => {
  let sleeper: LLM;

  beforeEach(async () => {
    sleeper = await create();
  });

  const generates = async () => {
    const [{ promptTokenIds, tokenIds }] = reference.prompts;
    expect(tokensOf(await sleeper.generate({ promptTokenIds }, greedy))).toEqual([tokenIds]);
  };

  test('refuses requests, also one made in the same turn, and serves them once awake', async () => {
    const { executor } = sleeper.engine;
    const sameTurn = expect(sleeper.generate('One day', greedy)).rejects.toMatchObject({
      code: 'INVALID_STATE',
    });
    await executor.sleep();
    await sameTurn;
    await expect(sleeper.generate('One day', greedy)).rejects.toMatchObject({
      code: 'INVALID_STATE',
    });
    await executor.wakeUp();
    await generates();
  });

  test('refuses to sleep during a request, which continues', async () => {
    const running = generates();
    const stream = sleeper.stream('One day', greedy);
    await stream.next();
    await expect(sleeper.engine.executor.sleep()).rejects.toThrow(/requests unfinished/);
    await stream.return();
    await running;
  });

  test('has no cache hits from before', async () => {
    const [{ promptTokenIds, tokenIds }] = reference.prompts;
    const prompt = { promptTokenIds: [...promptTokenIds, ...tokenIds] };
    const before = tokensOf(await sleeper.generate(prompt, greedy));
    await sleeper.engine.executor.sleep();
    await sleeper.engine.executor.wakeUp();
    expect(tokensOf(await sleeper.generate(prompt, greedy))).toEqual(before);
  });

  test('runs overlapping sleep and wakeUp calls in order', async () => {
    const { executor } = sleeper.engine;
    await Promise.all([executor.sleep(2), executor.wakeUp(['weights']), executor.wakeUp()]);
    expect(executor.isSleeping).toBe(false);
    await generates();
  });
});

test('a stream left while waiting ends at once', async () => {
  const one = await create({ maxNumSeqs: 1 });
  const long = new SamplingParams({ temperature: 0, maxTokens: 400, ignoreEos: true });
  const running = one.generate('One day', long);
  const queued = one.stream('Tom', greedy);
  const read = queued.next();
  await new Promise(setImmediate);
  await queued.return();
  expect(await read).toEqual({ done: true, value: undefined });
  const isDone = jest.fn();
  const done = running.then(isDone);
  await until(() => one.engine.numUnfinishedRequests === 1);
  expect(isDone).not.toHaveBeenCalled();
  await done;
});

describe('an invalid option', () => {
  test.each([[5], [null], ['models/stories'], [[]]])('LLM.create(%j)', async (args) => {
    await expect(LLM.create(args as never)).rejects.toMatchObject({ code: 'CONFIG_INVALID' });
  });

  test.each([[{ onProgress: 5 }], [{ signal: 'stop' }]])('LLM.create(%j)', async (args) => {
    await expect(create(args as never)).rejects.toMatchObject({ code: 'CONFIG_INVALID' });
  });

  test.each([[{ timeoutMs: 0 }], [{ signal: 'stop' }], [{ timeout: 5 }], [null], [5]])(
    'the options %j of a call',
    async (options) => {
      const refused = { code: 'REQUEST_INVALID' };
      const bad = options as never;
      const { messages } = reference.chat;
      await expect(llm.generate('Hello', greedy, bad)).rejects.toMatchObject(refused);
      await expect(llm.chat(messages, greedy, bad)).rejects.toMatchObject(refused);
      await expect(llm.stream('Hello', greedy, bad).next()).rejects.toMatchObject(refused);
      await expect(llm.chatStream(messages, greedy, bad).next()).rejects.toMatchObject(refused);
    },
  );

  test.each([[undefined], [[]], ['Hello'], [[7]]])('chat(%j)', async (messages) => {
    await expect(llm.chat(messages as never)).rejects.toMatchObject({ code: 'REQUEST_INVALID' });
  });
});

test('an onProgress that throws fails the load', async () => {
  const onProgress = () => {
    throw new Error('enough');
  };
  await expect(create({ onProgress })).rejects.toThrow('enough');
});

test('the load shows a bar on a terminal and clears it at the end', async () => {
  const drawn: string[] = [];
  const terminal = { write: (text: string) => drawn.push(text) } as unknown as NodeJS.WriteStream;
  await create({ onProgress: loadProgressBar(terminal) });
  expect(drawn.some((text) => /\[=* *\] \d+% of 7\.0 MB, \d+\.\d GB\/s/.test(text))).toBe(true);
  expect(drawn.at(-1)).toBe('\r\x1b[K');
});

describe('a process', () => {
  /** Runs a program with LLM, SamplingParams and args in scope. */
  function run(program: string) {
    const script = `
      const { LLM, SamplingParams } = require(${JSON.stringify(path.join(__dirname, '..', 'lib'))});
      const args = ${JSON.stringify(SMALL)};
      (async () => { ${program} })();
    `;
    const require = path.join(__dirname, 'executor', 'requireTypescript.js');
    const options = { encoding: 'utf8', timeout: 240_000 } as const;
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      ['--require', require, '--eval', script],
      options,
    );
    return { status, stdout, stderr };
  }

  test('exits by itself after shutdown', () => {
    const program = `
      const llm = await LLM.create(args);
      const [out] = await llm.generate('One day', new SamplingParams({ maxTokens: 4 }));
      console.log(out.outputs[0].tokenIds.length);
      await llm[Symbol.asyncDispose]();
    `;
    expect(run(program)).toEqual({ status: 0, stdout: '4\n', stderr: '' });
  });

  describe("shows a batch's progress", () => {
    const LINE = /^\[=* *\] (0|8|16|24)\/24 prompts, \d+ tokens\/s in, \d+ out$/;

    /** Three times maxNumSeqs. */
    const batch = Array.from({ length: 24 }, () => 'One day');

    /** What a call writes to stderr, which poses as a terminal or not. */
    function draws(isTerminal: boolean, prompts: string[], options: string): string[] {
      const { status, stderr } = run(`
        const llm = await LLM.create(args);
        process.stderr.isTTY = ${isTerminal};
        const params = new SamplingParams({ maxTokens: 300, ignoreEos: true });
        await llm.generate(${JSON.stringify(prompts)}, params, ${options});
      `);
      expect(status).toBe(0);
      return stderr.split('\r\x1b[K');
    }

    test.each([
      ['on a terminal', true, '{}'],
      ['elsewhere where it is asked to', false, '{ progress: true }'],
    ])('%s, and wipes that in the end', (_, isTerminal, options) => {
      const lines = draws(isTerminal, batch, options);
      expect(lines.length).toBeGreaterThan(3);
      expect(lines.join()).toContain(' 16/24 ');
      expect([lines.shift(), lines.pop()]).toEqual(['', '']);
      for (const line of lines) expect(line).toMatch(LINE);
      expect(lines.at(-1)).toMatch(/ [1-9]\d* tokens\/s in, [1-9]\d* out$/);
    });

    test.each([
      ['elsewhere', false, ['One day', 'Tom'], '{}'],
      ['of one prompt', true, ['One day'], '{}'],
      ['where it is told not to', true, ['One day', 'Tom'], '{ progress: false }'],
    ])('but not %s', (_, isTerminal, prompts, options) => {
      expect(draws(isTerminal, prompts, options)).toEqual(['']);
    });
  });

  test("gets a listener's error as an uncaught exception, and the engine continues", () => {
    const program = `
      process.on('uncaughtException', (error) => console.log(error.message));
      const llm = await LLM.create(args);
      llm.events.on('finished', () => { throw new Error('the log is full'); });
      const [first] = await llm.generate('One day', new SamplingParams({ maxTokens: 4 }));
      const [second] = await llm.generate('One day', new SamplingParams({ maxTokens: 5 }));
      console.log(first.outputs[0].tokenIds.length, second.outputs[0].tokenIds.length);
    `;
    const { status, stdout } = run(program);
    expect(status).toBe(0);
    expect(stdout.split('\n').sort()).toEqual(['', '4 5', 'the log is full', 'the log is full']);
  });

  test('exits by itself with a long timeout pending', () => {
    const program = `
      const llm = await LLM.create(args);
      const { signal } = new AbortController();
      const params = new SamplingParams({ maxTokens: 4 });
      await llm.generate('One day', params, { timeoutMs: 1e9, signal });
      for await (const delta of llm.stream('One day', params, { timeoutMs: 1e9, signal })) break;
      console.log('done');
    `;
    expect(run(program)).toEqual({ status: 0, stdout: 'done\n', stderr: '' });
  });

  test('runs on the CPU by default if there is no GPU', () => {
    const program = `
      process.env.CUDA_VISIBLE_DEVICES = '';
      const llm = await LLM.create(args);
      console.log(llm.engine.config.device.name);
    `;
    expect(run(program)).toEqual({ status: 0, stdout: 'cpu\n', stderr: '' });
  });

  test('exits by itself with an idle engine', () => {
    const program = `
      const llm = await LLM.create(args);
      await llm.generate('One day', new SamplingParams({ maxTokens: 4 }));
      console.log('done');
    `;
    expect(run(program)).toEqual({ status: 0, stdout: 'done\n', stderr: '' });
  });
});
