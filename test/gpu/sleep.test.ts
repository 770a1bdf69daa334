/** sleep and wakeUp on a GPU: memory freed and allocated, outputs unchanged. */
import { InvalidStateError, LLM, OutOfMemoryError, SamplingParams, type SleepTag } from '../../lib';
import { emptySchedulerOutput } from '../../lib/contract/schedulerOutput';
import { cudaOps, type Tensor } from '../native/ops/binding';
import { folderWith } from '../support/folder';
import { stories } from '../support/stories';

const MIB = 2 ** 20;
/** Small allocations share pages of 2 MiB with memory that stays allocated. */
const SLACK = 8 * MIB;

const CONFIG = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  torch_dtype: 'bfloat16',
  vocab_size: 32000,
  hidden_size: 2048,
  intermediate_size: 5632,
  num_hidden_layers: 4,
  num_attention_heads: 16,
  num_key_value_heads: 8,
  head_dim: 128,
  max_position_embeddings: 512,
  tie_word_embeddings: false,
};
const MAX_NUM_SEQS = 32;
const BYTES: Record<SleepTag, number> = { weights: weightBytes(), kv_cache: cacheBytes() };

/** 610 MiB. */
function weightBytes(): number {
  const { hidden_size: hidden, num_attention_heads: heads, num_key_value_heads: kvHeads } = CONFIG;
  const attention = (2 * heads + 2 * kvHeads) * CONFIG.head_dim * hidden;
  const layer = attention + 3 * CONFIG.intermediate_size * hidden + 2 * hidden;
  const ends = 2 * CONFIG.vocab_size * hidden + hidden;
  return 2 * (ends + CONFIG.num_hidden_layers * layer);
}

/** 256 MiB, for the largest number of tokens of the requests. */
function cacheBytes(): number {
  const tokenBytes = 2 * CONFIG.num_key_value_heads * CONFIG.head_dim * 2;
  return MAX_NUM_SEQS * CONFIG.max_position_embeddings * CONFIG.num_hidden_layers * tokenBytes;
}

const gpu = cudaOps();
const freeMemory = () => gpu.memory().free;

const hogs: Tensor[] = [];

/** Occupies all GPU memory except `rest` bytes until `giveBack` or the end of the test. */
const takeAllBut = (rest: number) =>
  hogs.push(gpu.allocate(Math.floor((freeMemory() - rest) / 4), 'float32', 'a test'));
const giveBack = () => hogs.splice(0).forEach((hog) => gpu.release(hog));

/** Some are longer than a block: blocks cached before sleep must not be reused after it. */
const prompts = [3, 40, 100].map((length) => ({
  promptTokenIds: Array.from({ length }, (_, i) => (length + 7919 * i) % CONFIG.vocab_size),
}));
const greedy = new SamplingParams({ temperature: 0, maxTokens: 16, ignoreEos: true });

const tokensOf = async (llm: LLM) =>
  (await llm.generate(prompts, greedy)).map(({ outputs: [{ tokenIds }] }) => [...tokenIds]);

describe('a model of 610 MiB with a cache of 256 MiB', () => {
  let llm: LLM;
  let expected: number[][];

  beforeAll(async () => {
    llm = await LLM.create({
      model: await folderWith({ 'config.json': CONFIG }),
      loadFormat: 'dummy',
      device: 'cuda',
      maxNumSeqs: MAX_NUM_SEQS,
      maxNumBatchedTokens: 512,
      kvCacheMemoryBytes: BYTES.kv_cache,
      skipTokenizerInit: true,
    });
    expected = await tokensOf(llm);
  });

  afterEach(async () => {
    giveBack();
    const { executor } = llm.engine;
    if (executor.isSleeping) await executor.wakeUp();
  });

  afterAll(() => llm.shutdown());

  test.each([1, 2] as const)(
    'frees all of both at level %d, and allocates them again',
    async (level) => {
      const { executor } = llm.engine;
      const awake = freeMemory();
      await executor.sleep(level);
      const asleep = freeMemory();
      expect(asleep - awake).toBeGreaterThan(BYTES.weights + BYTES.kv_cache - SLACK);
      await executor.wakeUp();
      // Steps capture the freed graphs again.
      expect(asleep - freeMemory()).toBeGreaterThan(BYTES.weights + BYTES.kv_cache - SLACK);
      expect(await tokensOf(llm)).toEqual(expected);
      expect(freeMemory()).toBeGreaterThan(awake - SLACK);
    },
  );

  test('keeps the weights in host memory at level 1, and discards them at level 2', async () => {
    const { executor } = llm.engine;
    const residentBytes = () => process.memoryUsage.rss();
    const awake = residentBytes();
    await executor.sleep(2);
    expect(residentBytes() - awake).toBeLessThan(BYTES.weights / 4);
    await executor.wakeUp();
    await executor.sleep(1);
    expect(residentBytes() - awake).toBeGreaterThan(0.75 * BYTES.weights);
    await executor.wakeUp();
    expect(residentBytes() - awake).toBeLessThan(BYTES.weights / 4);
  });

  test.each([
    [1, 'weights', 'kv_cache'],
    [1, 'kv_cache', 'weights'],
    [2, 'weights', 'kv_cache'],
    [2, 'kv_cache', 'weights'],
  ] as [1 | 2, SleepTag, SleepTag][])(
    'after level %d allocates only the %s, then the %s',
    async (level, first, second) => {
      const { executor } = llm.engine;
      await executor.sleep(level);
      const asleep = freeMemory();
      await executor.wakeUp([first]);
      expect(asleep - freeMemory()).toBeGreaterThan(BYTES[first] - SLACK);
      expect(asleep - freeMemory()).toBeLessThan(BYTES[first] + BYTES[second] / 2);

      const step = executor.executeModel(emptySchedulerOutput());
      await expect(step).rejects.toThrow(`executeModel was called while ${second} are asleep`);
      await expect(tokensOf(llm)).rejects.toThrow(InvalidStateError);

      await executor.wakeUp([second]);
      expect(await tokensOf(llm)).toEqual(expected);
    },
  );

  test.each([
    [1, 'the weights', BYTES.weights / 2],
    [2, 'the weights', BYTES.weights / 2],
    [1, 'the KV cache', BYTES.weights + BYTES.kv_cache / 2],
    [2, 'the KV cache', BYTES.weights + BYTES.kv_cache / 2],
  ] as [1 | 2, string, number][])(
    'after level %d stays asleep without memory for %s',
    async (level, what, rest) => {
      const { executor } = llm.engine;
      await executor.sleep(level);
      takeAllBut(rest);
      for (let attempt = 0; attempt < 2; attempt++) {
        const refused = executor.wakeUp();
        await expect(refused).rejects.toThrow(OutOfMemoryError);
        await expect(refused).rejects.toThrow(
          new RegExp(`${what}: \\d+ bytes .* requested, .* GiB free of .* GiB`),
        );
        expect(executor.isSleeping).toBe(true);
      }
      giveBack();
      await executor.wakeUp();
      expect(await tokensOf(llm)).toEqual(expected);
    },
  );
});

test.each([1, 2] as const)(
  'a checkpoint generates the tokens of transformers after level %d',
  async (level) => {
    const llm = await LLM.create({
      device: 'cuda',
      dtype: 'float32',
      maxModelLen: 512,
      maxNumSeqs: 8,
      kvCacheMemoryBytes: 64 * MIB,
    });
    await llm.engine.executor.sleep(level);
    await llm.engine.executor.wakeUp();
    const outputs = await llm.generate(
      stories.prompts.map(({ prompt }) => prompt),
      new SamplingParams({ temperature: 0, maxTokens: 64 }),
    );
    expect(outputs.map(({ outputs: [{ tokenIds }] }) => [...tokenIds])).toEqual(
      stories.prompts.map(({ tokenIds }) => tokenIds),
    );
    await llm.shutdown();
  },
);
