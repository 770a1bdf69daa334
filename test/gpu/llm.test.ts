/** The public API on a GPU: reproducible tokens, equal to those of transformers and the CPU. */
import { type CreateArgs, LLM, type RequestOutput, SamplingParams } from '../../lib';
import { stories as reference } from '../support/stories';

const prompts = reference.prompts.map(({ prompt }) => prompt);
const greedy = new SamplingParams({ temperature: 0, maxTokens: 64 });
const sampled = new SamplingParams({ temperature: 0.9, topP: 0.95, seed: 11, maxTokens: 64 });

const tokensOf = (outputs: RequestOutput[]) =>
  outputs.map(({ outputs: [{ tokenIds }] }) => tokenIds);

async function generate(args: CreateArgs, params: SamplingParams): Promise<number[][]> {
  const llm = await LLM.create({
    device: 'cuda',
    maxModelLen: 512,
    maxNumSeqs: 8,
    kvCacheMemoryBytes: 64 * 2 ** 20,
    ...args,
  });
  try {
    return tokensOf(await llm.generate(prompts, params));
  } finally {
    await llm.shutdown();
  }
}

test('a float32 model generates the tokens of transformers', async () => {
  expect(await generate({ dtype: 'float32' }, greedy)).toEqual(
    reference.prompts.map(({ tokenIds }) => tokenIds),
  );
});

test('a float32 model samples the tokens of the CPU', async () => {
  const onCpu = await generate({ device: 'cpu', dtype: 'float32' }, sampled);
  expect(await generate({ dtype: 'float32' }, sampled)).toEqual(onCpu);
});

describe.each(['float32', 'bfloat16', 'float16'] as const)('in %s', (dtype) => {
  test('the same requests give the same tokens in every run and scheduling mode', async () => {
    const once = await generate({ dtype }, sampled);
    expect(await generate({ dtype }, sampled)).toEqual(once);
    expect(await generate({ dtype, asyncScheduling: false }, sampled)).toEqual(once);
  });
});

test('the default device is a GPU', async () => {
  const llm = await LLM.create({ maxModelLen: 512, kvCacheMemoryBytes: 64 * 2 ** 20 });
  expect(llm.engine.config.device.name).toBe('cuda');
  await llm.shutdown();
});

test('CUDA graphs change nothing', async () => {
  const eager = await generate({ dtype: 'bfloat16', enforceEager: true }, sampled);
  expect(await generate({ dtype: 'bfloat16' }, sampled)).toEqual(eager);
});
