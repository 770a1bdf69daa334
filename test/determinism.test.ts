/** In float32 on the CPU a request's result depends only on the request, bit for bit. */
import { type EngineArgs, LLM, type RequestOutput, SamplingParams } from '../lib';

const options = {
  temperature: 0.8,
  topP: 0.9,
  seed: 1234,
  maxTokens: 24,
  logprobs: 3,
  ignoreEos: true,
};
const params = new SamplingParams({ ...options, promptLogprobs: 1 });

/** [length] token ids that differ from prompt to prompt. */
const prompt = (row: number, length: number) => ({
  promptTokenIds: Array.from({ length }, (_, i) => (row * 389 + i * 37 + 7) % 2000),
});
const PROMPT = prompt(0, 150);
const OTHERS = [prompt(1, 1), prompt(2, 17), prompt(3, 300), prompt(4, 64)];

/** A request's whole output, with exact logprobs. */
function everything({ outputs: [output], promptLogprobs }: RequestOutput) {
  return { tokenIds: output.tokenIds, logprobs: output.logprobs, promptLogprobs };
}

const ENGINE: EngineArgs = {
  device: 'cpu',
  dtype: 'float32',
  skipTokenizerInit: true,
  maxModelLen: 512,
  kvCacheMemoryBytes: 2 ** 25,
};

async function generate(args: EngineArgs = {}, others = OTHERS.slice(0, 0)) {
  const llm = await LLM.create({ ...ENGINE, ...args });
  try {
    // The tested request is in the middle of the batch.
    const prompts = [...others.slice(0, 2), PROMPT, ...others.slice(2)];
    const outputs = await llm.generate(prompts, params);
    return everything(outputs[Math.min(others.length, 2)]);
  } finally {
    await llm.shutdown();
  }
}

describe('a result in float32', () => {
  let alone: Awaited<ReturnType<typeof generate>>;

  beforeAll(async () => {
    alone = await generate();
  });

  afterEach(() => {
    delete process.env.UNIPROC_CPU_THREADS;
  });

  it('is the same the next time', async () => {
    expect(await generate()).toEqual(alone);
  });

  it('does not depend on the other requests of its batch', async () => {
    expect(await generate({}, OTHERS)).toEqual(alone);
  });

  it.each([1, 7, 16, 64])('does not depend on chunks of %d tokens', async (chunk) => {
    expect(await generate({ maxNumBatchedTokens: chunk, maxNumSeqs: 1 })).toEqual(alone);
  });

  it.each([1, 2, 3])('does not depend on %d threads', async (threads) => {
    process.env.UNIPROC_CPU_THREADS = String(threads);
    expect(await generate({}, OTHERS)).toEqual(alone);
  });

  it.each([1, 8, 128])('does not depend on blocks of %d tokens', async (blockSize) => {
    expect(await generate({ blockSize })).toEqual(alone);
  });

  it('does not depend on steps being launched ahead', async () => {
    expect(await generate({ asyncScheduling: false }, OTHERS)).toEqual(alone);
  });

  it('does not depend on prefix cache hits', async () => {
    const one = new SamplingParams(options);
    const three = new SamplingParams({ ...options, n: 3 });
    const llm = await LLM.create(ENGINE);
    const uncached = await LLM.create({ ...ENGINE, enablePrefixCaching: false });
    try {
      const [expected] = await uncached.generate(PROMPT, one);
      for (const numShared of [0, 20, 100, 150]) {
        const beginning = PROMPT.promptTokenIds.slice(0, numShared);
        await llm.generate({ promptTokenIds: [...beginning, 1, 2, 3] }, one);
        const [found] = await llm.generate(PROMPT, one);
        expect(everything(found)).toEqual(everything(expected));
      }
      // Samples share the prompt's blocks from the first step on.
      const [several] = await llm.generate(PROMPT, three);
      const [apart] = await uncached.generate(PROMPT, three);
      expect(several.outputs).toEqual(apart.outputs);
    } finally {
      await Promise.all([llm.shutdown(), uncached.shutdown()]);
    }
  });

  it('does not depend on preemption', async () => {
    // Room for little more than the longest request.
    const bytesPerToken = 2 * 5 * 4 * 32 * 4;
    const kvCacheMemoryBytes = 544 * bytesPerToken;
    expect(await generate({ kvCacheMemoryBytes }, OTHERS)).toEqual(alone);
  });
});
