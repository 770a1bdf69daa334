/** JSON files of a checkpoint's folder, read with errors that say where they are wrong. */
import { isUtf8 } from 'node:buffer';
import { readFile, readdir, readlink, stat } from 'node:fs/promises';
import path from 'node:path';
import { CheckpointError } from '../errors';
import { show } from './schema';

/** The grammar of RFC 8259 and Python's three further numbers, each rule with the white space before it. */
const SPACE = /[ \t\n\r]*/y;
const STRING =
  /[ \t\n\r]*"[ !#-[\]-\uffff]*(?:\\(?:["\\/bfnrt]|u[\da-fA-F]{4})[ !#-[\]-\uffff]*)*"/y;
const SCALAR =
  /[ \t\n\r]*(?:-?(?:(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|Infinity)|NaN|true|false|null)/y;
const [OPEN_OBJECT, CLOSE_OBJECT, OPEN_ARRAY, CLOSE_ARRAY, COLON, COMMA] = [
  '{',
  '}',
  '[',
  ']',
  ':',
  ',',
].map((mark) => new RegExp(`[ \\t\\n\\r]*\\${mark}`, 'y'));

/** Nesting below which the search for an error does not go: its own stack is limited. */
const MAX_DEPTH = 500;

/** Where `text` stops being JSON, an offset; null when all of it is. JSON.parse does not always tell. */
function errorOffset(text: string): number | null {
  let at = 0;
  const has = (rule: RegExp): boolean => {
    rule.lastIndex = at;
    if (!rule.test(text)) return false;
    at = rule.lastIndex;
    return true;
  };
  const list = (item: () => boolean, close: RegExp): boolean => {
    if (has(close)) return true;
    do {
      if (!item()) return false;
    } while (has(COMMA));
    return has(close);
  };
  const value = (depth: number): boolean => {
    if (depth > MAX_DEPTH) return false;
    const member = () => has(STRING) && has(COLON) && value(depth + 1);
    if (has(OPEN_OBJECT)) return list(member, CLOSE_OBJECT);
    if (has(OPEN_ARRAY)) return list(() => value(depth + 1), CLOSE_ARRAY);
    return has(STRING) || has(SCALAR);
  };
  const isWhole = value(0);
  has(SPACE);
  return isWhole && at === text.length ? null : at;
}

/** A value with every `mark` in it, at any depth, made NaN. */
function unmarkNaN(value: unknown, mark: string): unknown {
  const root = [value];
  const lists: unknown[] = [root];
  for (let list = lists.pop(); list !== undefined; list = lists.pop()) {
    const members = list as Record<string, unknown>;
    for (const [key, member] of Object.entries(members)) {
      if (member === mark) {
        Object.defineProperty(members, key, { value: NaN }); // not a setter, even of __proto__
      } else if (typeof member === 'object' && member !== null) lists.push(member);
    }
  }
  return root[0];
}

/** Valid JSON but for the NaN, Infinity and -Infinity that Python's json module writes and reads. */
function parsePythonNumbers(text: string): unknown {
  let mark = 'NaN';
  while (text.includes(`"${mark}"`)) mark += '*';
  const plain = text.replace(
    /"[^"\\]*(?:\\.[^"\\]*)*"|NaN|Infinity/g,
    (found) => ({ NaN: `"${mark}"`, Infinity: '1e999' })[found] ?? found,
  );
  return unmarkNaN(JSON.parse(plain), mark);
}

/** `text` as RFC 8259 has JSON; `file` is where it comes from. Throws CheckpointError. */
export function parseStrictJson(file: string, text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch (cause) {
    throw notJson(file, text, errorOffset(text), cause);
  }
}

/**
 * `text` as Python's json module reads it: NaN, Infinity and -Infinity are numbers. A byte order mark
 * before it does not count, in positions neither. Throws CheckpointError.
 */
export function parseJson(file: string, text: string): unknown {
  const json = text.startsWith('\ufeff') ? text.slice(1) : text;
  try {
    return JSON.parse(json) as unknown;
  } catch (cause) {
    const offset = errorOffset(json);
    if (offset === null) return parsePythonNumbers(json);
    throw notJson(file, json, offset, cause);
  }
}

/** Without an offset it is one of Python's numbers that is not JSON. */
function notJson(file: string, text: string, at: number | null, cause: unknown): CheckpointError {
  const offset = at ?? text.search(/\b(?:NaN|Infinity)\b/);
  const before = text.slice(0, offset).split('\n');
  const place = `line ${before.length}, column ${before[before.length - 1].length + 1}`;
  const found = offset < text.length ? `unexpected ${show(text[offset])}` : 'it ends';
  return new CheckpointError(file, `not JSON: ${found} at ${place} (position ${offset})`, {
    cause,
  });
}

/** What a call of node:fs failed with, as a reader of the message needs it: ELOOP: too many ... */
export function reasonOf(error: unknown): string {
  return (error as Error).message.replace(/, \w+( '.*')?$/s, '');
}

/** Where the link `file` leads, null when it is no link. */
async function linkTarget(file: string): Promise<string | null> {
  return readlink(file).catch(() => null);
}

/**
 * Whether there is a file of that name. Only what is really absent is: a link to nothing, a folder in
 * its place, a path that cannot be followed throw CheckpointError with the system's reason.
 */
export async function fileExists(file: string): Promise<boolean> {
  try {
    const stats = await stat(file);
    if (stats.isFile()) return true;
    const found = stats.isDirectory() ? 'EISDIR: it is a folder' : 'it is no regular file';
    throw new CheckpointError(file, `${found}; it must be a file`);
  } catch (cause) {
    if (cause instanceof CheckpointError) throw cause;
    return checkAbsent(file, cause);
  }
}

/** The names in a folder; none when there is no such folder. Throws CheckpointError as `fileExists`. */
export async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (cause) {
    await checkAbsent(folder, cause);
    return [];
  }
}

/** `false` when `cause`, why a path was not found, is that it is absent; else throws CheckpointError. */
async function checkAbsent(file: string, cause: unknown): Promise<false> {
  if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') {
    throw new CheckpointError(file, `it cannot be looked up: ${reasonOf(cause)}`, { cause });
  }
  const target = await linkTarget(file);
  if (target === null) return false;
  throw new CheckpointError(
    file,
    `it is a link to ${target}, which is not there; download the file again`,
    { cause },
  );
}

/** A file's text, UTF-8. Throws CheckpointError that says whether file or folder is missing. */
export async function readText(file: string): Promise<string> {
  await checkFolder(file);
  if (!(await fileExists(file))) throw new CheckpointError(file, 'the file is missing');
  const bytes = await readFile(file).catch((cause: unknown) => {
    throw new CheckpointError(file, `it cannot be read: ${reasonOf(cause)}`, { cause });
  });
  return decodeText(file, bytes);
}

/** The content of `file` as text. Throws CheckpointError for what is not UTF-8. */
export function decodeText(file: string, bytes: Buffer): string {
  // UTF-16 of ASCII is valid UTF-8, full of zeros.
  if (!isUtf8(bytes) || bytes.subarray(0, 4).includes(0)) {
    throw new CheckpointError(file, notUtf8(bytes));
  }
  return bytes.toString('utf8');
}

/** The folder that `file` is to be in is one. */
async function checkFolder(file: string): Promise<void> {
  const folder = path.dirname(file);
  let reason: string;
  try {
    if ((await stat(folder)).isDirectory()) return;
    reason = `${folder} is no folder`;
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const target = code === 'ENOENT' ? await linkTarget(folder) : null;
    if (target !== null) reason = `the folder ${folder} is a link to ${target}, which is not there`;
    else if (code === 'ENOENT') reason = `there is no folder ${folder}`;
    else reason = `the folder ${folder} cannot be looked up: ${reasonOf(cause)}`;
  }
  throw new CheckpointError(file, `${reason}; download the checkpoint first`);
}

/** What is wrong with bytes that are not UTF-8. */
function notUtf8(bytes: Buffer): string {
  const marks = [
    ['UTF-32', [0xff, 0xfe, 0, 0]],
    ['UTF-32', [0, 0, 0xfe, 0xff]],
    ['UTF-16', [0xff, 0xfe]],
    ['UTF-16', [0xfe, 0xff]],
  ] as const;
  for (const [encoding, mark] of marks) {
    if (mark.every((byte, i) => bytes[i] === byte)) return `it is ${encoding}; save it as UTF-8`;
  }
  if (bytes.subarray(0, 4).includes(0)) return 'it is UTF-16 or UTF-32; save it as UTF-8';
  // The shortest beginning that no further bytes could make valid.
  let [valid, invalid] = [0, bytes.length + 1];
  while (invalid - valid > 1) {
    const middle = (valid + invalid) >> 1;
    try {
      const isStart = middle <= bytes.length;
      const decoder = new TextDecoder('utf-8', { fatal: true });
      decoder.decode(bytes.subarray(0, middle), { stream: isStart });
      valid = middle;
    } catch {
      invalid = middle;
    }
  }
  const found =
    invalid > bytes.length ? 'it ends within a character' : `byte ${invalid - 1} is not`;
  return `it is not UTF-8: ${found}; save it as UTF-8`;
}

/** A file that holds a JSON object. Throws CheckpointError. */
export async function readJsonObject(file: string): Promise<Record<string, unknown>> {
  return parseJsonObject(file, await readText(file));
}

/** The JSON object that `text`, the content of `file`, is. Throws CheckpointError. */
export function parseJsonObject(file: string, text: string): Record<string, unknown> {
  const value = parseJson(file, text);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new CheckpointError(file, 'it must hold a JSON object');
  }
  return value as Record<string, unknown>;
}
