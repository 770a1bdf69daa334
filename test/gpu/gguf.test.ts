/** GGUF's blocks that CUDA repacks, against the same elements in float32 on the CPU. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { LLM } from '../../lib';
import { quantizedModel } from '../support/ggufQuantized';

const folder = mkdtempSync(path.join(os.tmpdir(), 'uniproc-test-'));
afterAll(() => rmSync(folder, { recursive: true }));

const PROMPTS = [
  [1, 5, 9, 33, 2, 71],
  [90, 3],
  Array.from({ length: 40 }, (_, i) => (i * 37) % 96),
];

async function generate(model: string, device: 'cpu' | 'cuda') {
  const llm = await LLM.create({
    model,
    device,
    dtype: 'float32',
    maxModelLen: 128,
    kvCacheMemoryBytes: 2 ** 23,
    skipTokenizerInit: true,
  });
  const outputs = await llm.generate(
    PROMPTS.map((promptTokenIds) => ({ promptTokenIds })),
    { temperature: 0, maxTokens: 12, ignoreEos: true },
  );
  await llm.shutdown();
  return outputs.map(({ outputs: [{ tokenIds }] }) => tokenIds);
}

test.each(['q8_0', 'q4_0'] as const)(
  '%s has the tokens of its elements in float32',
  async (type) => {
    const { file, config, safetensors } = quantizedModel(() => type);
    const own = path.join(folder, `${type}.gguf`);
    const twin = path.join(folder, type);
    writeFileSync(own, file);
    mkdirSync(twin);
    writeFileSync(path.join(twin, 'config.json'), JSON.stringify(config));
    writeFileSync(path.join(twin, 'model.safetensors'), safetensors());
    expect(await generate(own, 'cuda')).toEqual(await generate(twin, 'cpu'));
  },
);
