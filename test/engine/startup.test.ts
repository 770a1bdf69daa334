/** The event 'started', and what it says of the device, the weights and the KV cache. */
import { openSync, readFileSync, readSync } from 'node:fs';
import path from 'node:path';
import { LLM } from '../../lib';
import type { StartupRecord } from '../../lib/engine/startupRecord';
import { runNode } from '../executor/support';
import { runLLMs } from '../support/tensorParallel';
import { PagedWorker, shutdownEngines, TestEngine } from './pagedWorker';

const CHECKPOINTS = path.join(__dirname, '..', 'golden', 'checkpoints');

afterEach(shutdownEngines);

/** What the file's header says of its tensors. */
function tensorsOf(checkpoint: string): Map<string, { dtype: string; shape: number[] }> {
  const file = openSync(path.join(CHECKPOINTS, checkpoint, 'model.safetensors'), 'r');
  const length = Buffer.alloc(8);
  readSync(file, length, 0, 8, 0);
  const header = Buffer.alloc(Number(length.readBigUInt64LE()));
  readSync(file, header, 0, header.length, 8);
  const tensors = JSON.parse(header.toString()) as Record<
    string,
    { dtype: string; shape: number[] }
  >;
  return new Map(Object.entries(tensors).filter(([name]) => name !== '__metadata__'));
}

const numElements = ({ shape }: { shape: number[] }) => shape.reduce((a, b) => a * b, 1);

describe('of a checkpoint in fp8', () => {
  const config = JSON.parse(
    readFileSync(path.join(CHECKPOINTS, 'qwen3-fp8', 'config.json'), 'utf8'),
  ) as Record<'num_hidden_layers' | 'num_key_value_heads' | 'head_dim', number>;
  const bytesPerBlock =
    config.num_hidden_layers * 2 * 16 * config.num_key_value_heads * config.head_dim * 2;
  let record: StartupRecord;

  beforeAll(async () => {
    const llm = await LLM.create({
      model: path.join(CHECKPOINTS, 'qwen3-fp8'),
      skipTokenizerInit: true,
      device: 'cpu',
      dtype: 'bfloat16',
      maxModelLen: 100,
      // Requests of 100 tokens take 7 blocks of 16.
      kvCacheMemoryBytes: 23 * bytesPerBlock,
    });
    record = await new Promise((resolve) => llm.events.once('started', resolve));
    await llm.shutdown();
  });

  test('names the model, the device and the type', () => {
    expect(record).toMatchObject({
      model: path.join(CHECKPOINTS, 'qwen3-fp8'),
      architecture: 'Qwen3ForCausalLM',
      device: 'cpu',
      deviceName: 'cpu',
      dtype: 'bfloat16',
      rank: 0,
      worldSize: 1,
    });
    expect(['avx512bf16', 'avx512', 'avx2', 'plain']).toContain(record.capability);
    expect(record.startupTimeMs).toBeGreaterThan(0);
  });

  test("has the weights' bytes by the type that they are stored in", () => {
    const expected = { float8_e4m3: 0, float32: 0, bfloat16: 0 };
    for (const [name, tensor] of tensorsOf('qwen3-fp8')) {
      if (tensor.dtype === 'F8_E4M3') expected.float8_e4m3 += numElements(tensor);
      else if (name.endsWith('weight_scale_inv')) expected.float32 += 4 * numElements(tensor);
      else expected.bfloat16 += 2 * numElements(tensor);
    }
    expect(expected.float8_e4m3).toBeGreaterThan(0);
    expect(record.weightFormats).toEqual(expected);
    expect(record.weightBytes).toBe(expected.float8_e4m3 + expected.float32 + expected.bfloat16);
  });

  test('has the blocks of the KV cache, and the requests of full length that they hold', () => {
    expect(record).toMatchObject({
      numKvBlocks: 23,
      blockSize: 16,
      numKvTokens: 368,
      kvCacheDtype: 'bfloat16',
      kvCacheBytes: 23 * bytesPerBlock,
      maxModelLen: 100,
      maxNumSeqs: 64,
      maxFullLengthRequests: 3,
    });
  });
});

test('comes to a listener that is added once create has resolved, and once', async () => {
  const { code, stdout } = await runNode(`
    const { LLM } = require('uniproc');
    (async () => {
      const llm = await LLM.create({ device: 'cpu' });
      let count = 0;
      llm.events.on('started', (record) => {
        count++;
        console.log(JSON.stringify(record) === JSON.stringify(llm.startup));
      });
      await llm.generate('Once');
      console.log(count);
      await llm.shutdown();
    })();`);
  expect({ code, stdout }).toEqual({ code: 0, stdout: 'true\n1\n' });
});

test('does not come from an engine that was shut down meanwhile', async () => {
  const { engine } = await TestEngine.create(PagedWorker);
  const heard: unknown[] = [];
  engine.events.on('started', (record) => heard.push(record));
  await engine.shutdown();
  await new Promise((resolve) => setImmediate(resolve));
  expect(heard).toEqual([]);
});

test('of a worker that has no summary says so, with the figures of the engine', async () => {
  const { engine } = await TestEngine.create(PagedWorker);
  expect(engine.startup).toMatchObject({
    deviceName: null,
    capability: null,
    weightBytes: null,
    weightFormats: null,
    numKvBlocks: 128,
    blockSize: 4,
    maxNumSeqs: 8,
    maxFullLengthRequests: 8,
  });
});

test.each(['llama2', 'qwen3-moe'])("of ranks has each one's share of %s", async (model) => {
  const lines = await runLLMs<StartupRecord>(
    `const llm = await createLLM({ skipTokenizerInit: true, model: ${JSON.stringify(path.join(CHECKPOINTS, model))} });
     say(await new Promise((resolve) => llm.events.once('started', resolve)));
     await llm.shutdown();`,
    2,
  );
  const [first, second] = lines.map(([record]) => record);
  expect([first.rank, second.rank]).toEqual([0, 1]);
  expect([first.worldSize, second.worldSize]).toEqual([2, 2]);
  // Norms and routers are on both ranks, all else is divided.
  let shared = 0;
  let all = 0;
  for (const [name, tensor] of tensorsOf(model)) {
    all += 4 * numElements(tensor);
    if (/norm|mlp\.gate\./.test(name)) shared += 4 * numElements(tensor);
  }
  expect((first.weightBytes ?? 0) + (second.weightBytes ?? 0)).toBe(all + shared);
});
