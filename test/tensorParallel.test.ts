/**
 * Ranks in separate processes, on the CPU in float32, compared with one rank and with transformers.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import path from 'node:path';
import { familiesFor } from './support/families';
import { stories } from './support/stories';
import {
  type DescribedError,
  furthest,
  type Logprobs,
  runLLMs,
  startLLMs,
} from './support/tensorParallel';

const TOLERANCE = 1e-4;

interface Generated {
  text: string;
  tokenIds: number[];
  /** By position of the prompt except the first, and of the output. */
  logprobs: Logprobs[];
}

/** Converts outputs to Generated. */
const SHOW = `
const pairs = (position) => [...position].map(([tokenId, { logprob }]) => [tokenId, logprob]);
const show = ({ promptLogprobs, outputs }) => outputs.map(({ text, tokenIds, logprobs }) => ({
  text,
  tokenIds,
  logprobs: [...(promptLogprobs ?? []).slice(1), ...(logprobs ?? [])].map(pairs),
}));
`;

function likeliest(logprobs: Logprobs): Logprobs {
  return [...logprobs].sort(([, a], [, b]) => b - a);
}

/** The likeliest token, if no other is close. */
function clearArgMax(logprobs: Logprobs): number | null {
  const [first, second] = likeliest(logprobs);
  return first[1] - second[1] > 2 * TOLERANCE ? first[0] : null;
}

describe('1, 2 and 4 ranks of the small model', () => {
  const PROGRAM = `${SHOW}
    const llm = await createLLM({ maxModelLen: 256 });
    const prompts = ${JSON.stringify(stories.prompts.map(({ prompt }) => prompt))};
    const of = (options) => new SamplingParams({ maxTokens: 32, logprobs: 5, promptLogprobs: 5, ...options });
    const outputs = [
      ...(await llm.generate(prompts, of({ temperature: 0, maxTokens: 48 }))),
      ...(await llm.generate(prompts, of({}))),
      ...(await llm.generate(prompts[0], of({ n: 3, topP: 0.9, topK: 40, seed: 11 }))),
      ...(await llm.generate(prompts[1], of({ presencePenalty: 1, repetitionPenalty: 1.2, minP: 0.02 }))),
      ...(await llm.chat([{ role: 'user', content: 'Tell me of a dog.' }], of({}))),
    ];
    for (const output of outputs.flatMap(show)) say(output);
    await llm.shutdown();`;
  const byWorldSize = new Map<number, Generated[][]>();
  const ofRanks = (worldSize: number) => byWorldSize.get(worldSize) as Generated[][];

  beforeAll(async () => {
    for (const worldSize of [1, 2, 4]) {
      byWorldSize.set(worldSize, await runLLMs<Generated>(PROGRAM, worldSize));
    }
  }, 600_000);

  test("one rank generates transformers' greedy tokens", () => {
    const [ofRank] = ofRanks(1);
    for (const [i, { tokenIds }] of stories.prompts.entries()) {
      const length = Math.min(tokenIds.length, 48);
      expect(ofRank[i].tokenIds.slice(0, length)).toEqual(tokenIds.slice(0, length));
    }
  });

  describe.each([2, 4])('%i ranks', (worldSize) => {
    test('all print the same, bit for bit', () => {
      const [first, ...others] = ofRanks(worldSize);
      expect(others).toHaveLength(worldSize - 1);
      for (const other of others) expect(other).toEqual(first);
    });

    test('generate the tokens of one rank, greedy and sampled', () => {
      const tokens = (generated: Generated[]) =>
        generated.map(({ text, tokenIds }) => ({ text, tokenIds }));
      expect(tokens(ofRanks(worldSize)[0])).toEqual(tokens(ofRanks(1)[0]));
    });

    test('report the logprobs of one rank, and its arg max if unambiguous', () => {
      const ours = ofRanks(worldSize)[0].flatMap(({ logprobs }) => logprobs);
      const theirs = ofRanks(1)[0].flatMap(({ logprobs }) => logprobs);
      expect(ours).toHaveLength(theirs.length);
      const distances = ours.map((position, i) => furthest(position, theirs[i]));
      expect(Math.max(...distances)).toBeLessThanOrEqual(TOLERANCE);
      for (const [i, position] of theirs.entries()) {
        const argMax = clearArgMax(position);
        if (argMax !== null) expect(likeliest(ours[i])[0][0]).toBe(argMax);
      }
    });
  });
});

describe('other divisions of models, compared with transformers', () => {
  interface Expected {
    promptTokenIds: number[];
    tokenIds: number[];
    /** By position of prompt and continuation except the first. */
    float32: { logprob: number; top: Logprobs }[];
  }
  const expectedOf = (family: string) =>
    JSON.parse(
      readFileSync(path.join(__dirname, 'golden', 'expected', `${family}.json`), 'utf8'),
    ) as { prompts: Expected[] };

  const PROGRAM = (families: string[]) => `${SHOW}
    process.removeAllListeners('warning');
    process.on('warning', (warning) => {
      if (warning.code !== 'UNIPROC_LANGUAGE_MODEL_ONLY') console.error(warning);
    });
    const params = new SamplingParams({ temperature: 0, maxTokens: 32, logprobs: 5, promptLogprobs: 5, ignoreEos: true });
    for (const family of ${JSON.stringify(families)}) {
      const prompts = require('./test/golden/expected/' + family + '.json').prompts;
      const longest = Math.max(...prompts.map(({ promptTokenIds }) => promptTokenIds.length));
      const llm = await createLLM({
        model: 'test/golden/checkpoints/' + family,
        maxModelLen: longest + 33,
        kvCacheMemoryBytes: 2 ** 24,
        skipTokenizerInit: true,
        languageModelOnly: true,
      });
      const inputs = prompts.map(({ promptTokenIds }) => ({ promptTokenIds }));
      say([family, (await llm.generate(inputs, params)).flatMap(show)]);
      await llm.shutdown();
    }`;

  // Biases; vocabularies that do not divide; one key head for all ranks, or two for four or eight.
  test.each([2, 4, 8])('%i ranks', async (worldSize) => {
    const families = familiesFor(worldSize);
    const said = await runLLMs<[string, Generated[]]>(PROGRAM(families), worldSize);
    for (const ofRank of said) expect(ofRank).toEqual(said[0]);
    for (const [family, generated] of said[0]) {
      for (const [i, { tokenIds, float32 }] of expectedOf(family).prompts.entries()) {
        expect([family, generated[i].tokenIds]).toEqual([family, tokenIds]);
        const distances = generated[i].logprobs.map((ours, at) => furthest(ours, float32[at].top));
        expect(Math.max(...distances)).toBeLessThanOrEqual(TOLERANCE);
        expect(generated[i].logprobs).toHaveLength(float32.length);
      }
    }
    expect(said[0].map(([family]) => family)).toEqual(families);
  });
});

describe('before loading', () => {
  test('three ranks are an error, without waiting for others', async () => {
    const body = `say(await errorOf(createLLM({ distributedTimeoutMs: 200_000 })));`;
    const [rank] = await startLLMs(body, 1, { worldSize: 3 });
    expect(await rank.ended).toEqual({ code: 0, signal: null });
    const [error] = rank.lines<DescribedError>();
    expect(error.code).toBe('CONFIG_INVALID');
    expect(error.message).toContain("tensorParallelSize is 3; it must divide the model's numHeads");
    expect(error.elapsed).toBeLessThan(100_000);
  });

  test.each([
    ['the seed', 'seed: rank', 'seed is 1 on rank 1, but 0 on rank 0'],
    ['the blocks', 'blockSize: 8 << rank', 'blockSize is 16 on rank 1, but 8 on rank 0'],
    [
      'the limits',
      'limits: { maxListMemoryBytes: 2 ** (20 + rank) }',
      'maxListMemoryBytes is 2097152 on rank 1, but 1048576 on rank 0',
    ],
    [
      'the model',
      "model: rank ? 'test/golden/checkpoints/llama2' : undefined, skipTokenizerInit: true",
      'transformer is {',
    ],
  ])('ranks must be given the same: %s', async (_, args, message) => {
    const said = await runLLMs<DescribedError>(`say(await errorOf(createLLM({ ${args} })));`, 2);
    for (const [error] of said) {
      expect(error.code).toBe('CONFIG_INVALID');
      expect(error.message).toContain(message);
    }
  });
});

test("long lists wait for memory alike on both ranks, with one rank's outputs", async () => {
  const body = `
    const llm = await createLLM({ limits: { maxListMemoryBytes: 10 * 1024 } });
    const params = [0, 1, 2, 3, 4].map((i) => new SamplingParams({
      maxTokens: 10, ignoreEos: true, seed: i,
      allowedTokenIds: Array.from({ length: 1100 }, (_, k) => (k + 150 * i) % 2048),
    }));
    const outputs = await llm.generate(params.map((_, i) => 'Once '.repeat(i + 1)), params);
    say(outputs.map(({ outputs: [{ tokenIds }] }) => tokenIds));
    await llm.shutdown();`;
  const [[alone]] = await runLLMs<number[][]>(body, 1);
  expect(alone.map(({ length }) => length)).toEqual([10, 10, 10, 10, 10]);
  expect(await runLLMs<number[][]>(body, 2)).toEqual([[alone], [alone]]);
});

test('ranks with different memory agree on the minimum and the number of blocks', async () => {
  // Keys and values of 5 layers, 2 heads each of 32 float32, 16 tokens.
  const bytesPerBlock = 2 * 5 * 2 * 32 * 4 * 16;
  const said = await runLLMs<{ least: number; least64: number; numBlocks: number }>(
    `
    let numBlocks = null;
    class Sized extends Worker {
      initializeFromConfig(config) {
        numBlocks = config.numBlocks;
        return super.initializeFromConfig(config);
      }
    }
    const kvCacheMemoryBytes = ${bytesPerBlock} * (rank === 1 ? 50 : 90) + 7;
    const llm = await createLLM({ kvCacheMemoryBytes, workerCls: Sized });
    const { executor } = llm.engine;
    const [least] = await executor.determineAvailableMemory();
    // More than 32 bits hold.
    executor.driverWorker.worker.determineAvailableMemory = () => 2 ** 40 - rank;
    const [least64] = await executor.determineAvailableMemory();
    say({ least, least64, numBlocks });
    await llm.shutdown();`,
    2,
  );
  const expected = { least: bytesPerBlock * 50 + 7, least64: 2 ** 40 - 1, numBlocks: 50 };
  expect(said.flat()).toEqual([expected, expected]);
});

test("ranks divide a CPU's threads and memory", async () => {
  const body = (worldSize: number) => `
    const llm = await createLLM({ kvCacheMemoryBytes: undefined, tensorParallelSize: ${worldSize} });
    const { worker } = llm.engine.executor.driverWorker;
    const { numThreads } = worker.deviceProperties;
    const bytes = await worker.determineAvailableMemory();
    const { free } = await worker.device.memory();
    say({ numThreads, share: bytes / free });
    await llm.shutdown();`;
  const env = { UNIPROC_CPU_THREADS: '' };
  const [[alone]] = await runLLMs<{ numThreads: number; share: number }>(body(1), 1, { env });
  const [[first], [second]] = await runLLMs<typeof alone>(body(2), 2, { env });
  const numCores = availableParallelism();
  expect(alone.numThreads).toBe(numCores);
  expect(alone.share).toBeCloseTo(0.25, 1);
  for (const rank of [first, second]) {
    expect(rank.numThreads).toBe(Math.max(1, Math.floor(numCores / 2)));
    expect(rank.share).toBeCloseTo(0.125, 1);
  }
});

describe('calls', () => {
  test('that overlap, at different times on each rank, give the same outputs', async () => {
    const said = await runLLMs<Generated[][]>(
      `${SHOW}
      const llm = await createLLM();
      const results = [];
      const prompts = ['Once upon a time', 'The dog', 'One day a girl', 'In the garden'];
      for (let i = 0; i < 6; i++) {
        const params = new SamplingParams({ maxTokens: 40 + 20 * (i % 3), n: 1 + (i % 2) });
        results.push(llm.generate(prompts.slice(i % 3), params));
        if (i === 3) llm.resetPrefixCache();
        // Each rank's program is slower at different calls, and some calls wait for no other.
        if (i % 2 === rank) await pause(12);
        if (i === 2) await results[1];
      }
      say((await Promise.all(results)).map((outputs) => outputs.flatMap(show)));
      await llm.shutdown();`,
      2,
    );
    expect(said[0][0]).toHaveLength(6);
    expect(said[1]).toEqual(said[0]);
  });

  test('with rank-local ends are refused and change nothing', async () => {
    const said = await runLLMs<(DescribedError | string)[]>(
      `
      const llm = await createLLM();
      const firstRead = (stream) => stream[Symbol.asyncIterator]().next();
      const { signal } = new AbortController();
      say([
        await errorOf(firstRead(llm.stream('Once'))),
        await errorOf(firstRead(llm.chatStream([{ role: 'user', content: 'Hello' }]))),
        await errorOf(llm.generate('Once', undefined, { signal })),
        await errorOf(llm.chat([{ role: 'user', content: 'Hello' }], undefined, { timeoutMs: 5000 })),
        (await llm.generate('Once upon a time'))[0].outputs[0].text,
      ]);
      await llm.shutdown();`,
      2,
    );
    expect(said[1]).toEqual(
      said[0].map((each) =>
        each.map((line) =>
          typeof line === 'string' ? line : { ...line, elapsed: expect.any(Number) as number },
        ),
      ),
    );
    const [[...errors]] = said[0];
    const text = errors.pop();
    expect(typeof text).toBe('string');
    for (const error of errors as DescribedError[]) expect(error.code).toBe('NOT_SUPPORTED');
    expect(errors).toHaveLength(4);
  });
});

test('a training program reaches the model and the group on each rank', async () => {
  const said = await runLLMs<{ sum: number[]; ranks: string[]; numHeads: number; same: boolean }>(
    `
    const llm = await createLLM();
    const { worker } = llm.engine.executor.driverWorker;
    const bytes = (...values) => new Uint8Array(Float32Array.from(values).buffer);
    const sum = await worker.communicator.allReduce(bytes(rank + 1, 10), 'float32', 'sum');
    const ranks = await worker.processGroup.gather('mine', Buffer.from('rank ' + rank));
    const [same] = await llm.engine.executor.applyModel((model) => model === worker.modelRunner.model);
    say({
      sum: [...new Float32Array(sum.buffer, sum.byteOffset, 2)],
      ranks: ranks.map((value) => Buffer.from(value).toString()),
      numHeads: worker.modelSpec.numHeads,
      same: same,
    });
    await llm.shutdown();`,
    2,
  );
  const expected = { sum: [3, 20], ranks: ['rank 0', 'rank 1'], numHeads: 4, same: true };
  expect(said.flat()).toEqual([expected, expected]);
});

test('ranks continue after a sleep with discarded weights', async () => {
  const said = await runLLMs<string[]>(
    `
    const llm = await createLLM();
    const params = new SamplingParams({ temperature: 0, maxTokens: 12 });
    const texts = [];
    for (const level of [null, 1, 2]) {
      if (level !== null) {
        await llm.engine.executor.sleep(level);
        await llm.engine.executor.wakeUp();
      }
      texts.push((await llm.generate('Once upon a time', params))[0].outputs[0].text);
    }
    say(texts);
    await llm.shutdown();`,
    2,
  );
  const [[[text]]] = said;
  expect(text).toMatch(/\w+ \w+/);
  expect(said.flat()).toEqual([Array(3).fill(text), Array(3).fill(text)]);
});

test('a program exits by itself without a shutdown', async () => {
  const said = await runLLMs<number>(
    `
    const llm = await createLLM();
    say((await llm.generate('Once upon a time'))[0].outputs[0].tokenIds.length);
    await pause(100);`,
    2,
  );
  expect(said).toEqual([[16], [16]]);
});

test('ranks sample the same text of a schema', async () => {
  const lines = await runLLMs<string[]>(
    `const llm = await createLLM({ maxModelLen: 256 });
    const json = {
      type: 'object',
      properties: { name: { type: 'string', maxLength: 8 }, age: { type: 'integer', minimum: 0, maximum: 99 } },
      required: ['name', 'age'],
      additionalProperties: false,
    };
    const structuredOutputs = { json, whitespacePattern: '' };
    const params = (seed) => ({ maxTokens: 120, temperature: 1.2, seed, structuredOutputs });
    const plain = { maxTokens: 20, seed: 1 };
    const outputs = await llm.generate(['a', 'b', 'c', 'd'], [params(1), plain, params(2), params(3)]);
    say(outputs.map(({ outputs: [{ text }] }) => text));
    await llm.shutdown();`,
    2,
  );
  const [first, second] = lines.map(([texts]) => texts);
  expect(first).toEqual(second);
  for (const i of [0, 2, 3]) expect(JSON.parse(first[i])).toHaveProperty('age');
});
