/** Parsing JSON like Python's json module, and errors for missing and irregular files. */
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

/** The error message for a file with that content. */
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

  it('keeps a NaN under __proto__ as a plain field', async () => {
    const json = await readJsonObject(await fileWith('{"__proto__": NaN, "a": 1}'));
    expect(Object.getOwnPropertyDescriptor(json, '__proto__')?.value).toBeNaN();
  });

  // Python refuses them too; bare lists and numbers are refused by transformers.
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
  it("refuses Python's extensions of JSON", () => {
    for (const text of ['{"a": NaN}', '[-Infinity]', `${BOM}{}`]) {
      expect(() => parseStrictJson('file', text)).toThrow(/^file: not JSON: unexpected/);
      expect(() => parseJson('file', text)).not.toThrow();
    }
  });
});

describe('fileExists', () => {
  /** The result or error message of fileExists for a path in `folder`. */
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

  it('returns false for a missing file', async () => {
    expect(await fileExists(path.join(await folderWith({}), NAME))).toBe(false);
  });

  it('names a dangling link and its target', async () => {
    const file = path.join(await folderWith({}), NAME);
    await symlink('../blobs/0123', file);
    expect(await verdict(file)).toContain('it is a link to ../blobs/0123, which does not exist');
  });

  it('refuses a folder in place of a file', async () => {
    const file = path.join(await folderWith({}), NAME);
    await mkdir(file);
    expect(await verdict(file)).toContain('it is a folder; it must be a file');
  });

  it('refuses a device in place of a file', async () => {
    const file = path.join(await folderWith({}), NAME);
    await symlink('/dev/null', file);
    expect(await verdict(file)).toContain('it is not a regular file');
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
  ])("reports the system's reason %s", async (code, pathIn) => {
    const file = await pathIn(await folderWith({ [NAME]: '{}' }));
    expect(await verdict(file)).toContain(`it cannot be accessed: ${code}: `);
  });
});

describe('without permission', () => {
  /** The error of `call` in a process without root's permissions. */
  async function refused(call: () => Promise<unknown>) {
    const isRoot = process.geteuid?.() === 0;
    if (isRoot) process.seteuid?.(65534); // nobody
    try {
      return await rejection(call());
    } finally {
      if (isRoot) process.seteuid?.(0);
    }
  }

  it('to search its folder, a file is not reported as missing', async () => {
    const file = await fileWith('{}');
    await chmod(path.dirname(file), 0);
    const error = await refused(() => fileExists(file));
    await chmod(path.dirname(file), 0o700);
    expect(error).toMatchObject({ code: 'CHECKPOINT_INVALID', file });
    expect(error.message).toContain('it cannot be accessed: EACCES: permission denied');
  });

  it('to read it, a file is an error with that reason', async () => {
    const file = await fileWith('{}');
    await chmod(path.dirname(file), 0o755);
    await chmod(file, 0);
    const error = await refused(() => readText(file));
    expect(error).toMatchObject({ code: 'CHECKPOINT_INVALID', file });
    expect(error.message).toContain('it cannot be read: EACCES: permission denied');
  });
});

describe('readText', () => {
  it('reports that the folder is a dangling link', async () => {
    const folder = await folderWith({});
    const link = path.join(folder, 'model');
    await symlink('gone', link);
    const error = await rejection(readText(path.join(link, NAME)));
    expect(error.message).toContain(`the folder ${link} is a link to gone, which does not exist`);
  });

  it('reports a missing folder', async () => {
    const folder = await folderWith({ gone: '' });
    await rm(path.join(folder, 'gone'));
    const error = await rejection(readText(path.join(folder, 'gone', NAME)));
    expect(error.message).toContain(`the folder ${path.join(folder, 'gone')} does not exist`);
  });

  it('reports that the folder is a file', async () => {
    const file = await fileWith('{}');
    const error = await rejection(readText(path.join(file, NAME)));
    expect(error.message).toContain(`${file} is not a folder`);
  });
});
