/**
 * Embeddings of a small Qwen3 with sentence-transformers' files, against transformers
 * (test/golden/make_embeddings.py).
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import OpenAI from 'openai';
import { createHandler, type Handler, LLM } from '../lib';
import { embeddingModel, MODULES, writeTokenizer } from './support/embeddingModel';
import { post } from './support/server';

interface Expected {
  promptTokenIds: number[];
  states: number[];
  normalized: number[];
  normalized32: number[];
}

const GOLDEN = path.join(__dirname, 'golden');
const expected = JSON.parse(
  readFileSync(path.join(GOLDEN, 'embeddings.json'), 'utf8'),
) as Expected[];
const prompts = expected.map(({ promptTokenIds }) => promptTokenIds);

const load = (model: string, args: object = {}) =>
  LLM.create({
    model,
    device: 'cpu',
    dtype: 'float32',
    skipTokenizerInit: true,
    kvCacheMemoryBytes: 2 ** 24,
    ...args,
  });

function expectClose(embedding: ArrayLike<number>, reference: readonly number[]): void {
  expect(embedding).toHaveLength(reference.length);
  reference.forEach((value, i) => expect(Math.abs(embedding[i] - value)).toBeLessThan(1e-4));
}

describe('an embedding model', () => {
  let llm: LLM;
  let handler: Handler;

  beforeAll(async () => {
    llm = await load(await embeddingModel(), { maxNumBatchedTokens: 64, maxNumSeqs: 4 });
    handler = createHandler({ models: { qwen3: llm } });
  });
  afterAll(() => llm.shutdown());

  test('embeds as transformers, with chunked prompts and several in a batch', async () => {
    const outputs = await llm.embed(prompts);
    outputs.forEach(({ embedding, promptTokenIds }, i) => {
      expect(promptTokenIds).toEqual(prompts[i]);
      expectClose(embedding, expected[i].normalized);
    });
    expect(llm.stats().kvCache.numUsedBlocks).toBe(0);
  });

  test('embeds a prompt to the same bits alone, in a batch and from the prefix cache', async () => {
    const [alone] = await llm.embed(prompts[4], { cacheSalt: 'alone' });
    const batch = await llm.embed(prompts);
    const [cached] = await llm.embed(prompts[4]);
    expect(cached.numCachedTokens).toBeGreaterThan(0);
    expect(batch[4].embedding).toEqual(alone.embedding);
    expect(cached.embedding).toEqual(alone.embedding);
  });

  test('keeps the first dimensions, normalised or not', async () => {
    const short = await llm.embed(prompts, { dimensions: 32 });
    short.forEach(({ embedding }, i) => expectClose(embedding, expected[i].normalized32));
    const plain = await llm.embed(prompts, { normalize: false, dimensions: 8 });
    plain.forEach(({ embedding }, i) => expectClose(embedding, expected[i].states.slice(0, 8)));
  });

  test('counts no generated tokens', async () => {
    const before = llm.stats();
    await llm.embed(prompts[1]);
    expect(llm.stats().numOutputTokens).toBe(before.numOutputTokens);
  });

  test.each([
    [{ dimensions: 73 }, /dimensions is 73; the model's embeddings have 72/],
    [{ dimensions: 0 }, /dimensions is 0; it must be an integer from 1/],
    [{ normalize: 1 }, /normalize is 1; it must be true or false/],
    [{ dimension: 2 }, /unknown option dimension/],
  ])('refuses the options %j', async (options, message) => {
    await expect(llm.embed(prompts[0], options as object)).rejects.toThrow(message);
  });

  test('refuses to generate, by name', async () => {
    await expect(llm.generate([prompts[0]])).rejects.toThrow(/makes embeddings.*call embed/);
    await expect(llm.stream(prompts[0]).next()).rejects.toThrow(/makes embeddings.*call embed/);
  });

  test('ends a call of embeddings that is aborted', async () => {
    const controller = new AbortController();
    const done = llm.embed(prompts, { signal: controller.signal });
    controller.abort();
    await expect(done).rejects.toMatchObject({ name: 'AbortError' });
  });

  test.each([false, true])('loads after a sleep; discarded weights: %s', async (discards) => {
    await llm.sleep(discards ? 2 : 1);
    await llm.wakeUp();
    const [{ embedding }] = await llm.embed(prompts[2]);
    expectClose(embedding, expected[2].normalized);
  });

  describe('by the server', () => {
    test('answers the client of OpenAI, in both encodings', async () => {
      const client = new OpenAI({
        baseURL: 'http://localhost/v1',
        apiKey: 'none',
        fetch: (url, init) => handler(new Request(url, init)),
      });
      // By default the client asks for base64.
      for (const encoding of [undefined, 'float'] as const) {
        const { data, model, usage } = await client.embeddings.create({
          model: 'qwen3',
          input: prompts,
          ...(encoding && { encoding_format: encoding }),
        });
        expect(model).toBe('qwen3');
        expect(usage).toMatchObject({ prompt_tokens: 320, total_tokens: 320 });
        data.forEach(({ embedding, index }, i) => {
          expect(index).toBe(i);
          expectClose(embedding, expected[i].normalized);
        });
      }
      const { data } = await client.embeddings.create({
        model: 'qwen3',
        input: prompts[3],
        dimensions: 32,
      });
      expectClose(data[0].embedding, expected[3].normalized32);
    });

    test('answers /pooling', async () => {
      const response = await post(handler, '/pooling', { input: prompts[2], normalize: false });
      const { data } = (await response.json()) as { data: { object: string; data: number[] }[] };
      expect(data[0].object).toBe('pooling');
      expectClose(data[0].data, expected[2].states);
    });

    test.each([
      ['/v1/embeddings', { input: [] }, 'input', /input must be a text/],
      ['/v1/embeddings', { input: [[1]], dimensions: 100 }, 'dimensions', /dimensions is 100/],
      ['/v1/embeddings', { input: [[1]], encoding_format: 'x' }, 'encoding_format', /base64/],
      ['/v1/embeddings', { messages: [] }, 'messages', /not supported/],
      ['/pooling', { input: [[1]], task: 'score' }, 'task', /must be 'embed'/],
      ['/v1/completions', { prompt: [1] }, null, /makes embeddings/],
    ])('refuses %s %j', async (url, body, param, message) => {
      const response = await post(handler, url, body);
      expect(response.status).toBe(400);
      const { error } = (await response.json()) as { error: object };
      expect(error).toMatchObject({ param, message: expect.stringMatching(message) as unknown });
    });
  });
});

test('loads a transformer that was stored alone, and a text with its last special token', async () => {
  const folder = await embeddingModel({ isAlone: true });
  await writeTokenizer(folder);
  const llm = await load(folder, { skipTokenizerInit: false });
  const [output] = await llm.embed('ab');
  expect(output).toMatchObject({ prompt: 'ab', promptTokenIds: [64, 65, 0] });
  const [ids] = await llm.embed([64, 65, 0]);
  expect(output.embedding).toEqual(ids.embedding);
  const [{ embedding }] = await llm.embed(prompts[3]);
  expectClose(embedding, expected[3].normalized);
  await llm.shutdown();
});

test.each([
  [
    { pooling: { pooling_mode_mean_tokens: true } },
    /the pooling is mean_tokens; it must be lasttoken/,
  ],
  [{ pooling: {} }, /the pooling is \(none\)/],
  [
    { modules: [...MODULES, { path: '3_Dense', type: 'sentence_transformers.models.Dense' }] },
    /the module 'Dense' is not supported/,
  ],
  [{ modules: {} }, /it must be a list/],
  [{ modules: [{ type: 'Pooling', path: '../..' }] }, /a path of one folder/],
])('refuses other modules by name: %j', async (files, message) => {
  await expect(load(await embeddingModel(files))).rejects.toThrow(message);
});

test('refuses embeddings of a model that generates', async () => {
  const llm = await load(path.join(GOLDEN, 'checkpoints', 'qwen3'));
  await expect(llm.embed([[1]])).rejects.toThrow(/generates and has no embeddings/);
  await llm.shutdown();
});
