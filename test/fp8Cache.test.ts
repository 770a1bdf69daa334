/** The fp8 KV cache on the CPU, and divided among ranks, against transformers. */
import { rm } from 'node:fs/promises';
import path from 'node:path';
import type { EngineArgs } from '../lib';
import {
  cases,
  copyWithScales,
  expectReference,
  generate,
  makeFolder,
  specifyFp8Cache,
  WITH_SCALES,
  withFp8Cache,
} from './support/fp8Cache';
import { runLLMs } from './support/tensorParallel';

specifyFp8Cache('cpu');

const reference = cases[WITH_SCALES];
let root: string;
beforeAll(async () => {
  root = await makeFolder();
});
afterAll(() => rm(root, { recursive: true }));

const ARGS: EngineArgs = { device: 'cpu', dtype: 'float32' };
const FP8 = { num_bits: 8, type: 'float', strategy: 'tensor', dynamic: false, symmetric: true };

describe('the scales of a checkpoint', () => {
  test.each<[string, string]>([
    ['attn.k_scale', 'attn.v_scale'],
    ['k_proj.k_scale', 'v_proj.v_scale'],
    ['qkv_proj.k_scale', 'qkv_proj.v_scale'],
    ['k_proj.output_scale', 'v_proj.output_scale'],
  ])('are found as %s', async (key, value) => {
    const model = await copyWithScales(path.join(root, key), [key, value]);
    await withFp8Cache({ ...ARGS, model }, async (llm) =>
      expectReference(await generate(llm, reference), reference),
    );
  });

  test.each<[string, object]>([
    ['compressed-tensors', { config_groups: {}, kv_cache_scheme: FP8 }],
    ['modelopt', { quant_algo: 'FP8', kv_cache_quant_algo: 'FP8' }],
    ['modelopt', { quant_algo: 'FP8', kv_cache_scheme: FP8 }],
  ])("make 'auto' fp8 where %s names a scheme", async (method, given) => {
    const weights = { num_bits: 8, type: 'float', strategy: 'channel' };
    const config = {
      quantization_config: {
        quant_method: method,
        format: 'float-quantized',
        ...given,
        ...('config_groups' in given && {
          config_groups: { group_0: { targets: ['Linear'], weights } },
        }),
      },
    };
    const folder = path.join(root, `${method}-${Object.keys(given)[1]}`);
    const model = await copyWithScales(folder, ['k_scale', 'v_scale'], config);
    await withFp8Cache({ ...ARGS, model, kvCacheDtype: 'auto' }, async (llm) => {
      expect(llm.startup.kvCacheDtype).toBe('float8_e4m3');
      expectReference(await generate(llm, reference), reference);
    });
  });

  test.each([0, -1, NaN, Infinity])('are refused where one is %d', async (scale) => {
    const model = await copyWithScales(
      path.join(root, `scale ${scale}`),
      ['k_scale', 'v_scale'],
      {},
      { ...reference, keyScales: [0.5, scale] },
    );
    await expect(withFp8Cache({ ...ARGS, model }, () => {})).rejects.toMatchObject({
      code: 'CHECKPOINT_INVALID',
      message: expect.stringContaining(
        `model.layers.1.self_attn.k_scale is ${scale}; it must be a positive number`,
      ) as string,
    });
  });

  test('are those of the start after a sleep, or the files are refused', async () => {
    const model = await copyWithScales(path.join(root, 'asleep'), ['k_scale', 'v_scale']);
    await withFp8Cache({ ...ARGS, model }, async (llm) => {
      await llm.sleep(2);
      await llm.wakeUp();
      expectReference(await generate(llm, reference), reference);
      await llm.sleep(2);
      const changed = { ...reference, keyScales: [0.5, 0.25] };
      await copyWithScales(model, ['k_scale', 'v_scale'], {}, changed);
      await expect(llm.wakeUp()).rejects.toMatchObject({
        code: 'CHECKPOINT_INVALID',
        message: expect.stringContaining('the scales of the KV cache differ') as string,
      });
    });
  });
});

test('an fp8 cache holds twice the tokens of a bfloat16 one, in the same memory', async () => {
  const model = path.join(__dirname, 'golden', 'checkpoints', 'llama-grouped');
  const args = { ...ARGS, dtype: 'bfloat16' as const, model, kvCacheMemoryBytes: 2 ** 20 };
  const [fp8, bfloat16] = await Promise.all(
    (['fp8', 'auto'] as const).map((kvCacheDtype) =>
      withFp8Cache({ ...args, kvCacheDtype, maxNumSeqs: 256 }, (llm) => llm.stats().kvCache),
    ),
  );
  expect([fp8.dtype, bfloat16.dtype]).toEqual(['float8_e4m3', 'bfloat16']);
  expect(fp8.numBlocks).toBe(2 * bfloat16.numBlocks);
  expect(fp8.numTokens).toBe(2 * bfloat16.numTokens);
});

test.each([2, 4])("%i ranks have the reference's tokens", async (worldSize) => {
  const model = await copyWithScales(path.join(root, `${worldSize}`), ['k_scale', 'v_scale']);
  const said = await runLLMs<number[][]>(
    `const llm = await createLLM({
      model: ${JSON.stringify(model)},
      maxModelLen: 256,
      skipTokenizerInit: true,
      kvCacheDtype: 'fp8',
    });
    const prompts = ${JSON.stringify(reference.prompts)}.map(({ promptTokenIds }) => ({ promptTokenIds }));
    const params = new SamplingParams({ temperature: 0, maxTokens: 32, ignoreEos: true });
    const outputs = await llm.generate(prompts, params);
    say(outputs.map(({ outputs }) => outputs[0].tokenIds));
    await llm.shutdown();`,
    worldSize,
  );
  expect(said).toHaveLength(worldSize);
  for (const [ofRank] of said)
    expect(ofRank).toEqual(reference.prompts.map(({ tokenIds }) => tokenIds));
});
