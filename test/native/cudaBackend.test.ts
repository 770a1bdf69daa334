/** The error of opening a CUDA device that is not there (test/cudaUnavailable.test.ts has the others). */
import { native } from '../../lib/native';

const open = (kind: string, index: number) => {
  const device = new (native().DeviceThread)(kind, index, 1);
  return device.open().finally(() => device.shutdown());
};

test('a CUDA device that cannot be used is a typed error, and the CPU stays usable', async () => {
  await expect(open('cuda', 99)).rejects.toMatchObject({
    code: 'CUDA_UNAVAILABLE',
    message: expect.stringMatching(
      /^(there is no cuda:99|there is no NVIDIA driver|the NVIDIA driver (shows no GPU|fails))/,
    ) as unknown,
  });
  await expect(open('cpu', 0)).resolves.toMatchObject({ name: 'cpu' });
});
