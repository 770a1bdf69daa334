import { execFileSync } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { type DeviceProperties, native, type NativeDeviceThread } from '../../lib/native';
import { chooseProductAlgorithms } from '../../lib/worker/productAlgorithms';

const properties = { name: 'NVIDIA H200', capability: 'sm_90' } as DeviceProperties;
const FILE = 'products-NVIDIA-H200-sm_90.txt';

/** A device whose choices are `chosen`; `asked` has what it was given. */
function deviceWith(chosen: string): { device: NativeDeviceThread; asked: string[] } {
  const asked: string[] = [];
  const chooseAlgorithms = (known: string): Promise<string> => {
    asked.push(known);
    return Promise.resolve(chosen);
  };
  const device = { chooseProductAlgorithms: chooseAlgorithms } as Partial<NativeDeviceThread>;
  return { device: device as NativeDeviceThread, asked };
}

let root: string;
let file: string;
const environment = { ...process.env };

beforeEach(async () => {
  root = await mkdtemp(path.join(os.tmpdir(), 'uniproc-cache-'));
  file = path.join(root, FILE);
  process.env.UNIPROC_CACHE_ROOT = root;
});

afterEach(async () => {
  process.env = { ...environment };
  await rm(root, { recursive: true });
});

describe("the file of a GPU's product algorithms", () => {
  it('is written at the first use and given to the device at the next', async () => {
    const first = deviceWith('choices\n');
    await chooseProductAlgorithms(first.device, properties);
    expect(first.asked).toEqual(['']);

    const second = deviceWith('choices\n');
    await chooseProductAlgorithms(second.device, properties);
    expect(second.asked).toEqual(['choices\n']);
    expect(await readdir(root)).toEqual([FILE]);
  });

  it('is written again only when the device has chosen more', async () => {
    await chooseProductAlgorithms(deviceWith('choices\n').device, properties);
    const { ino } = await stat(file);
    await chooseProductAlgorithms(deviceWith('choices\n').device, properties);
    expect((await stat(file)).ino).toBe(ino);
    await chooseProductAlgorithms(deviceWith('choices\nmore\n').device, properties);
    expect(await readFile(file, 'utf8')).toMatch(/^[0-9a-f]{64}\nchoices\nmore\n$/);
  });

  it.each([
    ['another choice', (text: string) => text.replace('choices', 'choicez')],
    ['its end missing', (text: string) => text.slice(0, -3)],
    ['no line', () => ''],
  ])('with %s counts as absent and is replaced', async (_, damage) => {
    await chooseProductAlgorithms(deviceWith('choices\n').device, properties);
    const whole = await readFile(file, 'utf8');
    await writeFile(file, damage(whole));
    const { device, asked } = deviceWith('choices\n');
    await chooseProductAlgorithms(device, properties);
    expect(asked).toEqual(['']);
    expect(await readFile(file, 'utf8')).toBe(whole);
  });

  it('is whole whenever it is read while several starts write it', async () => {
    const texts = Array.from({ length: 8 }, (_, i) => `${i}\n`.repeat(500_000 * (1 + (i % 3))));
    const state = { isWriting: true };
    const writing = Promise.all(
      texts.map((text) => chooseProductAlgorithms(deviceWith(text).device, properties)),
    ).finally(() => (state.isWriting = false));
    const digests = new Set<string>();
    do {
      const content = await readFile(file, 'utf8').catch(() => null);
      if (content === null) continue;
      const end = content.indexOf('\n');
      expect(texts).toContain(content.slice(end + 1));
      digests.add(content.slice(0, end));
    } while (state.isWriting);
    await writing;
    expect(digests.size).toBeGreaterThan(0);
    expect(await readdir(root)).toEqual([FILE]);
  });

  it('that is no file counts as absent', async () => {
    execFileSync('mkfifo', [file]);
    const { device, asked } = deviceWith('choices\n');
    await chooseProductAlgorithms(device, properties);
    expect(asked).toEqual(['']);
    expect(await readFile(file, 'utf8')).toMatch(/choices\n$/);
  });

  it('has no folder without a home, which is a warning, and nothing is timed', async () => {
    delete process.env.UNIPROC_CACHE_ROOT;
    process.env.XDG_CACHE_HOME = 'relative'; // which the specification ignores
    const home = jest.spyOn(os, 'homedir').mockImplementation(() => {
      throw new Error('uv_os_homedir returned ENOENT');
    });
    const warn = jest.spyOn(process, 'emitWarning').mockImplementation();
    const { device, asked } = deviceWith('choices\n');
    await chooseProductAlgorithms(device, properties);
    expect(asked).toEqual([]);
    expect(warn.mock.calls).toEqual([
      [
        expect.stringContaining('this user has no home'),
        expect.objectContaining({ code: 'UNIPROC_CACHE_UNUSABLE' }),
      ],
    ]);
    home.mockRestore();
    warn.mockRestore();
  });

  it('that cannot be written is a warning, and the choices hold', async () => {
    process.env.UNIPROC_CACHE_ROOT = path.join(root, 'file', 'folder');
    await writeFile(path.join(root, 'file'), '');
    const { device, asked } = deviceWith('choices\n');
    const warn = jest.spyOn(process, 'emitWarning').mockImplementation();
    await chooseProductAlgorithms(device, properties);
    expect(asked).toHaveLength(1);
    expect(warn.mock.calls).toEqual([
      [
        expect.stringContaining('cannot be written: ENOTDIR'),
        expect.objectContaining({ code: 'UNIPROC_CACHE_UNUSABLE' }),
      ],
    ]);
    warn.mockRestore();
  });

  it('lies in the folder of caches without UNIPROC_CACHE_ROOT', async () => {
    delete process.env.UNIPROC_CACHE_ROOT;
    process.env.XDG_CACHE_HOME = root;
    await chooseProductAlgorithms(deviceWith('choices\n').device, properties);
    expect(await readdir(path.join(root, 'uniproc'))).toEqual([FILE]);
  });

  it('does not exist with an empty UNIPROC_CACHE_ROOT, and nothing is timed', async () => {
    process.env.UNIPROC_CACHE_ROOT = '';
    const { device, asked } = deviceWith('choices\n');
    await chooseProductAlgorithms(device, properties);
    expect(asked).toEqual([]);
  });
});

test('a CPU has no algorithms of products to choose', async () => {
  const device = new (native().DeviceThread)('cpu', 0, 1);
  await device.open();
  expect(await device.chooseProductAlgorithms('anything')).toBe('');
  await device.shutdown();
});
