/** Parses large JSON text in pieces, so that other work can run between them. */

/** Characters parsed or scanned between yields: a fraction of a millisecond. */
const PIECE_LENGTH = 1 << 15;
/** Depth to which values are divided; deeper ones are parsed whole. */
const MAX_DEPTH = 2;

const [QUOTE, BACKSLASH, COMMA] = ['"', '\\', ','].map((mark) => mark.charCodeAt(0));
const OPENING = new Set(['{', '['].map((mark) => mark.charCodeAt(0)));
const CLOSING = new Set(['}', ']'].map((mark) => mark.charCodeAt(0)));

/** A member's key and colon. */
const KEY = /^[ \t\n\r]*("(?:[^"\\]|\\.)*")[ \t\n\r]*:/s;
const NOT_SPACE = /[^ \t\n\r]/;

/** Consecutive members of an object or array, without its brackets. */
interface Members {
  text: string;
  /** Whether this is one member longer than a piece. */
  isLarge: boolean;
}

/**
 * Returns what JSON.parse makes of `text`, except that large objects are Maps, whose entries can be
 * read one by one, and yields between pieces of some 30,000 characters. Text that cannot be divided,
 * such as invalid JSON, is left to `parse`.
 */
export function* parseInPieces(
  text: string,
  parse: (text: string) => unknown,
): Generator<void, unknown> {
  try {
    return yield* parseValue(text, 0);
  } catch {
    return parse(text);
  }
}

export type JsonObject = ReadonlyMap<string, unknown> | Readonly<Record<string, unknown>>;

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The member's value, or undefined. */
export function memberOf(object: JsonObject, key: string): unknown {
  if (object instanceof Map) return (object as Map<string, unknown>).get(key);
  return (object as Readonly<Record<string, unknown>>)[key];
}

export function entriesOf(object: JsonObject): Iterable<[string, unknown]> {
  return object instanceof Map ? (object as Map<string, unknown>) : Object.entries(object);
}

function* parseValue(text: string, depth: number): Generator<void, unknown> {
  yield;
  const begin = text.search(NOT_SPACE);
  const isContainer = OPENING.has(text.charCodeAt(begin));
  if (text.length <= PIECE_LENGTH || depth === MAX_DEPTH || !isContainer) {
    return JSON.parse(text) as unknown;
  }
  return yield* text[begin] === '{'
    ? parseObject(text, begin, depth)
    : parseArray(text, begin, depth);
}

function* parseObject(
  text: string,
  begin: number,
  depth: number,
): Generator<void, Map<string, unknown>> {
  const object = new Map<string, unknown>();
  for (const members of divide(text, begin)) {
    yield;
    if (members === null) continue;
    if (!members.isLarge) {
      const parsed = JSON.parse(`{${members.text}}`) as Record<string, unknown>;
      for (const [key, value] of Object.entries(parsed)) object.set(key, value);
    } else {
      const [keyAndColon, key] = KEY.exec(members.text) ?? invalid();
      const value = members.text.slice(keyAndColon.length);
      object.set(JSON.parse(key) as string, yield* parseValue(value, depth + 1));
    }
  }
  return object;
}

function* parseArray(text: string, begin: number, depth: number): Generator<void, unknown[]> {
  const array: unknown[] = [];
  for (const members of divide(text, begin)) {
    yield;
    if (members === null) continue;
    if (members.isLarge) array.push(yield* parseValue(members.text, depth + 1));
    else array.push(...(JSON.parse(`[${members.text}]`) as unknown[]));
  }
  return array;
}

/**
 * Divides the members of the object or array that opens at `begin`. Yields null after a piece
 * without the end of a member. Throws SyntaxError.
 */
function* divide(text: string, begin: number): Generator<Members | null, void> {
  let piece = begin + 1; // where the members begin that were not yielded yet
  let member = piece; // where the current member begins
  let depth = 0;
  let isInString = false;
  let yielded = begin;
  let at = begin;
  for (; at < text.length; at++) {
    if (at - yielded >= PIECE_LENGTH) {
      yield null;
      yielded = at;
    }
    const mark = text.charCodeAt(at);
    if (isInString) {
      if (mark === BACKSLASH) at++;
      else if (mark === QUOTE) isInString = false;
    } else if (mark === QUOTE) {
      isInString = true;
    } else if (OPENING.has(mark)) {
      depth++;
    } else if (CLOSING.has(mark)) {
      depth--;
      if (depth === 0) break;
    } else if (mark === COMMA && depth === 1) {
      if (at - member > PIECE_LENGTH) {
        if (member > piece) yield { text: text.slice(piece, member - 1), isLarge: false };
        yield { text: text.slice(member, at), isLarge: true };
        piece = at + 1;
      } else if (at - piece > PIECE_LENGTH) {
        yield { text: text.slice(piece, at), isLarge: false };
        piece = at + 1;
      }
      member = at + 1;
    }
  }
  const closing = text[begin] === '{' ? '}' : ']';
  const isEmpty = (from: number, to: number) => text.slice(from, to).search(NOT_SPACE) < 0;
  const hasTrailingComma = member > begin + 1 && isEmpty(member, at);
  if (text[at] !== closing || hasTrailingComma || !isEmpty(at + 1, text.length)) invalid();
  if (at - member <= PIECE_LENGTH) {
    yield { text: text.slice(piece, at), isLarge: false };
  } else {
    if (member > piece) yield { text: text.slice(piece, member - 1), isLarge: false };
    yield { text: text.slice(member, at), isLarge: true };
  }
}

function invalid(): never {
  throw new SyntaxError('invalid JSON');
}
