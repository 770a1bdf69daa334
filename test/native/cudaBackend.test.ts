/** Errors of opening the CUDA backend. */
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { type Addon, native } from '../../lib/native';

const folder = mkdtempSync(path.join(os.tmpdir(), 'uniproc-backend-'));

/** The addon in a folder without a backend. */
function addonAlone(): Addon {
  const file = path.join(folder, 'uniproc.node');
  copyFileSync(path.resolve(__dirname, '../../build/Release/uniproc.node'), file);
  const loaded = { exports: {} as Addon };
  process.dlopen(loaded, file);
  loaded.exports.setErrorFactory((code, message) => Object.assign(new Error(message), { code }));
  return loaded.exports;
}

const addon = addonAlone();
const open = (addonOfDevice: Addon, kind: string, index: number) => {
  const device = new addonOfDevice.DeviceThread(kind, index, 1);
  return device.open().finally(() => device.shutdown());
};

afterAll(() => {
  rmSync(folder, { recursive: true });
});

test('a build without the backend names the missing file, and stays usable', async () => {
  await expect(open(addon, 'cuda', 0)).rejects.toMatchObject({
    code: 'DEVICE_FAILED',
    message: expect.stringContaining(`${folder}/uniproc_cuda.so`) as unknown,
  });
  await expect(open(addon, 'cpu', 0)).resolves.toMatchObject({ name: 'cpu' });
});

test('a backend that cannot be loaded is named with the reason and its requirements', async () => {
  writeFileSync(path.join(folder, 'uniproc_cuda.so'), 'no shared object');
  await expect(open(addon, 'cuda', 0)).rejects.toMatchObject({
    code: 'DEVICE_FAILED',
    message: expect.stringMatching(
      /uniproc_cuda\.so.*; it requires cuBLASLt \(libcublasLt\.so\.13\)/,
    ) as unknown,
  });
});

test('a missing device fails with a typed error', async () => {
  await expect(open(native(), 'cuda', 99)).rejects.toMatchObject({
    code: 'DEVICE_FAILED',
    message: expect.stringMatching(
      /no CUDA backend|libcublasLt|NVIDIA driver|no cuda:99/,
    ) as unknown,
  });
});
