/** A GPU lost during generation, in a separate process. */
import { spawnSync } from 'node:child_process';
import path from 'node:path';

const ROOT = path.resolve(__dirname, '../..');

const program = `
  const { LLM, SamplingParams, ExecutorFailedError } = require(${JSON.stringify(ROOT)});
  const { Ops } = require(${JSON.stringify(path.join(ROOT, 'build/Release/uniproc_testing.node'))});
  (async () => {
    const llm = await LLM.create({ device: 'cuda', maxModelLen: 512, kvCacheMemoryBytes: 2 ** 26 });
    const params = new SamplingParams({ maxTokens: 400, ignoreEos: true });
    const told = [];
    const tell = (error) => told.push([error.name, error.message, error.cause?.message ?? ''].join(' | '));
    const stream = llm.stream('Once upon a time', params);
    let numOutputs = 0;
    try {
      for await (const _ of stream) {
        if (++numOutputs !== 10) continue;
        // Corrupts the shared context by gathering a row far beyond the end.
        const other = new Ops({ kind: 'cuda', index: 0 });
        const [x, out] = [0, 1].map(() => other.allocate(64, 'float32', 'a test'));
        const index = other.allocate(1, 'int32', 'a test');
        other.copyToDevice(index, Int32Array.of(2 ** 30));
        other.gatherRows(x, index, 1, 64, out);
      }
    } catch (error) {
      tell(error);
    }
    await llm.generate('Once upon a time', params).catch(tell);
    await llm.shutdown();
    console.log(JSON.stringify({ numOutputs, told }));
  })();`;

test('its steps and later calls fail with the call and the reason, and it shuts down', () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['-e', program], {
    encoding: 'utf8',
    timeout: 60000,
  });
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  const { numOutputs, told } = JSON.parse(stdout) as { numOutputs: number; told: string[] };
  expect(numOutputs).toBeGreaterThanOrEqual(10);
  expect(told).toHaveLength(2);
  expect(told[0]).toMatch(/cuda\w+, at or after \w+, failed: .*\(cudaErrorIllegalAddress\)/);
  for (const each of told) expect(each).toMatch(/^(ExecutorFailed|Device)Error/);
});
