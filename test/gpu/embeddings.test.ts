/** Embeddings on the GPU against transformers (test/golden/make_embeddings.py). */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { LLM } from '../../lib';
import { embeddingModel } from '../support/embeddingModel';

interface Expected {
  promptTokenIds: number[];
  normalized: number[];
}

const file = path.join(__dirname, '..', 'golden', 'embeddings.json');
const expected = JSON.parse(readFileSync(file, 'utf8')) as Expected[];

test.each([
  ['float32', 1e-4],
  ['bfloat16', 2e-2],
] as const)('in %s, chunked and several in a batch', async (dtype, tolerance) => {
  const llm = await LLM.create({
    model: await embeddingModel(),
    device: 'cuda',
    dtype,
    skipTokenizerInit: true,
    kvCacheMemoryBytes: 2 ** 24,
    maxNumBatchedTokens: 64,
    maxNumSeqs: 4,
  });
  const outputs = await llm.embed(expected.map(({ promptTokenIds }) => promptTokenIds));
  for (const [i, { embedding }] of outputs.entries()) {
    const differences = expected[i].normalized.map((value, at) => Math.abs(embedding[at] - value));
    expect(Math.max(...differences)).toBeLessThan(tolerance);
  }
  await llm.shutdown();
});
