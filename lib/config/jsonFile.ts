/** JSON files of a checkpoint's folder, read with errors that say where they are wrong. */
import { readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import { CheckpointError } from '../errors';
import { show } from './schema';

/** The grammar of RFC 8259, each rule with the white space before it. */
const SPACE = /[ \t\n\r]*/y;
const STRING = /[ \t\n\r]*"(?:[ !#-[\]-\uffff]|\\(?:["\\/bfnrt]|u[\da-fA-F]{4}))*"/y;
const SCALAR = /[ \t\n\r]*(?:-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)/y;
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

/** Where `text` stops being JSON, an offset: JSON.parse does not always tell. */
function errorOffset(text: string): number {
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
  value(0);
  has(SPACE);
  return at;
}

/** `text` as JSON; `file` is where it comes from. Throws CheckpointError. */
export function parseJson(file: string, text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch (cause) {
    const offset = errorOffset(text);
    const before = text.slice(0, offset).split('\n');
    const place = `line ${before.length}, column ${before[before.length - 1].length + 1}`;
    const found = offset < text.length ? `unexpected ${show(text[offset])}` : 'it ends';
    throw new CheckpointError(file, `not JSON: ${found} at ${place} (position ${offset})`, {
      cause,
    });
  }
}

/** Whether there is a file of that name. */
export async function fileExists(file: string): Promise<boolean> {
  return stat(file).then(
    (stats) => stats.isFile(),
    () => false,
  );
}

/** A file's text. Throws CheckpointError that says whether file or folder is missing. */
export async function readText(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (cause) {
    const folder = path.dirname(file);
    const isFolder = await stat(folder).then(
      (stats) => stats.isDirectory(),
      () => false,
    );
    if (!isFolder)
      throw new CheckpointError(
        file,
        `there is no folder ${folder}; download the checkpoint first`,
        { cause },
      );
    const { code, message } = cause as NodeJS.ErrnoException;
    throw new CheckpointError(file, code === 'ENOENT' ? 'the file is missing' : message, { cause });
  }
}

/** A file that holds a JSON object. Throws CheckpointError. */
export async function readJsonObject(file: string): Promise<Record<string, unknown>> {
  const value = parseJson(file, await readText(file));
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new CheckpointError(file, 'it must hold a JSON object');
  }
  return value as Record<string, unknown>;
}
