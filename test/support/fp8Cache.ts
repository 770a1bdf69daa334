/**
 * Keys and values cached in fp8, against transformers with keys and values rounded by torch as they
 * enter its cache (golden/make_fp8_cache.py).
 */
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { readFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { type EngineArgs, LLM, type RequestOutput, SamplingParams } from '../../lib';
import { readTensorTable } from '../../lib/model/safetensors';
import { fileOf } from '../worker/safetensors';

interface Case {
  keyScales: number[];
  valueScales: number[];
  prompts: { promptTokenIds: number[]; tokenIds: number[]; logprobs: number[] }[];
}

const GOLDEN = path.join(__dirname, '..', 'golden');
export const cases = JSON.parse(readFileSync(path.join(GOLDEN, 'fp8Cache.json'), 'utf8')) as Record<
  string,
  Case
>;
/** The case with scales that are not 1; its checkpoint. */
export const WITH_SCALES = 'llama-grouped with scales';
const SCALED = 'llama-grouped';
const MAX_TOKENS = 32;
/**
 * A key or value halfway between two numbers of fp8 is rounded to either, as the last bits of sums in
 * another order fall; it then differs by an eighth. In bfloat16 all keys and values differ.
 */
const TOLERANCE = { float32: 2e-3, bfloat16: 4e-2 };
export const BLOCK_SIZE = 16;

/** A folder for checkpoints of these tests. */
export function makeFolder(): Promise<string> {
  return mkdtemp(path.join(os.tmpdir(), 'uniproc-fp8-cache-'));
}

/**
 * Copies the checkpoint to `folder`, with scales beside the attention of each layer: tensors named `key`
 * and `value`, of the shapes [1] and []. `changes`: of config.json.
 */
export async function copyWithScales(
  folder: string,
  [key, value]: [string, string],
  changes: object = {},
  scales = cases[WITH_SCALES],
): Promise<string> {
  await cp(path.join(GOLDEN, 'checkpoints', SCALED), folder, { recursive: true });
  const tensors = scales.keyScales.flatMap((scale, layer) =>
    [
      { name: key, shape: [1], scale },
      { name: value, shape: [], scale: scales.valueScales[layer] },
    ].map((each) => ({ ...each, name: `model.layers.${layer}.self_attn.${each.name}` })),
  );
  const entries = tensors.map(({ name, shape }) => [name, { dtype: 'F32', shape }]);
  const file = fileOf(Object.fromEntries(entries) as Parameters<typeof fileOf>[0]);
  const values = Buffer.from(Float32Array.from(tensors, ({ scale }) => scale).buffer);
  values.copy(file, file.length - values.length);
  const { tensors: others } = await readTensorTable(folder);
  const fileOfTensor = [
    ...Array.from(others.keys(), (name) => [name, 'model.safetensors']),
    ...tensors.map(({ name }) => [name, 'scales.safetensors']),
  ];
  const index = { weight_map: Object.fromEntries(fileOfTensor) as object };
  const config = path.join(folder, 'config.json');
  const json = JSON.parse(await readFile(config, 'utf8')) as object;
  await writeFile(path.join(folder, 'scales.safetensors'), file);
  await writeFile(path.join(folder, 'model.safetensors.index.json'), JSON.stringify(index));
  await writeFile(config, JSON.stringify({ ...json, ...changes }));
  return folder;
}

/** Runs `use` with an engine of the checkpoint. */
export async function withFp8Cache<T>(
  args: EngineArgs,
  use: (llm: LLM) => T | Promise<T>,
): Promise<T> {
  const llm = await LLM.create({
    kvCacheDtype: 'fp8',
    maxModelLen: 256,
    blockSize: BLOCK_SIZE,
    kvCacheMemoryBytes: 2 ** 22,
    skipTokenizerInit: true,
    ...args,
  });
  try {
    return await use(llm);
  } finally {
    await llm.shutdown();
  }
}

export async function generate(llm: LLM, { prompts }: Case): Promise<RequestOutput[]> {
  const params = { temperature: 0, logprobs: 0, promptLogprobs: 0, ignoreEos: true };
  return llm.generate(
    prompts.map(({ promptTokenIds }) => ({ promptTokenIds })),
    new SamplingParams({ ...params, maxTokens: MAX_TOKENS }),
  );
}

/** The logprob of each token of prompt and output except the first. */
function logprobsOf({ promptTokenIds, promptLogprobs, outputs: [output] }: RequestOutput) {
  return [
    ...(promptLogprobs ?? [])
      .slice(1)
      .map((each, i) => each?.get(promptTokenIds[i + 1])?.logprob ?? NaN),
    ...(output.logprobs ?? []).map((each, i) => each.get(output.tokenIds[i])?.logprob ?? NaN),
  ];
}

/** Requires the reference's tokens, and its logprobs within the tolerance. */
export function expectReference(outputs: RequestOutput[], { prompts }: Case): void {
  for (const [i, output] of outputs.entries()) {
    expect(output.outputs[0].tokenIds).toEqual(prompts[i].tokenIds);
    const ours = logprobsOf(output);
    expect(ours).toHaveLength(prompts[i].logprobs.length);
    const errors = ours.map((logprob, at) => Math.abs(logprob - prompts[i].logprobs[at]));
    expect(Math.max(...errors)).toBeLessThanOrEqual(TOLERANCE.float32);
  }
}

/** The largest difference from the reference while the tokens are the reference's. */
function largestError(outputs: RequestOutput[], { prompts }: Case): number {
  const errors = outputs.flatMap((output, i) => {
    const { promptTokenIds, tokenIds, logprobs } = prompts[i];
    const differs = output.outputs[0].tokenIds.findIndex((id, at) => id !== tokenIds[at]);
    const end = differs < 0 ? logprobs.length : promptTokenIds.length - 1 + differs;
    return logprobsOf(output)
      .slice(0, end)
      .map((logprob, at) => Math.abs(logprob - logprobs[at]));
  });
  return Math.max(...errors);
}

/** Specifies that a device computes the reference's tokens and logprobs. */
export function specifyFp8Cache(device: string): void {
  let folder: string;
  const modelOf = (name: string) =>
    name === WITH_SCALES ? folder : path.join(GOLDEN, 'checkpoints', name);
  beforeAll(async () => {
    folder = await copyWithScales(await makeFolder(), ['k_scale', 'v_scale']);
  });
  afterAll(() => rm(folder, { recursive: true }));

  describe.each(Object.entries(cases))('%s, with keys and values in fp8', (name, reference) => {
    test.each<[string, EngineArgs]>([
      ['in a batch', {}],
      ['in chunks among decodes', { maxNumBatchedTokens: 16, maxNumSeqs: 8 }],
    ])("has the reference's tokens and logprobs %s", (_, args) =>
      withFp8Cache({ model: modelOf(name), device, dtype: 'float32', ...args }, async (llm) => {
        expectReference(await generate(llm, reference), reference);
        expect(llm.stats().kvCache.dtype).toBe('float8_e4m3');
      }),
    );

    test('has them after preemptions', async () => {
      const args = { model: modelOf(name), device, dtype: 'float32' as const };
      const blockBytes = await withFp8Cache(args, ({ startup }) =>
        Promise.resolve(startup.kvCacheBytes / startup.numKvBlocks),
      );
      const longest = 256 / BLOCK_SIZE;
      const kvCacheMemoryBytes = 2 * longest * blockBytes;
      await withFp8Cache({ ...args, kvCacheMemoryBytes, maxModelLen: 256 }, async (llm) => {
        const thrice = [...reference.prompts, ...reference.prompts, ...reference.prompts];
        expectReference(await generate(llm, { ...reference, prompts: thrice }), {
          ...reference,
          prompts: thrice,
        });
        expect(llm.stats().numPreemptions).toBeGreaterThan(0);
      });
    });

    test('is near the reference in bfloat16', () =>
      withFp8Cache({ model: modelOf(name), device, dtype: 'bfloat16' }, async (llm) => {
        const outputs = await generate(llm, reference);
        expect(largestError(outputs, reference)).toBeLessThanOrEqual(TOLERANCE.bfloat16);
      }));
  });
}
