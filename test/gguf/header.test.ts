/** Headers of GGUF files: what they hold, and what is refused before anything is allocated by it. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { CheckpointError, UnsupportedModelError } from '../../lib';
import { readGgufModel } from '../../lib/model/gguf/files';
import { readGgufHeader } from '../../lib/model/gguf/header';
import { F32, gguf, type GgufFile, text, uint32, uint64 } from '../support/ggufFile';

const folder = mkdtempSync(path.join(os.tmpdir(), 'uniproc-test-'));
afterAll(() => rmSync(folder, { recursive: true }));

function write(bytes: Buffer, name = 'model.gguf'): string {
  const file = path.join(folder, name);
  writeFileSync(file, bytes);
  return file;
}

const tensor = (...shape: number[]) => ({
  type: F32,
  shape,
  data: new Uint8Array(4 * shape.reduce((product, size) => product * size, 1)),
});

describe('a GGUF header', () => {
  it.each<[string, GgufFile]>([
    ['version 3', {}],
    ['version 2', { version: 2 }],
    ['an alignment of 8', { alignment: 8 }],
    ['an alignment of 4096', { alignment: 4096 }],
  ])('of %s has metadata and tensors', async (_, changes) => {
    const metadata = {
      name: { text: 'größer' },
      count: { u64: 2n ** 40n },
      huge: { u64: 2n ** 60n },
      negative: { i32: -5 },
      half: { f32: 0.5 },
      on: { bool: true },
      list: { i32s: [1, -2] },
      words: { texts: ['', 'a b'] },
    };
    const tensors = { a: tensor(3, 5), b: tensor(7) };
    const header = await readGgufHeader(write(gguf({ metadata, tensors, ...changes })));
    expect(Object.fromEntries(header.metadata)).toMatchObject({
      name: 'größer',
      count: 2 ** 40,
      huge: 2n ** 60n,
      negative: -5,
      half: 0.5,
      on: true,
      list: [1, -2],
      words: ['', 'a b'],
    });
    const align = changes.alignment ?? 32;
    expect(header.tensors).toMatchObject([
      { name: 'a', type: 'F32', shape: [3, 5], numBytes: 60 },
      { name: 'b', type: 'F32', shape: [7], numBytes: 28 },
    ]);
    for (const { offset } of header.tensors) expect(offset % align).toBe(0);
  });

  it('keeps a long list only when it is wanted', async () => {
    const texts = Array.from({ length: 50000 }, (_, i) => `token ${i}`);
    const i32s = texts.map((_, i) => i);
    const metadata = { texts: { texts }, i32s: { i32s }, last: { u32: 1 } };
    const file = write(gguf({ metadata }));
    const passed = (await readGgufHeader(file)).metadata;
    expect([...passed]).toEqual([
      ['texts', null],
      ['i32s', null],
      ['last', 1],
    ]);
    const kept = (await readGgufHeader(file, () => true)).metadata;
    expect(kept.get('texts')).toEqual(texts);
    expect(kept.get('i32s')).toEqual(i32s);
  });

  it('has the ids of the tokens that end a turn, of a vocabulary that it passes over', async () => {
    const texts = Array.from({ length: 50000 }, (_, i) => `<token ${i}>`);
    [texts[7], texts[40000], texts[49999]] = ['<end_of_turn>', '<|im_end|>', '<|im_end|>'];
    const file = write(gguf({ metadata: { 'tokenizer.ggml.tokens': { texts } } }));
    const { metadata, endTokens } = await readGgufHeader(file);
    expect(metadata.get('tokenizer.ggml.tokens')).toBeNull();
    expect([...endTokens]).toEqual([
      ['<end_of_turn>', 7],
      ['<|im_end|>', 40000],
    ]);
  });

  it('whose metadata take more memory than any model needs is refused', async () => {
    const long = { text: 'x'.repeat(2 ** 24) };
    const metadata = Object.fromEntries([1, 2, 3, 4, 5].map((i) => [`text${i}`, long]));
    const reading = readGgufHeader(write(gguf({ metadata }), 'long.gguf'));
    await expect(reading).rejects.toThrow(CheckpointError);
    await expect(reading).rejects.toThrow(`with metadata 'text5' its metadata take more than`);
  });

  const MAGIC = Buffer.from('GGUF');
  const LARGE = 2n ** 62n;
  const start = (tensors: bigint | number, entries: bigint | number) =>
    Buffer.concat([MAGIC, uint32(3), uint64(tensors), uint64(entries)]);
  const entry = (type: number, ...value: Buffer[]) =>
    Buffer.concat([start(0, 1), text('key'), uint32(type), ...value]);
  const info = (...parts: Buffer[]) => Buffer.concat([start(1, 0), text('w'), ...parts]);
  const dims = (...sizes: (bigint | number)[]) =>
    Buffer.concat([uint32(sizes.length), ...sizes.map(uint64)]);

  it.each<[string, Buffer, string]>([
    ['another magic', Buffer.from('GGML\x03\0\0\0'), "it begins with 'GGML'"],
    ['no bytes', Buffer.alloc(0), 'the magic number and version needs 8 bytes'],
    ['too many tensors', start(LARGE, 0), `names ${LARGE} tensors`],
    ['too many entries', start(0, LARGE), `names ${LARGE} metadata entries`],
    [
      'a long key',
      Buffer.concat([start(0, 1), uint64(LARGE), Buffer.alloc(20)]),
      'has a length of',
    ],
    ['a long string', entry(8, uint64(LARGE)), "metadata 'key' has a length of"],
    ['an unknown type', entry(13, uint32(0)), "metadata 'key' has the unknown type 13"],
    [
      'a list of an unknown type',
      entry(9, uint32(99), uint64(0)),
      'an array of the unknown type 99',
    ],
    ['a list of lists', entry(9, uint32(9), uint64(1)), 'an array of arrays'],
    ['a long list', entry(9, uint32(4), uint64(LARGE)), "elements of metadata 'key'"],
    ['a long list of strings', entry(9, uint32(8), uint64(2 ** 40)), "elements of metadata 'key'"],
    ['a cut value', entry(10, uint32(1)), "metadata 'key' needs 8 bytes"],
    [
      'a key twice',
      Buffer.concat([
        start(0, 2),
        text('key'),
        uint32(4),
        uint32(1),
        text('key'),
        uint32(4),
        uint32(1),
      ]),
      "metadata 'key' is there twice",
    ],
    [
      'alignment 0',
      gguf({ metadata: { 'general.alignment': { u32: 0 } } }),
      'it must be an integer from 1',
    ],
    ['no dimensions', info(dims(), uint32(0), uint64(0)), "tensor 'w' has 0 dimensions"],
    ['five dimensions', info(dims(1, 1, 1, 1, 1), uint32(0), uint64(0)), 'has 5 dimensions'],
    ['an empty tensor', info(dims(0), uint32(0), uint64(0)), 'which is empty or too large'],
    ['an overflowing shape', info(dims(LARGE, LARGE), uint32(0), uint64(0)), 'empty or too large'],
    ['half a block', info(dims(33), uint32(2), uint64(0)), 'it must be a multiple of 32'],
    [
      'data outside the file',
      info(dims(8), uint32(0), uint64(0)),
      'the file has 57; it is truncated',
    ],
    ['data far outside', info(dims(8), uint32(0), uint64(LARGE)), 'it is truncated or damaged'],
    ['data not aligned', info(dims(8), uint32(0), uint64(4)), 'not at a multiple of 32'],
    [
      'a tensor twice',
      Buffer.concat([
        start(2, 0),
        ...[0, 1].map(() => Buffer.concat([text('w'), dims(1), uint32(0), uint64(0)])),
        Buffer.alloc(64),
      ]),
      "tensor 'w' is there twice",
    ],
    [
      'tensors that overlap',
      gguf({ tensors: { a: tensor(16), b: { ...tensor(16), offset: 32n } } }),
      "tensor 'b': its data, from byte 128, overlap those of tensor 'a'",
    ],
  ])('with %s is refused', async (_, bytes, reason) => {
    const file = write(bytes);
    const reading = readGgufHeader(file);
    await expect(reading).rejects.toThrow(CheckpointError);
    await expect(reading).rejects.toThrow(reason);
    await expect(reading).rejects.toMatchObject({ file });
  });

  it.each<[string, Buffer, string]>([
    ['version 1', gguf({ version: 1 }), 'it is a GGUF file of version 1'],
    ['version 4', gguf({ version: 4 }), 'it is a GGUF file of version 4'],
    ['the other byte order', gguf({ version: 3 << 24 }), 'it is a big-endian GGUF file'],
    ['IQ2_XXS', info(dims(256), uint32(16), uint64(0)), "tensor 'w' has the type IQ2_XXS"],
    ['an unknown type', info(dims(256), uint32(99), uint64(0)), "tensor 'w' has the type 99"],
  ])('of %s is refused by name', async (_, bytes, reason) => {
    const reading = readGgufHeader(write(bytes));
    await expect(reading).rejects.toThrow(UnsupportedModelError);
    await expect(reading).rejects.toThrow(reason);
  });
});

describe('a set of GGUF files', () => {
  const part = (no: number, count: number, tensors: Record<string, ReturnType<typeof tensor>>) =>
    gguf({
      metadata: {
        'split.no': { u32: no },
        'split.count': { u32: count },
        'split.tensors.count': { i32: 2 },
      },
      tensors,
    });
  const first = () => write(part(0, 2, { a: tensor(4) }), 'x-00001-of-00002.gguf');

  it('is named by its first', async () => {
    write(part(1, 2, { b: tensor(6) }), 'x-00002-of-00002.gguf');
    const model = await readGgufModel(first());
    expect(model.files.map((file) => path.basename(file))).toEqual([
      'x-00001-of-00002.gguf',
      'x-00002-of-00002.gguf',
    ]);
    expect([...model.tensors].map(([name, { file, shape }]) => [name, file, shape])).toEqual([
      ['a', 0, [4]],
      ['b', 1, [6]],
    ]);
  });

  it.each<[string, () => string, string]>([
    [
      'named by another part',
      () => write(part(1, 2, { b: tensor(6) }), 'y-00002-of-00002.gguf'),
      'it is part 00002 of a set; name the first, y-00001-of-00002.gguf',
    ],
    [
      'with another name',
      () => write(part(0, 2, { a: tensor(4) }), 'y.gguf'),
      'such a set has parts named NAME-00001-of-00002.gguf',
    ],
    [
      'with a tensor in two parts',
      () => {
        write(part(1, 2, { a: tensor(4) }), 'x-00002-of-00002.gguf');
        return first();
      },
      "tensor 'a' is in another part too",
    ],
    [
      'whose part is of another set',
      () => {
        write(part(1, 3, { b: tensor(4) }), 'x-00002-of-00002.gguf');
        return first();
      },
      "metadata 'split.count' is 3; of the first part it is 2",
    ],
    [
      'without a part',
      () => write(part(0, 3, { a: tensor(4) }), 'z-00001-of-00003.gguf'),
      'z-00002-of-00003.gguf: the file is missing',
    ],
    [
      'whose part has another number',
      () => {
        write(part(0, 2, { b: tensor(4) }), 'x-00002-of-00002.gguf');
        return first();
      },
      "metadata 'split.no' is 0; of this part it must be 1",
    ],
  ])('%s is refused', async (_, make, reason) => {
    await expect(readGgufModel(make())).rejects.toThrow(reason);
  });
});
