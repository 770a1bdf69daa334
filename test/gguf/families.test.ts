/**
 * Every architecture of GGUF files on the CPU: the golden checkpoints converted as llama.cpp does, with
 * the tokens and logprobs that transformers has for them.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { LLM } from '../../lib';
import { readExpected } from '../golden/families';
import { ggufOf } from '../support/ggufModel';

const folder = mkdtempSync(path.join(os.tmpdir(), 'uniproc-test-'));
afterAll(() => rmSync(folder, { recursive: true }));

const checkpoint = (name: string) => path.join(__dirname, '..', 'golden', 'checkpoints', name);

test.each([
  ['llama', 'llama2'],
  ['llama', 'llama3'],
  ['llama', 'llama-yarn'],
  ['llama', 'llama-bias'],
  ['llama', 'mistral'],
  ['llama', 'mixtral-moe'],
  ['qwen2', 'qwen2'],
  ['qwen2moe', 'qwen2-moe'],
  ['qwen3', 'qwen3'],
  ['qwen3moe', 'qwen3-moe'],
  ['gemma2', 'gemma2'],
  ['gemma3', 'gemma3'],
  ['phi3', 'phi3'],
  ['phi3', 'phi4-mini'],
  ['olmo2', 'olmo2'],
  ['olmo2', 'olmo3'],
  ['mistral3', 'mistral3'],
  ['granite', 'granite'],
  ['gpt-oss', 'gpt-oss'],
  ['glm4moe', 'glm4-moe'],
])('%s has the tokens of %s', async (architecture, name) => {
  const file = path.join(folder, `${name}.gguf`);
  writeFileSync(file, ggufOf(checkpoint(name), architecture));
  const expected = readExpected(name);
  const llm = await LLM.create({
    model: file,
    device: 'cpu',
    dtype: 'float32',
    maxModelLen: 1 + Math.max(...expected.map((one) => one.promptTokenIds.length + 32)),
    kvCacheMemoryBytes: 2 ** 24,
    skipTokenizerInit: true,
  });
  try {
    const outputs = await llm.generate(
      expected.map(({ promptTokenIds }) => ({ promptTokenIds })),
      { temperature: 0, maxTokens: 32, logprobs: 1, ignoreEos: true },
    );
    outputs.forEach(({ outputs: [{ tokenIds, logprobs }] }, i) => {
      expect(tokenIds).toEqual(expected[i].tokenIds);
      const predictions = expected[i].float32.slice(-tokenIds.length);
      predictions.forEach(({ logprob }, at) => {
        expect(logprobs?.[at].get(tokenIds[at])?.logprob).toBeCloseTo(logprob, 3);
      });
    });
  } finally {
    await llm.shutdown();
  }
});
