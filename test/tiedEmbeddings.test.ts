/**
 * tie_word_embeddings with head tensors in the files, as in transformers 5. Expected values are
 * transformers' for the golden checkpoints: `llama2`, with a separate head, and `qwen2` and
 * `qwen2-yarn`, with tied ones.
 */
import { readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { type EngineArgs, LLM, SamplingParams } from '../lib';
import type { MemoryInfo } from '../lib/native';
import { readExpected } from './golden/families';
import { folderWith } from './support/folder';
import { runLLMs } from './support/tensorParallel';

const [EMBEDDING, HEAD] = ['model.embed_tokens.weight', 'lm_head.weight'];
const TOLERANCE = { float32: 1e-4, bfloat16: 3e-2 };

interface Tensor {
  dtype: string;
  shape: number[];
  data: Buffer;
}
type Tensors = Map<string, Tensor>;

/** A golden checkpoint's config.json and tensors. */
function golden(family: string): { config: object; tensors: Tensors } {
  const folder = path.join(__dirname, 'golden', 'checkpoints', family);
  const file = readFileSync(path.join(folder, 'model.safetensors'));
  const dataStart = 8 + Number(file.readBigUInt64LE());
  const header = JSON.parse(file.toString('utf8', 8, dataStart)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  delete header.__metadata__;
  const tensors = Object.entries(header).map(([name, { dtype, shape, data_offsets }]) => {
    const [begin, end] = data_offsets.map((offset) => dataStart + offset);
    return [name, { dtype, shape, data: file.subarray(begin, end) }] as const;
  });
  const config = JSON.parse(readFileSync(path.join(folder, 'config.json'), 'utf8')) as object;
  return { config, tensors: new Map(tensors) };
}

function safetensors(tensors: Tensors): Buffer {
  let end = 0;
  const header = [...tensors].map(([name, { dtype, shape, data }]) => {
    const begin = end;
    end += data.length;
    return [name, { dtype, shape, data_offsets: [begin, end] }] as const;
  });
  const text = Buffer.from(JSON.stringify(Object.fromEntries(header)));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, ...[...tensors.values()].map(({ data }) => data)]);
}

function checkpoint(config: object, tensors: Tensors): Promise<string> {
  return folderWith({
    'config.json': { ...config, tie_word_embeddings: true },
    'model.safetensors': safetensors(tensors),
  });
}

/** Tied by config.json, but with two different tensors in the files. */
function contradiction(): Promise<string> {
  const { config, tensors } = golden('llama2');
  return checkpoint(config, tensors);
}

/** bfloat16 as float32. */
function widened({ shape, data }: Tensor): Tensor {
  const wide = Buffer.alloc(2 * data.length);
  for (let i = 0; i < data.length; i += 2) data.copy(wide, 2 * i + 2, i, i + 2);
  return { dtype: 'F32', shape, data: wide };
}

const PARAMS = { maxTokens: 1, temperature: 0, promptLogprobs: 0, ignoreEos: true };

/** The reference's sequences: [sequence][numTokens]. */
const sequences = (family: string) =>
  readExpected(family).map(({ promptTokenIds, tokenIds }) => [...promptTokenIds, ...tokenIds]);

/** Largest deviation of logprobs [sequence][numTokens - 1] from the reference. */
function distance(family: string, dtype: keyof typeof TOLERANCE, logprobs: number[][]): number {
  const differences = readExpected(family).flatMap((expected, i) =>
    expected[dtype].map(({ logprob }, at) => Math.abs(logprob - logprobs[i][at])),
  );
  return differences.some(Number.isNaN) ? NaN : Math.max(...differences);
}

/** The logprobs of `family`'s sequences. */
async function logprobsOf(llm: LLM, family: string): Promise<number[][]> {
  const prompts = sequences(family).map((promptTokenIds) => ({ promptTokenIds }));
  const outputs = await llm.generate(prompts, new SamplingParams(PARAMS));
  return outputs.map(({ promptTokenIds, promptLogprobs }) =>
    promptTokenIds
      .slice(1)
      .map((tokenId, i) => promptLogprobs?.[i + 1]?.get(tokenId)?.logprob ?? NaN),
  );
}

/** Captured warnings. */
let emitWarning: jest.SpiedFunction<typeof process.emitWarning>;
const warnings = () =>
  emitWarning.mock.calls.map(([message, options]) => ({ message, ...(options as object) }));

let llm: LLM | null = null;

async function create(model: string, args: EngineArgs = {}): Promise<LLM> {
  llm = await LLM.create({
    model,
    device: 'cpu',
    kvCacheMemoryBytes: 2 ** 24,
    maxModelLen: 256,
    skipTokenizerInit: true,
    ...args,
  });
  return llm;
}

beforeEach(() => {
  emitWarning = jest.spyOn(process, 'emitWarning').mockImplementation(() => {});
});

afterEach(async () => {
  emitWarning.mockRestore();
  await llm?.shutdown();
  llm = null;
});

describe('a head that differs from the embedding', () => {
  test.each(['float32', 'bfloat16'] as const)('is used, in %s', async (dtype) => {
    const model = await create(await contradiction(), { dtype });
    expect(distance('llama2', dtype, await logprobsOf(model, 'llama2'))).toBeLessThan(
      TOLERANCE[dtype],
    );
  });

  test('causes one warning with the file and a code', async () => {
    const folder = await contradiction();
    const { executor } = (await create(folder)).engine;
    await executor.sleep(2);
    await executor.wakeUp();
    expect(warnings()).toEqual([
      {
        type: 'CheckpointWarning',
        code: 'UNIPROC_UNTIED_EMBEDDINGS',
        message: expect.stringMatching(
          /model\.safetensors: config\.json has tie_word_embeddings, but lm_head\.weight differs/,
        ) as string,
      },
    ]);
  });

  test('is still used after the weights are reloaded', async () => {
    const model = await create(await contradiction(), { dtype: 'float32' });
    const before = await logprobsOf(model, 'llama2');
    await model.engine.executor.sleep(2);
    await model.engine.executor.wakeUp();
    expect(await logprobsOf(model, 'llama2')).toEqual(before);
  });

  test('is not compared if the embeddings are not tied', async () => {
    const { config, tensors } = golden('llama2');
    const folder = await folderWith({
      'config.json': config,
      'model.safetensors': safetensors(tensors),
    });
    await create(folder);
    expect(warnings()).toEqual([]);
  });

  test('is used by each of two ranks, and rank 0 alone warns', async () => {
    const outputs = await runLLMs<{ warnings: string[]; logprobs: number[][] }>(
      `const warnings = [];
      process.on('warning', ({ code }) => warnings.push(code));
      const llm = await createLLM({
        model: ${JSON.stringify(await contradiction())}, maxModelLen: 256, skipTokenizerInit: true,
      });
      const prompts = ${JSON.stringify(sequences('llama2'))}.map((promptTokenIds) => ({ promptTokenIds }));
      const outputs = await llm.generate(prompts, new SamplingParams(${JSON.stringify(PARAMS)}));
      const logprobs = outputs.map(({ promptTokenIds, promptLogprobs }) =>
        promptTokenIds.slice(1).map((id, i) => promptLogprobs[i + 1].get(id).logprob));
      say({ warnings, logprobs });
      await llm.shutdown();`,
      2,
      { env: { NODE_NO_WARNINGS: '1' } }, // not printed, but emitted
    );
    expect(outputs.map(([{ warnings: codes }]) => codes)).toEqual([
      ['UNIPROC_UNTIED_EMBEDDINGS'],
      [],
    ]);
    for (const [{ logprobs }] of outputs) {
      expect(distance('llama2', 'float32', logprobs)).toBeLessThan(TOLERANCE.float32);
    }
  }, 600_000);

  test("must have the embedding's shape", async () => {
    const { config, tensors } = golden('llama2');
    const head = tensors.get(HEAD) as Tensor;
    tensors.set(HEAD, { ...head, shape: [head.shape[0] / 2, head.shape[1] * 2] });
    await expect(create(await checkpoint(config, tensors))).rejects.toMatchObject({
      code: 'CHECKPOINT_INVALID',
      message: expect.stringContaining('tensor lm_head.weight has shape') as string,
    });
  });
});

describe('a head equal to the embedding', () => {
  /** A family's checkpoint with a head in its files. */
  async function withHead(
    headOf: (embedding: Tensor) => Tensor,
    family = 'qwen2',
  ): Promise<string> {
    const { config, tensors } = golden(family);
    tensors.set(HEAD, headOf(tensors.get(EMBEDDING) as Tensor));
    return checkpoint(config, tensors);
  }

  async function expectTied(
    folder: string,
    family = 'qwen2',
    dtype: keyof typeof TOLERANCE = 'float32',
  ): Promise<void> {
    const logprobs = await logprobsOf(await create(folder, { dtype }), family);
    expect(distance(family, dtype, logprobs)).toBeLessThan(TOLERANCE[dtype]);
    expect(warnings()).toEqual([]);
  }

  test('is tied, without a warning', async () => {
    await expectTied(await withHead((embedding) => embedding));
  });

  test('takes no memory of its own', async () => {
    const allocated = async (folder: string) => {
      const model = await create(folder, { dtype: 'float32' });
      const [figures] = await model.engine.executor.collectiveRpc((wrapper) =>
        wrapper.worker.device?.memory(),
      );
      await model.shutdown();
      return (figures as MemoryInfo).allocated;
    };
    const plain = path.join(__dirname, 'golden', 'checkpoints', 'qwen2');
    expect(await allocated(await withHead((embedding) => embedding))).toBe(await allocated(plain));
  });

  test("is tied if equal in the model's dtype alone", async () => {
    // Larger than the embedding, by less than bfloat16 resolves.
    const folder = await withHead((embedding) => {
      expect(embedding.dtype).toBe('BF16');
      const head = widened(embedding);
      for (let i = 0; i < head.data.length; i += 4) head.data[i] = 1;
      return head;
    }, 'qwen2-yarn');
    await expectTied(folder, 'qwen2-yarn', 'bfloat16');
    await llm?.shutdown();
    await create(folder, { dtype: 'float32' });
    expect(warnings()).toHaveLength(1);
  });

  test('may be the only one in the files', async () => {
    const { config, tensors } = golden('qwen2');
    tensors.set(HEAD, tensors.get(EMBEDDING) as Tensor);
    tensors.delete(EMBEDDING);
    await expectTied(await checkpoint(config, tensors));
  });

  test('must not differ when the weights are reloaded', async () => {
    const { tensors } = golden('qwen2');
    const folder = await withHead((embedding) => embedding);
    const file = path.join(folder, 'model.safetensors');
    const { executor } = (await create(folder)).engine;
    await executor.sleep(2);
    const before = readFileSync(file);
    const embedding = tensors.get(EMBEDDING) as Tensor;
    const other = Buffer.from(before);
    other.fill(1, other.indexOf(embedding.data), other.indexOf(embedding.data) + 64);
    writeFileSync(file, other);
    await expect(executor.wakeUp()).rejects.toMatchObject({
      code: 'CHECKPOINT_INVALID',
      message: expect.stringContaining('lm_head.weight was equal to the embedding') as string,
    });
    writeFileSync(file, before);
    await executor.wakeUp();
  });
});

describe('files that change while the engine sleeps at level 2', () => {
  test.each<[string, (file: string) => void]>([
    ['truncated', (file) => truncateSync(file, 70_000)],
    ['truncated within the header', (file) => truncateSync(file, 100)],
    ['emptied', (file) => truncateSync(file, 0)],
    ['removed', (file) => rmSync(file)],
    [
      'replaced by a shorter file',
      (file) => {
        const { tensors } = golden('llama2');
        tensors.delete('model.norm.weight');
        writeFileSync(file, safetensors(tensors));
      },
    ],
  ])('are an error of the wake-up when %s, until they are back', async (_, change) => {
    const folder = await contradiction();
    const file = path.join(folder, 'model.safetensors');
    const whole = readFileSync(file);
    const model = await create(folder, { dtype: 'float32' });
    const before = await logprobsOf(model, 'llama2');
    const { executor } = model.engine;
    await executor.sleep(2);
    change(file);
    await expect(executor.wakeUp()).rejects.toMatchObject({ code: 'CHECKPOINT_INVALID', file });
    writeFileSync(file, whole);
    await executor.wakeUp();
    expect(await logprobsOf(model, 'llama2')).toEqual(before);
  });
});
