/** Files as Python's json module writes and reads them, and what stands where a file should. */
import { chmod, mkdir, rm, symlink } from 'node:fs/promises';
import path from 'node:path';
import {
  fileExists,
  parseJson,
  parseStrictJson,
  readJsonObject,
  readText,
} from '../../lib/config/jsonFile';
import { folderWith } from '../support/folder';
import { rejection } from '../model/checkpointFolder';

const NAME = 'config.json';
const BOM = '\ufeff';

async function fileWith(content: string | Buffer): Promise<string> {
  return path.join(await folderWith({ [NAME]: content }), NAME);
}

/** What reading a file of that content complains of. */
async function complaint(content: string | Buffer): Promise<string> {
  const file = await fileWith(content);
  const error = await rejection(readJsonObject(file));
  expect(error).toMatchObject({ code: 'CHECKPOINT_INVALID', file });
  return error.message.slice(`${file}: `.length);
}

describe('readJsonObject', () => {
  // Values: Python 3.11's json.loads.
  it.each<[string, string, Record<string, unknown>]>([
    ['a byte order mark', `${BOM}{"a": 1}`, { a: 1 }],
    ['NaN', '{"a": NaN}', { a: NaN }],
    ['infinities', '{"a": [Infinity, -Infinity]}', { a: [Infinity, -Infinity] }],
    ['NaN at any depth', '{"a": [{"b": [1, NaN]}], "c": 2}', { a: [{ b: [1, NaN] }], c: 2 }],
    ['words in strings and keys', '{"NaN": "NaN", "a": NaN}', { NaN: 'NaN', a: NaN }],
    ['escapes before words', '{"a\\\\": NaN, "\\"NaN": 1}', { 'a\\': NaN, '"NaN': 1 }],
    ['a mark before them', `${BOM}\n{"a": -Infinity}\n`, { a: -Infinity }],
    ['a key twice', '{"a": 1, "a": 2}', { a: 2 }],
    ['half of a surrogate pair', '{"a": "\\ud800"}', { a: '\ud800' }],
    ['numbers beyond float64', '{"a": 1e999, "b": NaN}', { a: Infinity, b: NaN }],
  ])('reads %s', async (_, content, expected) => {
    expect(await readJsonObject(await fileWith(content))).toEqual(expected);
  });

  it('makes a NaN under __proto__ no setter', async () => {
    const json = await readJsonObject(await fileWith('{"__proto__": NaN, "a": 1}'));
    expect(Object.getOwnPropertyDescriptor(json, '__proto__')?.value).toBeNaN();
  });

  // Python refuses them too; of the lists and numbers alone it is transformers that does.
  it.each([
    ['{"a": nan}', "not JSON: unexpected 'n' at line 1, column 7 (position 6)"],
    ['{"a": +Infinity}', "unexpected '+' at line 1, column 7 (position 6)"],
    ['{"a": 1Infinity}', "unexpected 'I' at line 1, column 8 (position 7)"],
    ['{"a": NaN1}', "unexpected '1' at line 1, column 10 (position 9)"],
    ['{"a": --Infinity}', "unexpected '-' at line 1, column 7 (position 6)"],
    ['{NaN: 1}', "unexpected 'N' at line 1, column 2 (position 1)"],
    ['{"a": NaN,\n "b": }', "unexpected '}' at line 2, column 7 (position 17)"],
    ['{"a": NaN', 'it ends at line 1, column 10 (position 9)'],
    ['{"a": "\u0001"}', 'unexpected'],
    [`{"a": 1}${BOM}`, 'unexpected'],
    [`${BOM}{"a": x}`, "unexpected 'x' at line 1, column 7 (position 6)"],
    [`${BOM}${BOM}{}`, 'unexpected'],
    ['[NaN]', 'it must hold a JSON object'],
    ['NaN', 'it must hold a JSON object'],
    ['', 'it ends at line 1, column 1'],
  ])('refuses %j', async (content, message) => {
    expect(await complaint(content)).toContain(message);
  });

  it.each<[string, Buffer, string]>([
    ['UTF-16', Buffer.from(`${BOM}{"a": 1}`, 'utf16le'), 'it is UTF-16; save it as UTF-8'],
    ['UTF-16 without a mark', Buffer.from('{"a": 1}', 'utf16le'), 'it is UTF-16 or UTF-32'],
    [
      'big-endian UTF-16',
      Buffer.from(`${BOM}{"a": 1}`, 'utf16le').swap16(),
      'it is UTF-16; save it as UTF-8',
    ],
    ['UTF-32', Buffer.from([0xff, 0xfe, 0, 0, 0x7b, 0, 0, 0]), 'it is UTF-32; save it as UTF-8'],
    ['Latin-1', Buffer.from('{"a": "é", "b": 1}', 'latin1'), 'it is not UTF-8: byte 8 is not'],
    [
      'half of a character',
      Buffer.from('{"a": "é').subarray(0, -1),
      'it is not UTF-8: it ends within a character',
    ],
  ])('refuses %s', async (_, content, message) => {
    expect(await complaint(content)).toContain(message);
  });
});

describe('parseStrictJson', () => {
  it('refuses what only Python takes for JSON', () => {
    for (const text of ['{"a": NaN}', '[-Infinity]', `${BOM}{}`]) {
      expect(() => parseStrictJson('file', text)).toThrow(/^file: not JSON: unexpected/);
      expect(() => parseJson('file', text)).not.toThrow();
    }
  });
});

describe('fileExists', () => {
  /** A path of `folder` and what is said of it. */
  async function verdict(file: string): Promise<string> {
    const error = await rejection(fileExists(file));
    expect(error).toMatchObject({ code: 'CHECKPOINT_INVALID', file });
    return error.message;
  }

  it('finds a file, and a file behind links', async () => {
    const file = await fileWith('{}');
    const link = `${file}.link`;
    await symlink(NAME, link);
    expect(await fileExists(file)).toBe(true);
    expect(await fileExists(link)).toBe(true);
  });

  it('takes a file that is not there for absent', async () => {
    expect(await fileExists(path.join(await folderWith({}), NAME))).toBe(false);
  });

  it('names a link to nothing and where it leads', async () => {
    const file = path.join(await folderWith({}), NAME);
    await symlink('../blobs/0123', file);
    expect(await verdict(file)).toContain('it is a link to ../blobs/0123, which is not there');
  });

  it('names a folder in the place of a file', async () => {
    const file = path.join(await folderWith({}), NAME);
    await mkdir(file);
    expect(await verdict(file)).toContain('it is a folder; it must be a file');
  });

  it('names a device in the place of a file', async () => {
    const file = path.join(await folderWith({}), NAME);
    await symlink('/dev/null', file);
    expect(await verdict(file)).toContain('it is no regular file');
  });

  it.each<[string, (folder: string) => Promise<string>]>([
    [
      'ELOOP',
      async (folder) => {
        await symlink('b', path.join(folder, 'a'));
        await symlink('a', path.join(folder, 'b'));
        return path.join(folder, 'a');
      },
    ],
    ['ENAMETOOLONG', (folder) => Promise.resolve(path.join(folder, 'a'.repeat(300)))],
    ['ENOTDIR', (folder) => Promise.resolve(path.join(folder, NAME, NAME))],
  ])('passes on the reason %s', async (code, pathIn) => {
    const file = await pathIn(await folderWith({ [NAME]: '{}' }));
    expect(await verdict(file)).toContain(`it cannot be looked up: ${code}: `);
  });
});

describe('without permission', () => {
  /** What `call` rejects with where the process may not do all, as root may. */
  async function refused(call: () => Promise<unknown>) {
    const isRoot = process.geteuid?.() === 0;
    if (isRoot) process.seteuid?.(65534); // nobody
    try {
      return await rejection(call());
    } finally {
      if (isRoot) process.seteuid?.(0);
    }
  }

  it('to search its folder a file is not taken for absent', async () => {
    const file = await fileWith('{}');
    await chmod(path.dirname(file), 0);
    const error = await refused(() => fileExists(file));
    await chmod(path.dirname(file), 0o700);
    expect(error).toMatchObject({ code: 'CHECKPOINT_INVALID', file });
    expect(error.message).toContain('it cannot be looked up: EACCES: permission denied');
  });

  it('to read it a file is an error with that reason', async () => {
    const file = await fileWith('{}');
    await chmod(path.dirname(file), 0o755);
    await chmod(file, 0);
    const error = await refused(() => readText(file));
    expect(error).toMatchObject({ code: 'CHECKPOINT_INVALID', file });
    expect(error.message).toContain('it cannot be read: EACCES: permission denied');
  });
});

describe('readText', () => {
  it('says when the folder is a link to nothing', async () => {
    const folder = await folderWith({});
    const link = path.join(folder, 'model');
    await symlink('gone', link);
    const error = await rejection(readText(path.join(link, NAME)));
    expect(error.message).toContain(`the folder ${link} is a link to gone, which is not there`);
  });

  it('says when there is no such folder', async () => {
    const folder = await folderWith({ gone: '' });
    await rm(path.join(folder, 'gone'));
    const error = await rejection(readText(path.join(folder, 'gone', NAME)));
    expect(error.message).toContain(`there is no folder ${path.join(folder, 'gone')}`);
  });

  it('says when the folder is a file', async () => {
    const file = await fileWith('{}');
    const error = await rejection(readText(path.join(file, NAME)));
    expect(error.message).toContain(`${file} is no folder`);
  });
});
