/**
 * Requests of a model with experts, in float32 on the CPU: each gives, to the last bit, what it gives
 * alone, and NaN ends the request that it reaches and no other.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { type EngineArgs, type RequestOutput, SamplingParams } from '../lib';
import { folderWith } from './support/folder';
import { expectEmpty, withEngine } from './support/watchedEngine';
import { withNanRow } from './worker/safetensors';

const GOLDEN = path.join(__dirname, 'golden', 'checkpoints', 'qwen3-moe');
const VOCAB_SIZE = 311;
/** Keys and values of 3 layers, 2 heads of 32 float32 each. */
const BYTES_PER_TOKEN = 2 * 3 * 2 * 32 * 4;

const ARGS: EngineArgs = { model: GOLDEN, skipTokenizerInit: true, enablePrefixCaching: false };
const PARAMS = new SamplingParams({
  maxTokens: 24,
  ignoreEos: true,
  temperature: 0.8,
  seed: 5,
  logprobs: 2,
  promptLogprobs: 1,
});

/** Of many lengths; each third begins alike, for two blocks of the cache. */
const prompts = Array.from({ length: 18 }, (_, i) => ({
  promptTokenIds: Array.from({ length: 5 + 6 * i }, (_, at) =>
    at < 32 ? (17 * (i % 3) + 5 * at) % 300 : (i + 7 * at) % 300,
  ),
}));

const resultOf = ({ promptLogprobs, outputs }: RequestOutput) => ({ promptLogprobs, outputs });

let alone: RequestOutput[];
beforeAll(() =>
  withEngine({ ...ARGS, maxNumSeqs: 1, asyncScheduling: false }, async ({ llm }) => {
    alone = [];
    for (const prompt of prompts) alone.push(...(await llm.generate([prompt], PARAMS)));
  }),
);

it.each<[string, EngineArgs]>([
  ['all at once', { maxNumSeqs: 18 }],
  ['in chunks of 7 tokens', { longPrefillTokenThreshold: 7, maxNumSeqs: 8 }],
  ['with what the cache has of their beginnings', { enablePrefixCaching: true, maxNumSeqs: 4 }],
])('each request gives what it gives alone, %s', (_, args) =>
  withEngine({ ...ARGS, kvCacheMemoryBytes: 2 ** 22, ...args }, async ({ llm }) => {
    const outputs = await llm.generate(prompts, PARAMS);
    expect(outputs.map(resultOf)).toEqual(alone.map(resultOf));
  }),
);

it('each request gives what it gives alone, preempted', () =>
  withEngine(
    { ...ARGS, maxModelLen: 144, kvCacheMemoryBytes: 160 * BYTES_PER_TOKEN, maxNumSeqs: 8 },
    async (engine) => {
      const outputs = await engine.llm.generate(prompts, PARAMS);
      expect(outputs.map(resultOf)).toEqual(alone.map(resultOf));
      expect(engine.llm.stats().numPreemptions).toBeGreaterThan(0);
      await expectEmpty(engine);
    },
  ));

/** The golden checkpoint with NaN in a row of a tensor. */
async function folderWithNan(tensor: string, row: number): Promise<string> {
  const read = (name: string) => readFileSync(path.join(GOLDEN, name));
  return folderWith({
    'config.json': read('config.json'),
    'model.safetensors': withNanRow(read('model.safetensors'), tensor, row),
  });
}

it('a request whose tokens reach the router as NaN ends, and no other', async () => {
  const used = new Set(
    alone.flatMap(({ promptTokenIds, outputs }) => [...promptTokenIds, ...outputs[0].tokenIds]),
  );
  const token = Array.from({ length: VOCAB_SIZE }, (_, id) => id).find((id) => !used.has(id)) ?? -1;
  const model = await folderWithNan('model.embed_tokens.weight', token);
  await withEngine({ ...ARGS, model }, async ({ llm }) => {
    const bad = llm.generate([{ promptTokenIds: [3, token, 4] }], PARAMS);
    const good = llm.generate(prompts.slice(0, 6), PARAMS);
    await expect(bad).rejects.toMatchObject({ code: 'LOGITS_INVALID' });
    expect((await good).map(resultOf)).toEqual(alone.slice(0, 6).map(resultOf));
  });
});

it('a router with NaN ends requests rather than have them pass its expert by', async () => {
  const model = await folderWithNan('model.layers.2.mlp.gate.weight', 3);
  await withEngine({ ...ARGS, model }, async ({ llm }) => {
    await expect(llm.generate(prompts.slice(0, 1), PARAMS)).rejects.toMatchObject({
      code: 'LOGITS_INVALID',
    });
  });
});
