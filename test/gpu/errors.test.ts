/** A missing or lost GPU, each in a separate process. */
import { spawnSync } from 'node:child_process';
import path from 'node:path';

const addonFile = (name: string) => path.resolve(__dirname, '../../build/Release', name);

function run(program: string, env: Record<string, string> = {}): string[] {
  const prelude = `
    const addon = require(${JSON.stringify(addonFile('uniproc.node'))});
    const testing = require(${JSON.stringify(addonFile('uniproc_testing.node'))});
    for (const each of [addon, testing]) {
      each.setErrorFactory((code, message) => Object.assign(new Error(message), { code }));
    }
    const tell = ({ code, message }) => console.log(code + ': ' + message);`;
  const { status, stdout, stderr } = spawnSync(process.execPath, ['-e', prelude + program], {
    encoding: 'utf8',
    timeout: 60000,
    env: { ...process.env, ...env },
  });
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  return stdout.trim().split('\n');
}

const openDevice = `
  const device = new addon.DeviceThread('cuda', 0, 0);
  device.open().then(({ name }) => console.log(name), tell).then(() => device.shutdown());`;

test('CUDA_VISIBLE_DEVICES is respected, and named if it hides every device', () => {
  expect(run(openDevice, { CUDA_VISIBLE_DEVICES: '' })).toEqual([
    "CUDA_UNAVAILABLE: the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES is ''); unset CUDA_VISIBLE_DEVICES",
  ]);
  expect(run(openDevice, { CUDA_VISIBLE_DEVICES: '0' })).toEqual([
    expect.stringMatching(/^NVIDIA/) as unknown,
  ]);
});

test('a lost device names the call, the operation before it and the reason, and stays lost', () => {
  const lines = run(`
    const ops = new testing.Ops({ kind: 'cuda', index: 0 });
    const [x, out] = [0, 1].map(() => ops.allocate(64, 'float32', 'a test'));
    const index = ops.allocate(1, 'int32', 'a test');
    ops.copyToDevice(index, Int32Array.of(2 ** 30)); // a row far beyond the end
    ops.gatherRows(x, index, 1, 64, out);
    for (const call of [() => ops.synchronize(), () => ops.allocate(64, 'float32', 'a test')]) {
      try {
        call();
      } catch (error) {
        tell(error);
      }
    }`);
  expect(lines).toEqual([
    expect.stringMatching(
      /^DEVICE_FAILED: cudaStreamSynchronize, at or after gatherRows, failed: .*\(cudaErrorIllegalAddress\)/,
    ) as unknown,
    expect.stringMatching(/^DEVICE_FAILED: .*\(cudaErrorIllegalAddress\)/) as unknown,
  ]);
});
