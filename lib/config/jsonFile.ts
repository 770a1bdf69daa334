/** Reads a checkpoint's JSON files, with errors that give line and column. */
import { isUtf8 } from 'node:buffer';
import { readFile, readdir, readlink, stat } from 'node:fs/promises';
import path from 'node:path';
import { CheckpointError } from '../errors';
import { isLfsPointer, LFS_POINTER_MESSAGE } from './fileKind';
import { show } from './schema';

/** The grammar of RFC 8259 and Python's NaN and infinities, each rule with leading white space. */
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

/** Maximum nesting in the search for an error, which is recursive. */
const MAX_DEPTH = 500;

/** Offset of the first syntax error, or null. JSON.parse does not always report it. */
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

/** Replaces every `mark` in a value, at any depth, with NaN. */
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

/** Parses JSON with Python's NaN, Infinity and -Infinity. */
function parsePythonNumbers(text: string): unknown {
  let mark = 'NaN';
  while (text.includes(`"${mark}"`)) mark += '*';
  const plain = text.replace(
    /"[^"\\]*(?:\\.[^"\\]*)*"|NaN|Infinity/g,
    (found) => ({ NaN: `"${mark}"`, Infinity: '1e999' })[found] ?? found,
  );
  return unmarkNaN(JSON.parse(plain), mark);
}

/** Parses `text`, the content of `file`, as RFC 8259 JSON. Throws CheckpointError. */
export function parseStrictJson(file: string, text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch (cause) {
    throw notJson(file, text, errorOffset(text), cause);
  }
}

/**
 * Parses `text` as Python's json module: NaN, Infinity and -Infinity are numbers. Skips a byte order
 * mark, also in positions. Throws CheckpointError.
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

/** Without an offset the error is one of Python's numbers. */
function notJson(file: string, text: string, at: number | null, cause: unknown): CheckpointError {
  const offset = at ?? text.search(/\b(?:NaN|Infinity)\b/);
  const before = text.slice(0, offset).split('\n');
  const place = `line ${before.length}, column ${before[before.length - 1].length + 1}`;
  const found = offset < text.length ? `unexpected ${show(text[offset])}` : 'it ends';
  return new CheckpointError(file, `not JSON: ${found} at ${place} (position ${offset})`, {
    cause,
  });
}

/** The message of a node:fs error without syscall and path: ELOOP: too many ... */
export function reasonOf(error: unknown): string {
  return (error as Error).message.replace(/, \w+( '.*')?$/s, '');
}

/** Target of the link `file`, or null if it is not a link. */
async function linkTarget(file: string): Promise<string | null> {
  return readlink(file).catch(() => null);
}

/**
 * Whether the file exists. A dangling link, a folder in its place or a path that cannot be resolved
 * throw CheckpointError with the system's reason.
 */
export async function fileExists(file: string): Promise<boolean> {
  try {
    const stats = await stat(file);
    if (stats.isFile()) return true;
    const found = stats.isDirectory() ? 'EISDIR: it is a folder' : 'it is not a regular file';
    throw new CheckpointError(file, `${found}; it must be a file`);
  } catch (cause) {
    if (cause instanceof CheckpointError) throw cause;
    return checkAbsent(file, cause);
  }
}

/** Lists a folder; empty if it does not exist. Throws CheckpointError as `fileExists`. */
export async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (cause) {
    await checkAbsent(folder, cause);
    return [];
  }
}

/** Returns false if `cause` says that the path does not exist; else throws CheckpointError. */
async function checkAbsent(file: string, cause: unknown): Promise<false> {
  if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') {
    throw new CheckpointError(file, `it cannot be accessed: ${reasonOf(cause)}`, { cause });
  }
  const target = await linkTarget(file);
  if (target === null) return false;
  throw new CheckpointError(
    file,
    `it is a link to ${target}, which does not exist; download the file again`,
    { cause },
  );
}

/** Reads a UTF-8 file. Throws CheckpointError, which says whether the file or its folder is missing. */
export async function readText(file: string): Promise<string> {
  await checkFolder(file);
  if (!(await fileExists(file))) throw new CheckpointError(file, 'the file is missing');
  const bytes = await readFile(file).catch((cause: unknown) => {
    throw new CheckpointError(file, `it cannot be read: ${reasonOf(cause)}`, { cause });
  });
  if (isLfsPointer(bytes)) throw new CheckpointError(file, LFS_POINTER_MESSAGE);
  return decodeText(file, bytes);
}

/** Decodes the content of `file`. Throws CheckpointError if it is not UTF-8. */
export function decodeText(file: string, bytes: Buffer): string {
  // ASCII encoded as UTF-16 is valid UTF-8 with zero bytes.
  if (!isUtf8(bytes) || bytes.subarray(0, 4).includes(0)) {
    throw new CheckpointError(file, notUtf8(bytes));
  }
  return bytes.toString('utf8');
}

/** Throws CheckpointError unless the parent of `file` is a folder. */
async function checkFolder(file: string): Promise<void> {
  const folder = path.dirname(file);
  let reason: string;
  try {
    if ((await stat(folder)).isDirectory()) return;
    reason = `${folder} is not a folder`;
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const target = code === 'ENOENT' ? await linkTarget(folder) : null;
    if (target !== null)
      reason = `the folder ${folder} is a link to ${target}, which does not exist`;
    else if (code === 'ENOENT') reason = `the folder ${folder} does not exist`;
    else reason = `the folder ${folder} cannot be accessed: ${reasonOf(cause)}`;
  }
  throw new CheckpointError(file, `${reason}; download the checkpoint first`);
}

/** Describes bytes that are not UTF-8. */
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
  // Find the shortest prefix that is invalid regardless of further bytes.
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

/** Reads a file that must hold a JSON object. Throws CheckpointError. */
export async function readJsonObject(file: string): Promise<Record<string, unknown>> {
  return parseJsonObject(file, await readText(file));
}

/** Parses `text`, the content of `file`, which must be a JSON object. Throws CheckpointError. */
export function parseJsonObject(file: string, text: string): Record<string, unknown> {
  const value = parseJson(file, text);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new CheckpointError(file, 'it must hold a JSON object');
  }
  return value as Record<string, unknown>;
}
