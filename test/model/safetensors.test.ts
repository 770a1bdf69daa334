import { mkdir, symlink } from 'node:fs/promises';
import path from 'node:path';
import { CheckpointError } from '../../lib/errors';
import { readTensorTable } from '../../lib/model/safetensors';
import { folderWith } from '../support/folder';
import { fileOf, safetensors } from '../worker/safetensors';

const SINGLE = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';

/** The error message for `folder`, and the named file. */
async function complaint(folder: string): Promise<{ file: string; message: string }> {
  const error: unknown = await readTensorTable(folder).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(CheckpointError);
  expect(error).toHaveProperty('code', 'CHECKPOINT_INVALID');
  const { file, message } = error as CheckpointError;
  expect(message).toContain(file);
  expect(path.dirname(file)).toBe(folder);
  return { file: path.basename(file), message };
}

/** The error message for a folder with only this file. */
async function complaintAbout(file: Buffer | string): Promise<string> {
  const { file: blamed, message } = await complaint(await folderWith({ [SINGLE]: file }));
  expect(blamed).toBe(SINGLE);
  return message;
}

describe('readTensorTable', () => {
  it("returns each tensor's type, shape, file and offset", async () => {
    const file = fileOf({
      'a.weight': { dtype: 'F32', shape: [2, 3] },
      'b.weight': { dtype: 'BF16', shape: [5] },
      scalar: { dtype: 'F16', shape: [] },
      empty: { dtype: 'U8', shape: [0, 7] },
    });
    const folder = await folderWith({ [SINGLE]: file });
    const dataStart = 8 + Number(file.readBigUInt64LE());
    const single = path.join(folder, SINGLE);
    expect(await readTensorTable(folder)).toEqual({
      source: single,
      files: [single],
      tensors: new Map([
        ['a.weight', { dtype: 'F32', shape: [2, 3], file: 0, offset: dataStart, numBytes: 24 }],
        ['b.weight', { dtype: 'BF16', shape: [5], file: 0, offset: dataStart + 24, numBytes: 10 }],
        ['scalar', { dtype: 'F16', shape: [], file: 0, offset: dataStart + 34, numBytes: 2 }],
        ['empty', { dtype: 'U8', shape: [0, 7], file: 0, offset: dataStart + 36, numBytes: 0 }],
      ]),
    });
  });

  it('accepts tensors in any order and a header padded with spaces', async () => {
    const header = JSON.stringify({
      second: { dtype: 'F32', shape: [1], data_offsets: [4, 8] },
      first: { dtype: 'F32', shape: [1], data_offsets: [0, 4] },
    });
    const folder = await folderWith({ [SINGLE]: safetensors(header.padEnd(200), 8) });
    const { tensors } = await readTensorTable(folder);
    expect(tensors.get('first')?.offset).toBe(208);
    expect(tensors.get('second')?.offset).toBe(212);
  });

  it('reads an entry that is itself divided, for the white space in it', async () => {
    const space = ' '.repeat(100_000);
    const header = `{"a":{"dtype":"F32",${space}"shape":[1],"data_offsets":[0,4]},"__metadata__":{}}`;
    const folder = await folderWith({ [SINGLE]: safetensors(header, 4) });
    const { tensors } = await readTensorTable(folder);
    expect(tensors.get('a')).toMatchObject({ dtype: 'F32', shape: [1], numBytes: 4 });
  });

  it('reads all files of an index', async () => {
    const folder = await folderWith({
      'model-00001-of-00002.safetensors': fileOf({ a: { dtype: 'F32', shape: [2] } }),
      'model-00002-of-00002.safetensors': fileOf({
        b: { dtype: 'F16', shape: [3] },
        'not in the index': { dtype: 'F16', shape: [1] },
      }),
      [INDEX]: JSON.stringify({
        metadata: { total_size: 14 },
        weight_map: {
          b: 'model-00002-of-00002.safetensors',
          a: 'model-00001-of-00002.safetensors',
        },
      }),
    });
    const { source, files, tensors } = await readTensorTable(folder);
    expect(source).toBe(path.join(folder, INDEX));
    expect(files.map((file) => path.basename(file))).toEqual([
      'model-00001-of-00002.safetensors',
      'model-00002-of-00002.safetensors',
    ]);
    expect(tensors.get('a')).toMatchObject({ file: 0, shape: [2] });
    expect(tensors.get('b')).toMatchObject({ file: 1, shape: [3] });
    expect([...tensors.keys()].sort()).toEqual(['a', 'b']);
  });

  it('takes each tensor from its assigned file', async () => {
    const folder = await folderWith({
      'x.safetensors': fileOf({ a: { dtype: 'F32', shape: [1] } }),
      'y.safetensors': fileOf({
        a: { dtype: 'F16', shape: [2] },
        b: { dtype: 'F32', shape: [3] },
      }),
      [INDEX]: JSON.stringify({ weight_map: { a: 'x.safetensors', b: 'y.safetensors' } }),
    });
    const { tensors } = await readTensorTable(folder);
    expect([...tensors.keys()].sort()).toEqual(['a', 'b']);
    expect(tensors.get('a')).toMatchObject({ file: 0, dtype: 'F32', shape: [1] });
  });

  it.each<[string, string | Buffer]>([
    ['whole', fileOf({ a: { dtype: 'F32', shape: [7] } })],
    ['damaged', 'no safetensors'],
  ])('prefers the index to a single file, %s', async (_, single) => {
    const folder = await folderWith({
      [SINGLE]: single,
      'x.safetensors': fileOf({ a: { dtype: 'F32', shape: [1] } }),
      [INDEX]: JSON.stringify({ weight_map: { a: 'x.safetensors' } }),
    });
    const { source, files, tensors } = await readTensorTable(folder);
    expect(source).toBe(path.join(folder, INDEX));
    expect(files).toEqual([path.join(folder, 'x.safetensors')]);
    expect(tensors.get('a')?.shape).toEqual([1]);
  });

  it('reads the single file if the index assigns all tensors to it', async () => {
    const folder = await folderWith({
      [SINGLE]: fileOf({ a: { dtype: 'F32', shape: [7] } }),
      [INDEX]: JSON.stringify({ weight_map: { a: SINGLE } }),
    });
    expect((await readTensorTable(folder)).tensors.get('a')?.shape).toEqual([7]);
  });

  it("reads an index as Python's json module does", async () => {
    const folder = await folderWith({
      [SINGLE]: fileOf({ a: { dtype: 'F32', shape: [7] } }),
      [INDEX]: `\ufeff{"metadata": {"total_size": NaN}, "weight_map": {"a": "${SINGLE}"}}`,
    });
    expect((await readTensorTable(folder)).source).toBe(path.join(folder, INDEX));
  });

  describe('refuses a folder', () => {
    it('without weights', async () => {
      const { file, message } = await complaint(await folderWith({}));
      expect(file).toBe(SINGLE);
      expect(message).toContain(`the file is missing, and so is ${INDEX}`);
    });

    it('whose index names a file that is missing', async () => {
      const folder = await folderWith({
        [INDEX]: JSON.stringify({ weight_map: { a: 'model-00001-of-00001.safetensors' } }),
      });
      const { file, message } = await complaint(folder);
      expect(file).toBe('model-00001-of-00001.safetensors');
      expect(message).toContain('the file is missing');
    });

    it('whose index names a folder', async () => {
      const folder = await folderWith({
        [INDEX]: JSON.stringify({ weight_map: { a: 'a.safetensors' } }),
      });
      await mkdir(path.join(folder, 'a.safetensors'));
      expect(await complaint(folder)).toMatchObject({ file: 'a.safetensors' });
    });

    it('whose index assigns a tensor to a file that does not contain it', async () => {
      const folder = await folderWith({
        'x.safetensors': fileOf({ a: { dtype: 'F32', shape: [1] } }),
        'y.safetensors': fileOf({ b: { dtype: 'F32', shape: [1] } }),
        [INDEX]: JSON.stringify({
          weight_map: { a: 'x.safetensors', b: 'x.safetensors', c: 'y.safetensors' },
        }),
      });
      const { file, message } = await complaint(folder);
      expect(file).toBe(INDEX);
      expect(message).toContain(
        "tensor 'b' is assigned to x.safetensors, which does not contain it",
      );
    });

    it.each([SINGLE, INDEX])('whose %s is a link to nothing', async (name) => {
      const folder = await folderWith({ 'x.safetensors': fileOf({}) });
      await symlink('../blobs/0123', path.join(folder, name));
      const { file, message } = await complaint(folder);
      expect(file).toBe(name);
      expect(message).toContain('it is a link to ../blobs/0123, which does not exist');
    });

    it.each([SINGLE, INDEX])('whose %s is a folder', async (name) => {
      const folder = await folderWith({});
      await mkdir(path.join(folder, name));
      expect(await complaint(folder)).toEqual({
        file: name,
        message: expect.stringContaining('it is a folder') as string,
      });
    });

    it('whose index names a link to itself', async () => {
      const folder = await folderWith({
        [INDEX]: JSON.stringify({ weight_map: { a: 'a.safetensors' } }),
      });
      await symlink('a.safetensors', path.join(folder, 'a.safetensors'));
      const { file, message } = await complaint(folder);
      expect(file).toBe('a.safetensors');
      expect(message).toContain('ELOOP');
    });

    it.each([
      ['../model.safetensors'],
      ['/etc/model.safetensors'],
      ['a/../../model.safetensors'],
      ['..\\model.safetensors'],
      ['pytorch_model.bin'],
      ['..'],
      [7],
      [null],
    ])('whose index names %j', async (name) => {
      const folder = await folderWith({
        [INDEX]: JSON.stringify({ weight_map: { 'a.weight': name } }),
      });
      const { file, message } = await complaint(folder);
      expect(file).toBe(INDEX);
      expect(message).toContain("'a.weight'");
      expect(message).toContain('must be the name of a .safetensors file in the same folder');
    });

    it.each([
      ['{"weight_map": {', 'not JSON'],
      ['[]', 'must hold a JSON object'],
      ['{}', 'weight_map is undefined'],
      ['{"weight_map": ["a"]}', 'must be an object'],
    ])('whose index is %s', async (index, expected) => {
      const { file, message } = await complaint(await folderWith({ [INDEX]: index }));
      expect(file).toBe(INDEX);
      expect(message).toContain(expected);
    });
  });

  describe('refuses a file', () => {
    // As the format's own reader, unlike Python's.
    it.each(['\ufeff{}', '{"__metadata__": {"a": NaN}}'])('with the header %j', async (header) => {
      expect(await complaintAbout(safetensors(header, 0))).toContain('not JSON: unexpected');
    });

    const ONE = { dtype: 'F32', shape: [2], data_offsets: [0, 8] };

    it.each([[0], [7]])('of %i bytes', async (size) => {
      expect(await complaintAbout(Buffer.alloc(size))).toContain(`it has ${size} bytes`);
    });

    it('whose header is longer than the file', async () => {
      const file = safetensors({ a: ONE }, 8);
      file.writeBigUInt64LE(BigInt(file.length - 8 + 1));
      expect(await complaintAbout(file)).toMatch(
        /its header has \d+ bytes, but the file has only \d+/,
      );
    });

    it.each([[100_000_001n], [2n ** 63n], [2n ** 64n - 1n]])(
      'whose header claims %i bytes',
      async (length) => {
        const file = safetensors({ a: ONE }, 8);
        file.writeBigUInt64LE(length);
        expect(await complaintAbout(file)).toContain(
          `its header has ${length} bytes; at most 100000000 are allowed`,
        );
      },
    );

    it.each([
      ['{"a": ', 'not JSON: it ends at line 1'],
      ['\u0000\u0001', 'not JSON'],
      ['', 'not JSON'],
      ['[1]', 'must be a JSON object'],
      ['null', 'must be a JSON object'],
    ])('whose header is %j', async (header, message) => {
      expect(await complaintAbout(safetensors(header, 0))).toContain(message);
    });

    it('truncated in its header', async () => {
      const file = safetensors({ a: ONE }, 8);
      expect(await complaintAbout(file.subarray(0, 20))).toContain('it is truncated');
    });

    it('truncated in its data', async () => {
      const file = safetensors({ a: ONE }, 8);
      const message = await complaintAbout(file.subarray(0, file.length - 1));
      expect(message).toContain("tensor 'a': its data_offsets are [ 0, 8 ]");
      expect(message).toContain('only 7 bytes of data; it is truncated');
    });

    it('with bytes after its tensors', async () => {
      expect(await complaintAbout(safetensors({ a: ONE }, 9))).toMatch(
        /its tensors end at byte \d+, but the file has \d+/,
      );
    });

    it.each([
      ['its entry is 7', 7],
      ['its entry is null', null],
      ["its dtype is 'F31'", { ...ONE, dtype: 'F31' }],
      ["its dtype is 'toString'", { ...ONE, dtype: 'toString' }],
      ['its dtype is undefined', { shape: [2], data_offsets: [0, 8] }],
      ['its shape is 2', { ...ONE, shape: 2 }],
      ['its shape is [ -2 ]', { ...ONE, shape: [-2] }],
      ['its shape is [ 1.5 ]', { ...ONE, shape: [1.5] }],
      ["its shape is [ '2' ]", { ...ONE, shape: ['2'] }],
      ['its shape is [ 1e+300 ]', { ...ONE, shape: [1e300] }],
      ['its shape is undefined', { dtype: 'F32', data_offsets: [0, 8] }],
      ['is too large', { ...ONE, shape: [2 ** 40, 2 ** 40] }],
      ['is too large', { ...ONE, shape: [2 ** 50] }],
      ['needs 12 bytes, but its data_offsets [ 0, 8 ] hold 8', { ...ONE, shape: [3] }],
      ['needs 4 bytes, but its data_offsets [ 0, 8 ] hold 8', { ...ONE, dtype: 'F16' }],
      ['its data_offsets are [ 8, 0 ]; the first must not', { ...ONE, data_offsets: [8, 0] }],
      ['its data_offsets are [ -8, 0 ]', { ...ONE, data_offsets: [-8, 0] }],
      ['its data_offsets are [ 0.5, 8.5 ]', { ...ONE, data_offsets: [0.5, 8.5] }],
      ["its data_offsets are [ '0', '8' ]", { ...ONE, data_offsets: ['0', '8'] }],
      ['its data_offsets are [ 0 ]', { ...ONE, data_offsets: [0] }],
      ['its data_offsets are [ 0, 8, 16 ]', { ...ONE, data_offsets: [0, 8, 16] }],
      ['its data_offsets are 8', { ...ONE, data_offsets: 8 }],
      ['its data_offsets are undefined', { dtype: 'F32', shape: [2] }],
      ['but the file has only 8 bytes of data', { ...ONE, data_offsets: [8, 16] }],
      ['its data_offsets are [ 0, 1e+300 ]', { ...ONE, data_offsets: [0, 1e300] }],
    ])('whose tensor is refused because %s', async (expected, entry) => {
      const message = await complaintAbout(safetensors({ 'a.weight': entry }, 8));
      expect(message).toContain("tensor 'a.weight'");
      expect(message).toContain(expected);
    });

    it('in which two tensors overlap', async () => {
      const header = { a: ONE, b: { ...ONE, data_offsets: [4, 12] } };
      expect(await complaintAbout(safetensors(header, 12))).toMatch(
        /tensor 'b': its data, from byte \d+, overlaps that of tensor 'a'/,
      );
    });

    it('in which tensors leave a hole', async () => {
      const header = { a: ONE, b: { ...ONE, data_offsets: [12, 20] } };
      expect(await complaintAbout(safetensors(header, 20))).toMatch(
        /tensor 'b': its data, from byte \d+, leaves a hole after that of tensor 'a'/,
      );
    });

    it('in which a tensor is named twice', async () => {
      const entry = (begin: number) =>
        `{"dtype":"F32","shape":[2],"data_offsets":[${begin},${begin + 8}]}`;
      const header = `{"a":${entry(0)},"a":${entry(8)}}`;
      expect(await complaintAbout(safetensors(header, 16))).toContain(
        'leaves a hole after that of the header',
      );
    });
  });
});
