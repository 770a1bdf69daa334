/** `uniproc doctor` and the default device where there is a GPU. */
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { LLM } from '../../lib';
import { native } from '../../lib/native';

const ROOT = path.resolve(__dirname, '..', '..');
const HOOK = path.join(ROOT, 'test', 'executor', 'requireTypescript.js');

test('the doctor names the GPU and its libraries, and exits with 0', async () => {
  const device = new (native().DeviceThread)('cuda', 0, 0);
  const { name, capability } = await device.open();
  await device.shutdown();
  const command = ['--require', HOOK, path.join(ROOT, 'lib', 'cli.ts'), 'doctor'];
  const { status, stdout, stderr } = spawnSync(process.execPath, command, { encoding: 'utf8' });
  expect({ status, stderr, stdout }).toMatchObject({ status: 0, stderr: '' });
  const version = capability.replace(/^sm_(\d+)(\d)$/, '$1.$2');
  expect(stdout).toMatch(
    new RegExp(`^cuda:0 +${name}, [\\d.]+ GiB, compute capability ${version}$`, 'm'),
  );
  expect(stdout).toMatch(/^driver +.*up to CUDA \d+\.\d+$/m);
  expect(stdout).toMatch(/^CUDA backend +\/.*uniproc_cuda\.so, CUDA \d+\.\d+ for /m);
  expect(stdout).toMatch(/^cuBLASLt +\d+\.\d+\.\d+, \/.*libcublasLt\.so\.\d+$/m);
  expect(stdout).toMatch(/\nLLM\.create\(\{\}\) runs on device 'cuda'\n$/);
});

test('LLM.create chooses the GPU, without a warning', async () => {
  const warnings: Error[] = [];
  const onWarning = (warning: Error) => warnings.push(warning);
  process.on('warning', onWarning);
  try {
    const llm = await LLM.create({});
    expect(llm.startup.device).toBe('cuda');
    await llm.shutdown();
    expect(warnings.filter(({ name }) => name === 'CudaWarning')).toEqual([]);
  } finally {
    process.off('warning', onWarning);
  }
});
