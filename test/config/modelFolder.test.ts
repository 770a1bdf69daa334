/** What `model` may name in place of a checkpoint's folder: each is an error that says what it is. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { chmod, cp, mkdir, readFile, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { gzipSync } from 'node:zlib';
import { createUniprocConfig } from '../../lib/config/engineArgs';
import { CheckpointError } from '../../lib/errors';
import { readTensorTable } from '../../lib/model/safetensors';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import { LLAMA, rejection } from '../model/checkpointFolder';
import { folderWith } from '../support/folder';

/** A real one, in JSON of 2 bytes. */
const SAFETENSORS = Buffer.concat([Buffer.from([2, 0, 0, 0, 0, 0, 0, 0]), Buffer.from('{}')]);
const GGUF = Buffer.from('GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0', 'latin1');
/** torch.save({}) of PyTorch before 1.6 begins so: the pickled number 0x1950a86a20f9469cfc6c. */
const OLD_PICKLE = Buffer.from('\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.', 'latin1');
/** A local file header of a zip archive, version 2.0, stored. */
const zipOf = (name: string) => {
  const header = Buffer.alloc(30);
  header.write('PK\x03\x04\x14', 'latin1');
  header.writeUInt16LE(name.length, 26);
  return Buffer.concat([header, Buffer.from(name)]);
};
const LFS_POINTER = `version https://git-lfs.github.com/spec/v1\noid sha256:${'0'.repeat(64)}\nsize 9\n`;

const documentedCodes = readFile(path.join(__dirname, '..', '..', 'docs', 'errors.md'), 'utf8');

/** The error for `model`, which is a CheckpointError at `file` with a documented code. */
async function errorOf(model: string, file = path.resolve(model)): Promise<string> {
  const error = await rejection(createUniprocConfig({ model }));
  expect(error).toBeInstanceOf(CheckpointError);
  expect(error).toMatchObject({ code: 'CHECKPOINT_INVALID', file });
  expect(await documentedCodes).toContain(`| \`${error.code}\` | \`${error.name}\` |`);
  expect(error.message.startsWith(`${file}: `)).toBe(true);
  return error.message.slice(file.length + 2);
}

/** The message about a folder's missing config.json. */
const withoutConfig = (folder: string) => errorOf(folder, path.join(folder, 'config.json'));

describe('a path that does not exist', () => {
  test('is an error with the nearest folder that does', async () => {
    const folder = await folderWith({});
    expect(await errorOf(path.join(folder, 'a', 'b'))).toBe(
      `the folder ${folder}/a/b does not exist, but ${folder} does; download the checkpoint first`,
    );
    expect(await errorOf('/no-such/model')).toBe(
      'the folder /no-such/model does not exist; download the checkpoint first',
    );
  });

  test.each([
    'meta-llama/Llama-3.2-1B',
    'https://huggingface.co/meta-llama/Llama-3.2-1B',
    'https://huggingface.co/meta-llama/Llama-3.2-1B/tree/main',
    'hf://meta-llama/Llama-3.2-1B',
  ])('that is a name on the hub says how to download it: %s', async (model) => {
    expect(await errorOf(model)).toBe(
      `the folder ${path.resolve(model)} does not exist; a name on the Hugging Face hub is downloaded ` +
        `by LLM.create alone: run uniproc pull ${model}, then pass the path that it prints as model`,
    );
  });

  test('below a folder that exists is not taken for a name on the hub', async () => {
    expect(await errorOf('models/gone')).toContain(`but ${path.resolve('models')} does; download`);
  });

  test.each(['https://example.com/model.gguf', 's3://bucket/model', 'file:///srv/model'])(
    'that is a URL says so: %s',
    async (model) => {
      expect(await errorOf(model)).toMatch(
        /^it is a URL; model must be a folder .*, given by its path$/,
      );
    },
  );

  test('with ~ names the folder in the home directory', async () => {
    expect(await errorOf('~/models/none')).toBe(
      `the folder ${path.resolve('~/models/none')} does not exist; ` +
        `only a shell replaces ~: write ${os.homedir()}/models/none`,
    );
  });

  test('that no system has is an error with the reason', async () => {
    expect(await errorOf('a\0b')).toMatch(/^it cannot be accessed: .*null bytes.*; model must be/);
    const long = 'a'.repeat(300);
    expect(await errorOf(`/tmp/${long}`)).toContain('it cannot be accessed: ENAMETOOLONG: ');
  });

  test('below a file names that file', async () => {
    const folder = await folderWith({ 'config.json': {} });
    const file = path.join(folder, 'config.json');
    expect(await errorOf(path.join(file, 'x'))).toContain(`${file} is not a folder; model must be`);
  });
});

describe('a file', () => {
  test.each<[string, Buffer | string, string]>([
    [
      'model.gguf',
      'GGU',
      'it is a damaged GGUF file: it does not begin with GGUF, which is not read',
    ],
    ['model.safetensors', SAFETENSORS, 'it is a safetensors file'],
    ['weights', SAFETENSORS, 'it is a safetensors file'],
    ['model.zip', zipOf('config.json'), 'it is a zip archive, which must be unpacked'],
    ['model.tar.gz', gzipSync('x'), 'it is a gzip archive, which must be unpacked'],
    [
      'model.zst',
      Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 4, 0]),
      'it is a zstd archive, which must be',
    ],
    [
      'model.xz',
      Buffer.from('fd377a585a0000', 'hex'),
      'it is an xz archive, which must be unpacked',
    ],
    [
      'pytorch_model.bin',
      zipOf('archive/data.pkl'),
      "it is a pickle, PyTorch's format, which is not",
    ],
    ['model.pt', OLD_PICKLE, "it is a pickle, PyTorch's format, which is not read"],
    ['model.pth', 'x', 'it is a file of PyTorch, which is not read'],
    [
      'tf_model.h5',
      Buffer.from('894844460d0a1a0a', 'hex'),
      'it is an HDF5 file, as Keras writes, which is not read',
    ],
    ['model.onnx', '\x08\x07', 'it is an ONNX file, which is not read'],
    ['model.safetensors', LFS_POINTER, 'it is a Git LFS pointer, not the file that it stands for'],
    ['model.safetensors', '<!DOCTYPE html><html>', 'it is an HTML page, which a failed download'],
    ['model.safetensors', '', 'it is an empty file'],
    ['notes.txt', 'hello', 'it is a file; model must be'],
  ])('%s is named as what its bytes are (%#)', async (name, bytes, expected) => {
    const message = await errorOf(path.join(await folderWith({ [name]: bytes }), name));
    expect(message.slice(0, expected.length)).toBe(expected);
    expect(message).toContain('model must be a folder with config.json');
  });

  test('of GGUF is a model if its name says so', async () => {
    const folder = await folderWith({ 'model.gguf': GGUF, 'model.bin': GGUF });
    expect(await errorOf(path.join(folder, 'model.gguf'))).toBe(
      "metadata 'general.architecture' is missing; it must be a string",
    );
    expect(await errorOf(path.join(folder, 'model.bin'))).toBe(
      "it is a GGUF file, llama.cpp's format, whose name must end in .gguf",
    );
  });

  test('that is a tar archive is named so', async () => {
    const folder = await folderWith({ 'config.json': LLAMA });
    execFileSync('tar', ['-cf', 'model.tar', 'config.json'], { cwd: folder });
    await rm(path.join(folder, 'config.json'));
    expect(await errorOf(path.join(folder, 'model.tar'))).toContain('it is a tar archive');
  });

  test('of a checkpoint leads to its folder', async () => {
    const folder = await folderWith({ 'config.json': LLAMA, 'model.safetensors': SAFETENSORS });
    expect(await errorOf(path.join(folder, 'config.json'))).toBe(
      `it is a JSON file; model must be its folder, ${folder}`,
    );
    expect(await errorOf(path.join(folder, 'model.safetensors'))).toBe(
      `it is a safetensors file; model must be its folder, ${folder}`,
    );
  });

  test('of any size is looked at without reading it', async () => {
    const folder = await folderWith({ 'model.bin': GGUF });
    const file = path.join(folder, 'model.bin');
    await truncate(file, 2 ** 40);
    expect(await errorOf(file)).toContain('it is a GGUF file');
    expect(await withoutConfig(folder)).toContain('the folder holds a GGUF file');
  });

  test('that may not be read is an error with the reason', async () => {
    const folder = await folderWith({ 'model.gguf': GGUF });
    await chmod(folder, 0o755);
    await chmod(path.join(folder, 'model.gguf'), 0);
    const message = await asNobody(() => errorOf(path.join(folder, 'model.gguf')));
    expect(message).toContain(
      'it is a file, which cannot be read: EACCES: permission denied; model',
    );
  });

  test('with a safetensors header whose length begins as gzip does is a safetensors file', async () => {
    const length = Buffer.from([0x1f, 0x8b, 0, 0, 0, 0, 0, 0]);
    const folder = await folderWith({ x: Buffer.concat([length, Buffer.from('{}')]) });
    expect(await errorOf(path.join(folder, 'x'))).toContain('it is a safetensors file');
  });
});

describe('a special file', () => {
  test('that is a pipe is refused without waiting for its writer', async () => {
    const pipe = path.join(await folderWith({}), 'pipe');
    execFileSync('mkfifo', [pipe]);
    expect(await errorOf(pipe)).toMatch(/^it is a named pipe; model must be a folder/);
  });

  test('that is a socket is named so', async () => {
    const socket = path.join(await folderWith({}), 'socket');
    const server = createServer().listen(socket);
    await once(server, 'listening');
    try {
      expect(await errorOf(socket)).toMatch(/^it is a socket; model must be a folder/);
    } finally {
      server.close();
    }
  });

  test('that is a device is named so', async () => {
    expect(await errorOf('/dev/null')).toMatch(/^it is a device; model must be a folder/);
  });

  test.each([
    ['itself', 'link', 'it cannot be accessed: ELOOP: '],
    ['nothing', 'gone', 'it is a link to gone, which does not exist; model must be'],
  ])('that links to %s is an error with the reason', async (_, target, expected) => {
    const link = path.join(await folderWith({}), 'link');
    await symlink(target, link);
    expect(await errorOf(link)).toContain(expected);
  });

  test('a folder that holds a pipe beside others is looked at without waiting', async () => {
    const folder = await folderWith({ 'b.bin': GGUF });
    execFileSync('mkfifo', [path.join(folder, 'a.bin')]);
    expect(await withoutConfig(folder)).toContain('the folder holds a GGUF file');
  });

  test('in place of config.json is refused', async () => {
    const folder = await folderWith({});
    const config = path.join(folder, 'config.json');
    execFileSync('mkfifo', [config]);
    expect(await errorOf(folder, config)).toContain('it is not a regular file; it must be a file');
    await rm(config);
    await mkdir(config);
    expect(await errorOf(folder, config)).toContain('it is a folder; it must be a file');
  });
});

describe('a folder without config.json', () => {
  test.each<[string, Record<string, unknown>, string]>([
    ['empty', {}, 'the folder is empty; model must be'],
    [
      'GGUF files by their bytes',
      { 'a.bin': GGUF, 'b.bin': GGUF, 'README.md': 'x' },
      "config.json is missing, the folder holds a GGUF file, llama.cpp's format, to be passed by its own path " +
        '(a.bin, b.bin); model must be',
    ],
    [
      'pickles',
      { 'pytorch_model.bin': OLD_PICKLE, 'tokenizer.json': {} },
      "config.json is missing, the folder holds a pickle, PyTorch's format, which is not read " +
        '(pytorch_model.bin); model must be',
    ],
    [
      'an archive',
      { 'model.zip': zipOf('x') },
      'config.json is missing, the folder holds a zip archive, which must be unpacked (model.zip); ',
    ],
    [
      'weights',
      { 'model.safetensors': SAFETENSORS },
      'config.json is missing, the folder holds a safetensors file (model.safetensors); model must be',
    ],
    [
      'LFS pointers',
      { 'model.safetensors': LFS_POINTER },
      'config.json is missing, the folder holds a Git LFS pointer, not the file that it stands for ',
    ],
    [
      'an adapter',
      {
        'adapter_config.json': { base_model_name_or_path: 'Qwen/Qwen3-0.6B' },
        'adapter_model.safetensors': SAFETENSORS,
      },
      'config.json is missing, the folder holds an adapter of Qwen/Qwen3-0.6B; merge it into its base ',
    ],
    [
      'a damaged adapter',
      { 'adapter_config.json': '{' },
      'config.json is missing, the folder holds an adapter; merge it into its base model',
    ],
    [
      'a diffusion pipeline',
      { 'model_index.json': {} },
      'config.json is missing, the folder holds a diffusion pipeline (model_index.json); model must',
    ],
    [
      "the maker's own format",
      { 'params.json': {}, 'consolidated.safetensors': SAFETENSORS },
      "config.json is missing, the folder has the maker's own format (params.json); model must be",
    ],
    [
      'a tokenizer only',
      { 'tokenizer.json': {}, 'tokenizer_config.json': {} },
      'config.json is missing, the folder holds a tokenizer only (tokenizer.json, ' +
        'tokenizer_config.json); model must be',
    ],
    [
      'other things',
      { a: '', b: '', c: '', d: '', e: '' },
      'config.json is missing, the folder holds a, b, c and 2 more; model must be',
    ],
  ])('says that it holds: %s', async (_, files, expected) => {
    const message = await withoutConfig(await folderWith(files));
    expect(message.slice(0, expected.length)).toBe(expected);
  });

  test('names the folder below it that has one', async () => {
    const cache = await folderWith({});
    const snapshot = path.join(cache, 'models--org--name', 'snapshots', '0123abcd');
    await mkdir(snapshot, { recursive: true });
    await mkdir(path.join(cache, 'models--org--name', 'blobs'));
    await mkdir(path.join(cache, '.locks'));
    await writeFile(path.join(snapshot, 'config.json'), JSON.stringify(LLAMA));
    for (const folder of ['', 'models--org--name', 'models--org--name/snapshots']) {
      expect(await withoutConfig(path.join(cache, folder))).toBe(
        `config.json is missing here; there is one in ${snapshot}: pass it as model`,
      );
    }
  });

  test('names the first of many below it', async () => {
    const folder = await folderWith({});
    for (const name of ['a', 'b', 'c', 'd']) {
      await mkdir(path.join(folder, name));
      await writeFile(path.join(folder, name, 'config.json'), '{}');
    }
    const [a, b, c] = ['a', 'b', 'c'].map((name) => path.join(folder, name));
    expect(await withoutConfig(folder)).toBe(
      `config.json is missing here; there is one in ${a}, ${b}, ${c} and 1 more: pass one of them as model`,
    );
  });

  test('that links to itself is looked at once', async () => {
    const folder = await folderWith({});
    await symlink('.', path.join(folder, 'here'));
    expect(await withoutConfig(folder)).toContain(
      'config.json is missing, the folder holds here; ',
    );
  });

  test('and thousands of entries is looked at in part', async () => {
    const folder = await folderWith(
      Object.fromEntries(Array.from({ length: 1500 }, (_, i) => [`f${i}`, ''])),
    );
    expect(await withoutConfig(folder)).toContain('and 997 more; model must be');
  });

  test('that may not be read is an error with the reason', async () => {
    const folder = await folderWith({ 'config.json': LLAMA });
    await chmod(folder, 0);
    const message = await asNobody(() => errorOf(folder, path.join(folder, 'config.json')));
    await chmod(folder, 0o700);
    expect(message).toContain('it cannot be accessed: EACCES: permission denied');
  });

  test('that may not be listed is an error with the reason', async () => {
    const folder = await folderWith({});
    await chmod(folder, 0o711);
    const message = await asNobody(() => errorOf(folder));
    expect(message).toBe('the folder cannot be read: EACCES: permission denied');
  });
});

/** Runs `call` without root's permissions. */
async function asNobody<T>(call: () => Promise<T>): Promise<T> {
  const isRoot = process.geteuid?.() === 0;
  if (isRoot) process.seteuid?.(65534);
  try {
    return await call();
  } finally {
    if (isRoot) process.seteuid?.(0);
  }
}

describe('a folder with config.json', () => {
  const MISSING =
    'the file is missing, and so is model.safetensors.index.json; weights must be in ';

  test.each<[string, Record<string, unknown>, string]>([
    ['no weights', {}, `${MISSING}safetensors files`],
    [
      'GGUF files',
      { 'a.gguf': GGUF },
      `${MISSING}safetensors files; the folder holds a GGUF file, llama.cpp's format, to be passed by its own path (a.gguf)`,
    ],
    [
      'pickles',
      { 'pytorch_model.bin': zipOf('pytorch_model/data.pkl') },
      `${MISSING}safetensors files; the folder holds a pickle, PyTorch's format, which is not read (pytorch_model.bin)`,
    ],
    [
      'shards without an index',
      { 'model-00001-of-00002.safetensors': SAFETENSORS },
      `${MISSING}safetensors files; the folder holds a safetensors file (model-00001-of-00002.safetensors)`,
    ],
  ])('and %s says what there is', async (_, files, expected) => {
    const folder = await folderWith({ 'config.json': LLAMA, ...files });
    const error = await rejection(readTensorTable(folder));
    expect(error).toMatchObject({ code: 'CHECKPOINT_INVALID' });
    expect(error.message).toBe(`${path.join(folder, 'model.safetensors')}: ${expected}`);
  });

  test.each<[string, Buffer | string, string]>([
    [
      'a Git LFS pointer',
      LFS_POINTER,
      'it is a Git LFS pointer, not the file that it stands for; run',
    ],
    ['a GGUF file', GGUF, "it is a GGUF file, llama.cpp's format; it must be a safetensors file"],
    ['a pickle', OLD_PICKLE, "it is a pickle, PyTorch's format; it must be a safetensors file"],
    ['an archive', gzipSync('x'.repeat(9)), 'it is a gzip archive; it must be a safetensors file'],
  ])('and %s in place of the weights says so', async (_, bytes, expected) => {
    const folder = await folderWith({ 'config.json': LLAMA, 'model.safetensors': bytes });
    const file = path.join(folder, 'model.safetensors');
    const error = await rejection(readTensorTable(folder));
    expect(error).toMatchObject({ code: 'CHECKPOINT_INVALID', file });
    expect(error.message).toContain(expected);
  });

  test('and a Git LFS pointer in place of tokenizer.json or config.json says so', async () => {
    const folder = await folderWith({});
    await cp(path.join(__dirname, '..', '..', 'models', 'stories'), folder, { recursive: true });
    await writeFile(path.join(folder, 'tokenizer.json'), LFS_POINTER);
    const error = await rejection(Tokenizer.load(folder));
    expect(error).toMatchObject({
      code: 'CHECKPOINT_INVALID',
      file: path.join(folder, 'tokenizer.json'),
    });
    expect(error.message).toContain('it is a Git LFS pointer, not the file that it stands for');
    await writeFile(path.join(folder, 'config.json'), LFS_POINTER);
    expect(await errorOf(folder, path.join(folder, 'config.json'))).toContain('a Git LFS pointer');
  });
});
